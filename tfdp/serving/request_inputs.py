"""What a client sends instead of a model's inputs: encoded images, or serialized Examples.

    decode = images(tf.TensorSpec((None, 8, 8, 1), "uint8"))
    pixels = decode(encoded)                    # strings (batch,) -> uint8 (batch, 8, 8, 1)

Graph functions: they become part of an exported model, so that every client gets the same
preprocessing.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from tfdp.error import Error

# How PNG, JPEG and GIF files begin. What begins so is an image, whatever its length.
MAGIC = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8")


def is_image(spec: tf.TensorSpec) -> bool:
    """Say whether a tensor is a batch of images of one size."""
    row = spec.shape[1:]
    return (
        row.rank == 3
        and row.is_fully_defined()
        and row[-1] in (1, 3, 4)
        and (spec.dtype.is_floating or spec.dtype == tf.uint8)
    )


def images(inputs: Sequence[tf.TensorSpec]) -> Callable[[tf.Tensor], list[tf.Tensor]]:
    """Return what decodes and resizes images for a model whose one input they are.

    The pixels are 0 to 255, in the type of the input. An image that cannot be decoded fails the
    batch.

    Raises:
        Error: If the model takes something else.
    """
    if len(inputs) != 1 or not is_image(inputs[0]):
        raise Error(
            "config.export.second_signature='images' needs a model with one input, images of one "
            f"size with 1, 3 or 4 channels, but this one takes {_described(inputs)}. Use 'none'."
        )
    spec = inputs[0]

    def decode(encoded: tf.Tensor) -> list[tf.Tensor]:
        return [_map(lambda one: _decode(one, spec), encoded, spec)]

    return decode


def examples(inputs: Sequence[tf.TensorSpec]) -> Callable[[tf.Tensor], list[tf.Tensor]]:
    """Return what parses tf.train.Example records with a feature for each input.

    A feature holds float values, int64 values (for whole numbers and bool), or bytes (for strings,
    and for images: encoded, or their raw pixels).

    Raises:
        Error: If an input has no fixed size.
    """
    for spec in inputs:
        if not spec.shape[1:].is_fully_defined():
            raise Error(
                "config.export.second_signature='examples' needs inputs of fixed size, but this "
                f"model takes {_described(inputs)}. Use 'none'."
            )
    features = {spec.name: _feature(spec) for spec in inputs}

    def parse(serialized: tf.Tensor) -> list[tf.Tensor]:
        parsed = tf.io.parse_example(serialized, features)
        return [
            _map(functools.partial(_raw_or_encoded, spec=spec), parsed[spec.name], spec)
            if _as_bytes(spec)
            else tf.cast(parsed[spec.name], spec.dtype)
            for spec in inputs
        ]

    return parse


def sample_example(inputs: Sequence[tf.TensorSpec]) -> bytes:
    """Return a serialized Example of zeros that `examples` parses."""
    example = tf.train.Example()
    for spec in inputs:
        feature, size = example.features.feature[spec.name], spec.shape[1:].num_elements()
        if _as_bytes(spec):
            feature.bytes_list.value.append(sample_image(spec))
        elif spec.dtype == tf.string:
            feature.bytes_list.value.extend([b""] * size)
        elif spec.dtype.is_floating:
            feature.float_list.value.extend([0.0] * size)
        else:
            feature.int64_list.value.extend([0] * size)
    return example.SerializeToString(deterministic=True)


def sample_image(spec: tf.TensorSpec) -> bytes:
    """Return a black PNG of an input's size."""
    return tf.io.encode_png(tf.zeros(spec.shape[1:], tf.uint8)).numpy()


def _as_bytes(spec: tf.TensorSpec) -> bool:
    return spec.dtype == tf.uint8 and is_image(spec)


def _feature(spec: tf.TensorSpec) -> tf.io.FixedLenFeature:
    if _as_bytes(spec):
        return tf.io.FixedLenFeature((), tf.string)
    stored = tf.float32 if spec.dtype.is_floating else tf.int64
    return tf.io.FixedLenFeature(spec.shape[1:], tf.string if spec.dtype == tf.string else stored)


def _map(function: Callable[[tf.Tensor], tf.Tensor], rows: tf.Tensor, spec: tf.TensorSpec) -> Any:
    one = tf.TensorSpec(spec.shape[1:], spec.dtype)
    return tf.map_fn(function, rows, fn_output_signature=one)


def _raw_or_encoded(one: tf.Tensor, spec: tf.TensorSpec) -> tf.Tensor:
    shape = spec.shape[1:]
    is_encoded = tf.reduce_any([tf.strings.substr(one, 0, len(magic)) == magic for magic in MAGIC])
    is_raw = tf.logical_and(
        tf.strings.length(one) == shape.num_elements(), tf.logical_not(is_encoded)
    )
    return tf.cond(
        is_raw,
        lambda: tf.reshape(tf.io.decode_raw(one, tf.uint8, fixed_length=None), shape),
        lambda: _decode(one, spec),
    )


def _decode(one: tf.Tensor, spec: tf.TensorSpec) -> tf.Tensor:
    height, width, channels = spec.shape[1:]
    image = tf.io.decode_image(one, channels=channels, expand_animations=False)
    image.set_shape((None, None, channels))
    image = tf.image.resize(image, (height, width), antialias=True)
    if spec.dtype == tf.uint8:
        image = tf.saturate_cast(tf.round(image), tf.uint8)
    return tf.cast(image, spec.dtype)


def _described(inputs: Sequence[tf.TensorSpec]) -> str:
    return ", ".join(f"{spec.name}: {spec.dtype.name} {tuple(spec.shape)}" for spec in inputs)
