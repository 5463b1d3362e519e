"""A train_step of the user's own, run on every replica as if it were alone.

It computes on this replica's rows what it would compute on one device. What it hands to an
optimizer are gradients of a mean over those rows: weighted by the replica's share of the batch
and summed over the replicas, they are the gradients of the mean over the global batch.

    user_train = UserTrainStep(steps)
    with user_train.installed():            # once, around all replicas
        strategy.run(user_train.on_replica, args=(split, data))
"""

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

import keras
import tensorflow as tf

from tfdp.compat import distribute, graphs, keras_optimizers, keras_variables
from tfdp.fit import gradients as gradients_lib
from tfdp.fit import loss as loss_lib
from tfdp.fit import metrics as metrics_lib
from tfdp.fit import optimizers, retrace
from tfdp.fit import split as split_lib
from tfdp.fit.replicas import apart as apart_lib
from tfdp.fit.replicas import communication as communication_lib
from tfdp.fit.replicas import replica as replica_lib

# What TensorFlow says where an optimizer that this module did not find updates on a replica.
_OWN_UPDATE = ("Must not nest tf.distribute.Strategy scopes", "inside strategy.scope", "merge_call")


class _Replica(NamedTuple):
    local: int
    split: split_lib.Split
    totals: loss_lib.Totals
    graph: Any
    keys: Any
    apart: bool


class Steps(Protocol):
    """What a train_step of the user's own needs of step.Steps."""

    model: keras.Model
    strategy: tf.distribute.Strategy
    replicas: replica_lib.Replicas
    communication: communication_lib.Communication
    apart: apart_lib.Apart

    def call(self, key: Any, body: Callable[..., Any]) -> Callable[..., Any]:
        """Return `body`, compiled by XLA where the model is."""
        ...

    def on_copies(
        self, optimizer: keras.optimizers.Optimizer, local: int
    ) -> contextlib.AbstractContextManager[None]:
        """Let an optimizer update the copies of one replica."""
        ...


