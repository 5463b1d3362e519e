"""Images in the pipeline: decoding, resizing, and augmentation that a record's number decides.

x = decode(encoded, channels=3)
x = resize(x, (224, 224))
x = augment(x, "crop_flip", seed=[seed_of_the_epoch, id])
"""

from typing import Any

import tensorflow as tf


def decode(encoded: Any, channels: int = 3) -> Any:
    """Return the pixels of one encoded image: uint8 of shape (height, width, channels)."""
    pixels = tf.io.decode_image(encoded, channels=channels, expand_animations=False)
    return tf.ensure_shape(pixels, (None, None, channels))


def resize(pixels: Any, size: tuple[int, int]) -> Any:
    """Return an image of bytes in another size (height, width), antialiased bilinear."""
    resized = tf.image.resize(pixels, size, antialias=True)
    return tf.cast(tf.round(tf.clip_by_value(resized, 0, 255)), tf.uint8)


def augment(pixels: Any, kind: str, seed: Any) -> Any:
    """Return an image changed at random, of the same size.

    Args:
        pixels: (height, width, channels).
        kind: "none", "flip", "crop" (8% to all of the area, resized) or "crop_flip".
        seed: Two int64: the same seed makes the same image, on any worker.
    """
    if "crop" in kind:
        size = tf.shape(pixels)
        begin, extent, _ = tf.image.stateless_sample_distorted_bounding_box(
            size, tf.zeros((1, 0, 4)), seed, area_range=(0.08, 1.0), min_object_covered=0.0,
            use_image_if_no_bounding_boxes=True,
        )  # fmt: skip
        cropped = tf.slice(pixels, begin, extent)
        shape = pixels.shape
        pixels = tf.ensure_shape(resize(cropped, (size[0], size[1])), shape)
    if "flip" in kind:
        pixels = tf.image.stateless_random_flip_left_right(pixels, seed + 1)
    return pixels
