"""What a replica sees of the variables, and what becomes of what it assigns.

with Scope(mapping, direct, sources, metrics) as scope:
view = View(scope, model, variables)
y_pred = model(x, training=True)
view.updates()      # what is to be written
view.assigned()     # [(variable, "mean"), ...]: how the replicas' values become one again
"""

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from tfdp.compat import graphs
from tfdp.fit import logs as logs_lib


class Scope(keras.StatelessScope):
    """Shows a replica's values, keeps or passes on what is assigned, and notes what it is.

    Args:
        mapping: (variable, value) of those whose assignments are kept.
        direct: By the id of a variable that is assigned at once: its copy, and what is added to
            it for this replica, or None.
        sources: The replica's rows, and state that depends on them.
        metrics: Ids of the variables of metrics, whose state is summed up by itself.
    """

    def __init__(
        self,
        mapping: Any,
        direct: dict[int, tuple[Any, Any]],
        sources: Sequence[Any],
        metrics: set[int],
    ):
        super().__init__(mapping, collect_losses=True)
        self._direct = direct
        self._sources = sources
        self._metrics = metrics
        self.assigned: dict[int, tuple[Any, list[tuple[Any, Any]]]] = {}

    def get_current_value(self, variable: Any) -> Any:
        """Return what stands for a variable: for one that is assigned at once, its copy."""
        if id(variable) not in self._direct:
            return super().get_current_value(variable)
        copy, offset = self._direct[id(variable)]
        return copy if offset is None else copy + offset

    def add_update(self, update: tuple[Any, Any]) -> None:
        """Take what is assigned: (variable, value)."""
        variable, value = update
        if id(variable) not in self._metrics:
            self._note(variable, value)
        if id(variable) not in self._direct:
            super().add_update(update)
            return
        copy, offset = self._direct[id(variable)]
        value = tf.cast(value, copy.dtype)
        copy.assign(value if offset is None else value - offset)

    def is_direct(self, variable: Any) -> bool:
        """Say whether assignments to a variable reach its copy at once."""
        return id(variable) in self._direct

    def _note(self, variable: Any, value: Any) -> None:
        _, values = self.assigned.setdefault(id(variable), (variable, []))
        values.append((value, self.get_current_value(variable)))

    def ways(self) -> list[tuple[Any, str]]:
        """Return the variables that were assigned, and the way in which each becomes one again."""
        found: dict[int, str] = {}
        sources = list(self._sources)
        while True:
            # What was assigned by the rows is a source itself, for what was computed from it.
            before = dict(found)
            for key, (variable, values) in self.assigned.items():
                if found.get(key, "same") != "same":
                    continue
                ways = [way_of(variable, value, [held], sources) for value, held in values]
                found[key] = next((way for way in ways if way != "same"), "same")
                if found[key] != "same":
                    sources += [held for _, held in values if isinstance(held, tf.Variable)]
            if found == before:
                return [(variable, found[key]) for key, (variable, _) in self.assigned.items()]


def way_of(variable: Any, value: Any, before: Sequence[Any], sources: Sequence[Any]) -> str:
    """Return how what replicas assign to a variable becomes one again: see `View`.

    Args:
        variable: A Keras variable.
        value: What one replica assigns, a traced tensor.
        before: What it held: the tf.Variable, or a tensor of its value.
        sources: The replica's rows, and state that depends on them.
    """
    declared = {"sum": "sum", "only_first_replica": "first"}.get(variable.aggregation)
    if declared:
        return declared
    if not graphs.depends_on(value, sources):
        return "same"
    extreme = graphs.extreme_of(value, before)
    if extreme:
        return extreme
    if variable.value.dtype.is_floating:
        return "mean"
    return "sum" if graphs.adds_to(value, before) else "same"


class View:
    """What a replica sees of the variables, and what it assigned.

    What was assigned becomes one over all replicas again in one of these ways:

    - "same": it does not depend on the rows of a replica, so all replicas have assigned the same;
    - "sum": a counter, by `aggregation="sum"`, or a whole number that rows were added to;
    - "max", "min": the larger or smaller of what it was and something of the rows;
    - "first": `aggregation="only_first_replica"`;
    - "mean": any other number with a fraction, such as a moving average.
    """

    def __init__(self, scope: Scope, model: keras.Model, variables: list[Any]):
        self._scope = scope
        self._model = model
        self._variables = variables
        self._entered = [scope.get_current_value(v) for v in variables]

    def assigned(self) -> list[tuple[Any, str]]:
        """Return the variables that were assigned, and the way in which they become one again."""
        return self._scope.ways()

    def updates(self) -> dict[str, Any]:
        """Return the values assigned so far, by the variable's number, and not written yet."""
        return {
            str(index): self._scope.get_current_value(variable)
            for index, (variable, entered) in enumerate(
                zip(self._variables, self._entered, strict=True)
            )
            if not self._scope.is_direct(variable)
            and self._scope.get_current_value(variable) is not entered
        }

    def get(self, variable: Any) -> Any:
        """Return the value that a variable has in this view now."""
        return self._scope.get_current_value(variable)

    @property
    def model_results(self) -> dict[str, Any]:
        """The results of the model's metrics in this view, without nesting."""
        return logs_lib.flat(self._model.get_metrics_result())

    def set(self, variable: Any, value: Any) -> None:
        """Assign to a variable in this view, past what wraps its `assign`."""
        self._scope.add_update((variable, value))
