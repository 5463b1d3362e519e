"""Keras's variables, and the layers that hold them."""

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras.src.backend.common import global_state
from tensorflow.python.distribute import values as distributed

from tfdp.compat import attributes


@contextlib.contextmanager
def bind(variables: Sequence[Any], values: Sequence[tf.Variable]) -> Iterator[None]:
    """Let each Keras variable stand for one plain tf.Variable: its copy on one device."""
    saved = [variable._value for variable in variables]
    for variable, value in zip(variables, values, strict=True):
        variable._value = value
    try:
        yield
    finally:
        for variable, value in zip(variables, saved, strict=True):
            variable._value = value


def replace_value(variable: Any, value: tf.Variable) -> None:
    """Make a Keras variable hold another tf.Variable of the same shape and dtype for good."""
    variable._value = value


def _to_array(variable: Any, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
    del copy  # reading makes one
    return np.asarray(variable.numpy(), dtype)


_CONVERSIONS: dict[str, Callable[..., Any]] = {
    "__int__": lambda variable: int(variable.numpy()),
    "__float__": lambda variable: float(variable.numpy()),
    "__complex__": lambda variable: complex(variable.numpy()),
    "__array__": _to_array,
}


def let_variables_convert(yes: bool) -> None:
    """Let Python convert variables of replicas as it converts others, or no longer.

    `int(model.optimizer.iterations)` ends in TensorFlow's variable, and that of several replicas
    has no `__int__` where the plain one has (TensorFlow 2.20 and 2.21, distribute/values.py,
    DistributedVariable). What TensorFlow adds one day stays.
    """
    for name, convert in _CONVERSIONS.items():
        own = vars(distributed.DistributedVariable).get(name)
        if yes and own is None:
            setattr(distributed.DistributedVariable, name, convert)
        elif not yes and own is convert:
            delattr(distributed.DistributedVariable, name)


def layers(model: keras.Model) -> list[keras.layers.Layer]:
    """Return a model and all layers in it, at any depth."""
    return list(model._flatten_layers())


def seed_states(model: keras.Model) -> list[Any]:
    """Return the states of the model's seed generators (Keras variables of shape (2,))."""
    generators: dict[int, Any] = {}
    for layer in layers(model):
        for generator in getattr(layer, "_seed_generators", []):
            generators.setdefault(id(generator.state), generator.state)
    return list(generators.values())


def synchronized_state(model: keras.Model) -> list[Any]:
    """Return the variables of layers that communicate with their copies on other replicas."""
    return [
        variable
        for layer in layers(model)
        if getattr(layer, "synchronized", False)
        for variable in layer.variables
    ]


def sums_unknown(model: keras.Model) -> bool:
    """Say whether a layer communicates in a way of its own: see `synchronized_over_rows`."""
    return any(
        getattr(layer, "synchronized", False) and not hasattr(layer, "_moments")
        for layer in layers(model)
    )


def synchronized_over_rows(
    model: keras.Model, rows: Callable[[], Any]
) -> contextlib.AbstractContextManager[None]:
    """Let BatchNormalization(synchronized=True) sum over the rows that there are, masked or not.

    Keras 3.13 to 3.15 sums over all replicas where there is no mask; with one, each replica
    normalises by its own rows (layers/normalization/batch_normalization.py, _moments). Traced in
    replica context.

    Args:
        model: The model.
        rows: Returns how many rows this replica has, None if that is never 0. A row that stands
            in for none is left out of the sums.
    """

    def moments(layer: Any, own: Any, inputs: Any, mask: Any) -> Any:
        context = tf.distribute.get_replica_context()
        if context is None or not tf.is_tensor(own_rows := rows()):
            return over_replicas(layer, own, inputs, mask)
        present = own_rows > 0
        kept = tf.where(present, tf.shape(inputs)[0], 0)

        @tf.custom_gradient
        def without_stand_in(value: Any) -> Any:
            # What comes back from a row of zeros may be NaN, and would go into the sum.
            return tf.identity(value), lambda g: tf.where(present, g, tf.zeros_like(g))

        # All replicas have to reduce alike, in the gradient too: of a static shape Keras makes
        # constants, whose sum has none.
        seen = tf.compat.v1.placeholder_with_default(inputs[:kept], (None, *inputs.shape[1:]))
        found = over_replicas(layer, own, seen, None if mask is None else mask[:kept])
        return tuple(map(without_stand_in, found))

    def over_replicas(layer: Any, own: Any, inputs: Any, mask: Any) -> Any:
        context = tf.distribute.get_replica_context()
        if mask is None or context is None:
            return own(inputs, mask)
        seen = tf.cast(tf.expand_dims(mask, -1), inputs.dtype) * tf.ones_like(inputs)

        def over_all(values: Any) -> Any:
            masked = tf.where(seen > 0, values, tf.zeros_like(values))
            mine = tf.reduce_sum(masked, layer._reduction_axes, keepdims=True)
            return context.all_reduce(tf.distribute.ReduceOp.SUM, mine)

        # Keras's formula, with the sums of all.
        count = over_all(seen) + keras.backend.epsilon()
        mean = over_all(inputs) / count
        variance = over_all(tf.square(inputs - mean)) / count
        return tf.squeeze(mean), tf.squeeze(variance)

    return attributes.replaced(
        *[
            (layer, "_moments", functools.partial(moments, layer, layer._moments))
            for layer in layers(model)
            if getattr(layer, "synchronized", False) and hasattr(layer, "_moments")
        ]
    )


class _IdsOfThread(threading.local):
    """A set of ids, another one in each thread."""

    def __init__(self) -> None:
        self._ids: set[int] = set()

    def add(self, value: int) -> None:
        self._ids.add(value)

    def clear(self) -> None:
        self._ids.clear()

    def __contains__(self, value: object) -> bool:
        return value in self._ids


def losses_of_threads(model: keras.Model) -> contextlib.AbstractContextManager[None]:
    """Let each replica's thread find the losses that its own call of the model has added.

    A layer remembers by their ids which losses of a StatelessScope are its own, and forgets them
    when the model is called (Keras 3.13 to 3.15, layers/layer.py, _loss_ids). Where a layer
    communicates (synchronised BatchNormalization, an all_reduce of the user's) TensorFlow calls
    the model on the next replica before the first has come to its end: the first one's activity
    losses would be forgotten.
    """
    return attributes.replaced(*[(one, "_loss_ids", _IdsOfThread()) for one in layers(model)])


@contextlib.contextmanager
def leave_stateless_scope() -> Iterator[None]:
    """Let assignments inside a `keras.StatelessScope` reach the variables."""
    name = "stateless_scope"
    saved = global_state.get_global_attribute(name)
    global_state.set_global_attribute(name, None)
    try:
        yield
    finally:
        global_state.set_global_attribute(name, saved)


def unique(objects: Any) -> list[Any]:
    """Return the objects in order, each once (by identity)."""
    return list({id(o): o for o in objects}.values())
