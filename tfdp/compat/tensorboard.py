"""Keras's callback TensorBoard: numbers beside those that it writes."""

from collections.abc import Mapping

import keras


def write_epoch(
    callback: keras.callbacks.TensorBoard, epoch: int, values: Mapping[str, float]
) -> None:
    """Write numbers of an epoch of training where the callback writes its own.

    The callback writes what the logs hold, and no more; its writer has no public name (keras
    callbacks/tensorboard.py, _train_writer; Keras 3.13 to 3.15).

    Args:
        callback: The callback, once training has begun.
        epoch: The number of the epoch, from 0.
        values: By name; TensorBoard shows them as epoch_NAME.
    """
    with callback._train_writer.as_default():
        for name, value in values.items():
            callback.summary.scalar(f"epoch_{name}", value, step=epoch)
