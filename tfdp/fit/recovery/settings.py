"""What a BackupAndRestore asks of fit, and where in a training a checkpoint stands."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import keras

WITHIN, TRAINED, ENDED = range(3)  # phases: see checkpoints.store.Place
WRITE_ONLY = (
    keras.callbacks.CSVLogger,
    keras.callbacks.RemoteMonitor,
    keras.callbacks.TensorBoard,
)


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is saved when.

    Attributes:
        folder: Where.
        save_freq: "epoch", or the number of steps between two checkpoints; 0 for neither.
        save_seconds: The time between two checkpoints; None for no such.
        keep: How many checkpoints stay.
        asynchronous: Whether training goes on while one is written.
        delete: Whether they are removed when training has ended.
    """

    folder: str
    save_freq: str | int = "epoch"
    save_seconds: float | None = None
    keep: int = 3
    asynchronous: bool = True
    delete: bool = True


@dataclasses.dataclass(frozen=True)
class Position:
    """Where training goes on.

    Attributes:
        epoch: The epoch, from 0.
        step: Steps of it that are done.
        phase: WITHIN an epoch; TRAINED: its validation comes next; ENDED: the epoch before is done.
        steps: Steps since the beginning, over all epochs.
        stopped: Whether a callback has ended the training.
    """

    epoch: int
    step: int = 0
    phase: int = ENDED
    steps: int = 0
    stopped: bool = False


class InPlace(keras.callbacks.Callback):
    """Stands where a BackupAndRestore was given: fit itself does its work.

    Args:
        settings: What is saved when.

    Attributes:
        restore: Gives the model what a checkpoint holds. Callbacks that begin after this one find
            it in the model, as in Keras.
    """

    def __init__(self, settings: Settings):
        super().__init__()
        self.settings = settings
        self.restore: Callable[[], None] = nothing

    def on_train_begin(self, logs: Any = None) -> None:
        """Restore the model, when it is this callback's turn."""
        self.restore()


def of(callbacks: Sequence[keras.callbacks.Callback]) -> Settings | None:
    """Return the settings of the BackupAndRestore among callbacks that were prepared, if any."""
    return next((c.settings for c in callbacks if isinstance(c, InPlace)), None)


def nothing() -> None:
    """Restore nothing: the training begins."""
