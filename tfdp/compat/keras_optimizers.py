"""What an optimizer of Keras keeps for itself, and how its update can be led."""

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf
from keras.src.optimizers import base_optimizer

from tfdp.compat import attributes
from tfdp.compat.distribute import leave_strategy


@contextlib.contextmanager
def optimizer_on_one_device(optimizer: keras.optimizers.Optimizer) -> Iterator[None]:
    """Let an optimizer that was created under a strategy update plain variables.

    Keras keeps the strategy of the time of creation and hands variables to its
    `extended.update`, which takes only variables of that strategy (keras
    backend/tensorflow/optimizer.py; in tf.cond it crashes, see facts on gradient accumulation).
    """
    optimizers = [optimizer]
    inner = getattr(optimizer, "inner_optimizer", None)
    optimizers += [inner] if inner is not None else []
    optimizers += getattr(optimizer, "_inner_optimizers", [])
    with leave_strategy():
        default = tf.distribute.get_strategy()
        with attributes.replaced(*[(o, "_distribution_strategy", default) for o in optimizers]):
            yield


def optimizer_variables(optimizer: keras.optimizers.Optimizer) -> list[Any]:
    """Return an optimizer's variables, and those that it assigns and does not list.

    Nadam keeps a product in one that it neither tracks nor saves (Keras 3.13 and 3.15,
    optimizers/nadam.py, `_u_product`).
    """
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    unlisted = [getattr(inner, "_u_product", None)]
    return [*optimizer.variables, *(v for v in unlisted if v is not None)]


def step_count(optimizer: keras.optimizers.Optimizer) -> Any:
    """Return the variable that counts an optimizer's steps.

    `iterations` divides it by gradient_accumulation_steps.
    """
    return getattr(optimizer, "inner_optimizer", optimizer)._iterations


def learning_rate(optimizer: keras.optimizers.Optimizer) -> Any:
    """Return the variable that holds an optimizer's learning rate; None for a schedule."""
    rate = getattr(getattr(optimizer, "inner_optimizer", optimizer), "_learning_rate", None)
    return rate if isinstance(rate, keras.Variable) else None


def decide_updates(
    optimizer: keras.optimizers.Optimizer, outcomes: Sequence[bool]
) -> contextlib.AbstractContextManager[None]:
    """Let the conditions inside an optimizer's update come out like this, without a `cond`.

    Keras writes them as `ops.cond`, in this order: whether gathered gradients are applied
    (gradient_accumulation_steps), whether averages overwrite the weights (ema_overwrite_frequency).
    Keras 3.13 and 3.15, optimizers/base_optimizer.py, `_backend_apply_gradients`.
    """
    if not outcomes:
        return contextlib.nullcontext()
    left = list(outcomes)
    own = optimizer._backend_apply_gradients
    keras_ops = base_optimizer.ops

    class Decided:
        def __getattr__(self, name: str) -> Any:
            return getattr(keras_ops, name)

        def cond(self, predicate: Any, if_true: Any, if_false: Any) -> Any:
            del predicate
            return if_true() if left.pop(0) else if_false()

    def apply_gradients(*args: Any) -> None:
        base_optimizer.ops = Decided()
        try:
            own(*args)
        finally:
            base_optimizer.ops = keras_ops

    return attributes.replaced((optimizer, "_backend_apply_gradients", apply_gradients))


def clip_norms_together(
    optimizer: keras.optimizers.Optimizer, owners: Sequence[Any]
) -> contextlib.AbstractContextManager[None]:
    """Let `clipnorm` look at gradients together that are parts of one.

    Args:
        optimizer: With a clipnorm.
        owners: For each gradient that is not None, what it is a part of.
    """

    def scaled(gradient: Any, factor: tf.Tensor) -> Any:
        if isinstance(gradient, tf.IndexedSlices):
            values = gradient.values * factor
            return tf.IndexedSlices(values, gradient.indices, gradient.dense_shape)
        return gradient * factor

    def clip(gradients: Sequence[Any]) -> list[Any]:
        squares: dict[int, list[tf.Tensor]] = {}
        for gradient, owner in zip(gradients, owners, strict=True):
            values = gradient.values if isinstance(gradient, tf.IndexedSlices) else gradient
            squares.setdefault(id(owner), []).append(tf.reduce_sum(values * values))
        limit = optimizer.clipnorm
        factors = {
            owner: limit / tf.maximum(tf.sqrt(tf.add_n(parts)), limit)
            for owner, parts in squares.items()
        }
        return [scaled(g, factors[id(o)]) for g, o in zip(gradients, owners, strict=True)]

    return attributes.replaced((optimizer, "_clip_gradients", clip))


def replace_apply(
    optimizers: Sequence[keras.optimizers.Optimizer], apply: Callable[..., Any]
) -> contextlib.AbstractContextManager[None]:
    """Let `optimizer.apply(...)` call `apply(optimizer, its own apply, ...)`.

    `apply_gradients` ends in `apply` too.
    """
    return attributes.replaced(
        *[(one, "apply", functools.partial(apply, one, one.apply)) for one in optimizers]
    )


@contextlib.contextmanager
def restore_apply(optimizer: keras.optimizers.Optimizer) -> Iterator[None]:
    """Give an optimizer its own `apply` back, inside `replace_apply`."""
    replacement = vars(optimizer)["apply"]
    object.__delattr__(optimizer, "apply")
    try:
        yield
    finally:
        object.__setattr__(optimizer, "apply", replacement)
