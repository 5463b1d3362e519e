"""What a model computes, and the devices that it computes on."""

import math
from typing import Any

import keras
import tensorflow as tf

from tfdp.bench import flops, hardware
from tfdp.compat import layer_calls


def count_flops(model: keras.Model, spec: Any) -> flops.Count:
    """Return the operations of a forward pass of one row; 0, and why, where that is not known."""

    def one_row(leaf: Any) -> Any:
        if not isinstance(leaf, tf.TensorSpec) or not leaf.shape.rank:
            return leaf
        return tf.TensorSpec((1, *leaf.shape.as_list()[1:]), leaf.dtype)

    x, _, _ = keras.utils.unpack_x_y_sample_weight(spec)
    try:
        return flops.forward(layer_calls.of(model, tf.nest.map_structure(one_row, x)))
    except Exception:  # a model may do anything in its call
        return flops.Count(0.0, (type(model).__name__,))


def count_model_flops(model: keras.Model) -> flops.Count:
    """Return the same of a model that knows its inputs; 0 of one that does not."""
    inputs = getattr(model, "inputs", None)
    if not inputs:
        return flops.Count(0.0, (type(model).__name__,))
    given = inputs[0] if len(inputs) == 1 else model.input
    spec = keras.tree.map_structure(lambda one: tf.TensorSpec(one.shape, one.dtype), given)
    return count_flops(model, (spec,))


def trainable_bytes(model: keras.Model) -> int:
    """Return the bytes of the trainable weights in float32: of the gradients of a replica."""
    return 4 * sum(math.prod(weight.shape) for weight in model.trainable_weights)


def device() -> tuple[str, int]:
    """Return the name of this process's devices, and the most memory that its GPUs have taken."""
    gpus = tf.config.list_physical_devices("GPU")
    if not gpus:
        return hardware.processor(), 0
    names = tf.config.experimental.get_device_details(gpus[0]).get("device_name", "GPU")
    logical = [device.name for device in tf.config.list_logical_devices("GPU")]
    used = [tf.config.experimental.get_memory_info(name.removeprefix("/device:"))["peak"]
            for name in logical]  # fmt: skip
    return names, sum(used)
