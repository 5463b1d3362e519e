"""The replicas of one model in this process: their variables, their metrics, their random seeds.

A replica's step runs on values, not on variables: `scope()` shows it its own copy of every
variable and keeps what it assigns, and `updates()` says what to write back. So one place decides
what an empty replica may change (nothing), what XLA may compile (all of it), and where a metric's
state lives.

    with replicas.enter(local) as view:
        y_pred = model(x, training=True)
    replicas.write(view.updates(), local)
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfdp import compat
from tfdp.fit import communication

# Far apart, so that the draws of one replica's seed never meet another's.
_SEED_STRIDE = 0x9E3779B1


class Replicas:
    """The copies of a model's variables on the devices of this process.

    Args:
        model: A built model whose variables were made under `strategy.scope()`.
        strategy: The strategy.

    Attributes:
        count: Replicas of this process.
        in_sync: Replicas of all processes.
        first: Number of this process's first replica among all.
        several_processes: Whether other processes hold replicas too.
        synchronized: Ids of the variables of layers that communicate by themselves.
        moving: Numbers of the variables that training steps assign beside the optimizer's.
    """

    def __init__(self, model: keras.Model, strategy: tf.distribute.Strategy):
        self.model = model
        self.strategy = strategy
        self.in_sync = strategy.num_replicas_in_sync
        self.devices = tuple(strategy.extended.worker_devices)
        self.count = len(self.devices)
        self.several_processes = self.in_sync > self.count
        self.first = first_replica(strategy)

        self.seeds = compat.seed_states(model)
        seeds = {id(v) for v in self.seeds}
        self.metrics: list[Any] = []
        self._accumulators: list[list[Any]] = [[] for _ in self.devices]
        measures = unique(v for m in model.metrics for v in m.variables)
        self.variables = unique(model.variables)
        self.variables += [s for s in self.seeds if id(s) not in {id(v) for v in self.variables}]
        measured = {id(v) for v in measures}
        self.variables = [v for v in self.variables if id(v) not in measured]
        self._is_seed = [id(v) in seeds for v in self.variables]
        self.synchronized = {id(v) for v in compat.synchronized_state(model)}
        self._copies = [local_copies(strategy, v) for v in self.variables]
        self.moving: set[str] = set()
        self.logs = Logs()
        self._localise_metrics(measures)

    # -- variables --------------------------------------------------------------------------

    def copy(self, variable: Any, local: int) -> tf.Variable:
        """Return the copy of a Keras variable on this process's replica `local`."""
        copies = local_copies(self.strategy, variable)
        return copies[local] if len(copies) > 1 else copies[0]

    @contextlib.contextmanager
    def enter(self, local: int) -> Iterator["View"]:
        """Show replica `local`'s values of all variables, and keep what is assigned."""
        mapping = []
        for variable, copies, is_seed in zip(
            self.variables, self._copies, self._is_seed, strict=True
        ):
            value = copies[local]
            if is_seed:
                value = value + self._seed_offset(local, value.dtype)
            mapping.append((variable, value))
        mapping += list(zip(self.metrics, self._accumulators[local], strict=True))
        scope = keras.StatelessScope(mapping, collect_losses=True)
        with scope:
            yield View(scope, self.model, self.variables + self.metrics)

    def current(self, local: int) -> dict[str, Any]:
        """Return the values that `updates()` would replace, by the variable's number."""
        targets = [copies[local] for copies in self._copies] + self._accumulators[local]
        return {str(index): target for index, target in enumerate(targets)}

    def is_seed(self, index: str) -> bool:
        """Say whether number `index` is a seed generator's state."""
        return int(index) < len(self.variables) and self._is_seed[int(index)]

    def keep_where(self, condition: Any, updates: dict[str, Any], local: int) -> dict[str, Any]:
        """Return `updates` where `condition` holds, else the present values.

        Seeds always move, and so does what a layer has computed together with its copies.
        """
        state = {i: v for i, v in updates.items() if not (self.is_seed(i) or self._is_shared(i))}
        current = self.current(local)
        kept = tf.cond(
            condition,
            lambda: {index: tf.identity(value) for index, value in state.items()},
            lambda: {index: tf.identity(current[index]) for index in state},
        )
        return {**updates, **kept}

    def _is_shared(self, index: str) -> bool:
        variables = self.variables
        return int(index) < len(variables) and id(variables[int(index)]) in self.synchronized

    def write(self, updates: dict[str, Any], local: int) -> None:
        """Assign `updates` to replica `local`'s copies."""
        targets = self.current(local)
        for index, value in updates.items():
            if self.is_seed(index):
                # The copies stay equal: what differs between replicas is added at each step.
                value = value - self._seed_offset(local, value.dtype)
            targets[index].assign(value)

    def _seed_offset(self, local: int, dtype: Any) -> Any:
        number = (self.first + local) * _SEED_STRIDE % 2**31
        return tf.constant(np.array([number, 0]), dtype)

    def average_state(self) -> None:
        """Average, on a replica, the float state that steps assign; each copy gets the mean.

        Whole numbers (counters, seeds) are the same on every replica or have no mean.
        """
        local = self.here()
        copies = [
            self._copies[int(index)][local]
            for index in sorted(self.moving, key=int)
            if int(index) < len(self.variables) and not self.is_seed(index)
        ]
        copies = [c for c in copies if c.dtype.is_floating]
        if not copies or self.in_sync == 1:
            return
        sums = communication.all_sum([tf.cast(c, tf.float32) for c in copies])
        for copy, total in zip(copies, sums, strict=True):
            copy.assign(tf.cast(total / self.in_sync, copy.dtype))

    def take_from_chief(self, more: list[Any], number: tf.Tensor) -> tf.Tensor:
        """Copy, on a replica, the variables of replica 0, and `more`; return its `number`."""
        local = self.here()
        copies = [self.copy(v, local) for v in unique([*self.variables, *more])]
        mine = 1.0 if self.first + local == 0 else 0.0
        summed = communication.all_sum(
            [tf.cast(c, tf.float64) * tf.constant(mine, tf.float64) for c in [number, *copies]]
        )
        for copy, value in zip(copies, summed[1:], strict=True):
            copy.assign(tf.cast(value, copy.dtype))
        return summed[0]

    def here(self) -> int:
        """Return the number, in this process, of the replica that runs."""
        context = tf.distribute.get_replica_context()
        return int(tf.get_static_value(context.replica_id_in_sync_group)) - self.first

    # -- metrics ----------------------------------------------------------------------------

    def _localise_metrics(self, metrics: list[Any]) -> None:
        """Give each replica its own metric state, and each metric a plain variable.

        Reading a metric variable of tf.distribute sums over the workers at that moment: a
        callback that does so on one worker waits for ever. Here a metric holds the last
        aggregate, which every process can read by itself.
        """
        for variable in metrics:
            if isinstance(variable.value, tf.distribute.DistributedValues):
                compat.replace_value(variable, _plain(variable))
        for device, accumulators in zip(self.devices, self._accumulators, strict=True):
            with tf.device(device):
                # With one replica in all, the metric itself.
                alone = self.in_sync == 1
                accumulators += [v.value if alone else _plain(v) for v in metrics]
        self.metrics += metrics

    def add_logs(self, kind: str, shapes: dict[str, tuple[int, ...]]) -> None:
        """Make room for logs that no metric holds."""
        with compat.leave_strategy():
            self._localise_metrics(self.logs.create(kind, shapes))

    def put_logs(self, kind: str, values: dict[str, Any], rows: Any, local: int) -> None:
        """Keep the logs of an eager step at once, making room where there is none."""
        if missing := self.logs.missing(kind, values):
            self.add_logs(kind, missing)
        numbers = {id(v): i for i, v in enumerate(self.metrics)}
        for variable, value in self.logs.weighted(kind, values, rows):
            self._accumulators[local][numbers[id(variable)]].assign(value)

    def reset_metrics(self) -> None:
        """Reset the metrics and every replica's state of them."""
        self.model.reset_metrics()
        if self.in_sync > 1:
            for local in range(self.count):
                for metric, accumulator in zip(
                    self.metrics, self._accumulators[local], strict=True
                ):
                    # The sum over all replicas starts where one device's metric starts.
                    takes = metric.aggregation == "mean" or self.first + local == 0
                    accumulator.assign(metric.value if takes else tf.zeros_like(accumulator))

    def metric_totals(self, local: int) -> tf.Tensor:
        """Return replica `local`'s metric states in one float64 vector, exact to 2**53."""
        parts = []
        for metric, accumulator in zip(self.metrics, self._accumulators[local], strict=True):
            part = tf.reshape(tf.cast(accumulator, tf.float64), (-1,))
            if metric.aggregation == "mean":
                part /= self.in_sync
            elif metric.aggregation == "only_first_replica" and self.first + local:
                part = tf.zeros_like(part)
            parts.append(part)
        return tf.concat(parts, 0) if parts else tf.zeros((0,), tf.float64)

    def set_metrics(self, totals: tf.Tensor) -> None:
        """Make the metrics hold the sum over all replicas of `metric_totals`."""
        sizes = [int(np.prod(v.shape)) for v in self.metrics]
        if not sizes:
            return
        for variable, part in zip(self.metrics, tf.split(totals, sizes), strict=True):
            value = tf.reshape(part, variable.shape)
            value = tf.round(value) if not variable.value.dtype.is_floating else value
            variable.value.assign(tf.cast(value, variable.value.dtype))


