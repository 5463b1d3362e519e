"""Trains without an end, and tells when it does: a task to be killed."""

import json
import os

import keras
import numpy as np
import tensorflow as tf

import tfdp

task = json.loads(os.environ["TF_CONFIG"])["task"]
tfdp.enable(tfdp.Communication(os.environ.get("IMPLEMENTATION", "auto")))
strategy = tf.distribute.MultiWorkerMirroredStrategy()
with strategy.scope():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
x = np.random.default_rng(0).normal(size=(64, 4)).astype("float32")
data = tf.data.Dataset.from_tensor_slices((x, x[:, :1])).repeat().batch(8)


class Tell(keras.callbacks.Callback):
    def on_epoch_end(self, epoch, logs=None):
        print(f"Epoch {epoch} has ended.", flush=True)
        if os.environ.get("FAILS_AT") == f"{task['type']}:{task['index']}" and epoch == 2:
            raise RuntimeError("This task was told to fail.")


model.fit(data, epochs=10**6, steps_per_epoch=5, verbose=0, callbacks=[Tell()])
