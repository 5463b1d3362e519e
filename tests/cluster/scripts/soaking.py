"""A training that a test kills again and again; writes what came of it into result-WORKER.json.

soaking.py SECONDS_A_STEP

What is compared: every weight and optimizer variable, the history, and for each row how often it
was trained on, and at which steps: their sum and the sum of their squares.
"""

import gzip
import hashlib
import importlib.resources
import json
import os
import sys
import time

import keras
import numpy as np
import tensorflow as tf

import tfdp

PAUSE = float(sys.argv[1])
INDEX = json.loads(os.environ["TF_CONFIG"])["task"]["index"]
ROWS, BATCH, EPOCHS = 360, 32, 40
strategy = tfdp.strategy()
keras.utils.set_random_seed(5)
tf.config.experimental.enable_op_determinism()
keras.mixed_precision.set_global_policy("mixed_float16")

with importlib.resources.files("tfdp.datasets").joinpath("digits.csv.gz").open("rb") as file:
    table = np.loadtxt(gzip.open(file, "rt"), delimiter=",", max_rows=ROWS + 100)
images, labels = (table[:, :64] / 16).astype("float32"), table[:, 64].astype("int32")
ids = np.arange(len(labels), dtype="int32")
inputs = {"image": images, "id": ids}
train = tf.data.Dataset.from_tensor_slices(
    ({name: value[:ROWS] for name, value in inputs.items()}, labels[:ROWS])
)
held_out = ({name: value[ROWS:] for name, value in inputs.items()}, labels[ROWS:])


@keras.saving.register_keras_serializable("soak")
class Ledger(keras.layers.Layer):
    """Counts, for each row, at which steps it was trained on."""

    def __init__(self):
        super().__init__(dtype="float32")
        kept = {"initializer": "zeros", "trainable": False}
        self.step = self.add_weight(shape=(), dtype="int32", name="step", **kept)
        self.rows = self.add_weight(
            shape=(3, ROWS), dtype="int32", name="rows", aggregation="sum", **kept
        )

    def call(self, ids, training=False):
        if training:
            self.step.assign(self.step + 1)
            held = keras.ops.one_hot(ids, ROWS, dtype="int32")
            count = keras.ops.sum(held, axis=0)
            step = keras.ops.convert_to_tensor(self.step)
            self.rows.assign(
                self.rows + keras.ops.stack([count, count * step, count * step * step])
            )
        return keras.ops.cast(ids, "float32")[:, None] * 0.0


with strategy.scope():
    image = keras.Input((64,), name="image")
    number = keras.Input((), dtype="int32", name="id")
    x = keras.layers.Dense(32, "relu")(image)
    x = keras.layers.BatchNormalization()(x)
    x = keras.layers.Dropout(0.2)(x)
    x = keras.layers.Dense(10, dtype="float32")(x) + Ledger()(number)
    model = keras.Model({"image": image, "id": number}, x)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.01), loss, metrics=["accuracy"])


class Slow(keras.callbacks.Callback):
    """A step takes as long as one of a larger model, so that kills find it in all places."""

    def on_train_batch_end(self, batch, logs=None):
        time.sleep(PAUSE)


history = model.fit(
    train.shuffle(ROWS, seed=2).batch(BATCH),
    epochs=EPOCHS,
    validation_data=held_out,
    verbose=0,
    callbacks=[
        tfdp.callbacks.BackupAndRestore("backup", save_freq=5),
        keras.callbacks.EarlyStopping("val_loss", patience=6, restore_best_weights=True),
        keras.callbacks.ReduceLROnPlateau("val_loss", patience=2, factor=0.5),
        Slow(),
    ],
)
weights = b"".join(np.asarray(v).tobytes() for v in [*model.variables, *model.optimizer.variables])
ledger = next(layer for layer in model.layers if isinstance(layer, Ledger))
result = {
    "weights": hashlib.sha256(weights).hexdigest(),
    "ledger": hashlib.sha256(np.asarray(ledger.rows).tobytes()).hexdigest(),
    "times": sorted(set(np.asarray(ledger.rows)[0].tolist())),
    "history": history.history,
    "epochs": history.epoch,
}
with open(f"result-{INDEX}.json.part", "w") as file:
    json.dump(result, file)
os.replace(f"result-{INDEX}.json.part", f"result-{INDEX}.json")
