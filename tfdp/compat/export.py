"""What an export holds beside the model."""

import keras
import tensorflow as tf


def add_asset(archive: keras.export.ExportArchive, name: str, path: str) -> None:
    """Put a file into an export, as one of the SavedModel's assets.

    `ExportArchive.track` takes layers only, and finds assets in lookup tables alone; what it saves
    is the trackable object that it keeps.
    """
    setattr(archive._tf_trackable, name, tf.saved_model.Asset(path))
