"""The floating-point operations of a forward pass, layer by layer, from the shapes that it sees.

    calls = layer_calls.of(model, spec)     # (layer, shapes in, shapes out), for one row
    count = forward(calls)
    count.flops, count.uncounted            # 7.75e9, ("MyLayer",)

A multiply and an add are 2 operations. Layers are counted by their formula, as in the papers;
TensorFlow's own counter of graphs misses operations, and wants shapes without None
(tensorflow#39603, #50802; keras#18391). A backward pass takes twice the forward pass, so that
training is 3 forward passes.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

Shape: TypeAlias = tuple[int, ...]
# Of normalised elements: mean and variance 4, normalising 2, scale and shift 2.
_LAYER_NORMALIZATION = 8
_BACKWARD = 2
TRAINING = 1 + _BACKWARD


@dataclasses.dataclass(frozen=True)
class Count:
    """What a forward pass computes.

    Attributes:
        flops: Operations, for the rows that the shapes have.
        uncounted: Classes of layers whose operations are not known, in order.
    """

    flops: float
    uncounted: tuple[str, ...]


def forward(calls: Iterable[tuple[Any, list[Shape], list[Shape]]]) -> Count:
    """Return the operations of calls of layers.

    Args:
        calls: (layer, shapes of its inputs, shapes of its outputs), of Keras layers. What a layer
            does by layers inside it is in calls of these.
    """
    total, uncounted = 0.0, []
    for layer, inputs, outputs in calls:
        kind = _kind(layer)
        count = _COUNTS.get(kind)
        known = all(None not in shape for shape in (*inputs, *outputs))
        if count is not None and inputs and outputs and known:
            total += count(layer, inputs, outputs)
        elif kind not in _FREE and (count is not None or _works_by_itself(layer)):
            uncounted.append(type(layer).__name__)
    return Count(total, tuple(dict.fromkeys(uncounted)))


def _kind(layer: Any) -> str:
    """Return the name of the class of Keras that a layer is of, or of a class made from one."""
    names = [one.__name__ for one in type(layer).__mro__]
    return next((name for name in names if name in _COUNTS or name in _FREE), names[0])


def _works_by_itself(layer: Any) -> bool:
    """Say whether a layer has weights of its own, beside those of layers inside it."""
    inside = {id(v) for one in getattr(layer, "_layers", []) for v in one.variables}
    return any(id(v) not in inside for v in getattr(layer, "trainable_variables", []))


def _dense(layer: Any, inputs: list[Shape], outputs: list[Shape]) -> float:
    size = math.prod(outputs[0])
    return size * (2 * inputs[0][-1] + bool(layer.use_bias))


def _einsum_dense(layer: Any, inputs: list[Shape], outputs: list[Shape]) -> float:
    # Each index counts once: "abc,cde->abde" multiplies and adds a*b*c*d*e times.
    kernel = tuple(layer.kernel.shape)
    left, _, result = layer.equation.replace("...", "0").partition("->")
    one, _, two = left.partition(",")
    sizes: dict[str, int] = {}
    for names, shape in ((one, inputs[0]), (two, kernel), (result, outputs[0])):
        if "0" in names:  # the dimensions that are not named
            spare = len(shape) - len(names) + 1
            at = names.index("0")
            shape = (*shape[:at], math.prod(shape[at : at + spare]), *shape[at + spare :])
        sizes.update(zip(names, shape, strict=True))
    bias = math.prod(outputs[0]) if layer.bias is not None else 0
    return 2 * math.prod(sizes.values()) + bias


def _convolution(layer: Any, inputs: list[Shape], outputs: list[Shape]) -> float:
    channels = inputs[0][_channels(layer)]
    each = 2 * math.prod(layer.kernel_size) * channels // layer.groups + bool(layer.use_bias)
    return math.prod(outputs[0]) * each


def _transposed(layer: Any, inputs: list[Shape], outputs: list[Shape]) -> float:
    each = 2 * math.prod(layer.kernel_size) * layer.filters
    return math.prod(inputs[0]) * each + bool(layer.use_bias) * math.prod(outputs[0])


def _depthwise(layer: Any, inputs: list[Shape], outputs: list[Shape]) -> float:
    return math.prod(outputs[0]) * (2 * math.prod(layer.kernel_size) + bool(layer.use_bias))


def _separable(layer: Any, inputs: list[Shape], outputs: list[Shape]) -> float:
    channels = inputs[0][_channels(layer)] * layer.depth_multiplier
    places = math.prod(outputs[0]) // layer.filters
    by_depth = places * channels * 2 * math.prod(layer.kernel_size)
    return by_depth + math.prod(outputs[0]) * (2 * channels + bool(layer.use_bias))


def _channels(layer: Any) -> int:
    return 1 if layer.data_format == "channels_first" else -1


def _attention(layer: Any, inputs: list[Shape], outputs: list[Shape]) -> float:
    """Of MultiHeadAttention: what its projections (EinsumDense) do not do."""
    query, value = inputs[0], inputs[1] if len(inputs) > 1 else inputs[0]
    heads = getattr(layer, "num_heads", None) or layer.num_query_heads
    depth = getattr(layer, "key_dim", None) or layer.head_dim
    depth_out = getattr(layer, "value_dim", None) or depth
    scores = query[0] * heads * math.prod(query[1:-1]) * math.prod(value[1:-1])
    return scores * (2 * depth + 2 * depth_out + _SOFTMAX)


def _dot_attention(layer: Any, inputs: list[Shape], outputs: list[Shape]) -> float:
    query, value = inputs[0], inputs[1] if len(inputs) > 1 else inputs[0]
    scores = math.prod(query[:-1]) * value[-2]
    return scores * (2 * query[-1] + 2 * value[-1] + _SOFTMAX)


_SOFTMAX = 3  # exponentials, their sum, the division


def _recurrent(gates: int) -> Callable[..., float]:
    def count(layer: Any, inputs: list[Shape], outputs: list[Shape]) -> float:
        rows, steps, features = inputs[0]
        # Two products for each gate, and some operations for each unit.
        each = gates * layer.units * (2 * (features + layer.units) + 4)
        return float(rows * steps * each)

    return count


def _of_output(each: float) -> Callable[..., float]:
    return lambda layer, inputs, outputs: each * math.prod(outputs[0])


def _of_input(each: float) -> Callable[..., float]:
    return lambda layer, inputs, outputs: each * math.prod(inputs[0])


def _merge(layer: Any, inputs: list[Shape], outputs: list[Shape]) -> float:
    return float((len(inputs) - 1) * math.prod(outputs[0]))


def _pooling(layer: Any, inputs: list[Shape], outputs: list[Shape]) -> float:
    return float(math.prod(outputs[0]) * math.prod(layer.pool_size))


def _dot(layer: Any, inputs: list[Shape], outputs: list[Shape]) -> float:
    axis = layer.axes if isinstance(layer.axes, int) else layer.axes[0]
    return 2.0 * math.prod(outputs[0]) * inputs[0][axis]


_COUNTS: dict[str, Callable[..., float]] = {
    "Dense": _dense,
    "EinsumDense": _einsum_dense,
    **{f"Conv{n}D": _convolution for n in (1, 2, 3)},
    **{f"Conv{n}DTranspose": _transposed for n in (1, 2, 3)},
    **{f"DepthwiseConv{n}D": _depthwise for n in (1, 2)},
    **{f"SeparableConv{n}D": _separable for n in (1, 2)},
    "MultiHeadAttention": _attention,
    "GroupedQueryAttention": _attention,
    "Attention": _dot_attention,
    "AdditiveAttention": _dot_attention,
    "LSTM": _recurrent(4),
    "GRU": _recurrent(3),
    "SimpleRNN": _recurrent(1),
    # A multiply and an add with what mean, variance, gamma and beta come to for a channel.
    "BatchNormalization": _of_output(2),
    "LayerNormalization": _of_output(_LAYER_NORMALIZATION),
    "RMSNormalization": _of_output(4),
    "GroupNormalization": _of_output(_LAYER_NORMALIZATION),
    "UnitNormalization": _of_output(3),
    "Normalization": _of_output(2),
    "Rescaling": _of_output(2),
    "Activation": _of_output(1),
    "ReLU": _of_output(1),
    "LeakyReLU": _of_output(2),
    "PReLU": _of_output(2),
    "ELU": _of_output(3),
    "Softmax": _of_output(_SOFTMAX),
    **{name: _merge for name in ("Add", "Subtract", "Multiply", "Average", "Maximum", "Minimum")},
    "Dot": _dot,
    **{f"{kind}Pooling{n}D": _pooling for kind in ("Max", "Average") for n in (1, 2, 3)},
    **{f"Global{kind}Pooling{n}D": _of_input(1) for kind in ("Max", "Average") for n in (1, 2, 3)},
}

# What moves numbers about, and what holds other layers.
_FREE = {
    "InputLayer", "Flatten", "Reshape", "Permute", "RepeatVector", "Dropout", "SpatialDropout1D",
    "SpatialDropout2D", "SpatialDropout3D", "GaussianDropout", "GaussianNoise", "AlphaDropout",
    "ActivityRegularization", "Masking", "Identity", "Embedding", "Concatenate", "Cropping1D",
    "Cropping2D", "Cropping3D", "ZeroPadding1D", "ZeroPadding2D", "ZeroPadding3D", "UpSampling1D",
    "UpSampling2D", "UpSampling3D", "TimeDistributed", "Bidirectional", "Sequential", "Functional",
    "Model", "CategoryEncoding", "StringLookup", "IntegerLookup", "Hashing", "Discretization",
    "LSTMCell", "GRUCell", "SimpleRNNCell",
}  # fmt: skip
