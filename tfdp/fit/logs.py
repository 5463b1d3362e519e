"""What steps return beside the metrics: values of a step's own, which no metric holds.

logs = Logs(make_room)
logs.keep("train", view, {"loss": loss, "norm": norm}, rows)    # on each replica
logs.results("train", model.get_metrics_result())
"""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfdp.fit import retrace


class Logs:
    """What the last step returned beside the metrics: its mean over the rows of all replicas.

    Args:
        make_room: Called with a kind of step and the shapes of new values; calls `create`.
    """

    def __init__(self, make_room: Callable[[str, dict[str, tuple[int, ...]]], None]) -> None:
        self._make_room = make_room
        self._names: dict[str, list[str] | None] = {}
        self._variables: dict[tuple[str, str], tuple[Any, Any]] = {}

    def create(self, kind: str, shapes: dict[str, tuple[int, ...]]) -> list[Any]:
        """Return new variables: for each name a sum weighted by rows, and the rows."""
        made: list[Any] = []
        for name, shape in shapes.items():
            pair = tuple(
                keras.Variable(np.zeros(s, "float32"), trainable=False, aggregation="sum")
                for s in (shape, ())
            )
            self._variables[kind, name] = pair
            made += pair
        return made

    def keep(self, kind: str, view: Any, logs: Any, rows: Any) -> None:
        """Keep the logs of this step in a replica's view.

        Raises:
            Retrace: If there is no room for one of them yet.
        """
        values = self.select(kind, view, logs)
        if missing := self.missing(kind, values):
            raise retrace.Retrace(lambda: self._make_room(kind, missing))
        for variable, value in self.weighted(kind, values, rows):
            view.set(variable, value)

    def select(self, kind: str, view: Any, logs: Any) -> dict[str, Any]:
        """Return those of a step's logs that no metric holds; remember the names of all."""
        self._names[kind], values = beside(logs, view.model_results, tf.float32)
        return values

    def holds(self, variable: Any) -> bool:
        """Say whether a variable is one of these: an empty replica has none of the last step."""
        return any(variable is made for pair in self._variables.values() for made in pair)

    def missing(self, kind: str, values: dict[str, Any]) -> dict[str, tuple[int, ...]]:
        """Return the shapes of the values that there is no room for yet."""
        return {n: tuple(v.shape) for n, v in values.items() if (kind, n) not in self._variables}

    def weighted(self, kind: str, values: dict[str, Any], rows: Any) -> list[tuple[Any, Any]]:
        """Return (variable, what it shall hold) for each of the values."""
        rows = tf.cast(rows, tf.float32)
        pairs = []
        for name, value in values.items():
            total, count = self._variables[kind, name]
            value = tf.where(rows > 0, value * rows, tf.zeros_like(value))  # NaN of no row
            pairs += [(total, value), (count, rows)]
        return pairs

    def results(self, kind: str, held: dict[str, Any]) -> dict[str, Any]:
        """Return the logs of a kind of step, out of the metrics' results and what was kept."""
        names = self._names.get(kind)
        if names is None:
            return held
        held = flat(held)
        logs = {}
        for name in names:
            if name in held:
                logs[name] = held[name]
            else:
                total, count = self._variables[kind, name]
                logs[name] = tf.math.divide_no_nan(total.value, count.value)
        return logs


def beside(
    logs: Any, held: dict[str, Any], dtype: tf.DType
) -> tuple[list[str] | None, dict[str, Any]]:
    """Return the names of a step's logs, None for those that metrics hold, and what none holds."""
    logs = flat(logs) if isinstance(logs, dict) else {}
    values = {
        name: tf.cast(keras.ops.convert_to_tensor(value), dtype)
        for name, value in logs.items()
        if name not in held
    }
    return list(logs) if logs and set(logs) != set(held) else None, values


def flat(logs: dict[str, Any]) -> dict[str, Any]:
    """Return logs without nesting, as Keras shows them: {"m": {"a": 1}} is {"a": 1}."""
    found: dict[str, Any] = {}
    for name, value in logs.items():
        found.update(flat(value) if isinstance(value, dict) else {name: value})
    return found
