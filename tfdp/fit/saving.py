"""model.save, save_weights and export of a script that runs in every worker: the chief writes.

A script for one device saves to one path after fit. Run by several workers it would write one file
several times at once. So each of the others waits for the chief to have written that path, says so
once, and writes nothing; what it saves somewhere else, it writes.

Inside fit the callbacks decide who writes: see `callbacks.chief_writes`.
"""

import contextlib
import functools
import logging
import os
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import keras
import tensorflow as tf

from tfdp.compat import distribute
from tfdp.fit.replicas import agreement

METHODS = ("save", "save_weights", "export")

_log = logging.getLogger("tfdp")
_fitting: "weakref.WeakSet[keras.Model]" = weakref.WeakSet()


@contextlib.contextmanager
def inside_fit(model: keras.Model) -> Iterator[None]:
    """Let a model that is being fitted save without a word to the other workers."""
    _fitting.add(model)
    try:
        yield
    finally:
        _fitting.discard(model)


def save(
    name: str, stock: Callable[..., Any], model: keras.Model, *args: Any, **kwargs: Any
) -> Any:
    """Stand for a method of `METHODS`: write on the chief, and wait for it elsewhere."""
    strategy = model.distribute_strategy
    path = args[0] if args else kwargs.get("filepath")
    if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return stock(model, *args, **kwargs)

    def write() -> Any:
        # Keras makes an optimizer and a metric to see what they hold. In the strategy's scope their
        # variables would be sent to the other workers, which save nothing and wait for nothing.
        with distribute.leave_strategy():
            return stock(model, *args, **kwargs)

    if model in _fitting or not isinstance(path, str | os.PathLike):
        return write()
    place = os.path.abspath(os.fspath(path))
    if agreement.is_chief(strategy):
        with agreement.writing(strategy, place):
            return write()
    if not agreement.wait_until_written(strategy, place):
        return write()
    _say_once()
    return None


@functools.cache
def _say_once() -> None:
    _log.warning(
        "The chief writes what all workers save to one path; this worker has waited for it and "
        "wrote nothing. tfdp.is_chief() says which one writes, for files of your own."
    )
