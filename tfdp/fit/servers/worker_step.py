"""What a worker of parameter servers runs: one batch, forward and backward, and what it reports.

Metrics are not kept on the servers, where additions of two workers could meet and where a step
that is run again would count twice. A step starts from fresh metrics and reports what it adds to
them, in one vector; the coordinator adds that up in float64 (see reports). Each batch is therefore
counted once, also when the worker that had it died and another one ran it again.

State that layers assign is written by what a step makes of the value that is there by then: a
counter by what was added, a moving average by the part that is kept and what is put to it.

    steps = RemoteSteps(model)
    report = steps.function("train", spec)(number, *tensors)     # scheduled on a worker
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfdp.compat import (
    compiled,
    data_adapters,
    distribute,
    graphs,
    keras_optimizers,
    keras_variables,
    parameter_server,
)
from tfdp.fit import logs as logs_lib
from tfdp.fit import loss as loss_lib
from tfdp.fit import optimizers, retrace
from tfdp.fit import split as split_lib
from tfdp.fit.servers import decisions, partitions

# Far apart, so that the draws of one step never meet another's.
_SEED_STRIDE = 0x9E3779B1
_NUMBER = tf.TensorSpec((), tf.int64)


class _Scope(keras.StatelessScope):
    """Keeps what is assigned; what it was not given is read from the servers.

    Attributes:
        through: Ids of variables that are assigned on the servers at once: weights, so that
            gradients are of what they hold, and an optimizer updates it.
        tape: Where what is assigned to a weight is a source of gradients instead, one more beside
            the weight itself, since nothing is written before the step has ended.
        versions: These values, by the id of the weight.
    """

    def __init__(self, mapping: Any):
        super().__init__(mapping, collect_losses=True)
        self.through: set[int] = set()
        self.tape: tf.GradientTape | None = None
        self.versions: dict[int, list[tf.Tensor]] = {}

    def get_current_value(self, variable: keras.Variable) -> Any:
        # Keras takes None for a value where it computes the losses of regularizers.
        value = super().get_current_value(variable)
        return parameter_server.stored_value(variable) if value is None else value

    def add_update(self, update: tuple[Any, Any]) -> None:
        variable, value = update
        if id(variable) in self.through:
            _assign(variable, value)
            return
        if self.tape is not None and variable.trainable:
            value = tf.stop_gradient(value)
            self.tape.watch(value)
            self.versions.setdefault(id(variable), []).append(value)
        super().add_update((variable, value))

    def is_assigned(self, variable: keras.Variable) -> bool:
        """Say whether the scope holds a value of the variable."""
        return super().get_current_value(variable) is not None


def _assign(variable: keras.Variable, value: tf.Tensor) -> None:
    """Assign to a weight on its servers: what is added to it is, beside what others add."""
    held = parameter_server.stored_value(variable)
    parts = getattr(held, "variables", [held])
    if len(parts) == 1 and graphs.adds_to(value, [held]):
        partitions.add(variable, tf.cast(value, held.dtype) - held)
    else:
        held.assign(tf.cast(value, held.dtype))


class RemoteSteps:
    """The step functions of one compiled model.

    Args:
        model: A built model, its variables on parameter servers.
        lazy_rows: Whether a sparse gradient changes the rows it has and no others.

    Attributes:
        variables: What is trained, partitions one by one.
        optimizers: The model's, and those that a train_step of the user's own applies.
    """

    def __init__(self, model: keras.Model, lazy_rows: bool = False):
        self.model = model
        self._lazy_rows = lazy_rows
        self.variables = partitions.expand(model.trainable_variables)
        self.optimizers = optimizers.of(model)
        self._scales: dict[int, tf.Tensor] = {}
        self.own_train = type(model).train_step is not keras.Model.train_step
        self._own_test = type(model).test_step is not keras.Model.test_step
        self._seeds = {id(v): v for v in keras_variables.seed_states(model)}
        measures = {id(v): v for m in model.metrics for v in m.variables}
        for variable in measures.values():
            _localise(variable)
        model.reset_metrics()
        self.metrics = list(measures.values())
        self.starts = [np.asarray(v.numpy()) for v in self.metrics]
        trained = {id(v) for v in model.trainable_variables}
        state = {id(v): v for v in [*model.variables, *self._seeds.values()]}
        self.trained = trained
        rates = [keras_optimizers.learning_rate(optimizer) for optimizer in self.optimizers]
        state |= {id(rate): rate for rate in rates if rate is not None}
        # What no optimizer updates and is no metric; of it, what steps are known to assign.
        self._other = {i: v for i, v in state.items() if i not in measures}
        self._state = list(self._seeds.values())
        self.extras: dict[str, dict[str, tuple[int, ...]]] = {}
        self.names: dict[str, list[str] | None] = {}
        self._functions: dict[Any, Callable[..., Any]] = {}

    def function(self, kind: str, spec: Any) -> Callable[..., Any]:
        """Return the function of (number, *tensors of a batch) of "train", "test", "predict".

        Traced: looking for the trace that fits costs more than the rest of handing out a step.

        Args:
            kind: Which.
            spec: The structure of a batch; its leaves are given one by one.
        """
        body = {"train": self._train, "test": self._test, "predict": self._predict}[kind]
        key = (kind, repr(spec))
        if key not in self._functions:

            def run(number: tf.Tensor, *leaves: Any) -> Any:
                with distribute.leave_strategy():
                    return body(number, unflatten(spec, leaves))

            self._functions[key] = distribute.traced(run, _NUMBER, *signature(spec))
        return self._functions[key]

    def reading(self, spec: Any, iterator_spec: Any, steps: int = 1) -> Callable[..., Any]:
        """Return the function of (number, iterator): `steps` training steps on a worker's data."""
        key = ("reading", repr(spec), steps)
        if key not in self._functions:

            def one(number: tf.Tensor, iterator: Any) -> tf.Tensor:
                with distribute.leave_strategy():
                    return self._train(number, next(iterator))

            def run(number: tf.Tensor, iterator: Any) -> tf.Tensor:
                report = one(number, iterator)
                if steps == 1:
                    return report
                _, total = tf.while_loop(
                    lambda step, total: step < steps,
                    lambda step, total: (step + 1, total + one(number + step, iterator)),
                    (tf.constant(1, tf.int64), report),
                    parallel_iterations=1,
                )
                return total

            self._functions[key] = distribute.traced(run, _NUMBER, iterator_spec)
        return self._functions[key]

    # -- on a worker --------------------------------------------------------------------------

    def _train(self, number: tf.Tensor, batch: Any) -> tf.Tensor:
        """Train on one batch; return its report."""
        optimizer = self.model.optimizer
        before = tf.identity(parameter_server.stored_value(keras_optimizers.step_count(optimizer)))
        applied: list[tf.Tensor] = []

        def apply(optimizer: Any, gradients: Sequence[Any], variables: Sequence[Any]) -> None:
            if not optimizer.built:
                raise retrace.Retrace(lambda: optimizer.build(variables))
            applied.append(
                decisions.apply(
                    optimizer,
                    gradients,
                    variables,
                    number=number,
                    scale=self._scales.get(id(optimizer)),
                    lazy_rows=self._lazy_rows,
                    alone=False,
                )
            )

        scope = self.scope(number)
        scope.through = self.trained | {id(v) for v in self.variables}
        with scope, self._watching_state() as state_tape:
            if self.own_train:

                def own(optimizer: Any, stock: Any, gradients: Any, variables: Any = None) -> None:
                    gradients, given = optimizers.arguments(optimizer, stock, gradients, variables)
                    if gradients:
                        with keras_optimizers.restore_apply(optimizer):
                            apply(optimizer, gradients, given)

                with (
                    partitions.expanded(self.model),
                    keras_optimizers.replace_apply(self.optimizers, own),
                ):
                    logs = self.model.train_step(batch)
                rows = split_lib.rows(batch)
            else:
                with tf.GradientTape() as tape:
                    loss, outputs = loss_lib.forward(self.model, batch, training=True)
                    objective = optimizer.scale_loss(loss)
                gradients = tape.gradient(
                    objective, [parameter_server.stored_value(v) for v in self.variables]
                )
                rows, logs = self._measure(loss, outputs)
        if not self.own_train and self.variables:
            apply(optimizer, gradients, self.variables)
        staleness = applied[0] - before if applied else tf.zeros((), tf.int64)
        self._write_state(scope, state_tape)
        return self.report("train", scope, rows, staleness, logs)

    def _test(self, number: tf.Tensor, batch: Any) -> tf.Tensor:
        """Test on one batch; return its report."""
        scope = self.scope(-1 - 2 * number)  # no number of a training step
        with scope, self._watching_state() as state_tape:
            if self._own_test:
                logs, rows = self.model.test_step(batch), split_lib.rows(batch)
            else:
                rows, logs = self._measure(*loss_lib.forward(self.model, batch, training=False))
        self._write_state(scope, state_tape)
        return self.report("test", scope, rows, tf.zeros((), tf.int64), logs)

    def _predict(self, number: tf.Tensor, batch: Any) -> Any:
        scope = self.scope(-2 - 2 * number)
        with scope, self._watching_state() as state_tape:
            outputs = self.model.predict_step(batch)
        self._write_state(scope, state_tape)
        return outputs

    @contextlib.contextmanager
    def _watching_state(self) -> Iterator[tf.GradientTape]:
        """Watch how the state that is left depends on the state that was found: it alone."""
        with tf.GradientTape(persistent=True, watch_accessed_variables=False) as tape:
            tape.watch([value for value in self._entered if value.dtype.is_floating])
            yield tape

    def _write_state(self, scope: _Scope, tape: tf.GradientTape) -> None:
        for variable, old, new in self.state_changes(scope):
            if old.dtype in (tf.bool, tf.string):
                parameter_server.stored_value(variable).assign(new)
            elif old.dtype.is_floating:
                kept = tape.gradient(new, old, unconnected_gradients="zero")
                partitions.move(variable, kept, new - kept * old)
            else:
                partitions.add(variable, new - old)

    def scope(self, number: tf.Tensor) -> _Scope:
        """Return a scope of the layers' state and fresh metrics, which keeps what is assigned."""
        self._entered = []
        for variable in self._state:
            value = partitions.read(variable)
            if self.is_seed(variable):
                # Two steps at a time read the same state: each draws from a place of its own.
                offset = tf.cast(number * _SEED_STRIDE % 2**31, value.dtype)
                value = value + tf.stack([offset, tf.zeros_like(offset)])
            self._entered.append(value)
        # Weights are read where they are used: gradients are of what lies on the servers.
        pairs = zip(self._state, self._entered, strict=True)
        mapping = [(v, value) for v, value in pairs if id(v) not in self.trained]
        fresh = [tf.constant(start) for start in self.starts]
        self._fresh = {id(v): value for v, value in zip(self.metrics, fresh, strict=True)}
        mapping += list(zip(self.metrics, fresh, strict=True))
        self._scales = {}
        for optimizer in self.optimizers:
            scale = decisions.scale_of(optimizer)
            if scale is not None:
                # Once: another step may change it between the loss and the gradients.
                self._scales[id(optimizer)] = tf.identity(parameter_server.stored_value(scale))
                mapping.append((scale, self._scales[id(optimizer)]))
        return _Scope(mapping)

    def _read_at_beginning(self, state: list[keras.Variable]) -> None:
        """Let the next trace of each step read these variables at its beginning."""
        self._state += state
        self._functions.clear()

    def state_changes(self, scope: _Scope) -> list[tuple[keras.Variable, Any, Any]]:
        """Return (variable, value at the beginning, value now) of the state that was assigned.

        Raises:
            Retrace: If some of it was not in the scope at the beginning.
        """
        known = {id(v) for v in self._state}
        found = [v for i, v in self._other.items() if i not in known and scope.is_assigned(v)]
        if found:
            raise retrace.Retrace(lambda: self._read_at_beginning(found))
        pairs = zip(self._state, self._entered, strict=True)
        changes = [(v, before, scope.get_current_value(v)) for v, before in pairs]
        return [
            (v, before, now)
            for v, before, now in changes
            if now is not before and scope.is_assigned(v)
        ]

    def is_seed(self, variable: keras.Variable) -> bool:
        """Say whether a variable is the state of a seed generator."""
        return id(variable) in self._seeds

    def _measure(self, loss: Any, outputs: Any) -> tuple[tf.Tensor, Any]:
        x, y, y_pred, sample_weight = outputs
        rows = split_lib.rows((x, y))
        mean = tf.reduce_mean(loss) if loss.shape.rank else loss
        compiled.loss_tracker(self.model).update_state(
            mean, sample_weight=tf.cast(rows, mean.dtype)
        )
        return rows, self.model.compute_metrics(x, y, y_pred, sample_weight=sample_weight)

    def report(self, kind: str, scope: _Scope, rows: Any, staleness: Any, logs: Any) -> tf.Tensor:
        """Return 1 (step), rows, staleness, extra logs times rows, and what the metrics gained."""
        with scope:
            held = logs_lib.flat(self.model.get_metrics_result())
        tracker = compiled.loss_tracker(self.model)
        if tracker is not None and all(
            scope.get_current_value(v) is self._fresh.get(id(v), self) for v in tracker.variables
        ):
            held.pop(tracker.name, None)  # a train_step of the user's own gives the loss itself
        self.names[kind], extra = logs_lib.beside(logs, held, tf.float64)
        self.extras[kind] = {name: tuple(value.shape) for name, value in extra.items()}
        rows, staleness = tf.cast(rows, tf.float64), tf.cast(staleness, tf.float64)
        parts = [tf.stack([tf.ones((), tf.float64), rows, staleness])]
        parts += [tf.reshape(value * rows, (-1,)) for value in extra.values()]
        for metric, start in zip(self.metrics, self.starts, strict=True):
            now = tf.cast(scope.get_current_value(metric), tf.float64)
            parts.append(tf.reshape(now - tf.constant(start, tf.float64), (-1,)))
        return tf.concat(parts, 0)