class LogsNeeded(Exception):
    """A step returned logs that no metric holds; there is no room for them yet."""

    def __init__(self, kind: str, shapes: dict[str, tuple[int, ...]]):
        super().__init__(kind, shapes)
        self.kind = kind
        self.shapes = shapes


class Logs:
    """What the last step returned beside the metrics: its mean over the rows of all replicas."""

    def __init__(self) -> None:
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

    def keep(self, kind: str, view: "View", logs: Any, rows: Any) -> None:
        """Keep the logs of this step in a replica's view.

        Raises:
            LogsNeeded: If there is no room for one of them yet.
        """
        values = self.select(kind, view, logs)
        if missing := self.missing(kind, values):
            raise LogsNeeded(kind, missing)
        for variable, value in self.weighted(kind, values, rows):
            view.set(variable, value)

    def select(self, kind: str, view: "View", logs: Any) -> dict[str, Any]:
        """Return those of a step's logs that no metric holds; remember the names of all."""
        held = view.model_results
        logs = flat_logs(logs) if isinstance(logs, dict) else {}
        self._names[kind] = list(logs) if logs and set(logs) != set(held) else None
        return {
            name: tf.cast(keras.ops.convert_to_tensor(value), tf.float32)
            for name, value in logs.items()
            if name not in held
        }

    def missing(self, kind: str, values: dict[str, Any]) -> dict[str, tuple[int, ...]]:
        """Return the shapes of the values that there is no room for yet."""
        return {n: tuple(v.shape) for n, v in values.items() if (kind, n) not in self._variables}

    def weighted(self, kind: str, values: dict[str, Any], rows: Any) -> list[tuple[Any, Any]]:
        """Return (variable, what it shall hold) for each of the values."""
        rows = tf.cast(rows, tf.float32)
        pairs = []
        for name, value in values.items():
            total, count = self._variables[kind, name]
            pairs += [(total, value * rows), (count, rows)]
        return pairs

    def results(self, kind: str, held: dict[str, Any]) -> dict[str, Any]:
        """Return the logs of a kind of step, out of the metrics' results and what was kept."""
        names = self._names.get(kind)
        if names is None:
            return held
        logs = {}
        for name in names:
            if name in held:
                logs[name] = held[name]
            else:
                total, count = self._variables[kind, name]
                logs[name] = tf.math.divide_no_nan(total.value, count.value)
        return logs


