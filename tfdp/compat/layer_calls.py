"""Which layers a model calls, with the shapes that they see."""

import contextlib
from typing import Any

import keras
import tensorflow as tf
from keras.src.backend.common.symbolic_scope import SymbolicScope

from tfdp.compat import attributes, distribute, keras_variables


def of(model: keras.Model, spec: Any) -> list[tuple[Any, list[Any], list[Any]]]:
    """Return (layer, shapes of its inputs, shapes of its outputs) for each call of a layer.

    The model is traced, and runs nothing. Layers inside layers are in it, and one that is called
    twice is in it twice, which a walk over `model.layers` would not see (Keras 3.13 to 3.15).

    Args:
        model: A built model.
        spec: `tf.TypeSpec`s of its inputs: the shapes are those for which it is traced.
    """
    calls: list[tuple[Any, list[Any], list[Any]]] = []
    with contextlib.ExitStack() as stack:
        for layer in keras_variables.layers(model):
            if layer is not model:
                stack.enter_context(_watched(layer, calls))
        stack.enter_context(distribute.leave_strategy())
        stack.enter_context(keras.StatelessScope())
        stack.enter_context(SymbolicScope())
        tf.function(lambda x: model(x, training=False), autograph=False).get_concrete_function(spec)
    return calls


def _watched(layer: Any, calls: list[Any]) -> contextlib.AbstractContextManager[None]:
    own = layer.call

    def call(*args: Any, **kwargs: Any) -> Any:
        result = own(*args, **kwargs)
        inputs = [*args, *(v for k, v in kwargs.items() if not k.endswith("mask"))]
        calls.append((layer, _shapes(inputs), _shapes(result)))
        return result

    return attributes.replaced((layer, "call", call))


def _shapes(values: Any) -> list[tuple[Any, ...]]:
    leaves = tf.nest.flatten(values)
    return [
        tuple(leaf.shape.as_list())
        for leaf in leaves
        if tf.is_tensor(leaf) and leaf.shape.rank is not None
    ]
