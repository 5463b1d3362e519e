"""Gradients of one variable each: a tensor, IndexedSlices, or None."""

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

# Marks a variable whose sparse gradients name each row once: that of tfdp.layers.Embedding.
ROWS_ONCE = "_tfdp_rows_once"


def scaled(gradient: Any, factor: Any) -> Any:
    """Return a gradient (a tensor, IndexedSlices or None) times a scalar."""
    return map_values(lambda t: t * tf.cast(factor, t.dtype), gradient)


def added(one: Any, other: Any) -> Any:
    """Return the sum of two gradients of one variable: both tensors, IndexedSlices or None."""
    if one is None or isinstance(one, tf.Tensor):
        return one if one is None else one + other
    indices = tf.concat([one.indices, other.indices], 0)
    return tf.IndexedSlices(tf.concat([one.values, other.values], 0), indices, one.dense_shape)


def shaped(gradients: Sequence[Any], variables: Sequence[Any]) -> list[Any]:
    """Return gradients that know the shapes of their variables.

    Where a batch is known to have fewer rows than there are replicas, one replica's rows are known
    to be none: its graph may know less of shapes, and its gradients would be packed otherwise.
    """
    made = []
    for gradient, variable in zip(gradients, variables, strict=True):
        if isinstance(gradient, tf.Tensor):
            gradient = tf.ensure_shape(gradient, variable.shape)
        made.append(gradient)
    return made


def merged(gradient: tf.IndexedSlices) -> tf.IndexedSlices:
    """Return a sparse gradient with each row once: the sum of those that were equal."""
    rows, where = tf.unique(tf.reshape(gradient.indices, (-1,)))
    values = tf.reshape(gradient.values, tf.concat([[-1], tf.shape(gradient.values)[1:]], 0))
    values = tf.math.unsorted_segment_sum(values, where, tf.size(rows))
    return tf.IndexedSlices(values, rows, gradient.dense_shape)


def by_rows(gradients: Sequence[Any], variables: Sequence[Any]) -> list[Any]:
    """Return gradients summed over replicas, those of tfdp.layers.Embedding with each row once.

    They have each row once where they arise; of several replicas they have it several times, and
    optimizers would look at the parts one by one.
    """
    return [
        merged(gradient)
        if isinstance(gradient, tf.IndexedSlices) and hasattr(variable, ROWS_ONCE)
        else gradient
        for gradient, variable in zip(gradients, variables, strict=True)
    ]


def zero_unless(condition: Any, gradients: list[Any]) -> list[Any]:
    """Return the gradients where `condition` holds, zeros elsewhere (NaN in an empty batch)."""
    return tf.cond(
        condition,
        lambda: [map_values(tf.identity, g) for g in gradients],
        lambda: [map_values(tf.zeros_like, g) for g in gradients],
    )


def map_values(function: Any, gradient: Any) -> Any:
    """Return a gradient (a tensor, IndexedSlices or None) with its values mapped."""
    if gradient is None:
        return None
    if isinstance(gradient, tf.IndexedSlices):
        values = function(gradient.values)
        return tf.IndexedSlices(values, gradient.indices, gradient.dense_shape)
    return function(gradient)
