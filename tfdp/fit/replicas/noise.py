"""How much the gradients of the replicas differ: the gradient noise scale.

    noise = Noise(noise.Settings(every=32, smoothing=0.99))
    extra = noise.of_replica(due, gradients, mine, share)   # float32[3]: travels with the gradients
    extra = noise.of_halves(due, batch, gradients_of)       # float32[4], where there is one replica
    noise.add(due, sums, gradients, factor, scale)          # on one replica of each process
    number, squared, trace = noise.read()                   # averages of |G|^2 and tr(S)

Of one replica alone the two halves of its batch are compared. What is estimated of it: see
tfdp/fit/noise.py.
"""

from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from tfdp.compat import distribute
from tfdp.fit import gradients as gradients_lib
from tfdp.fit import noise as noise_lib
from tfdp.fit import split as split_lib


class Noise:
    """The moving averages of one model's training.

    Args:
        settings: How it is measured.
    """

    def __init__(self, settings: noise_lib.Settings):
        self._settings = settings
        with distribute.leave_strategy():
            self._step = tf.Variable(0, trainable=False, dtype=tf.int64)
            # How many measurements there were, and the averages of |G|^2 and tr(S).
            self._averages = tf.Variable([0.0, 0.0, 0.0], trainable=False)

    def is_due(self) -> tf.Tensor:
        """Say whether the step that comes is measured."""
        return tf.equal(self._step % self._settings.every, 0)

    def of_replica(
        self, due: tf.Tensor, gradients: Sequence[Any], mine: Any, share: Any
    ) -> tf.Tensor:
        """Return what a replica adds to the sums: float32[3].

        Args:
            due: Whether this step is measured.
            gradients: Of its share of the loss: the mean gradient of its rows times `share`.
            mine: Its rows.
            share: Its part of the global batch; 0 without rows.
        """

        def measured() -> tf.Tensor:
            weighted = tf.math.divide_no_nan(_squared(gradients), share)
            rows = tf.cast(mine, tf.float32)
            return tf.stack([weighted, tf.cast(rows > 0, tf.float32), rows])

        return tf.cond(due, measured, lambda: tf.zeros((3,)))

    def of_halves(
        self, due: tf.Tensor, batch: Any, gradients_of: Callable[[Any, Any, int], Sequence[Any]]
    ) -> tf.Tensor:
        """Return what two replicas with a half of a batch each would add, and |g|^2: float32[4].

        |g|^2 is that of the mean over both halves, not of the step's own gradient: their dropout
        masks, and the statistics of their BatchNormalization, are others, which would blur the
        difference of the two.

        Args:
            due: Whether this step is measured.
            batch: The batch.
            gradients_of: Returns the mean gradient of some rows of it, given these, how many there
                are, and which of the two replicas has them.
        """
        rows = tf.cast(split_lib.rows(batch), tf.int64)

        def measured() -> tf.Tensor:
            small = tf.constant(0.0)
            halves = []
            for part, (begin, end) in enumerate(
                [(tf.zeros_like(rows), rows // 2), (rows // 2, rows)]
            ):
                half = keras.tree.map_structure(
                    lambda leaf, a=begin, b=end: split_lib.cut(leaf, a, b), batch
                )
                share = tf.cast(end - begin, tf.float32) / tf.cast(rows, tf.float32)
                gradients = gradients_of(half, end - begin, part)
                small += share * _squared(gradients)
                halves.append([gradients_lib.scaled(one, share) for one in gradients])
            whole = [gradients_lib.added(*pair) for pair in zip(*halves, strict=True)]
            return tf.stack([small, 2.0, tf.cast(rows, tf.float32), _squared(whole)])

        return tf.cond(tf.logical_and(due, rows > 1), measured, lambda: tf.zeros((4,)))

    def add(
        self, due: tf.Tensor, sums: tf.Tensor, gradients: Sequence[Any], factor: Any, scale: Any
    ) -> None:
        """Add a step to the averages.

        Args:
            due: Whether this step is measured.
            sums: Of what the replicas gave.
            gradients: Of the global batch; of no use where `sums` hold |g|^2.
            factor: What the replicas' shares have to be divided by: nominal / global rows.
            scale: Of the loss (LossScaleOptimizer); a step that overflowed is left out.
        """

        def measured() -> tf.Tensor:
            unscaled = tf.math.square(tf.cast(scale, tf.float32))
            small = sums[0] * tf.cast(factor, tf.float32) / unscaled
            large = (sums[3] if sums.shape[0] == 4 else _squared(gradients)) / unscaled
            replicas, rows = sums[1], sums[2]
            values = tf.stack(noise_lib.estimate(small, large, replicas, rows))
            # Of one part alone nothing can be said.
            counts = tf.logical_and(replicas > 1, tf.reduce_all(tf.math.is_finite(values)))
            before, number = self._averages[1:], self._averages[0] + 1
            weight = tf.maximum(1 - self._settings.smoothing, 1 / number)
            after = tf.concat([[number], before + weight * (values - before)], 0)
            return tf.where(counts, after, self._averages)

        self._averages.assign(tf.cond(due, measured, lambda: tf.identity(self._averages)))
        self._step.assign_add(1)

    def read(self) -> tuple[int, float, float]:
        """Return how many steps were measured, and the averages of |G|^2 and tr(S)."""
        number, squared, trace = self._averages.numpy().tolist()
        return int(number), squared, trace


def _squared(gradients: Sequence[Any]) -> tf.Tensor:
    """Return the squared length of all gradients together, in float32."""
    parts = []
    for gradient in gradients:
        if gradient is None:
            continue
        if isinstance(gradient, tf.IndexedSlices):
            gradient = gradients_lib.merged(gradient).values
        # Without a copy of the squares.
        parts.append(2 * tf.nn.l2_loss(tf.cast(gradient, tf.float32)))
    return tf.add_n(parts) if parts else tf.constant(0.0)
