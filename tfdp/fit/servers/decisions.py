"""Whether a step on parameter servers updates: loss scale, accumulation, overwriting by averages.

Keras writes these decisions as conditions inside the update. Here each outcome is an update of its
own, with its own stand-ins of the variables, and the condition stands around them.

Who decides: a loss scale looks at the gradients of the step alone. Accumulation and overwriting
count: steps that are alone by the optimizer's own counter, others by their number from the
coordinator, which no two steps share. A gradient that comes while another step takes the sum stays
in the next one.

    apply(optimizer, gradients, variables, number=number, scale=None, lazy_rows=False, alone=False)
"""

from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from tfdp.compat import keras_optimizers, parameter_server
from tfdp.fit import gradients as gradients_lib
from tfdp.fit.servers import update as update_lib


def scale_of(optimizer: keras.optimizers.Optimizer) -> keras.Variable | None:
    """Return the loss scale that an optimizer keeps, if it does."""
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer) and optimizer.built:
        return optimizer.dynamic_scale
    return None


def apply(
    optimizer: keras.optimizers.Optimizer,
    gradients: Sequence[Any],
    variables: Sequence[keras.Variable],
    *,
    number: tf.Tensor,
    scale: tf.Tensor | None,
    lazy_rows: bool,
    alone: bool,
) -> tf.Tensor:
    """Apply gradients on the servers, if the optimizer decides so; inside a tf.function.

    Args:
        optimizer: Built with `variables`.
        gradients: A tensor, IndexedSlices or None for each variable.
        variables: Keras variables, partitions where there are some.
        number: Of this step among the training steps, a scalar of int64.
        scale: By what the loss was scaled, where the optimizer keeps a loss scale.
        lazy_rows: Whether a sparse gradient changes the rows it has and no others.
        alone: Whether nothing else updates at the same time.

    Returns:
        The number of steps applied before this one.
    """
    inner = update_lib.innermost(optimizer)
    counted = number
    if alone:
        counted = tf.cast(
            tf.identity(parameter_server.stored_value(keras_optimizers.step_count(inner))), tf.int64
        )

    def update(gradients: Sequence[Any]) -> tf.Tensor:
        return _counted(inner, gradients, variables, counted, lazy_rows, alone)

    if scale is None:
        return update(gradients)
    return _if_finite(optimizer, gradients, scale, update)


def _if_finite(
    optimizer: keras.optimizers.LossScaleOptimizer,
    gradients: Sequence[Any],
    scale: tf.Tensor,
    update: Callable[[Sequence[Any]], tf.Tensor],
) -> tf.Tensor:
    """Update with unscaled gradients, or skip the step; then adapt the scale.

    Steps that ran with a scale which another step has changed since leave it as it is: four that
    overflow at the same time halve it once.
    """
    held = parameter_server.stored_value(optimizer.dynamic_scale)
    counter = parameter_server.stored_value(optimizer.step_counter)
    present = [_values(g) for g in gradients if g is not None]
    finite = tf.reduce_all([tf.reduce_all(tf.math.is_finite(values)) for values in present])

    def adapt(factor: float) -> None:
        def change() -> tf.Tensor:
            held.assign(scale * factor)
            counter.assign(tf.zeros_like(counter))
            return tf.constant(True)

        tf.cond(tf.equal(held.read_value(), scale), change, lambda: tf.constant(False))

    def apply_and_count() -> tf.Tensor:
        def unscale(values: tf.Tensor) -> tf.Tensor:
            return values / tf.cast(scale, values.dtype)

        steps = update([gradients_lib.map_values(unscale, g) for g in gradients])

        def grow() -> tf.Tensor:
            adapt(2.0)
            return tf.constant(True)

        def count() -> tf.Tensor:
            counter.assign_add(tf.ones_like(counter))
            return tf.constant(False)

        due = counter.read_value() >= optimizer.dynamic_growth_steps - 1
        tf.cond(due, grow, count)
        return steps

    def skip() -> tf.Tensor:
        adapt(0.5)
        counter.assign(tf.zeros_like(counter))
        return tf.identity(parameter_server.stored_value(keras_optimizers.step_count(optimizer)))

    return tf.cond(finite, apply_and_count, skip)


def _counted(
    optimizer: keras.optimizers.Optimizer,
    gradients: Sequence[Any],
    variables: Sequence[keras.Variable],
    number: tf.Tensor,
    lazy_rows: bool,
    alone: bool,
) -> tf.Tensor:
    """Run the update that is due at a step."""

    def run(*decided: bool) -> tf.Tensor:
        with keras_optimizers.decide_updates(optimizer, decided):
            return update_lib.apply(
                optimizer, gradients, variables, lazy_rows=lazy_rows, alone=alone
            )

    overwrites = optimizer.ema_overwrite_frequency if optimizer.use_ema else None
    periods = [n for n in (optimizer.gradient_accumulation_steps, overwrites) if n]

    def decide(left: Sequence[int], *decided: bool) -> tf.Tensor:
        if not left:
            return run(*decided)
        due = tf.equal((number + 1) % left[0], 0)
        return tf.cond(
            due,
            lambda: decide(left[1:], *decided, True),
            lambda: decide(left[1:], *decided, False),
        )

    return decide(periods)


def _values(gradient: Any) -> tf.Tensor:
    return gradient.values if isinstance(gradient, tf.IndexedSlices) else gradient
