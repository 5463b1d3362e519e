"""Keras callbacks in several processes: the same decisions everywhere, files from the chief only.

Every process runs the callbacks with the same logs, so that they decide alike. Only the chief
writes: the others leave out the callbacks that do nothing but write, let BackupAndRestore only
restore, and save nothing while they fit.

    with chief_writes(model, chief=replicas.first == 0):
        callbacks = prepare(callbacks, chief=replicas.first == 0)
"""

import contextlib
import logging
from collections.abc import Callable, Sequence
from typing import Any

import keras

from tfdp.compat import attributes
from tfdp.fit import saving
from tfdp.fit.recovery import callback as callback_lib
from tfdp.fit.recovery import settings

_log = logging.getLogger("tfdp")


class _RestoreOnly(keras.callbacks.Callback):
    """BackupAndRestore of a process that is not the chief: reads what the chief has written."""

    def __init__(self, callback: keras.callbacks.BackupAndRestore):
        super().__init__()
        self._callback = callback
        self.save_freq = callback.save_freq

    def set_model(self, model: keras.Model) -> None:
        super().set_model(model)
        self._callback.set_model(model)

    def on_train_begin(self, logs: Any = None) -> None:
        self._callback.on_train_begin(logs)


def prepare(callbacks: Any, chief: bool) -> list[keras.callbacks.Callback]:
    """Return the callbacks that this process runs, in order.

    Args:
        callbacks: What the user gave to fit: None, a callback, or a (nested) sequence.
        chief: Whether this process writes files.
    """
    given = keras.tree.flatten(callbacks) if callbacks else []
    given = [callback_lib.in_place(c) for c in given]
    if chief:
        return given
    kept = [c for c in given if not isinstance(c, settings.WRITE_ONLY)]
    return [_RestoreOnly(c) if isinstance(c, keras.callbacks.BackupAndRestore) else c for c in kept]


def chief_writes(model: keras.Model, chief: bool) -> contextlib.AbstractContextManager[None]:
    """Let `model.save`, `save_weights` and `export` do nothing on a process that is not chief."""
    if chief:
        return saving.inside_fit(model)

    def leave_out(name: str) -> Callable[..., None]:
        def save(*args: Any, **kwargs: Any) -> None:
            del args, kwargs
            _log.info("model.%s inside fit: only the chief writes files.", name)

        return save

    return attributes.replaced(*[(model, name, leave_out(name)) for name in saving.METHODS])


def overrides(callbacks: Sequence[keras.callbacks.Callback], *names: str) -> bool:
    """Say whether any callback has a method of its own under one of these names."""
    for callback in callbacks:
        for name in names:
            method = getattr(callback, name)
            stock = getattr(keras.callbacks.Callback, name)
            if getattr(method, "__func__", method) is not stock:
                return True
    return False


class SavePoints:
    """Steps at which a callback saves by itself, known to every process.

    Args:
        callbacks: The callbacks; those with an integer `save_freq` save every so many batches.
    """

    def __init__(self, callbacks: Sequence[keras.callbacks.Callback]):
        frequencies = [getattr(callback, "save_freq", None) for callback in callbacks]
        self._frequencies = [f for f in frequencies if isinstance(f, int) and f > 0]
        self._seen = [0] * len(self._frequencies)

    def left(self) -> int | None:
        """Return how many batches there are until a callback saves next; None: none does."""
        return min(
            (f - seen for f, seen in zip(self._frequencies, self._seen, strict=True)), default=None
        )

    def reached(self, steps: int) -> bool:
        """Count `steps` more batches; say whether some callback saves now."""
        saves = False
        for i, frequency in enumerate(self._frequencies):
            self._seen[i] += steps
            if self._seen[i] >= frequency:
                self._seen[i] = 0
                saves = True
        return saves


class BatchHooks:
    """The batch hooks of one epoch, called only where a callback has one.

    Args:
        callbacks: The callbacks.
        kind: "train" or "test".
        progress: Whether the progress bar is shown.

    Attributes:
        wanted: Whether any callback looks at the end of a batch.
    """

    def __init__(self, callbacks: keras.callbacks.CallbackList, kind: str, progress: bool):
        lines = [c for c in callbacks.callbacks if isinstance(c, keras.callbacks.ProgbarLogger)]
        own = [c for c in callbacks.callbacks if progress or c not in lines]
        begins = [f"on_{kind}_batch_begin"] + (["on_batch_begin"] if kind == "train" else [])
        ends = [f"on_{kind}_batch_end"] + (["on_batch_end"] if kind == "train" else [])
        self._begin = self._end = None
        if overrides(own, *begins):
            self._begin = getattr(callbacks, begins[0])
        if overrides(own, *ends):
            self._end = getattr(callbacks, ends[0])
        self.wanted = self._end is not None
        self._untold = [] if self._end is not None else [getattr(c, ends[0]) for c in lines]

    def begin(self, step: int) -> None:
        """Call the hooks of the beginning."""
        if self._begin is not None:
            self._begin(step)

    def end(self, step: int, logs: dict[str, Any]) -> None:
        """Call the hooks of the end, with the logs so far."""
        if self._end is not None:
            self._end(step, logs)

    def close(self, steps: int, logs: dict[str, Any]) -> None:
        """Tell Keras's line of an epoch how many steps there were, if it was not told of each.

        It says nothing at all of an epoch of no steps, which it takes one of unknown length for.
        """
        for end in self._untold:
            if steps:
                end(steps - 1, logs)
