"""Trains, is killed by its own hand at some steps, and goes on; prints what came of it.

recovering.py FOLDER EPOCHS

KILLS="0:7,1:13" in the environment: worker 0 is killed (SIGKILL) at step 7 of all in the
first start, worker 1 at step 13 in the second. END="0:9": SIGTERM to worker 0 at step 9.
STRATEGY=parameter_server: the chief does so, and "ps:7" kills a server. END="launcher:9": SIGTERM
to the launcher.
"""

import hashlib
import json
import os
import pathlib
import signal
import sys

import keras
import numpy as np
import tensorflow as tf

import tfdp

ME = str(json.loads(os.environ["TF_CONFIG"])["task"]["index"])
RESTART = int(os.environ.get("TFDP_RESTART", "0"))
DROPOUT = float(os.environ.get("DROPOUT", "0.3"))
if os.environ.get("STRATEGY") == "parameter_server":
    strategy = tfdp.strategy("parameter_server", max_staleness=0, min_partition_bytes=16)
else:
    strategy = tfdp.strategy("multi_worker")
keras.utils.set_random_seed(5)
tf.config.experimental.enable_op_determinism()
rng = np.random.default_rng(0)
x = rng.normal(size=(90, 6)).astype("float32")
y = (x[:, 0] > x[:, 1]).astype("int32")
data = tf.data.Dataset.from_tensor_slices((x, y)).shuffle(90, seed=2).batch(12)

with strategy.scope():
    layers = [keras.Input((6,)), keras.layers.Dense(16, "relu")]
    if DROPOUT:
        layers += [keras.layers.BatchNormalization(), keras.layers.Dropout(DROPOUT)]
    model = keras.Sequential([*layers, keras.layers.Dense(2)])
    optimizer = keras.optimizers.LossScaleOptimizer(
        keras.optimizers.Adam(0.01), dynamic_growth_steps=7
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss, metrics=["accuracy"])


class Die(keras.callbacks.Callback):
    def __init__(self, plan, number):
        super().__init__()
        self.plan, self.number, self.steps = plan, number, 0

    def state_dict(self):
        return {"steps": self.steps}

    def load_state_dict(self, state):
        self.steps = state["steps"]

    def on_train_batch_end(self, batch, logs=None):
        self.steps += 1
        who, _, step = self.plan.partition(":")
        if step == str(self.steps):
            if who == ME:
                os.kill(os.getpid(), self.number)
            elif who == "ps":
                os.kill(server(), self.number)
            elif who == "launcher" and ME == "0":
                os.kill(os.getppid(), self.number)


def server():
    """Return the process of ps:0 of this cluster."""
    cluster = json.dumps(json.loads(os.environ["TF_CONFIG"])["cluster"])
    for entry in filter(str.isdecimal, os.listdir("/proc")):
        try:
            text = pathlib.Path("/proc", entry, "environ").read_text()
        except OSError:
            continue
        if cluster in text and '"task": {"type": "ps", "index": 0}' in text:
            return int(entry)
    raise AssertionError("ps:0 is not there")


kills = os.environ.get("KILLS", "").split(",")
history = model.fit(
    data,
    epochs=int(sys.argv[2]),
    validation_data=(x[:20], y[:20]),
    verbose=0,
    callbacks=[
        tfdp.callbacks.BackupAndRestore(sys.argv[1], save_freq=2),
        keras.callbacks.EarlyStopping("val_loss", patience=2, restore_best_weights=True),
        keras.callbacks.ReduceLROnPlateau("loss", patience=1, min_delta=0.02),
        Die(kills[RESTART] if RESTART < len(kills) else "", signal.SIGKILL),
        Die(os.environ.get("END", ""), signal.SIGTERM),
    ],
)
weights = b"".join(np.asarray(v).tobytes() for v in [*model.variables, *model.optimizer.variables])
told = {
    "weights": hashlib.sha256(weights).hexdigest(),
    "history": history.history,
    "epochs": history.epoch,
    "some": [w.tolist() for w in model.get_weights()[:2]],
}
print("ended:", json.dumps(told), flush=True)
