"""Encoded images, as files or as features of Examples, to the pixels that a signature takes."""

from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from tfdp.inference.errors import RowError
from tfdp.inference.signature import Spec


def converter(name: str, spec: Spec) -> Callable[[Sequence[bytes]], dict[str, np.ndarray]]:
    """Return what makes one input of encoded images: their pixels, or the strings themselves."""

    def convert(raws: Sequence[bytes]) -> dict[str, np.ndarray]:
        if spec.dtype == "string":
            return {name: np.array(raws, object).reshape(-1, *spec.row)}
        return {name: np.stack([decode(raw, spec) for raw in raws])}

    return convert


def decode(encoded: bytes, spec: Spec) -> np.ndarray:
    """Return the pixels of one image, in the type of `spec`: 0 to 255 whatever that is.

    Raises:
        RowError: If it is no image, or one of another size.
    """
    try:
        pixels = tf.io.decode_image(encoded, channels=spec.row[-1], expand_animations=False)
    except tf.errors.OpError:
        kinds = "BMP, GIF, JPEG, PNG or WebP"
        raise RowError(f"it is no image that can be decoded ({kinds})") from None
    if tuple(pixels.shape) != spec.row:
        height, width, _ = pixels.shape
        raise RowError(
            f"the image is {height} x {width}, not {spec.row[0]} x {spec.row[1]}: resize it, or "
            "export the model with config.export.second_signature='images', which does"
        )
    return pixels.numpy().astype(spec.dtype)
