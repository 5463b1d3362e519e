"""How much the gradients of the replicas differ: the gradient noise scale.

    noise = Noise(Settings(every=32, smoothing=0.99))
    extra = noise.of_replica(due, gradients, mine, share)   # float32[3]: travels with the gradients
    noise.add(due, sums, gradients, factor, scale)          # on one replica of each process
    number, squared, trace = noise.read()                   # averages of |G|^2 and tr(S)

With b_r of the B rows of a global batch on replica r, and g_r the mean gradient there,

    E |g_r|^2 = |G|^2 + tr(S) / b_r         E |g|^2 = |G|^2 + tr(S) / B

where g is the mean over the global batch. Weighted by the shares b_r / B the first gives, for R
replicas that have rows, |G|^2 + R tr(S) / B, however unequal the shares are. The two equations give
estimates of |G|^2 and tr(S) without a bias, which are averaged over the steps before they are
divided (McCandlish et al. 2018, "An Empirical Model of Large-Batch Training", appendix A.1).
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from tfdp.compat import distribute
from tfdp.fit import gradients as gradients_lib


@dataclasses.dataclass(frozen=True)
class Settings:
    """How it is measured.

    Attributes:
        every: Steps from one measurement to the next.
        smoothing: Weight of the past in the moving averages, 0 to 1; 1: the mean over all.
    """

    every: int
    smoothing: float


class Noise:
    """The moving averages of one model's training.

    Args:
        settings: How it is measured.
    """

    def __init__(self, settings: Settings):
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

    def add(
        self, due: tf.Tensor, sums: tf.Tensor, gradients: Sequence[Any], factor: Any, scale: Any
    ) -> None:
        """Add a step to the averages.

        Args:
            due: Whether this step is measured.
            sums: Of what the replicas gave.
            gradients: Of the global batch.
            factor: What the replicas' shares have to be divided by: nominal / global rows.
            scale: Of the loss (LossScaleOptimizer); a step that overflowed is left out.
        """

        def measured() -> tf.Tensor:
            unscaled = tf.math.square(tf.cast(scale, tf.float32))
            small = sums[0] * tf.cast(factor, tf.float32) / unscaled
            large = _squared(gradients) / unscaled
            replicas, rows = sums[1], sums[2]
            # Of one replica alone nothing can be said.
            trace = (small - large) * tf.math.divide_no_nan(rows, replicas - 1)
            values = tf.stack([large - tf.math.divide_no_nan(trace, rows), trace])
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
