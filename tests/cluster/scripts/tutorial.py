"""A script as somebody writes it who follows TensorFlow's guide to several workers.

It knows nothing of tfdp: it reads TF_CONFIG, makes its own strategy, and lets the chief save.
Arguments: the digits as CSV, the folder for the model.
"""

import csv
import gzip
import json
import os
import sys
import tempfile

import keras
import numpy as np
import tensorflow as tf

PER_WORKER_BATCH_SIZE = 32

config = json.loads(os.environ["TF_CONFIG"])
num_workers = sum(len(config["cluster"].get(job, [])) for job in ("chief", "worker"))
global_batch_size = PER_WORKER_BATCH_SIZE * num_workers

strategy = tf.distribute.MultiWorkerMirroredStrategy()


def load(path):
    with gzip.open(path, "rt", newline="") as rows:
        table = np.array(list(csv.reader(rows)), "float32")
    return table[:, :-1].reshape(-1, 8, 8, 1) / 16.0, table[:, -1].astype("int64")


def build_and_compile():
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Conv2D(32, 3, activation="relu"),
            keras.layers.Flatten(),
            keras.layers.Dense(128, activation="relu"),
            keras.layers.Dense(10),
        ]
    )
    model.compile(
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        optimizer=keras.optimizers.SGD(learning_rate=0.1),
        metrics=["accuracy"],
    )
    return model


def is_chief():
    kind, index = config["task"]["type"], config["task"]["index"]
    return kind == "chief" or (kind == "worker" and index == 0 and "chief" not in config["cluster"])


images, labels = load(sys.argv[1])
training = tf.data.Dataset.from_tensor_slices((images[360:], labels[360:]))
training = training.shuffle(2000).repeat().batch(global_batch_size)
test = tf.data.Dataset.from_tensor_slices((images[:360], labels[:360])).batch(global_batch_size)

with strategy.scope():
    model = build_and_compile()

model.fit(training, epochs=8, steps_per_epoch=23)
loss, accuracy = model.evaluate(test, verbose=0)
print(f"Accuracy on {len(images[:360])} test images: {accuracy:.4f}")
print(f"Sum of the weights: {sum(float(np.abs(w).sum()) for w in model.get_weights()):.6f}")

# Every worker saves, since saving may need all of them; only the chief's model is kept.
if is_chief():
    model.save(sys.argv[2] + "/model.keras")
else:
    with tempfile.TemporaryDirectory() as folder:
        model.save(folder + "/model.keras")
