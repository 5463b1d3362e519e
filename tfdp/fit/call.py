"""What one call of fit, evaluate or predict is made of, whoever trains: settings, logs, progress.

verbose = call.verbosity("auto")
data = call.Data(x, y, batch_size=32).adapter()
logs = call.to_python(model.get_metrics_result())
"""

import dataclasses
import sys
import types
import warnings
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfdp.compat import data_adapters

# Called with (step of the epoch, epoch) after each execution, for those who watch from outside.
_listeners: list[Callable[[int, int], None]] = []


def tell_progress(listener: Callable[[int, int], None]) -> None:
    """Call `listener(step, epoch)` whenever fit has trained; it must be quick and never fail."""
    _listeners.append(listener)


def report(step: int, epoch: int) -> None:
    """Tell those who watch that `step` steps of an epoch are done."""
    for listener in _listeners:
        listener(step, epoch)


def check_compiled(model: keras.Model, method: str) -> None:
    """Refuse a model that was not compiled.

    Raises:
        ValueError: With what to call.
    """
    if not model.compiled:
        raise ValueError(f"Call model.compile(...) under strategy.scope() before {method}().")


def limit_epochs(epochs: int) -> int:
    """Return the number of epochs, at most `keras.config.max_epochs()`."""
    limit = keras.config.max_epochs()
    if limit and limit < epochs:
        warnings.warn(f"Limiting epochs to {limit}", stacklevel=4)
        return limit
    return epochs


@dataclasses.dataclass(frozen=True)
class Data:
    """The data that a method is given, and how it is to be read: arguments of Keras's methods.

    Attributes:
        x: Inputs, or a dataset, a generator, a function of InputContext, ... of batches.
        y: Labels, where x holds inputs alone.
        sample_weight: Weights of the rows, likewise.
        batch_size: Rows of a global batch, of arrays.
        steps: Batches of an epoch; None for all that there are.
        shuffle: Whether arrays are read in an order of their own in each epoch.
        class_weight: Weights by label.

    A dataset, or a function of InputContext, may have an attribute `tfdp_starting_at`: a function
    of (epoch, step) that returns the same data from there on. A fit that goes on in the middle of
    an epoch reads nothing twice then.
    """

    x: Any
    y: Any = None
    sample_weight: Any = None
    batch_size: int | None = None
    steps: int | None = None
    shuffle: Any = False
    class_weight: Any = None

    def starting_at(self, epoch: int, step: int) -> "Data | None":
        """Return the data from a step of an epoch on; None where it cannot begin there."""
        make = getattr(self.x, "tfdp_starting_at", None)
        return None if make is None else dataclasses.replace(self, x=make(epoch, step))

    @property
    def most_steps(self) -> int | None:
        """The steps of an epoch, at most `keras.config.max_steps_per_epoch()`."""
        limit = keras.config.max_steps_per_epoch()
        return limit if limit and (self.steps is None or limit < self.steps) else self.steps

    def adapter(self) -> Any:
        """Return Keras's adapter of it: see compat.data_adapters."""
        # Datasets and generators come in their order; Keras warns when asked to shuffle.
        ordered = isinstance(self.x, tf.data.Dataset | types.GeneratorType)
        return data_adapters.data_adapter(
            self.x,
            self.y,
            sample_weight=self.sample_weight,
            batch_size=self.batch_size,
            steps_per_epoch=self.steps,
            shuffle=self.shuffle and not ordered,
            class_weight=self.class_weight,
        )


def verbosity(verbose: Any) -> int:
    """Return fit's `verbose` as a number."""
    if verbose == "auto":
        # A bar is redrawn with control codes: in a file, one line an epoch is readable.
        return 1 if sys.stdout.isatty() else 2
    return int(verbose)


def progress_is_shown(callbacks: keras.callbacks.CallbackList) -> bool:
    """Say whether the progress bar moves within an epoch."""
    return (callbacks.params or {}).get("verbose") == 1


def validates(epoch: int, frequency: Any) -> bool:
    """Say whether an epoch (from 0) ends with a validation.

    Args:
        epoch: The epoch.
        frequency: fit's `validation_freq`: every so many epochs, or a list of epochs from 1.
    """
    if isinstance(frequency, int):
        return (epoch + 1) % frequency == 0
    if isinstance(frequency, list | tuple | set):
        return epoch + 1 in frequency
    raise ValueError(f"validation_freq={frequency!r}: use an int, or a list of epochs from 1.")


def to_python(logs: dict[str, Any]) -> dict[str, Any]:
    """Return logs as Python floats, in Keras's order; what is no scalar as an array.

    Keras sorts by the names of the metrics, and puts what a metric's dict holds in its place.
    """
    found: dict[str, Any] = {}
    for name in sorted(logs):
        if isinstance(logs[name], dict):
            found.update(to_python(logs[name]))
        else:
            array = np.asarray(logs[name])
            found[name] = float(array) if array.ndim == 0 else array
    return found
