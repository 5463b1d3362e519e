"""Trains five epochs, and crashes once in each of the first two starts; resumes from its backup.

resuming.py FOLDER
"""

import json
import os
import sys

import keras
import numpy as np

import tfdp

index = json.loads(os.environ["TF_CONFIG"])["task"]["index"]
restart = int(os.environ.get("TFDP_RESTART", "0"))
strategy = tfdp.strategy()
with strategy.scope():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
x = np.ones((64, 4), "float32")


class Crash(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        print(f"Epoch {epoch} begins.", flush=True)
        if index == 1 and restart < 2 and epoch == 2 * restart + 1:
            os._exit(70)


model.fit(
    x,
    x[:, :1],
    batch_size=16,
    epochs=5,
    verbose=0,
    callbacks=[keras.callbacks.BackupAndRestore(sys.argv[1]), Crash()],
)
print("Trained.", flush=True)
