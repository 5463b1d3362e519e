"""What Keras's files of weights, and its exports, hold beside the model."""

import contextlib
import zipfile
from typing import Any

import h5py
import keras
import tensorflow as tf


def saved_iterations(path: str) -> int | None:
    """Return how many steps the optimizer has made that is in a .weights.h5 or .keras file.

    Keras tells it of an optimizer that it has loaded, which takes memory for all its slots. The
    names are those of saving/saving_lib.py; a LossScaleOptimizer has the count in its inner one.

    Returns:
        None where there is no optimizer in it.
    """
    with contextlib.ExitStack() as stack:
        opened: Any = path
        if path.endswith(".keras"):
            archive = stack.enter_context(zipfile.ZipFile(path))
            opened = stack.enter_context(archive.open("model.weights.h5"))
        file = stack.enter_context(h5py.File(opened, "r"))
        for name in ("optimizer/inner_optimizer/vars/0", "optimizer/vars/0"):
            if name in file:
                return int(file[name][()])
    return None


def add_asset(archive: keras.export.ExportArchive, name: str, path: str) -> None:
    """Put a file into an export, as one of the SavedModel's assets.

    `ExportArchive.track` takes layers only, and finds assets in lookup tables alone; what it saves
    is the trackable object that it keeps.
    """
    setattr(archive._tf_trackable, name, tf.saved_model.Asset(path))
