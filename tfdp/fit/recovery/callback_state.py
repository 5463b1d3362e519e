"""What callbacks remember from epoch to epoch, as plain data and arrays.

    plain, arrays = state(callback)
    restore(callback, plain, arrays)

Keras's callbacks have no method for it: their attributes are taken by name. One of a user's own has
`state_dict()` and `load_state_dict(state)`, as other frameworks call them.
"""

import logging
import pathlib
from collections.abc import Iterable
from typing import Any

import keras
import numpy as np

_log = logging.getLogger("tfdp")

_ATTRIBUTES: dict[Any, tuple[str, ...]] = {
    keras.callbacks.EarlyStopping: (
        "wait", "stopped_epoch", "best", "best_epoch", "best_weights",
    ),
    keras.callbacks.ReduceLROnPlateau: ("wait", "best", "cooldown_counter"),
    keras.callbacks.ModelCheckpoint: (
        "best", "_current_epoch", "_last_batch_seen", "_batches_seen_since_last_saving",
    ),
    keras.callbacks.TensorBoard: (
        "_global_train_batch", "_global_test_batch", "_previous_epoch_iterations",
    ),
    keras.callbacks.SwapEMAWeights: ("_ema_weights_in_model",),
    keras.callbacks.History: ("epoch", "history"),
}  # fmt: skip
# These have nothing to remember, or only for as long as fit runs.
_WITHOUT = (
    keras.callbacks.BackupAndRestore,
    keras.callbacks.CSVLogger,
    keras.callbacks.LambdaCallback,
    keras.callbacks.LearningRateScheduler,
    keras.callbacks.ProgbarLogger,
    keras.callbacks.RemoteMonitor,
    keras.callbacks.TerminateOnNaN,
)
_ARRAY = "array:"

_said: set[str] = set()


def state(callback: keras.callbacks.Callback) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return what a callback remembers.

    Returns:
        Plain data for a JSON file, in which "array:NAME" stands for an array; these arrays.

    Raises:
        ValueError: If a `state_dict()` holds what is neither plain nor an array.
    """
    if has_methods(callback):
        values = dict(callback.state_dict())
    else:
        values = {
            name: getattr(callback, name)
            for name in _attributes(callback)
            if hasattr(callback, name)
        }
    arrays: dict[str, np.ndarray] = {}

    def plain(value: Any, path: str) -> Any:
        # A NumPy number (the value of a scalar weight, say) has a shape and a type: it stays one.
        is_number = isinstance(value, np.generic) and not isinstance(value, str | bytes)
        if value is None or (isinstance(value, bool | int | float | str) and not is_number):
            return value
        if isinstance(value, dict):
            return {str(name): plain(one, f"{path}.{name}") for name, one in value.items()}
        if isinstance(value, list | tuple):
            return [plain(one, f"{path}.{index}") for index, one in enumerate(value)]
        array = np.array(value)  # it may change while the file is being written
        if array.dtype == object:
            raise ValueError(
                f"state_dict() of {type(callback).__name__} holds a {type(value).__name__} at "
                f"{path!r}: use numbers, texts, lists, dicts and arrays."
            )
        arrays[path] = array
        return f"{_ARRAY}{path}"

    return {name: plain(value, name) for name, value in values.items()}, arrays


def restore(
    callback: keras.callbacks.Callback, plain: dict[str, Any], arrays: dict[str, np.ndarray]
) -> None:
    """Give a callback back what `state` returned."""

    def value(one: Any) -> Any:
        if isinstance(one, str) and one.startswith(_ARRAY) and one[len(_ARRAY) :] in arrays:
            return arrays[one[len(_ARRAY) :]][()]  # of no dimension: a NumPy number again
        if isinstance(one, dict):
            return {name: value(part) for name, part in one.items()}
        if isinstance(one, list):
            return [value(part) for part in one]
        return one

    values = {name: value(one) for name, one in plain.items()}
    if has_methods(callback):
        callback.load_state_dict(values)
        return
    for name, one in values.items():
        setattr(callback, name, one)


def has_methods(callback: keras.callbacks.Callback) -> bool:
    """Say whether a callback tells by itself what it remembers."""
    return hasattr(callback, "state_dict") and hasattr(callback, "load_state_dict")


def say_what_is_not_kept(callbacks: Iterable[keras.callbacks.Callback]) -> None:
    """Log, once for each class, which callbacks begin anew when a run goes on."""
    plain = set(vars(keras.callbacks.Callback()))
    for callback in callbacks:
        kind = type(callback)
        known = has_methods(callback) or _attributes(callback) or isinstance(callback, _WITHOUT)
        if known or not set(vars(callback)) - plain or kind.__name__ in _said:
            continue
        _said.add(kind.__name__)
        _log.info(
            "Checkpoints do not hold what the callback %s remembers: give it state_dict() and "
            "load_state_dict(state) if it remembers anything from epoch to epoch.",
            kind.__name__,
        )


def cut_csv(callback: keras.callbacks.CSVLogger, epochs: int) -> None:
    """Let a CSVLogger go on behind the rows of the first `epochs` epochs; the others are cut."""
    path = pathlib.Path(callback.filename)
    callback.append = True
    try:
        lines = path.read_text().splitlines(keepends=True)
    except OSError:
        return  # it writes a new one

    def kept(line: str) -> bool:
        first = line.split(callback.sep, 1)[0]
        return first.isdigit() and int(first) < epochs

    rows = [line for line in lines[1:] if kept(line) and line.endswith("\n")]
    part = path.with_name(f".{path.name}.part")
    part.write_text("".join(lines[:1] + rows))
    part.replace(path)


def _attributes(callback: keras.callbacks.Callback) -> tuple[str, ...]:
    return tuple(
        name for kind, names in _ATTRIBUTES.items() if isinstance(callback, kind) for name in names
    )
