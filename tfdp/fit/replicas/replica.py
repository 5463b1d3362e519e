"""The replicas of one model in this process: their variables, their metrics, their random seeds.

A replica's step sees its own copy of every variable. What it assigns is kept, and `updates()`
says what to write back; or, for variables that go `through`, it is in the copy at once. So one
place decides what an empty replica may change (nothing that depends on rows), what XLA may compile
(all of it), and where a metric's state lives.

    with replicas.enter(local, sources=batch, through=trainable) as view:
        y_pred = model(x, training=True)
    replicas.write(view.updates(), local)
    replicas.remember(view, "train")
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfdp.compat import distribute, keras_variables
from tfdp.fit import logs as logs_lib
from tfdp.fit import view as view_lib
from tfdp.fit.replicas import communication

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
        may_stand_in: Whether a row of zeros may stand in where a replica has none: no layer
            would add it to a sum over all replicas.
        moving: How the copies of each state that steps assign become one again, by the number of
            the variable: see `view.View`.
        moves_in: The kinds of steps after which copies differ: "train", "test", "predict".
        outer: The optimizer that moves the weights where replicas meet that train apart, or None.
        trains_apart: Whether they do, so that each keeps momenta of its own.
    """

    def __init__(self, model: keras.Model, strategy: tf.distribute.Strategy):
        self.model = model
        self.strategy = strategy
        self.in_sync = strategy.num_replicas_in_sync
        self.devices = tuple(strategy.extended.worker_devices)
        self.count = len(self.devices)
        self.several_processes = self.in_sync > self.count
        self.first = first_replica(strategy)

        self.seeds = keras_variables.seed_states(model)
        seeds = {id(v) for v in self.seeds}
        self.metrics: list[Any] = []
        self._accumulators: list[list[Any]] = [[] for _ in self.devices]
        self._reset: tuple[int, Callable[[], None]] | None = None
        measures = keras_variables.unique(v for m in model.metrics for v in m.variables)
        self.variables = keras_variables.unique(model.variables)
        self.variables += [s for s in self.seeds if id(s) not in {id(v) for v in self.variables}]
        measured = {id(v) for v in measures}
        self.variables = [v for v in self.variables if id(v) not in measured]
        self._is_seed = [id(v) in seeds for v in self.variables]
        self.synchronized = {id(v) for v in keras_variables.synchronized_state(model)}
        self.may_stand_in = not keras_variables.sums_unknown(model)
        self._copies = [local_copies(strategy, v) for v in self.variables]
        self.moving: dict[str, str] = {}
        self.moves_in: set[str] = set()
        self._bases = self._make_bases()
        self.outer: keras.optimizers.Optimizer | None = None
        self.trains_apart = False
        self.logs = logs_lib.Logs(self.add_logs)
        self._localise_metrics(measures)

    # -- variables --------------------------------------------------------------------------

    def copy(self, variable: Any, local: int) -> tf.Variable:
        """Return the copy of a Keras variable on this process's replica `local`."""
        copies = local_copies(self.strategy, variable)
        return copies[local] if len(copies) > 1 else copies[0]

    @contextlib.contextmanager
    def enter(
        self,
        local: int,
        sources: Any = (),
        through: Sequence[Any] = (),
        draws_as: int | None = None,
    ) -> Iterator[view_lib.View]:
        """Show replica `local`'s values of all variables, and keep what is assigned.

        Args:
            local: The replica.
            sources: Its rows: a structure of tensors. What is assigned may depend on them.
            through: Variables whose copies are assigned at once, so that gradients are of what
                they hold, and an optimizer updates it.
            draws_as: The replica of this process whose random numbers are drawn; None: `local`.
        """
        drawn = local if draws_as is None else draws_as
        at_once = {id(v) for v in through}
        mapping, direct = [], {id(v): (self.copy(v, local), None) for v in through}
        for variable, copies, is_seed in zip(
            self.variables, self._copies, self._is_seed, strict=True
        ):
            value = copies[local]
            offset = self._seed_offset(drawn, value.dtype) if is_seed else None
            if id(variable) in at_once:
                direct[id(variable)] = (value, offset)
            else:
                mapping.append((variable, value if offset is None else value + offset))
        for variable, accumulator in zip(self.metrics, self._accumulators[local], strict=True):
            if id(variable) in at_once:
                direct[id(variable)] = (accumulator, None)
            else:
                mapping.append((variable, accumulator))
        tainted = [
            self._copies[int(i)][local]
            for i, how in self.moving.items()
            if how != "same" and int(i) < len(self.variables)
        ]
        sources = [*tf.nest.flatten(sources, expand_composites=True), *tainted]
        scope = view_lib.Scope(mapping, direct, sources, {id(v) for v in self.metrics})
        with scope:
            yield view_lib.View(scope, self.model, self.variables + self.metrics)

    def accumulator(self, index: int, local: int) -> tf.Variable:
        """Return where replica `local` keeps the state of metric variable number `index`."""
        return self._accumulators[local][index]

    def bases(self, index: int, local: int) -> tf.Variable | None:
        """Return what variable number `index` was when the copies were last equal, if it counts."""
        bases = self._bases.get(str(index))
        return None if bases is None else bases[local]

    def current(self, local: int) -> dict[str, Any]:
        """Return the values that `updates()` would replace, by the variable's number."""
        targets = [copies[local] for copies in self._copies] + self._accumulators[local]
        return {str(index): target for index, target in enumerate(targets)}

    def is_seed(self, index: str) -> bool:
        """Say whether number `index` is a seed generator's state."""
        return int(index) < len(self.variables) and self._is_seed[int(index)]

    def keep_where(
        self, condition: Any, updates: dict[str, Any], local: int, apart: bool = False
    ) -> dict[str, Any]:
        """Return `updates` where `condition` holds, else the present values.

        Seeds always move, and so does what does not depend on the rows, or what a layer has
        computed together with its copies (not where replicas train `apart`).
        """
        state = {i: v for i, v in updates.items() if not self._moves_anyway(i, apart)}
        current = self.current(local)
        kept = tf.cond(
            condition,
            lambda: {index: tf.identity(value) for index, value in state.items()},
            lambda: {index: tf.identity(current[index]) for index in state},
        )
        return {**updates, **kept}

    def values(self, local: int) -> dict[str, tf.Tensor]:
        """Return what replica `local`'s state holds now, by the variable's number."""
        return {i: tf.identity(v) for i, v in self.current(local).items() if not self.is_seed(i)}

    def restore_unless(
        self,
        condition: Any,
        before: dict[str, tf.Tensor],
        local: int,
        view: view_lib.View,
        apart: bool = False,
    ) -> None:
        """Put what a view assigned at once back to `before` unless `condition` holds.

        What does not depend on the rows stays, as in `keep_where`.
        """
        assigned = {id(v) for v, _ in view.assigned()}
        trained = {id(v) for v in self.model.trainable_variables}
        current = self.current(local)
        for index, variable in enumerate([*self.variables, *self.metrics]):
            number = str(index)
            is_metric = index >= len(self.variables)
            if self._moves_anyway(number, apart) or (
                not is_metric and (id(variable) not in assigned or id(variable) in trained)
            ):
                continue
            now = current[number]
            now.assign(tf.where(condition, now, before[number]))

    def _moves_anyway(self, index: str, apart: bool) -> bool:
        if (metric := int(index) - len(self.variables)) >= 0:
            return self.logs.holds(self.metrics[metric])
        shared = id(self.variables[int(index)]) in self.synchronized
        return (shared and not apart) or self.is_seed(index) or self.moving.get(index) == "same"

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

    def remember(self, view: view_lib.View, kind: str) -> list[Any]:
        """Note how what a view assigned becomes one again.

        Args:
            view: Of a step.
            kind: "train", "test" or "predict".

        Returns:
            The weights, and variables of optimizers, that now differ between the replicas: pass
            them to `agree_on` in the same step.
        """
        numbers = {id(v): str(i) for i, v in enumerate(self.variables)}
        trained = {id(v) for v in self.model.trainable_variables}
        differ = []
        for variable, how in view.assigned():
            number = numbers.get(id(variable))
            if number and self.is_seed(number):
                continue
            if number is None or id(variable) in trained:
                if how != "same":
                    differ.append(variable)
            else:
                if self.moving.get(number, "same") == "same":
                    self.moving[number] = how
                if how != "same":
                    self.moves_in.add(kind)
        return differ

    def agree_on(self, variables: Sequence[Any], weight: Any) -> None:
        """Give variables, on a replica, the mean over all replicas of what each of them assigned.

        Args:
            variables: What `remember` returned.
            weight: Of this replica: its share of the rows, 0 for an empty one.
        """
        if self.in_sync == 1 or not variables:
            return
        copies = [self.copy(v, self.here()) for v in variables]
        weight = tf.cast(weight, tf.float32)
        mine = [
            tf.where(weight > 0, tf.cast(c, tf.float32) * weight, tf.zeros(c.shape)) for c in copies
        ]
        whole, *sums = communication.all_sum([weight, *mine])
        for copy, total in zip(copies, sums, strict=True):
            mean = tf.math.divide_no_nan(total, whole)
            mean = mean if copy.dtype.is_floating else tf.round(mean)
            copy.assign(tf.cast(mean, copy.dtype))

    def _make_bases(self) -> dict[str, list[tf.Variable]]:
        """Return, for state that is summed up, what it was when the copies were last equal."""
        bases: dict[str, list[tf.Variable]] = {}
        if self.in_sync == 1:
            return bases
        trained = {id(v) for v in self.model.trainable_variables}
        for index, variable in enumerate(self.variables):
            if id(variable) in trained or self._is_seed[index]:
                continue
            value = variable.value
            if variable.aggregation == "sum" or value.dtype.is_integer:
                made = []
                for device in self.devices:
                    with tf.device(device):
                        made.append(_plain(variable))
                bases[str(index)] = made
        return bases

    def begin(self) -> None:
        """Remember the state that counters start from; the copies are equal now."""
        for index, bases in self._bases.items():
            for base, copy in zip(bases, self._copies[int(index)], strict=True):
                base.assign(copy)

    def merge_state(self) -> None:
        """Make one of the state that steps assigned, on a replica; each copy gets it.

        Averages (BatchNormalization's statistics) become their mean, counters the sum of what was
        added, extremes the extreme of all: see `view.View`.
        """
        local = self.here()
        ways: dict[str, list[tf.Variable]] = {}
        bases: list[tf.Variable] = []
        for index in sorted(self.moving, key=int):
            way = self.moving[index]
            ways.setdefault(way, []).append(self._copies[int(index)][local])
            if way == "sum":
                bases.append(self._bases[index][local])
        if self.in_sync == 1:
            return
        if means := ways.get("mean"):
            sums = communication.all_sum([tf.cast(c, tf.float32) for c in means])
            for copy, total in zip(means, sums, strict=True):
                copy.assign(tf.cast(total / self.in_sync, copy.dtype))
        if counters := ways.get("sum"):
            starts = [tf.cast(base, tf.float64) for base in bases]
            added = [tf.cast(c, tf.float64) - s for c, s in zip(counters, starts, strict=True)]
            sums = communication.all_sum(added)
            for copy, base, start, total in zip(counters, bases, starts, sums, strict=True):
                copy.assign(tf.cast(start + total, copy.dtype))
                base.assign(tf.cast(start + total, copy.dtype))
        slot = tf.one_hot(self.first + local, self.in_sync, dtype=tf.float64)
        choices = {
            "max": lambda each: tf.reduce_max(each, 0),
            "min": lambda each: tf.reduce_min(each, 0),
            "first": lambda each: each[0],
        }
        for way, choose in choices.items():
            if copies := ways.get(way):
                # Each replica's value in a row of its own.
                mine = [tf.tensordot(slot, tf.cast(c, tf.float64), 0) for c in copies]
                for copy, each in zip(copies, communication.all_sum(mine), strict=True):
                    copy.assign(tf.cast(choose(each), copy.dtype))

    def take_from_chief(self, more: list[Any], number: tf.Tensor) -> tf.Tensor:
        """Copy, on a replica, the variables of replica 0, and `more`; return its `number`.

        Bit by bit: as integers, so that no rounding and no sign of a zero is lost.
        """
        local = self.here()
        copies = [self.copy(v, local) for v in keras_variables.unique([*self.variables, *more])]
        mine = int(self.first + local == 0)
        summed = communication.all_sum([_bits(c) * mine for c in [number, *copies]])
        for copy, bits in zip(copies, summed[1:], strict=True):
            copy.assign(_of_bits(bits, copy.dtype))
        return _of_bits(summed[0], number.dtype)

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
                keras_variables.replace_value(variable, _plain(variable))
        for device, accumulators in zip(self.devices, self._accumulators, strict=True):
            with tf.device(device):
                # With one replica in all, the metric itself.
                alone = self.in_sync == 1
                accumulators += [v.value if alone else _plain(v) for v in metrics]
        self.metrics += metrics

    def add_logs(self, kind: str, shapes: dict[str, tuple[int, ...]]) -> None:
        """Make room for logs that no metric holds."""
        with distribute.leave_strategy():
            self._localise_metrics(self.logs.create(kind, shapes))

    def put_logs(self, kind: str, values: dict[str, Any], rows: Any, local: int) -> None:
        """Keep the logs of an eager step at once, making room where there is none."""
        if missing := self.logs.missing(kind, values):
            self.add_logs(kind, missing)
        numbers = {id(v): i for i, v in enumerate(self.metrics)}
        for variable, value in self.logs.weighted(kind, values, rows):
            self._accumulators[local][numbers[id(variable)]].assign(value)

    def reset_metrics(self) -> None:
        """Reset the metrics and every replica's state of them; counters of layers go on."""
        self.begin()
        self.model.reset_metrics()
        if self.in_sync > 1 and self.metrics:
            # One graph, as it stands between two epochs. There may be more of them since.
            if self._reset is None or self._reset[0] != len(self.metrics):
                self._reset = len(self.metrics), distribute.function(self._reset_accumulators)
            self._reset[1]()

    def _reset_accumulators(self) -> None:
        for local in range(self.count):
            for metric, accumulator in zip(self.metrics, self._accumulators[local], strict=True):
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


