"""A training that writes a checkpoint at the end of each epoch; the evaluator runs it too."""

import os

import keras
import numpy as np

import tfdp

strategy = tfdp.strategy("parameter_server")
with strategy.scope():
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(1)])
    model.compile("adam", "mse")
x = np.random.default_rng(0).normal(size=(256, 8)).astype("float32")
y = x.sum(axis=1)
history = model.fit(
    x,
    y,
    batch_size=32,
    epochs=4,
    verbose=0,
    validation_data=(x[:100], y[:100]),
    callbacks=[
        keras.callbacks.ModelCheckpoint("ckpt/{epoch:02d}.weights.h5", save_weights_only=True),
        keras.callbacks.TensorBoard("board"),
    ],
)
if '"evaluator"' in os.environ["TF_CONFIG"]:
    print("losses", *(f"{loss:.5f}" for loss in history.history["loss"]), flush=True)
else:
    print("losses", *(f"{loss:.5f}" for loss in history.history["val_loss"]), flush=True)
