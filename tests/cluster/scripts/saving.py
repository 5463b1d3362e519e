"""Every worker saves to one path, as a script for one device does, and reads what is there."""

import json
import os
import pathlib

import keras
import numpy as np

import tfdp

INDEX = json.loads(os.environ["TF_CONFIG"])["task"]["index"]


def main():
    strategy = tfdp.strategy()
    with strategy.scope():
        model = keras.Sequential(
            [keras.Input((4,)), keras.layers.BatchNormalization(), keras.layers.Dense(2)]
        )
        model.compile("adam", "mse")
    model.fit(np.ones((8, 4)), np.ones((8, 2)), verbose=0)
    for turn in range(3):
        model.save(f"whole-{turn}.keras")
        model.save_weights("some.weights.h5")
        model.export("exported", verbose=False)
        assert pathlib.Path("exported/saved_model.pb").exists()
        loaded = keras.saving.load_model(f"whole-{turn}.keras", compile=False)
        assert loaded.count_params() == model.count_params()
        print("turn:", turn, flush=True)
    # A place of its own is written by each.
    model.save(pathlib.Path(f"own-{INDEX}.keras"))
    assert tfdp.is_chief() is (INDEX == 0)
    # Only the chief saves: nobody waits for anything.
    if tfdp.is_chief():
        model.save("chief.keras")
    # A script may stay in the scope: no variable that saving makes goes to the other workers.
    with strategy.scope():
        backup = keras.callbacks.BackupAndRestore("backup", save_freq=1)
        best = keras.callbacks.ModelCheckpoint("best.keras")
        model.fit(np.ones((8, 4)), np.ones((8, 2)), epochs=2, verbose=0, callbacks=[backup, best])
        model.save("inside.keras")
        assert keras.saving.load_model("inside.keras").optimizer.iterations.numpy() == 3
    print("saved in the scope", flush=True)
    with strategy.scope():
        model.quantize("int8")
    print("quantized:", model.layers[-1].quantization_mode, flush=True)


main()