def flatten(batch: Any) -> list[Any]:
    """Return the tensors of a batch one by one, without what is None."""
    return [leaf for leaf in keras.tree.flatten(batch) if not _is_absent(leaf)]


def signature(spec: Any) -> list[Any]:
    """Return the specs of what `flatten` gives, the batch axis free."""

    def free(leaf: Any) -> Any:
        if isinstance(leaf, tf.RaggedTensorSpec) or not leaf.shape.rank:
            return leaf
        return type(leaf)((None, *leaf.shape[1:]), leaf.dtype)

    return [free(leaf) for leaf in flatten(spec)]


def unflatten(spec: Any, leaves: Sequence[Any]) -> Any:
    """Return a batch of `spec` again out of its tensors."""
    given = iter(leaves)
    return keras.tree.map_structure(lambda leaf: None if _is_absent(leaf) else next(given), spec)


def _is_absent(leaf: Any) -> bool:
    optional = isinstance(leaf, tf.experimental.Optional | tf.OptionalSpec)
    return leaf is None or optional or data_adapters.is_none_spec(leaf)


def _localise(variable: keras.Variable) -> None:
    """Let a metric's variable lie in the coordinator, which alone writes and reads it."""
    with distribute.leave_strategy(), tf.device("cpu:0"):
        zeros = tf.zeros(variable.shape, variable.dtype)
        keras_variables.replace_value(
            variable, tf.Variable(zeros, trainable=False, name=variable.name)
        )
