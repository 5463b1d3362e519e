"""model.save, save_weights and export of a script that runs in every worker: the chief writes.

A script for one device saves to one path after fit. Run by several workers it would write one file
several times at once. So each of the others waits for the chief to have written that path, says so
once, and writes nothing; what it saves somewhere else, it writes.

Inside fit the callbacks decide who writes: see `callbacks.chief_writes`.
"""

import contextlib
import functools
import hashlib
import logging
import os
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import keras
import tensorflow as tf

from tfdp.compat import coordination, distribute
from tfdp.fit.replicas import exchange

METHODS = ("save", "save_weights", "export")

_log = logging.getLogger("tfdp")
_SAVE = "tfdp/save"
# How long the chief may take to come to the place where another task saves already.
_SAVE_SECONDS = 30.0
_OTHER_PLACE_SECONDS = 1.0
_saves: dict[str, int] = {}  # how often this task has saved to a path
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
    if exchange.is_chief(strategy):
        with _writing(strategy, place):
            return write()
    if not _wait_until_written(strategy, place):
        return write()
    _say_once()
    return None


@contextlib.contextmanager
def _writing(strategy: tf.distribute.Strategy, path: str) -> Iterator[None]:
    """Tells the others, on the chief, that a path is being written, and when it has been."""
    if exchange.members(strategy) is None:
        yield
        return
    number = _saves.setdefault(path, 0)
    _saves[path] += 1
    coordination.share_text(f"{_SAVE}/number/{sum(_saves.values())}", path)
    coordination.share_text(_save_key(path, number, "begun"), path)
    try:
        yield
    finally:
        # Also where that fails: then the chief's error tells, and the others wait for no file.
        coordination.share_text(_save_key(path, number, "ended"), path)


def _wait_until_written(strategy: tf.distribute.Strategy, path: str) -> bool:
    """Waits, on another task than the chief, until the chief has written a path.

    Returns:
        False if the chief writes elsewhere (it may have ended since), or does not come to write it
        within some seconds.

    Raises:
        AgreementError: If the chief is lost meanwhile.
    """
    tasks = exchange.members(strategy)
    if tasks is None:
        return False
    chief = tasks[1][0]
    number = _saves.setdefault(path, 0)
    _saves[path] += 1
    written = None
    try:
        # A chief that has saved as often as this task may have saved elsewhere.
        written = coordination.shared_text(f"{_SAVE}/number/{sum(_saves.values())}", _SAVE_SECONDS)
        begun = written == path or (
            coordination.shared_text(_save_key(path, number, "begun"), _OTHER_PLACE_SECONDS)
            is not None
        )
    except tf.errors.OpError as error:
        if written is not None:
            return False  # it has saved elsewhere, and has ended since
        raise exchange.AgreementError(
            f"{chief} ended or was lost before it had saved {path}: {error.message.splitlines()[0]}"
        ) from error
    if begun:
        exchange.wait(_save_key(path, number, "ended"), [chief], f"save({path!r}) to its end")
    return begun


def _save_key(path: str, number: int, what: str) -> str:
    return f"{_SAVE}/{hashlib.sha256(path.encode()).hexdigest()}/{number}/{what}"


@functools.cache
def _say_once() -> None:
    _log.warning(
        "The chief writes what all workers save to one path; this worker has waited for it and "
        "wrote nothing. tfdp.is_chief() says which one writes, for files of your own."
    )
