"""A training on parameter servers that tells how far it is.

servers_fit.py EPOCHS [BACKUP_FOLDER]
"""

import os
import sys

import keras
import numpy as np

import tfdp

epochs, *backup = sys.argv[1:]


class Tell(keras.callbacks.Callback):
    def on_train_begin(self, logs=None):
        print(f"Begins at {int(self.model.optimizer.iterations)} steps.", flush=True)

    def on_epoch_end(self, epoch, logs=None):
        print(f"Epoch {epoch + 1} has ended, {int(logs['size'])} rows.", flush=True)


class Size(keras.metrics.Metric):
    """Counts rows."""

    def __init__(self):
        super().__init__(name="size")
        self.count = self.add_variable((), "zeros", dtype="float32", name="count")

    def update_state(self, y_true, y_pred, sample_weight=None):
        self.count.assign(self.count + keras.ops.cast(keras.ops.shape(y_true)[0], "float32"))

    def result(self):
        return self.count


strategy = tfdp.strategy(
    "parameter_server", min_partition_bytes=64, reading=os.environ.get("READING", "coordinator")
)
with strategy.scope():
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(16), keras.layers.Dense(1)])
    model.compile("adam", "mse", metrics=[Size()])
x = np.random.default_rng(0).normal(size=(201, 8)).astype("float32")
callbacks = [keras.callbacks.BackupAndRestore(backup[0]), Tell()] if backup else [Tell()]
model.fit(x, x.sum(axis=1), batch_size=4, epochs=int(epochs), verbose=0, callbacks=callbacks)
print(f"Trained {int(model.optimizer.iterations)} steps.", flush=True)
