"""Synchronous training on parameter servers: the gradients of a batch summed, then applied once.

Each worker gets a part of the rows of a batch and returns the gradients of its share of the loss
(see loss). The coordinator sums them and runs the update on the servers itself: a worker that dies
has changed nothing, and its part is computed again.

    summed = Summed(steps, spec, parts=3)
    report = summed.step(work, number, batch)
"""

import contextlib
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfdp.compat import compiled, distribute, graphs, keras_optimizers, parameter_server
from tfdp.fit import gradients as gradients_lib
from tfdp.fit import loss as loss_lib
from tfdp.fit import metrics as metrics_lib
from tfdp.fit import optimizers, retrace
from tfdp.fit import split as split_lib
from tfdp.fit import view as view_lib
from tfdp.fit.servers import decisions, partitions, scheduled, worker_step
from tfdp.fit.servers import noise as noise_lib


class Summed:
    """The synchronous step of one model.

    Args:
        steps: The step functions of the model.
        spec: The structure of a batch.
        parts: Into how many parts a batch is split.
        lazy_rows: Whether a sparse gradient changes the rows it has and no others.
    """

    def __init__(
        self, steps: worker_step.RemoteSteps, spec: Any, parts: int, lazy_rows: bool = False
    ):
        self._steps = steps
        self._spec = spec
        self._parts = parts
        self._lazy_rows = lazy_rows
        # Found out while the first step is traced: see loss.Totals.
        self._sums_divisors = False
        scalars = [tf.TensorSpec((), tf.int64), tf.TensorSpec((), tf.float32)]
        leaves = worker_step.signature(spec)
        self._signature = [*scalars, tf.TensorSpec((None,), tf.float32), *leaves]
        self._forget()
        self._divisors = distribute.function(self._collect, input_signature=[*scalars, *leaves])
        self._update: Callable[..., Any] | None = None
        self._sparse: list[bool | None] = []
        self._state: list[keras.Variable] = []
        self._ways: list[str] = []

    def step(
        self, work: scheduled.Work, number: int, batch: Any, noise: noise_lib.Noise | None = None
    ) -> np.ndarray:
        """Train on one batch; return its report. `noise` measures how much its parts differ."""
        batch, rows = split_lib.of_equal_rows(batch)
        rows = int(rows)
        count = max(1, min(self._parts, rows))
        bounds = [part * rows // count for part in range(count + 1)]
        parts = [
            worker_step.flatten(
                keras.tree.map_structure(lambda t, a=a, b=b: split_lib.cut(t, a, b), batch)
            )
            for a, b in itertools.pairwise(bounds)
        ]
        numbers = [tf.constant(number * self._parts + part, tf.int64) for part in range(count)]
        whole = tf.constant(float(rows))

        def hand_out() -> None:
            divisors = tf.zeros((0,))
            if self._sums_divisors:
                for part, one in zip(parts, numbers, strict=True):
                    work.put(self._divisors, (one, whole, *part))
                divisors = tf.add_n([tf.constant(d) for d in work.drain()])
            for part, one in zip(parts, numbers, strict=True):
                work.put(self._gradients, (one, whole, divisors, *part))

        retrace.until_traced(hand_out, self._steps.model.distribute_strategy, self._forget)
        results = list(work.drain())
        report = np.sum([result["report"] for result in results], axis=0)
        report[0] = 1.0  # the parts are one step
        summed = self._summed(results)
        if noise is not None and noise.is_due():
            self._measure(noise, results, np.diff(bounds).tolist(), summed)
        self._apply(results, summed)
        return report

    def _forget(self) -> None:
        self._gradients = distribute.function(self._on_worker, input_signature=self._signature)

    def _sum_divisors(self) -> None:
        """Let a step sum the divisors of its parts first, from the next trace on."""
        self._sums_divisors = True

    # -- on a worker --------------------------------------------------------------------------

    def _on_worker(
        self, number: tf.Tensor, rows: tf.Tensor, divisors: tf.Tensor, *leaves: Any
    ) -> dict[str, Any]:
        """Return the gradients of a part's share of the loss, its report, and state to add."""
        steps = self._steps
        batch = worker_step.unflatten(self._spec, leaves)
        mine = split_lib.rows(batch)
        totals = loss_lib.Totals(
            mine, rows, divisors if self._sums_divisors else None, ask=self._sum_divisors
        )
        share = loss_lib.share(totals)
        with distribute.leave_strategy(), self._installed(), steps.scope(number) as scope:
            view = view_lib.View(scope, steps.model, steps.metrics)
            if steps.own_train:
                gradients, logs = self._own(batch, totals, view, scope)
            else:
                gradients, logs = self._stock(batch, totals, view, scope)
        if gradients and all(gradient is None for gradient in gradients):
            raise ValueError(
                f"No variable of model {steps.model.name!r} has a gradient: its loss does not "
                "depend on them."
            )
        changes = steps.state_changes(scope)
        self._state = [variable for variable, _, _ in changes]
        sources = tf.nest.flatten(leaves, expand_composites=True)
        self._ways = [view_lib.way_of(v, new, [old], sources) for v, old, new in changes]
        self._sparse = [None if g is None else isinstance(g, tf.IndexedSlices) for g in gradients]
        sparse = [
            gradients_lib.merged(g) if isinstance(g, tf.IndexedSlices) else g for g in gradients
        ]
        return {
            "report": steps.report("train", scope, mine, tf.zeros((), tf.int64), logs),
            "gradients": [
                (g.indices, g.values) if isinstance(g, tf.IndexedSlices) else (g,)
                for g in sparse
                if g is not None
            ],
            "state": [
                _change(old, new, share, way)
                for (_, old, new), way in zip(changes, self._ways, strict=True)
            ],
        }

    def _stock(
        self, batch: Any, totals: loss_lib.Totals, view: view_lib.View, scope: Any
    ) -> tuple[list[Any], Any]:
        """Return the gradients of this part's share of the loss, and logs."""
        steps, model, share = self._steps, self._steps.model, loss_lib.share(totals)
        with (
            metrics_lib.exact(view, totals),
            loss_lib.exact(totals, self._parts),
            tf.GradientTape() as tape,
        ):
            scope.tape = tape
            loss, outputs = loss_lib.forward(model, batch, training=True)
            objective = model.optimizer.scale_loss(loss) * tf.cast(share, loss.dtype)
        scope.tape = None
        versions = [scope.versions.get(id(v), []) for v in steps.variables]
        sources = [parameter_server.stored_value(v) for v in steps.variables]
        flat = tape.gradient(objective, [*sources, *itertools.chain(*versions)])
        gradients, more = flat[: len(sources)], iter(flat[len(sources) :])
        for position, values in enumerate(versions):
            for _ in values:
                gradients[position] = _added(gradients[position], next(more))
        x, y, y_pred, sample_weight = outputs
        with metrics_lib.exact(view, totals):
            # Keras logs the mean of what it adds up with reduction=None.
            mean = tf.reduce_mean(loss) * share if loss.shape.rank else loss
            rows_here = tf.cast(totals.mine, tf.float32)
            compiled.loss_tracker(model).update_state(mean, sample_weight=rows_here)
            logs = model.compute_metrics(x, y, y_pred, sample_weight=sample_weight)
        return gradients, logs

    def _own(
        self, batch: Any, totals: loss_lib.Totals, view: view_lib.View, scope: Any
    ) -> tuple[list[Any], Any]:
        """Return what a train_step of the user's own hands to the optimizer, and its logs.

        They are gradients of a mean over the rows of this part: see replicas/user_step.

        Raises:
            ValueError: If it updates more than once: the second gradients would be those of
                weights that the first update has not changed yet. Likewise if it assigns a weight,
                or something that is computed from one, after the update.
        """
        steps, model = self._steps, self._steps.model
        trained = [part for v in steps.variables for part in (v, parameter_server.whole_of(v))]
        weights = [w for v in trained for w in _tf_variables(v)]
        assign = scope.add_update
        taken: list[tuple[Any, list[Any], list[Any]]] = []

        def refuse(update: tuple[Any, Any]) -> None:
            variable, value = update
            is_weight = any(variable is v for v in trained)
            late = taken and not any(variable is v for v in steps.metrics)
            if is_weight or (late and graphs.depends_on(value, weights)):
                raise ValueError(
                    f"The train_step of model {model.name!r} assigns {variable.path!r}, and "
                    "max_staleness=0 updates the weights when the step has ended. Leave out "
                    "max_staleness=0, or let a callback assign it."
                )
            assign(update)

        scope.add_update = refuse

        def take(optimizer: Any, stock: Any, gradients: Any, variables: Any = None) -> None:
            gradients, given = optimizers.arguments(optimizer, stock, gradients, variables)
            if gradients:
                taken.append((optimizer, gradients, given))

        with (
            loss_lib.exact(totals, self._parts, own_divisors=False),
            metrics_lib.exact(view, totals),
            partitions.expanded(model),
            keras_optimizers.replace_apply(steps.optimizers, take),
        ):
            logs = model.train_step(batch)
        if not taken and not steps.variables:
            return [], logs
        if [optimizer for optimizer, _, _ in taken] != [model.optimizer]:
            raise ValueError(
                f"The train_step of model {model.name!r} updates {len(taken)} times, and "
                "max_staleness=0 sums the gradients of one update by model.optimizer. Leave out "
                "max_staleness=0."
            )
        _, gradients, variables = taken[0]
        by_variable = dict(zip(map(id, variables), gradients, strict=True))
        share = loss_lib.share(totals)
        mine = [by_variable.get(id(v)) for v in steps.variables]
        return [gradients_lib.scaled(gradient, share) for gradient in mine], logs

    def _collect(self, number: tf.Tensor, rows: tf.Tensor, *leaves: Any) -> tf.Tensor:
        """Return the divisors of a part's losses, of those that need their own."""
        batch = worker_step.unflatten(self._spec, leaves)
        totals = loss_lib.Totals(split_lib.rows(batch), rows)
        with (
            distribute.leave_strategy(),
            self._installed(),
            self._steps.scope(number),
            loss_lib.exact(totals, self._parts, collect=True) as terms,
        ):
            loss_lib.forward(self._steps.model, batch, training=True)
        return tf.stack(terms.divisors) if terms.divisors else tf.zeros((0,))

    def _installed(self) -> contextlib.ExitStack:
        """Let losses and metrics ask which part is being traced."""
        stack = contextlib.ExitStack()
        if self._parts > 1:
            stack.enter_context(loss_lib.installed(self._steps.model))
            stack.enter_context(metrics_lib.installed(self._steps.model))
        return stack

    # -- on the coordinator -------------------------------------------------------------------

    def _summed(self, results: Sequence[dict[str, Any]]) -> list[list[np.ndarray]]:
        """Return the gradients of a batch: one array each, or indices and values of all parts."""
        present = [sparse for sparse in self._sparse if sparse is not None]
        gradients = []
        for position, sparse in enumerate(present):
            columns = zip(*[result["gradients"][position] for result in results], strict=True)
            put = np.concatenate if sparse else _sum
            gradients.append([put(list(column)) for column in columns])
        return gradients

    def _measure(
        self,
        noise: noise_lib.Noise,
        results: Sequence[dict[str, Any]],
        rows: Sequence[int],
        summed: Sequence[Sequence[np.ndarray]],
    ) -> None:
        parts = [noise_lib.squared([g[-1] for g in result["gradients"]]) for result in results]
        # Of a sparse gradient a row may be in several parts.
        whole = [noise_lib.by_row(*g) if len(g) == 2 else g[0] for g in summed]
        scale = decisions.scale_of(self._steps.model.optimizer)
        unscaled = 1.0 if scale is None else float(parameter_server.stored_value(scale).numpy())
        noise.add(parts, rows, noise_lib.squared(whole), unscaled)

    def _apply(
        self, results: Sequence[dict[str, Any]], summed: Sequence[Sequence[np.ndarray]]
    ) -> None:
        leaves = list(itertools.chain(*summed))
        if self._update is None:
            self._update = distribute.function(self._on_servers, reduce_retracing=True)
        # What layers have assigned to weights comes before the update of the weights.
        self._assign(results, weights=True)
        if leaves:
            self._update(*map(tf.constant, leaves))
        self._assign(results, weights=False)

    def _assign(self, results: Sequence[dict[str, Any]], weights: bool) -> None:
        """Write what the parts of a batch have made of the state: of weights, or of all else."""
        for position, (variable, way) in enumerate(zip(self._state, self._ways, strict=True)):
            if (id(variable) in self._steps.trained) is not weights:
                continue
            changes = [result["state"][position] for result in results]
            if not np.issubdtype(changes[0].dtype, np.number):
                parameter_server.stored_value(variable).assign(changes[0])
            elif way in ("max", "min"):
                choose = np.max if way == "max" else np.min
                parameter_server.stored_value(variable).assign(choose(changes, axis=0))
            else:
                adds = way in ("mean", "sum") and not self._steps.is_seed(variable)
                partitions.add(variable, tf.constant(_sum(changes) if adds else changes[0]))

    def _on_servers(self, *leaves: Any) -> None:
        given = iter(leaves)
        gradients: list[Any] = []
        variables: list[keras.Variable] = []
        for sparse, variable in zip(self._sparse, self._steps.variables, strict=True):
            if sparse is None:
                continue  # perhaps of a variable that the optimizer was not built with
            variables.append(variable)
            if sparse:
                indices, values = next(given), next(given)
                # An optimizer that makes a tensor of it asks for the shape (Adagrad's square).
                shape = tf.constant(list(variable.shape), tf.int64)
                gradients.append(tf.IndexedSlices(values, indices, shape))
            else:
                gradients.append(next(given))
        with distribute.leave_strategy():
            optimizer = self._steps.model.optimizer
            scale = decisions.scale_of(optimizer)
            decisions.apply(
                optimizer,
                gradients,
                variables,
                number=tf.zeros((), tf.int64),
                scale=None if scale is None else tf.identity(parameter_server.stored_value(scale)),
                lazy_rows=self._lazy_rows,
                alone=True,
            )


def _change(old: tf.Tensor, new: tf.Tensor, share: tf.Tensor, way: str) -> tf.Tensor:
    """Return what a part of a batch makes of a layer's state: see view.View for the ways."""
    if old.dtype in (tf.bool, tf.string) or way in ("max", "min"):
        return new
    if way == "mean":  # averages are averaged by rows
        return (new - old) * tf.cast(share, old.dtype)
    return new - old


def _added(one: Any, other: Any) -> Any:
    """Return the sum of two gradients, either of which may be None."""
    if one is None or other is None:
        return other if one is None else one
    return tf.convert_to_tensor(one) + tf.convert_to_tensor(other)


def _tf_variables(variable: keras.Variable) -> list[tf.Variable]:
    held = parameter_server.stored_value(variable)
    return list(getattr(held, "variables", [held]))


def _sum(values: Sequence[np.ndarray]) -> np.ndarray:
    return np.sum(values, axis=0, dtype=values[0].dtype)
