"""Images in the pipeline: decoding, resizing, and augmentation that a record's number decides.

x = decode(encoded, channels=3)
x = resize(x, (224, 224))
x = augment(x, "pad_crop_flip", seed=[seed_of_the_epoch, id])
"""

from typing import Any

import tensorflow as tf


def decode(encoded: Any, channels: int = 3) -> Any:
    """Return the pixels of one encoded image: uint8 of shape (height, width, channels)."""
    pixels = tf.io.decode_image(encoded, channels=channels, expand_animations=False)
    return tf.ensure_shape(pixels, (None, None, channels))


# Of the shorter side, what "center" takes of an image: 224 of 256 pixels.
_MIDDLE = 0.875
# Pixels by which "pad_crop" moves an image of 32 at most, as for CIFAR.
_PADDING = 4


def size_of(text: str) -> tuple[int, int] | None:
    """Return (height, width) of config.data.image_size; None where it is empty."""
    if not text:
        return None
    height, width = map(int, text.split("x"))
    return height, width


def crops_at_random(kind: str) -> bool:
    """Say whether a kind of `augment` resizes a part of an image, which it takes itself."""
    return kind in ("crop", "crop_flip")


def center(pixels: Any, size: tuple[int, int]) -> Any:
    """Return the middle of an image in another size (height, width), its proportions kept."""
    height, width = tf.unstack(tf.cast(tf.shape(pixels)[:2], tf.float32))
    scale = tf.minimum(height / size[0], width / size[1]) * _MIDDLE
    tall, wide = (tf.cast(tf.round(scale * side), tf.int32) for side in size)
    extent = tf.maximum(tf.stack([tall, wide]), 1)
    begin = (tf.shape(pixels)[:2] - extent) // 2
    part = tf.slice(pixels, tf.pad(begin, [[0, 1]]), tf.pad(extent, [[0, 1]], constant_values=-1))
    return tf.ensure_shape(resize(part, size), (*size, pixels.shape[-1]))


def resize(pixels: Any, size: tuple[int, int]) -> Any:
    """Return an image of bytes in another size (height, width), antialiased bilinear."""
    resized = tf.image.resize(pixels, size, antialias=True)
    return tf.cast(tf.round(tf.clip_by_value(resized, 0, 255)), tf.uint8)


def augment(pixels: Any, kind: str, seed: Any, size: tuple[int, int] | None = None) -> Any:
    """Return an image changed at random, of the same size.

    Args:
        pixels: (height, width, channels).
        kind: "none", "flip", "crop" (8% to all of the area, 3:4 to 4:3, resized: Szegedy et al.
            2014), "pad_crop" (4 pixels of 0 around it, then a part of the old size: Lee et al.
            2014, He et al. 2015), "crop_flip" or "pad_crop_flip".
        seed: Two int64: the same seed makes the same image, on any worker.
        size: (height, width) that "crop" gives, where it is not that of the image.
    """
    shape = pixels.shape
    if crops_at_random(kind):
        whole = tf.shape(pixels)
        begin, extent, _ = tf.image.stateless_sample_distorted_bounding_box(
            whole, tf.zeros((1, 0, 4)), seed, area_range=(0.08, 1.0), min_object_covered=0.0,
            use_image_if_no_bounding_boxes=True,
        )  # fmt: skip
        cropped = tf.slice(pixels, begin, extent)
        shape = (*size, shape[-1]) if size else shape
        pixels = tf.ensure_shape(resize(cropped, size or (whole[0], whole[1])), shape)
    elif "pad_crop" in kind:
        whole = tf.shape(pixels)
        padded = tf.pad(pixels, [[_PADDING, _PADDING], [_PADDING, _PADDING], [0, 0]])
        begin = tf.random.stateless_uniform((2,), seed + 2, 0, 2 * _PADDING + 1, tf.int32)
        pixels = tf.ensure_shape(tf.slice(padded, tf.pad(begin, [[0, 1]]), whole), shape)
    if "flip" in kind:
        pixels = tf.image.stateless_random_flip_left_right(pixels, seed + 1)
    return pixels
