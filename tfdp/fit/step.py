"""One step of training, testing or predicting, on every replica.

A training step of a replica, as data-parallel training is taught:

    gradients of its share of the loss      one XLA computation with jit_compile
    all-reduce                              outside of it, where collectives can run
    optimizer                               the same update on every copy

Nothing is decided per replica: unscaling, the check for finite gradients, clipping, accumulation
and the update itself see the reduced gradients, as on one device.
"""

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf

from tfdp import compat
from tfdp.fit import communication as communication_lib
from tfdp.fit import feed as feed_lib
from tfdp.fit import loss as loss_lib
from tfdp.fit import metrics as metrics_lib
from tfdp.fit import replica as replica_lib

_log = logging.getLogger("tfdp")


class Steps:
    """The step functions of one compiled model.

    Args:
        model: A built model.
        strategy: The strategy it was made under.
        communication: How gradients travel.

    Attributes:
        reduce_totals: Whether the replicas sum rows and divisors before the gradients. Found
            out while the first step is traced: see `loss.TotalsNeeded`.
    """

    def __init__(
        self,
        model: keras.Model,
        strategy: tf.distribute.Strategy,
        communication: communication_lib.Communication,
    ):
        self.model = model
        self.strategy = strategy
        self.communication = communication
        self.replicas = replica_lib.Replicas(model, strategy)
        self.custom_train_step = type(model).train_step is not keras.Model.train_step
        self.custom_test_step = type(model).test_step is not keras.Model.test_step
        self.jit = bool(model.jit_compile) and not model.run_eagerly
        if self.jit and self.replicas.synchronized and self.replicas.in_sync > 1:
            self.jit = False
            _log.warning(
                "Model %r runs without XLA: its synchronised BatchNormalization communicates in "
                "the middle of a step, which XLA cannot compile.",
                model.name,
            )
        # Gradients divided by too small a number could overflow in float16 before they travel.
        optimizer = getattr(model, "optimizer", None)
        self.reduce_totals = isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
        self._user = threading.local()  # the replica whose train_step this thread runs
        with compat.leave_strategy():
            self._nominal_rows = tf.Variable(1.0, trainable=False)
        self._compiled: dict[Any, Callable[..., Any]] = {}

    def forget(self) -> None:
        """Drop what was traced."""
        self._compiled.clear()

    # -- in cross-replica context -----------------------------------------------------------

    def train(self, split: feed_lib.Split, data: Any) -> None:
        """Train every replica on its part of `data`."""
        custom = self.custom_train_step
        run = self._train_as_the_user_wrote if custom else self._train_on_replica
        with self._installed():
            logs = self.strategy.run(run, args=(split, data))
        if custom and tf.executing_eagerly():
            # The update is done, so the step cannot be tried again with room for its logs.
            for local, (values, rows) in enumerate(self._local_results(logs)):
                self.replicas.put_logs("train", values, rows, local)

    def test(self, split: feed_lib.Split, data: Any) -> None:
        """Add every replica's part of `data` to the metrics."""
        with self._installed():
            self.strategy.run(self._test_on_replica, args=(split, data))

    def predict(self, split: feed_lib.Split, data: Any) -> tuple[Any, ...]:
        """Return the predictions of each of this process's replicas, in the order of rows."""
        return self._local_results(self.strategy.run(self._predict_on_replica, args=(split, data)))

    def _local_results(self, values: Any) -> tuple[Any, ...]:
        """Return what each of this process's replicas returned."""

        def of(leaf: Any, replica: int) -> Any:
            results = self.strategy.experimental_local_results(leaf)
            return results[replica if len(results) > 1 else 0]  # one for all: a Python number

        return tuple(
            keras.tree.map_structure(lambda leaf, i=i: of(leaf, i), values)
            for i in range(self.replicas.count)
        )

    @contextlib.contextmanager
    def _installed(self) -> Iterator[None]:
        """Let losses, metrics and optimizers ask which replica is being traced."""
        with contextlib.ExitStack() as stack:
            if self.replicas.in_sync > 1:
                stack.enter_context(loss_lib.installed(self.model))
                stack.enter_context(metrics_lib.installed(self.model))
            if self.custom_train_step:
                stack.enter_context(compat.replace_apply(optimizers(self.model), self._apply))
            yield

    def results(self, kind: str) -> dict[str, Any]:
        """Return the logs of "train" or "test" steps out of the metrics' present values."""
        return self.replicas.logs.results(kind, self.model.get_metrics_result())

    # -- on a replica -----------------------------------------------------------------------

    def _train_on_replica(self, split: feed_lib.Split, data: Any) -> None:
        local = self.replicas.here()
        batch = split.batch(data, local)
        totals = self._totals(split, data, batch, local, self._loss)
        gradients, updates = self._call(("train", split, local), self._gradients)(
            split, local, batch, *totals
        )
        gradients = self._reduce(gradients, batch, totals, local)
        self._call(("update", local), self._update)(self.model.optimizer, local, gradients)
        self.replicas.write(updates, local)

    def _test_on_replica(self, split: feed_lib.Split, data: Any) -> None:
        local = self.replicas.here()
        batch = split.batch(data, local)
        forward = self._user_test if self.custom_test_step else self._loss
        totals = self._totals(split, data, batch, local, forward, training=False)
        updates = self._call(("test", split, local), self._measures)(split, local, batch, *totals)
        self.replicas.write(updates, local)

    def _predict_on_replica(self, split: feed_lib.Split, data: Any) -> Any:
        local = self.replicas.here()
        return self._call(("predict", split, local), self._predictions)(
            local, split.batch(data, local)
        )

    def _call(self, key: Any, body: Callable[..., Any]) -> Callable[..., Any]:
        """Return `body`, compiled by XLA for this replica when the model asks for it.

        One compiled function per replica: a shared one fails on the second device ("trying to
        access resource ... located in device CPU:1 from device CPU:0").
        """
        if not self.jit or (self.custom_train_step and key[0] == "train"):
            return body
        if key not in self._compiled:
            self._compiled[key] = compat.function(body, jit_compile=True)
        return self._compiled[key]

    # -- what XLA may compile: functions of values --------------------------------------------

    def _gradients(
        self,
        split: feed_lib.Split,
        local: int,
        batch: Any,
        rows: Any,
        divisors: Any,
        nominal_rows: Any,
    ) -> tuple[list[Any], dict[str, Any]]:
        """Return the gradients of this replica's share of the loss, and what the step assigns."""
        totals = loss_lib.Totals(rows, divisors, nominal_rows)
        with compat.hide_replica_count(), self.replicas.enter(local) as view:
            with tf.GradientTape() as tape:
                loss, terms, outputs = self._loss(batch, totals, training=True, view=view)
                objective = self.model.optimizer.scale_loss(loss)
                objective = objective * tf.cast(loss_lib.share(terms.rows, totals), objective.dtype)
            gradients = tape.gradient(
                objective, [view.get(v) for v in self.model.trainable_variables]
            )
            self._measure(view, totals, terms, loss, outputs, "train")
            updates = view.updates()
            self.replicas.moving |= set(updates)
        if split.may_be_empty:
            present = tf.greater(terms.rows, 0)
            updates = self.replicas.keep_where(present, updates, local)
            gradients = _zero_unless(present, gradients)
        return gradients, updates

    def _measures(
        self,
        split: feed_lib.Split,
        local: int,
        batch: Any,
        rows: Any,
        divisors: Any,
        nominal_rows: Any,
    ) -> dict[str, Any]:
        """Return what a test step assigns: the metrics' states."""
        totals = loss_lib.Totals(rows, divisors, nominal_rows)
        with compat.hide_replica_count(), self.replicas.enter(local) as view:
            if self.custom_test_step:
                logs, terms, _ = self._user_test(batch, totals, view=view)
                self.replicas.logs.keep("test", view, logs, terms.rows)
            else:
                loss, terms, outputs = self._loss(batch, totals, training=False, view=view)
                self._measure(view, totals, terms, loss, outputs, "test")
            updates = view.updates()
        if split.may_be_empty:
            updates = self.replicas.keep_where(tf.greater(terms.rows, 0), updates, local)
        return updates

    def _predictions(self, local: int, batch: Any) -> Any:
        with compat.hide_replica_count(), self.replicas.enter(local):
            return self.model.predict_step(batch)

    def _loss(
        self,
        batch: Any,
        totals: loss_lib.Totals,
        training: bool,
        collect: bool = False,
        view: replica_lib.View | None = None,
    ) -> tuple[Any, loss_lib.Terms, Any]:
        """Run the model forward; return its loss, the loss's terms, and inputs and outputs."""
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(batch)
        with self._exact(batch, totals, collect, view) as terms:
            if loss_lib.accepts(self.model.call, "training"):
                y_pred = self.model(x, training=training)
            else:
                y_pred = self.model(x)
            loss = loss_lib.compute(self.model, x, y, y_pred, sample_weight, training)
        return loss, terms, (x, y, y_pred, sample_weight)

    def _user_test(
        self,
        batch: Any,
        totals: loss_lib.Totals,
        training: bool = False,
        collect: bool = False,
        view: replica_lib.View | None = None,
    ) -> tuple[Any, loss_lib.Terms, Any]:
        """Run the user's own test_step; return its logs and the loss's terms."""
        with self._exact(batch, totals, collect, view) as terms:
            return self.model.test_step(batch), terms, None

    @contextlib.contextmanager
    def _exact(
        self,
        batch: Any,
        totals: loss_lib.Totals,
        collect: bool,
        view: replica_lib.View | None,
    ) -> Iterator[loss_lib.Terms]:
        """Make losses, and what metrics make of scalars, exact; without a view only losses."""
        rows = feed_lib.rows(batch)
        with contextlib.ExitStack() as stack:
            if view is not None:
                stack.enter_context(metrics_lib.exact(view, rows, totals))
            yield stack.enter_context(loss_lib.exact(rows, totals, self.replicas.in_sync, collect))

    def _measure(
        self,
        view: replica_lib.View,
        totals: loss_lib.Totals,
        terms: loss_lib.Terms,
        loss: Any,
        outputs: Any,
        kind: str,
    ) -> None:
        """Update the metrics, and keep logs that are no metrics."""
        x, y, y_pred, sample_weight = outputs
        rows = tf.cast(terms.rows, tf.float32)
        with metrics_lib.exact(view, terms.rows, totals):
            if loss.shape.rank:  # reduction=None: Keras logs the mean of what it adds up
                loss = tf.reduce_mean(loss) * loss_lib.share(terms.rows, totals)
            compat.loss_tracker(self.model).update_state(loss, sample_weight=rows)
            logs = self.model.compute_metrics(x, y, y_pred, sample_weight=sample_weight)
        self.replicas.logs.keep(kind, view, logs, rows)

    def _update(
        self,
        optimizer: keras.optimizers.Optimizer,
        local: int,
        gradients: Sequence[Any],
        variables: Sequence[Any] | None = None,
    ) -> None:
        """Apply reduced gradients to replica `local`'s copies, as one device would."""
        variables = self.model.trainable_variables if variables is None else variables
        with self._on_copies(optimizer, local):
            optimizer.apply_gradients(zip(gradients, variables, strict=True))

    def finalize(self) -> None:
        """Let the optimizer set the variables' last values, on each copy."""
        with self._on_copies(self.model.optimizer, self.replicas.here()):
            self.model.optimizer.finalize_variable_values(self.model.trainable_variables)

    @contextlib.contextmanager
    def _on_copies(self, optimizer: keras.optimizers.Optimizer, local: int) -> Iterator[None]:
        """Let an optimizer see one device with replica `local`'s copies of the variables."""
        touched = replica_lib.unique([*self.replicas.variables, *optimizer.variables])
        copies = [self.replicas.copy(v, local) for v in touched]
        with (
            compat.leave_stateless_scope(),
            compat.optimizer_on_one_device(optimizer),
            compat.bind(touched, copies),
        ):
            yield

    # -- sums over the replicas ---------------------------------------------------------------

    def _totals(
        self,
        split: feed_lib.Split,
        data: Any,
        batch: Any,
        local: int,
        forward: Callable[..., Any],
        training: bool = True,
    ) -> loss_lib.Totals:
        """Return what is known of the global batch before the gradients.

        Costs a collective only where the losses need one: see `loss.TotalsNeeded`.
        """
        rows = split.total_rows(data)
        if not self.reduce_totals or self.replicas.in_sync == 1:
            # Read before the all-reduce, so that every replica scales by the same number.
            nominal = tf.identity(self._nominal_rows) if rows is None else None
            return loss_lib.Totals(rows, None, nominal)
        with compat.hide_replica_count(), self.replicas.enter(local):
            collecting = loss_lib.Totals(rows=1.0)
            _, terms, _ = forward(batch, collecting, training=training, collect=True)
        if rows is not None and not terms.divisors:
            return loss_lib.Totals(rows)
        mine = tf.stack([tf.cast(terms.rows, tf.float32), *terms.divisors])
        whole = communication_lib.all_sum(mine)
        return loss_lib.Totals(whole[0] if rows is None else rows, whole[1:])

    def _reduce(
        self, gradients: list[Any], batch: Any, totals: loss_lib.Totals, local: int
    ) -> list[Any]:
        """Sum the gradients over the replicas; rows ride along where they are not known."""
        if totals.rows is not None:
            return communication_lib.all_reduce(gradients, self.communication)
        rows = tf.cast(feed_lib.rows(batch), tf.float32)
        *gradients, whole = communication_lib.all_reduce([*gradients, rows], self.communication)
        factor = totals.nominal_rows / whole
        gradients = tf.cond(
            tf.equal(factor, 1.0),
            lambda: [_map(tf.identity, g) for g in gradients],
            lambda: [_map(lambda t: t * tf.cast(factor, t.dtype), g) for g in gradients],
        )
        if local == 0:
            self._nominal_rows.assign(whole)
        return gradients

    # -- a train_step of the user's own --------------------------------------------------------

    def _train_as_the_user_wrote(self, split: feed_lib.Split, data: Any) -> Any:
        """Run the user's train_step as on one device; its optimizers sum over the replicas.

        What it hands to an optimizer are gradients of the mean over this replica's rows: they
        are weighted by the replica's share and summed, so that the optimizer sees the gradients
        of the mean over the global batch.
        """
        local = self.replicas.here()
        batch = split.batch(data, local)
        rows = feed_lib.rows(batch)
        total = split.total_rows(data)
        if total is None:
            total = communication_lib.all_sum(tf.cast(rows, tf.float32))
        totals = loss_lib.Totals(total)
        self._user.replica = (local, split, rows, totals)
        with self.replicas.enter(local) as view, compat.hide_replica_count():
            with (
                loss_lib.exact(rows, totals, self.replicas.in_sync, own_divisors=False),
                metrics_lib.exact(view, rows, totals),
            ):
                logs = self.model.train_step(batch)
            kept = self.replicas.logs.select("train", view, logs)
            if not tf.executing_eagerly():
                self.replicas.logs.keep("train", view, logs, rows)
            updates = view.updates()
            self.replicas.moving |= set(updates)
        if split.may_be_empty:
            updates = self.replicas.keep_where(tf.greater(rows, 0), updates, local)
        self.replicas.write(updates, local)
        return (kept, rows) if tf.executing_eagerly() else None

    def _apply(self, optimizer: Any, own: Any, gradients: Any, variables: Any = None) -> None:
        """Stand for `optimizer.apply` inside the user's train_step."""
        replica = getattr(self._user, "replica", None)
        if replica is None:
            own(gradients, variables)
            return
        local, split, rows, totals = replica
        share = loss_lib.share(rows, totals)
        gradients = [_map(lambda t: t * tf.cast(share, t.dtype), g) for g in gradients]
        if split.may_be_empty:
            gradients = _zero_unless(tf.greater(rows, 0), gradients)
        gradients = communication_lib.all_reduce(gradients, self.communication)
        self._user.replica = None
        try:
            variables = self.model.trainable_variables if variables is None else variables
            self._update(optimizer, local, gradients, list(variables))
        finally:
            self._user.replica = replica


def optimizers(model: keras.Model) -> list[keras.optimizers.Optimizer]:
    """Return the optimizers that a model has as attributes."""
    found = [model.optimizer, *vars(model).values()]
    return replica_lib.unique(o for o in found if isinstance(o, keras.optimizers.Optimizer))


def _map(function: Callable[[Any], Any], gradient: Any) -> Any:
    """Apply a function to the values of a gradient: a tensor, IndexedSlices or None."""
    if gradient is None:
        return None
    if isinstance(gradient, tf.IndexedSlices):
        return tf.IndexedSlices(function(gradient.values), gradient.indices, gradient.dense_shape)
    return function(gradient)


def _zero_unless(condition: Any, gradients: list[Any]) -> list[Any]:
    """Return the gradients where `condition` holds, zeros elsewhere (NaN in an empty batch)."""
    return tf.cond(
        condition,
        lambda: [_map(tf.identity, g) for g in gradients],
        lambda: [_map(tf.zeros_like, g) for g in gradients],
    )
