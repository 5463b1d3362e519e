"""The callback that asks fit to save: what users write."""

from typing import Any

import keras

from tfdp.error import Error
from tfdp.fit.recovery import settings


class BackupAndRestore(keras.callbacks.BackupAndRestore):
    """Saves a training now and then, and lets a killed one go on at its step.

    It takes the place of `keras.callbacks.BackupAndRestore`, which under tfdp does the same with
    its own arguments. What comes back: weights, optimizers, metrics, seeds, the place in the data,
    and what callbacks remember. With as many replicas as before, and
    `tf.config.experimental.enable_op_determinism()`, the training goes on bit for bit as if nothing
    had happened.

    Args:
        backup_dir: The folder, for this training alone. In a cluster only the chief uses it.
        save_freq: "epoch" to save at the end of each epoch, or the number of steps between two
            checkpoints.
        save_seconds: Saves when so many seconds have passed since the last checkpoint; None for no
            such.
        keep: How many checkpoints stay.
        asynchronous: Whether training goes on while a checkpoint is written.
        delete_checkpoint: Whether all are removed when fit has come to its end.

    Raises:
        Error: For a value that is not allowed.
    """

    def __init__(
        self,
        backup_dir: Any,
        save_freq: str | int = "epoch",
        save_seconds: float | None = None,
        keep: int = 3,
        asynchronous: bool = True,
        delete_checkpoint: bool = True,
    ):
        if save_freq != "epoch" and not (isinstance(save_freq, int) and save_freq >= 0):
            raise Error(
                f"BackupAndRestore(save_freq={save_freq!r}): use 'epoch' or a number of steps."
            )
        if save_seconds is not None and not save_seconds > 0:
            raise Error(
                f"BackupAndRestore(save_seconds={save_seconds!r}): use a positive number of "
                "seconds, or None."
            )
        if not (isinstance(keep, int) and keep >= 1):
            raise Error(f"BackupAndRestore(keep={keep!r}): use 1 or more.")
        super().__init__(str(backup_dir), save_freq, delete_checkpoint=delete_checkpoint)
        self.save_seconds = save_seconds
        self.keep = keep
        self.asynchronous = asynchronous


def in_place(callback: keras.callbacks.Callback) -> keras.callbacks.Callback:
    """Return what stands in the place of a BackupAndRestore, and any other callback as it is.

    A class of a user's own that is made from Keras's does as it is written.
    """
    if type(callback) not in (BackupAndRestore, keras.callbacks.BackupAndRestore):
        return callback
    return settings.InPlace(
        settings.Settings(
            str(callback.backup_dir),
            callback.save_freq or 0,
            getattr(callback, "save_seconds", None),
            # Keras keeps one, or two: a damaged one is to have one before it.
            getattr(callback, "keep", 2),
            getattr(callback, "asynchronous", True),
            callback.delete_checkpoint,
        )
    )
