"""One step of training, testing or predicting, on every replica.

A training step of a replica, as data-parallel training is taught:

    gradients of its share of the loss      one XLA computation with jit_compile
    all-reduce                              outside of it, where collectives can run
    optimizer                               the same update on every copy

Nothing is decided per replica: unscaling, the check for finite gradients, clipping, accumulation
and the update itself see the reduced gradients, as on one device.
"""

import contextlib
import dataclasses
import functools
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf

from tfdp.compat import compiled, distribute, keras_optimizers, keras_variables
from tfdp.fit import digest
from tfdp.fit import gradients as gradients_lib
from tfdp.fit import loss as loss_lib
from tfdp.fit import metrics as metrics_lib
from tfdp.fit import split as split_lib
from tfdp.fit import view as view_lib
from tfdp.fit.replicas import apart as apart_lib
from tfdp.fit.replicas import communication as communication_lib
from tfdp.fit.replicas import noise as noise_lib
from tfdp.fit.replicas import replica as replica_lib
from tfdp.fit.replicas import user_step

_log = logging.getLogger("tfdp")


class Steps:
    """The step functions of one compiled model.

    Args:
        model: A built model.
        strategy: The strategy it was made under.
        communication: How gradients travel.
        noise: Measures how much the replicas' gradients differ; None: nobody asks.

    Attributes:
        digests: int64[2]: of the labels and the inputs of the batches since they were set to 0.
    """

    def __init__(
        self,
        model: keras.Model,
        strategy: tf.distribute.Strategy,
        communication: communication_lib.Communication,
        noise: noise_lib.Noise | None = None,
    ):
        self.noise: Any = noise
        self.model = model
        self.strategy = strategy
        self.communication = communication
        self.replicas = replica_lib.Replicas(model, strategy)
        self.apart = apart_lib.Apart(self)
        self._user_train: user_step.UserTrainStep | None = None
        if type(model).train_step is not keras.Model.train_step:
            self._user_train = user_step.UserTrainStep(self)
        self._has_test_step = type(model).test_step is not keras.Model.test_step
        self._jit = bool(model.jit_compile) and not model.run_eagerly
        if self._jit and self.replicas.synchronized and self.replicas.in_sync > 1:
            self._jit = False
            _log.warning(
                "Model %r runs without XLA: its synchronised BatchNormalization communicates in "
                "the middle of a step, which XLA cannot compile.",
                model.name,
            )
        if self._user_train and self.replicas.in_sync > 1:
            _log.warning(
                "Model %r has a train_step of its own: its gradients are averaged over the rows "
                "of all replicas. That is what one device computes where its losses are means "
                "over rows; one with another divisor (a mask, weights) is exact only where all "
                "replicas hold equally much.%s",
                model.name,
                " It runs without XLA: it communicates in its middle." if self._jit else "",
            )
        if self.replicas.in_sync > 1 and type(model).compute_loss is not keras.Model.compute_loss:
            _log.warning(
                "Model %r has a compute_loss of its own: what it adds to the compiled losses is "
                "averaged over the rows of all replicas. That is what one device computes where it "
                "is a mean over rows; one with another divisor (a mask, weights) is exact only "
                "where all replicas hold equally much.",
                model.name,
            )
        # Gradients divided by too small a number could overflow in float16 before they travel.
        optimizer = getattr(model, "optimizer", None)
        self._reduces_totals = isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
        half = any(tf.as_dtype(v.dtype).size <= 2 for v in model.trainable_variables)
        self._in_half_precision = half or communication.compression is not None
        with distribute.leave_strategy():
            self._nominal_rows = tf.Variable(1.0, trainable=False)
            self.digests = tf.Variable([0, 0], trainable=False, dtype=tf.int64)
        self._compiled: dict[Any, Callable[..., Any]] = {}
        self._differing: dict[Any, list[Any]] = {}
        self._packs: dict[Any, communication_lib.Packs] = {}

    def _reduce_totals(self) -> None:
        """Let the replicas sum rows and divisors before the gradients from the next trace on."""
        self._reduces_totals = True

    def forget(self) -> None:
        """Drop what was traced."""
        self._compiled.clear()

    # -- in cross-replica context -----------------------------------------------------------

    def train(self, split: split_lib.Split, element: Any, apart: bool = False) -> None:
        """Train every replica on its part of an element of a feed's iterator.

        Args:
            split: How the element is split.
            element: The element.
            apart: Whether each replica trains by itself, as if there were no other: see apart.
        """
        data = self._parts(split, element)
        if self._user_train is None:
            on_replica = self.apart.on_replica if apart else self._train_on_replica
            with self._installed():
                self.strategy.run(on_replica, args=(split, data))
            return
        with self._installed(), self._user_train.installed():
            logs = self.strategy.run(self._user_train.on_replica, args=(split, data, apart))
        if tf.executing_eagerly():
            # The update is done, so the step cannot be tried again with room for its logs.
            for local, (values, rows) in enumerate(replica_lib.local_results(self.strategy, logs)):
                self.replicas.put_logs("train", values, rows, local)

    def test(self, split: split_lib.Split, element: Any) -> None:
        """Add every replica's part of an element to the metrics."""
        data = self._parts(split, element)
        with self._installed():
            self.strategy.run(self._test_on_replica, args=(split, data))

    def predict(self, split: split_lib.Split, element: Any) -> tuple[Any, ...]:
        """Return the predictions of each of this process's replicas, in the order of rows."""
        data = self._parts(split, element)
        results = self.strategy.run(self._predict_on_replica, args=(split, data))
        return replica_lib.local_results(self.strategy, results)

    def exchange(self, split: split_lib.Split) -> None:
        """Sum zeros over all replicas, in packs like those of the gradients: an exchange alone."""

        def on_replica() -> None:
            layout = self._layout(split, self.replicas.here())
            layout.reduce([tf.zeros((size,), dtype) for size, dtype in layout.sizes()])

        self.strategy.run(on_replica)

    def exchange_bytes(self, size: int) -> None:
        """Sum so many bytes of float32 over all replicas, as gradients travel uncompressed."""
        plain = dataclasses.replace(self.communication, compression=None)

        def on_replica() -> None:
            communication_lib.all_reduce([tf.zeros((max(1, size // 4),))], plain)

        self.strategy.run(on_replica)

    def packs_in_bytes(self, split: split_lib.Split) -> list[int]:
        """Return the bytes of each pack of a replica's dense gradients, once a step was traced."""
        layout = self._packs.get((split, 0))
        if layout is None:
            return [
                math.prod(v.shape) * tf.as_dtype(v.dtype).size
                for v in self.model.trainable_variables
            ]
        return [size * dtype.size for size, dtype in layout.sizes()]

    def _layout(self, split: split_lib.Split, local: int) -> communication_lib.Packs:
        layout = self._packs.get((split, local))
        if layout is None:  # a train_step of the user's own makes its packs by itself
            trained = self.model.trainable_variables
            zeros = [tf.zeros(v.shape, v.dtype) for v in trained]
            layout = communication_lib.Packs(zeros, self.communication)
        return layout

    def results(self, kind: str) -> dict[str, Any]:
        """Return the logs of "train" or "test" steps out of the metrics' present values."""
        return self.replicas.logs.results(kind, self.model.get_metrics_result())

    def _parts(self, split: split_lib.Split, element: Any) -> Any:
        """Return an element in the replicas' parts; what was read goes into the digests."""
        data = split.parts(element)
        if split.has_digests:
            self.digests.assign(self.digests * digest.FACTOR + data[2])
        return data

    @contextlib.contextmanager
    def _installed(self) -> Iterator[None]:
        """Let losses, metrics and layers ask which replica is being traced, and what others see."""
        with contextlib.ExitStack() as stack:
            if self.replicas.in_sync > 1:
                stack.enter_context(loss_lib.installed(self.model))
                stack.enter_context(metrics_lib.installed(self.model))
                stack.enter_context(
                    keras_variables.synchronized_over_rows(self.model, loss_lib.rows_here)
                )
                stack.enter_context(keras_variables.losses_of_threads(self.model))
                if not self._jit:
                    stack.enter_context(communication_lib.reduced_by_carrier(self.strategy))
            yield

    # -- on a replica -----------------------------------------------------------------------

    def _train_on_replica(self, split: split_lib.Split, data: Any) -> None:
        local = self.replicas.here()
        batch, totals = self._prepare(split, data, local, self.loss, training=True)
        # Looked up outside of what XLA compiles, for all replicas of this process alike.
        due = None if self.noise is None else self.noise.is_due()
        packs, updates = self.call(("train", split, local), self._gradients)(
            split, local, batch, *totals.numbers, due
        )
        # Weights that layers assigned, before the optimizer updates them.
        self.replicas.agree_on(self._differing[split, local], loss_lib.share(totals))
        layout = self._packs[split, local]
        rows = self.call(("update", local), self._update)(
            layout, local, layout.reduce(packs), totals.rows is None, totals.nominal_rows, due
        )
        if rows is not None and local == 0:
            self._nominal_rows.assign(rows)
        self.replicas.write(updates, local)

    def _test_on_replica(self, split: split_lib.Split, data: Any) -> None:
        local = self.replicas.here()
        forward = self._user_test if self._has_test_step else self.loss
        batch, totals = self._prepare(split, data, local, forward, training=False)
        updates = self.call(("test", split, local), self._measures)(
            split, local, batch, *totals.numbers
        )
        self.replicas.write(updates, local)
        self.replicas.agree_on(self._differing["test", split, local], loss_lib.share(totals))

    def _predict_on_replica(self, split: split_lib.Split, data: Any) -> Any:
        local = self.replicas.here()
        stand_in = self.replicas.may_stand_in
        batch, mine = split.batch(data, local, stand_in)
        outputs, updates = self.call(("predict", split, local), self._predictions)(
            split, local, batch, mine
        )
        self.replicas.write(updates, local)
        if split.may_be_empty and stand_in:
            outputs = split_lib.without_stand_in(outputs, mine)
        return outputs

    def _prepare(
        self,
        split: split_lib.Split,
        data: Any,
        local: int,
        forward: Callable[..., Any],
        training: bool,
    ) -> tuple[Any, loss_lib.Totals]:
        """Return this replica's batch, and what is known of the global one before the gradients.

        Costs a collective only where the losses need one: see loss.Totals.
        """
        batch, mine = split.batch(data, local, self.replicas.may_stand_in)
        rows = split.total_rows(data)
        if not self._reduces_totals or self.replicas.in_sync == 1:
            nominal = None
            if rows is None and split.nominal_rows:
                nominal = tf.constant(float(split.nominal_rows))
            elif rows is None and self._in_half_precision:
                # A sum over the rows could overflow on its way.
                rows = communication_lib.all_sum(tf.cast(mine, tf.float32))
            elif rows is None:
                # Read before the all-reduce, so that every replica scales by the same number.
                nominal = tf.identity(self._nominal_rows)
            return batch, loss_lib.Totals(mine, rows, None, nominal)
        with distribute.hide_replica_count(), self.replicas.enter(local):
            collecting = loss_lib.Totals(mine, rows=1.0)
            _, terms, _ = forward(batch, collecting, training=training, collect=True)
        if rows is not None and not terms.divisors:
            return batch, loss_lib.Totals(mine, rows)
        present = tf.cast(tf.greater(mine, 0), tf.float32)
        sums = communication_lib.all_sum(
            tf.stack([tf.cast(mine, tf.float32), *[d * present for d in terms.divisors]])
        )
        return batch, loss_lib.Totals(mine, sums[0] if rows is None else rows, sums[1:])

    def call(self, key: Any, body: Callable[..., Any]) -> Callable[..., Any]:
        """Return `body`, compiled by XLA for this replica when the model asks for it.

        One compiled function per replica: a shared one fails on the second device ("trying to
        access resource ... located in device CPU:1 from device CPU:0").
        """
        if not self._jit:
            return body
        if key not in self._compiled:
            self._compiled[key] = distribute.function(body, jit_compile=True)
        return self._compiled[key]

    # -- what XLA may compile -----------------------------------------------------------------

    def _gradients(
        self,
        split: split_lib.Split,
        local: int,
        batch: Any,
        mine: Any,
        rows: Any,
        divisors: Any,
        nominal_rows: Any,
        due: Any,
    ) -> tuple[list[Any], dict[str, Any]]:
        """Return the gradients of this replica's share of the loss, packed, and what to assign."""
        totals = loss_lib.Totals(mine, rows, divisors, nominal_rows, self._reduce_totals)
        replicas, trained = self.replicas, self.model.trainable_variables
        with distribute.hide_replica_count(), replicas.enter(local, batch, through=trained) as view:
            with tf.GradientTape() as tape:
                loss, _, outputs = self.loss(batch, totals, training=True, view=view)
                objective = self.model.optimizer.scale_loss(loss)
                objective = objective * tf.cast(loss_lib.share(totals), objective.dtype)
            gradients = tape.gradient(objective, [view.get(v) for v in trained])
            gradients = gradients_lib.shaped(gradients, trained)
            self.measure(view, totals, loss, outputs, "train")
            updates = view.updates()
        self._differing[split, local] = replicas.remember(view, "train")
        if split.may_be_empty:
            present = tf.greater(mine, 0)
            updates = replicas.keep_where(present, updates, local)
            gradients = gradients_lib.zero_unless(present, gradients)
        exact = []
        if self.noise is not None and replicas.in_sync == 1:
            of_rows = functools.partial(self._gradients_of_rows, local)
            exact.append(self.noise.of_halves(due, batch, of_rows))
        elif self.noise is not None:
            share = loss_lib.share(totals)
            exact.append(self.noise.of_replica(due, gradients, mine, share))
        if rows is None:  # only the replicas together know them: they travel with the gradients
            exact.append(tf.cast(mine, tf.float32))
        counts = range(len(gradients), len(gradients) + len(exact))
        gradients = [*gradients, *exact]
        self._packs[split, local] = communication_lib.Packs(gradients, self.communication, counts)
        return self._packs[split, local].pack(gradients), updates

    def _gradients_of_rows(self, local: int, batch: Any, count: Any, part: int) -> list[Any]:
        """Return the gradients of the loss of some rows of a batch, which leave no trace.

        Random numbers are those of replica `part`, if there were several.
        """
        trained = self.model.trainable_variables
        entered = self.replicas.enter(local, batch, draws_as=part)
        with distribute.hide_replica_count(), entered as view:
            sources = [view.get(v) for v in trained]
            with tf.GradientTape() as tape:
                loss, _, _ = self.loss(batch, loss_lib.Totals(count, count), True, view=view)
                objective = self.model.optimizer.scale_loss(loss)
            return tape.gradient(objective, sources)

    def _update(
        self,
        layout: communication_lib.Packs,
        local: int,
        packs: Sequence[Any],
        with_rows: bool,
        nominal_rows: Any,
        due: Any,
    ) -> Any:
        """Apply reduced gradients to replica `local`'s copies, as one device would.

        Returns:
            The rows of the global batch, where they travelled with the gradients.
        """
        gradients, rows, factor, sums = layout.unpack(packs), None, 1.0, None
        if with_rows:
            *gradients, rows = gradients
            factor = nominal_rows / rows
        if self.noise is not None:
            *gradients, sums = gradients
        if with_rows:
            gradients = tf.cond(
                tf.equal(factor, 1.0),
                lambda: [gradients_lib.scaled(g, 1.0) for g in gradients],
                lambda: [gradients_lib.scaled(g, factor) for g in gradients],
            )
        if not gradients:  # everything is frozen
            return rows
        optimizer, trained = self.model.optimizer, self.model.trainable_variables
        gradients = gradients_lib.by_rows(gradients, trained)
        with self.on_copies(optimizer, local):
            if self.noise is not None and local == 0:
                self.noise.add(due, sums, gradients, factor, optimizer.scale_loss(1.0))
            optimizer.apply_gradients(zip(gradients, trained, strict=True))
        return rows

    def _measures(
        self,
        split: split_lib.Split,
        local: int,
        batch: Any,
        mine: Any,
        rows: Any,
        divisors: Any,
        nominal_rows: Any,
    ) -> dict[str, Any]:
        """Return what a test step assigns: the metrics' states."""
        totals = loss_lib.Totals(mine, rows, divisors, nominal_rows, self._reduce_totals)
        with distribute.hide_replica_count(), self.replicas.enter(local, batch) as view:
            if self._has_test_step:
                logs, _, _ = self._user_test(batch, totals, training=False, view=view)
                self.replicas.logs.keep("test", view, logs, mine)
            else:
                loss, _, outputs = self.loss(batch, totals, training=False, view=view)
                self.measure(view, totals, loss, outputs, "test")
            updates = view.updates()
        self._differing["test", split, local] = self.replicas.remember(view, "test")
        if split.may_be_empty:
            updates = self.replicas.keep_where(tf.greater(mine, 0), updates, local)
        return updates

    def _predictions(
        self, split: split_lib.Split, local: int, batch: Any, mine: Any
    ) -> tuple[Any, dict[str, Any]]:
        """Return the predictions, and what to assign: random layers draw anew for each batch."""
        with distribute.hide_replica_count(), self.replicas.enter(local, batch) as view:
            outputs = self.model.predict_step(batch)
            updates = view.updates()
        self.replicas.remember(view, "predict")
        if split.may_be_empty:
            updates = self.replicas.keep_where(tf.greater(mine, 0), updates, local)
        return outputs, updates

    # -- the forward pass -----------------------------------------------------------------------

    def loss(
        self,
        batch: Any,
        totals: loss_lib.Totals,
        training: bool,
        collect: bool = False,
        view: view_lib.View | None = None,
        counted: loss_lib.Totals | None = None,
    ) -> tuple[Any, loss_lib.Terms, Any]:
        """Run the model forward; return its loss, the loss's terms, and inputs and outputs.

        Args:
            batch: Of this replica.
            totals: Of the replicas whose loss it is.
            training: As for `Model.call`.
            collect: Only collect the terms' divisors: see loss.exact.
            view: What this replica sees of the variables.
            counted: The totals by which metrics count, where the loss is of this replica alone.
        """
        with self._exact(totals, collect, view, counted) as terms:
            loss, outputs = loss_lib.forward(self.model, batch, training)
        return loss, terms, outputs

    def _user_test(
        self,
        batch: Any,
        totals: loss_lib.Totals,
        training: bool,
        collect: bool = False,
        view: view_lib.View | None = None,
    ) -> tuple[Any, loss_lib.Terms, Any]:
        """Run the user's own test_step; return its logs and the loss's terms."""
        del training
        with self._exact(totals, collect, view) as terms:
            return self.model.test_step(batch), terms, None

    @contextlib.contextmanager
    def _exact(
        self,
        totals: loss_lib.Totals,
        collect: bool,
        view: view_lib.View | None,
        counted: loss_lib.Totals | None = None,
    ) -> Iterator[loss_lib.Terms]:
        """Make losses, and what metrics make of scalars, exact; without a view only losses."""
        with contextlib.ExitStack() as stack:
            if view is not None:
                stack.enter_context(metrics_lib.exact(view, counted or totals))
            exact = loss_lib.exact(totals, self.replicas.in_sync, collect, counted is None)
            yield stack.enter_context(exact)

    def measure(
        self,
        view: view_lib.View,
        totals: loss_lib.Totals,
        loss: Any,
        outputs: Any,
        kind: str,
        counted: loss_lib.Totals | None = None,
    ) -> None:
        """Update the metrics, and keep logs that are no metrics; arguments as of `loss`."""
        x, y, y_pred, sample_weight = outputs
        rows = tf.cast(totals.mine, tf.float32)
        with metrics_lib.exact(view, counted or totals):
            if loss.shape.rank:  # reduction=None: Keras logs the mean of what it adds up
                loss = tf.reduce_mean(loss) * loss_lib.share(totals)
            compiled.loss_tracker(self.model).update_state(loss, sample_weight=rows)
            logs = self.model.compute_metrics(x, y, y_pred, sample_weight=sample_weight)
        self.replicas.logs.keep(kind, view, logs, rows)

    # -- optimizers -----------------------------------------------------------------------------

    def finalize(self) -> None:
        """Let the optimizer set the variables' last values, on each copy."""
        with self.on_copies(self.model.optimizer, self.replicas.here()):
            self.model.optimizer.finalize_variable_values(self.model.trainable_variables)

    @contextlib.contextmanager
    def on_copies(self, optimizer: keras.optimizers.Optimizer, local: int) -> Iterator[None]:
        """Let an optimizer see one device with replica `local`'s copies of the variables."""
        theirs = keras_optimizers.optimizer_variables(optimizer)
        touched = keras_variables.unique([*self.replicas.variables, *theirs])
        copies = [self.replicas.copy(v, local) for v in touched]
        with (
            keras_variables.leave_stateless_scope(),
            keras_optimizers.optimizer_on_one_device(optimizer),
            keras_variables.bind(touched, copies),
        ):
            yield
