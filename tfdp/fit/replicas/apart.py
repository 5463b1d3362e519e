"""A step in which each replica trains by itself, on its own rows, as if there were no other.

    apart = Apart(steps)
    apart.open()                                        # before the first step is traced
    strategy.run(apart.on_replica, args=(split, data))
    apart.rows[local]                                   # on how many rows it has trained

Nothing is exchanged, so that XLA may compile all of it, the update too. Its loss is that of the
rows of this replica, and so are its gradients; the optimizer updates this replica's copies. What
the replicas have made of the weights becomes one where they meet: see meetings.
"""

from collections.abc import Callable
from typing import Any, Protocol

import keras
import tensorflow as tf

from tfdp.compat import distribute
from tfdp.fit import loss as loss_lib
from tfdp.fit import split as split_lib
from tfdp.fit.replicas import replica as replica_lib


class Steps(Protocol):
    """What it needs of step.Steps."""

    model: keras.Model
    replicas: replica_lib.Replicas

    def call(self, key: Any, body: Callable[..., Any]) -> Callable[..., Any]:
        """Return `body`, compiled by XLA where the model is."""
        ...

    def loss(self, *args: Any, **kwargs: Any) -> tuple[Any, Any, Any]:
        """Run the model forward."""
        ...

    def measure(self, *args: Any, **kwargs: Any) -> None:
        """Update the metrics."""
        ...

    def on_copies(self, optimizer: keras.optimizers.Optimizer, local: int) -> Any:
        """Let an optimizer update the copies of one replica."""
        ...


class Apart:
    """The steps of replicas that train by themselves.

    Args:
        steps: The step functions of the model.

    Attributes:
        rows: On how many rows each replica of this process has trained since they were set to 0.
    """

    def __init__(self, steps: Steps):
        self._steps = steps
        self.rows: list[tf.Variable] = []

    def open(self) -> None:
        """Make room for the numbers of rows."""
        with distribute.leave_strategy():
            for device in self._steps.replicas.devices:
                with tf.device(device):
                    self.rows.append(tf.Variable(0.0, trainable=False))

    def count(self, local: int, rows: Any) -> None:
        """Add rows on which replica `local` of this process trains."""
        self.rows[local].assign_add(tf.cast(rows, tf.float32))

    def on_replica(self, split: split_lib.Split, data: Any) -> None:
        """Train on this replica's rows."""
        steps, replicas = self._steps, self._steps.replicas
        local = replicas.here()
        batch, mine = split.batch(data, local, replicas.may_stand_in)
        self.count(local, mine)
        updates = steps.call(("apart", split, local), self._step)(
            split, local, batch, mine, split.total_rows(data)
        )
        replicas.write(updates, local)

    def _step(
        self, split: split_lib.Split, local: int, batch: Any, mine: Any, whole: Any
    ) -> dict[str, Any]:
        """Update the weights; return what else to assign."""
        steps, replicas, model = self._steps, self._steps.replicas, self._steps.model
        optimizer, trained = model.optimizer, model.trainable_variables
        own, counted = totals(mine, whole, replicas.in_sync)
        with distribute.hide_replica_count(), replicas.enter(local, batch, through=trained) as view:
            with tf.GradientTape() as tape:
                loss, _, outputs = steps.loss(batch, own, training=True, view=view, counted=counted)
                objective = optimizer.scale_loss(loss)
            gradients = tape.gradient(objective, [view.get(v) for v in trained])
            steps.measure(view, own, loss, outputs, "train", counted)
            updates = view.updates()
        replicas.remember(view, "train")
        present = True
        if split.may_be_empty:
            present = tf.greater(mine, 0)
            updates = replicas.keep_where(present, updates, local, apart=True)

        def update() -> None:
            with steps.on_copies(optimizer, local):
                optimizer.apply_gradients(zip(gradients, trained, strict=True))

        if trained:
            where(present, update)
        return updates


def totals(mine: Any, whole: Any, replicas: int) -> tuple[loss_lib.Totals, loss_lib.Totals]:
    """Return the totals of the loss of one replica alone, and those by which metrics count.

    A step is one call of a metric, whatever the number of replicas: each has its share of it.

    Args:
        mine: Rows of this replica.
        whole: Those of the global batch; None where nobody knows: then all count alike.
        replicas: How many there are.
    """
    counted = mine * replicas if whole is None else whole
    return loss_lib.Totals(mine, mine), loss_lib.Totals(mine, counted)


def where(condition: Any, update: Callable[[], None]) -> None:
    """Run an update if a condition holds: True, or a tensor."""
    if condition is True:
        update()
        return

    def run() -> tf.Tensor:
        update()
        return tf.constant(True)

    tf.cond(condition, run, lambda: tf.constant(False))