class UserTrainStep:
    """Runs `model.train_step` of the user's own.

    Args:
        steps: The step functions of the model.
    """

    def __init__(self, steps: Steps):
        self._steps = steps
        self._active = threading.local()  # the replica whose train_step this thread runs
        self._branch_keys: communication_lib.BranchKeys

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """Let the model's optimizers sum over the replicas inside the train_step."""
        model = self._steps.model
        try:
            with keras_optimizers.replace_apply(optimizers.of(model), self._apply):
                yield
        except (RuntimeError, ValueError) as error:
            if not any(sign in str(error) for sign in _OWN_UPDATE):
                raise
            raise RuntimeError(
                f"The train_step of model {model.name!r} applies an optimizer that the model does "
                "not hold. Make it an attribute of the model, or of a layer of it (in a list or a "
                "dict too), so that its gradients are summed over the replicas."
            ) from error

    def on_replica(self, split: split_lib.Split, data: Any, apart: bool = False) -> Any:
        """Run the train_step on this replica; return (logs, rows) when that is done eagerly.

        With `apart` its gradients are of this replica's rows alone: see apart.
        """
        steps, replicas = self._steps, self._steps.replicas
        local = replicas.here()
        batch, mine = split.batch(data, local, replicas.may_stand_in)
        whole = split.total_rows(data)
        if apart:
            steps.apart.count(local, mine)
        elif whole is None:
            whole = communication_lib.all_sum(tf.cast(mine, tf.float32))
        # Alone it does not communicate, so XLA may compile all of it.
        alone = apart or replicas.in_sync == 1
        call = steps.call if alone else lambda key, body: body
        key = ("apart" if apart else "train", split, local)
        return call(key, self._run)(split, local, batch, mine, whole, apart)

    def _run(
        self, split: split_lib.Split, local: int, batch: Any, mine: Any, whole: Any, apart: bool
    ) -> tuple[Any, Any] | None:
        steps, replicas = self._steps, self._steps.replicas
        counted = totals = loss_lib.Totals(mine, whole)
        if apart:
            totals, counted = apart_lib.totals(mine, whole, replicas.in_sync)
        graph = None if tf.executing_eagerly() else tf.compat.v1.get_default_graph()
        if local == 0:
            self._branch_keys = communication_lib.BranchKeys(steps.strategy)
        keys = self._branch_keys.sequence()
        self._active.replica = _Replica(local, split, totals, graph, keys, apart)
        state = [*replicas.variables, *replicas.metrics]
        state += [
            v for o in optimizers.of(steps.model) for v in keras_optimizers.optimizer_variables(o)
        ]
        # What the step assigns is in the copies at once: it may take gradients, or let an
        # optimizer update, after that.
        with (
            replicas.enter(local, batch, through=keras_variables.unique(state)) as view,
            distribute.hide_replica_count(),
        ):
            before = replicas.values(local) if split.may_be_empty else {}
            with (
                loss_lib.exact(totals, replicas.in_sync, own_divisors=False),
                metrics_lib.exact(view, counted),
            ):
                logs = steps.model.train_step(batch)
            kept = replicas.logs.select("train", view, logs)
            if not tf.executing_eagerly():
                replicas.logs.keep("train", view, logs, mine)
        self._active.replica = None
        differing = replicas.remember(view, "train")
        if split.may_be_empty:
            replicas.restore_unless(tf.greater(mine, 0), before, local, view, apart)
        if not apart:
            replicas.agree_on(differing, loss_lib.share(totals))
        return (kept, mine) if tf.executing_eagerly() else None

    def _apply(self, optimizer: Any, own: Any, gradients: Any, variables: Any = None) -> None:
        """Stand for `optimizer.apply` inside the train_step."""
        replica = getattr(self._active, "replica", None)
        if replica is None:
            own(gradients, variables)
            return
        gradients, given = optimizers.arguments(optimizer, own, gradients, variables)
        if not optimizer.built:
            if not gradients:  # nothing to train: Keras leaves the optimizer unbuilt
                return
            self._build(optimizer, given)
        if replica.apart:
            self._update_alone(optimizer, replica, gradients, given)
            return
        share = loss_lib.share(replica.totals)
        gradients = gradients_lib.shaped(
            [gradients_lib.scaled(gradient, share) for gradient in gradients], given
        )
        if replica.split.may_be_empty:
            gradients = gradients_lib.zero_unless(tf.greater(replica.totals.mine, 0), gradients)
        communication = self._steps.communication
        if graphs.is_in_branch(replica.graph):
            gradients = communication_lib.all_reduce_in_branch(
                gradients, communication, replica.keys
            )
        else:
            gradients = communication_lib.all_reduce(gradients, communication)
        gradients = gradients_lib.by_rows(gradients, given)
        self._update(optimizer, replica, gradients, given)

    def _update(self, optimizer: Any, replica: _Replica, gradients: Any, given: Any) -> None:
        self._active.replica = None  # the update below ends in the optimizer's own apply
        try:
            with self._steps.on_copies(optimizer, replica.local):
                optimizer.apply(gradients, given)
        finally:
            self._active.replica = replica

    def _update_alone(self, optimizer: Any, replica: _Replica, gradients: Any, given: Any) -> None:
        """Update by this replica's own gradients; without rows there is no update."""
        present = tf.greater(replica.totals.mine, 0) if replica.split.may_be_empty else True
        apart_lib.where(present, lambda: self._update(optimizer, replica, gradients, given))

    def _build(self, optimizer: keras.optimizers.Optimizer, variables: list[Any]) -> None:
        """Build an optimizer inside a step.

        Raises:
            Retrace: While a step is traced.
        """
        if not tf.executing_eagerly():
            raise retrace.Retrace(lambda: optimizer.build(variables))

        def build(strategy: tf.distribute.Strategy) -> None:
            with keras_variables.leave_stateless_scope(), strategy.scope():
                if not optimizer.built:
                    optimizer.build(variables)

        # An eager step cannot run again: an optimizer before this one has been applied.
        tf.distribute.get_replica_context().merge_call(build)