class View:
    """What a replica sees of the variables, and what it assigned."""

    def __init__(self, scope: keras.StatelessScope, model: keras.Model, variables: list[Any]):
        self._scope = scope
        self._model = model
        self._variables = variables
        self._entered = [scope.get_current_value(v) for v in variables]

    def updates(self) -> dict[str, Any]:
        """Return the values assigned so far, by the variable's number."""
        return {
            str(index): self._scope.get_current_value(variable)
            for index, (variable, entered) in enumerate(
                zip(self._variables, self._entered, strict=True)
            )
            if self._scope.get_current_value(variable) is not entered
        }

    def get(self, variable: Any) -> Any:
        """Return the value that a variable has in this view now."""
        return self._scope.get_current_value(variable)

    @property
    def model_results(self) -> dict[str, Any]:
        """The results of the model's metrics in this view."""
        return self._model.get_metrics_result()

    def set(self, variable: Any, value: Any) -> None:
        """Assign to a variable in this view, past what wraps its `assign`."""
        self._scope.add_update((variable, value))


def first_replica(strategy: tf.distribute.Strategy) -> int:
    """Return the number, among all replicas in sync, of this process's first replica."""
    if strategy.num_replicas_in_sync == 1:
        return 0

    @tf.function(autograph=False)
    def number() -> Any:
        numbers = strategy.run(lambda: tf.distribute.get_replica_context().replica_id_in_sync_group)
        return strategy.experimental_local_results(numbers)[0]

    return int(number())


def local_copies(strategy: tf.distribute.Strategy, variable: Any) -> tuple[tf.Variable, ...]:
    """Return the tf.Variable of each of this process's replicas behind a Keras variable."""
    return tuple(strategy.experimental_local_results(variable.value))


def flat_logs(logs: dict[str, Any]) -> dict[str, Any]:
    """Return logs without nesting, as Keras shows them: {"m": {"a": 1}} is {"a": 1}."""
    flat: dict[str, Any] = {}
    for name, value in logs.items():
        flat.update(flat_logs(value) if isinstance(value, dict) else {name: value})
    return flat


def _plain(variable: Any) -> tf.Variable:
    """Return a variable of this process alone, zero, like a Keras variable."""
    with compat.leave_strategy():
        zeros = tf.zeros(variable.shape, variable.dtype)
        return tf.Variable(zeros, trainable=False, name=variable.name)


def unique(objects: Any) -> list[Any]:
    """Return the objects in order, each once (by identity)."""
    return list({id(o): o for o in objects}.values())