def first_replica(strategy: tf.distribute.Strategy) -> int:
    """Return the number, among all replicas in sync, of this process's first replica."""
    if strategy.num_replicas_in_sync == 1:
        return 0

    def number() -> Any:
        numbers = strategy.run(lambda: tf.distribute.get_replica_context().replica_id_in_sync_group)
        return strategy.experimental_local_results(numbers)[0]

    return int(distribute.function(number)())


def local_copies(strategy: tf.distribute.Strategy, variable: Any) -> tuple[tf.Variable, ...]:
    """Return the tf.Variable of each of this process's replicas behind a Keras variable."""
    return tuple(strategy.experimental_local_results(variable.value))


def local_results(strategy: tf.distribute.Strategy, values: Any) -> tuple[Any, ...]:
    """Return what each of this process's replicas has of values, or has returned."""

    def of(leaf: Any, replica: int) -> Any:
        results = strategy.experimental_local_results(leaf)
        return results[replica if len(results) > 1 else 0]  # one for all: a Python number

    return tuple(
        keras.tree.map_structure(lambda leaf, i=i: of(leaf, i), values)
        for i in range(len(strategy.extended.worker_devices))
    )


def _bits(value: Any) -> tf.Tensor:
    """Return the bits of a tensor as int64, which every collective sums."""
    value = tf.convert_to_tensor(value)
    if value.dtype == tf.bool:
        return tf.cast(value, tf.int64)
    same_size = {1: tf.int8, 2: tf.int16, 4: tf.int32, 8: tf.int64}[value.dtype.size]
    return tf.cast(tf.bitcast(value, same_size), tf.int64)


def _of_bits(bits: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
    """Return the tensor whose bits are given."""
    if dtype == tf.bool:
        return tf.cast(bits, tf.bool)
    same_size = {1: tf.int8, 2: tf.int16, 4: tf.int32, 8: tf.int64}[dtype.size]
    return tf.bitcast(tf.cast(bits, same_size), dtype)


def _plain(variable: Any) -> tf.Variable:
    """Return a variable of this process alone, zero, like a Keras variable."""
    with distribute.leave_strategy():
        zeros = tf.zeros(variable.shape, variable.dtype)
        return tf.Variable(zeros, trainable=False, name=variable.name)
