"""What a tf.train.Example holds, as text, and how it becomes (x, y).

features = parse("image: image[224,224,3], label: int64")
decode = decoder(features, inputs=["image"], label="label")
image, label = decode(serialized)
"""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tensorflow as tf

from tfdp.error import Error

_STORED = {"int64": tf.int64, "float32": tf.float32, "string": tf.string, "image": tf.string}
_LISTS = {"int64": "int64_list", "float32": "float_list", "string": "bytes_list"}
_LISTS["image"] = "bytes_list"
_ONE = re.compile(r"\s*([\w./ -]+?)\s*:\s*(\w+)\s*(?:\[([\d\s,?]*)\])?\s*(?:,|$)")


@dataclasses.dataclass(frozen=True)
class Feature:
    """One feature.

    Attributes:
        kind: "int64", "float32", "string", or "image" (encoded).
        shape: Its values; of an image (height, width, channels), the first two None if they vary.
    """

    kind: str
    shape: tuple[int | None, ...] = ()


def parse(text: str) -> dict[str, Feature]:
    """Return the features that a text describes.

    Raises:
        Error: If it cannot be read, with an example.
    """
    found: dict[str, Feature] = {}
    at = 0
    while at < len(text):
        match = _ONE.match(text, at)
        name, kind, shape = match.groups() if match else ("", "", "")
        sizes = tuple(
            None if size.strip() == "?" else int(size) for size in (shape or "").split(",") if size
        )
        fits = kind in _STORED and (kind == "image") == (len(sizes) == 3 and kind == "image")
        if not match or not fits or (kind != "image" and None in sizes) or name in found:
            raise Error(
                f"config.data.features={text!r}: {text[at:].strip()!r} is no feature. Write "
                "NAME: KIND[SHAPE] with commas between them, kinds image, int64, float32 and "
                "string: 'image: image[224,224,3], label: int64'; [?,?,3] for images of any size."
            )
        found[name] = Feature(kind, sizes)
        at = match.end()
    return found


def decoder(
    features: Mapping[str, Feature], inputs: Sequence[str], label: str
) -> tuple[Callable[[Any], tuple[Any, Any]], bool]:
    """Return what makes (x, y) of serialized Examples, and whether it takes batches of them.

    Images are decoded one by one, in parallel; everything else a batch at a time.

    Raises:
        Error: If a name is none of the features.
    """
    wanted = [*inputs, label]
    for name in wanted:
        if name not in features:
            raise Error(
                f"config.data.features has no {name!r}: it has {', '.join(features)}. Name what "
                "the model takes with config.data.input, and what it learns with config.data.label."
            )
    images = any(features[name].kind == "image" for name in wanted)
    stored = {
        name: tf.io.FixedLenFeature(
            () if features[name].kind == "image" else features[name].shape,
            _STORED[features[name].kind],
        )
        for name in wanted
    }

    def decode(serialized: Any) -> tuple[Any, Any]:
        parsed = (tf.io.parse_single_example if images else tf.io.parse_example)(serialized, stored)
        values = {name: _decoded(features[name], parsed[name]) for name in wanted}
        x = values[inputs[0]] if len(inputs) == 1 else {name: values[name] for name in inputs}
        return x, values[label]

    return decode, not images


def reason(features: Mapping[str, Feature], wanted: Sequence[str]) -> Callable[[bytes], str]:
    """Return what says why a serialized Example cannot be decoded, "" if it can."""

    def why(serialized: bytes) -> str:
        try:
            found = tf.train.Example.FromString(serialized).features.feature
        except Exception:
            return "it is no tf.train.Example"
        for name in wanted:
            feature = features[name]
            kind = found[name].WhichOneof("kind") if name in found else None
            if kind is None:
                has = ", ".join(sorted(found)[:20]) or "none"
                return f"it has no feature {name!r} (it has {has})"
            if kind != _LISTS[feature.kind]:
                return f"the feature {name!r} is a {kind}, not a {_LISTS[feature.kind]}"
            values = getattr(found[name], kind).value
            shape = () if feature.kind == "image" else feature.shape
            count = 1
            for size in shape:
                count *= size or 1
            if len(values) != count:
                return f"the feature {name!r} has {len(values)} values, not {count}"
            if feature.kind == "image":
                problem = image_problem(values[0], feature.shape)
                if problem:
                    return f"the feature {name!r} {problem}"
        return ""

    return why


def image_problem(encoded: bytes, shape: Sequence[int | None]) -> str:
    """Return what is wrong with an encoded image, "" if nothing is."""
    try:
        pixels = tf.io.decode_image(encoded, channels=shape[2] or 0, expand_animations=False)
    except tf.errors.OpError:
        return "is no image that can be decoded (JPEG, PNG, GIF, BMP)"
    if any(want not in (None, size) for want, size in zip(shape, pixels.shape, strict=True)):
        wanted = " x ".join("any" if size is None else str(size) for size in shape)
        return f"is an image of {' x '.join(map(str, pixels.shape))}, not {wanted}"
    return ""


def _decoded(feature: Feature, value: Any) -> Any:
    if feature.kind != "image":
        return value
    pixels = tf.io.decode_image(value, channels=feature.shape[2] or 0, expand_animations=False)
    return tf.ensure_shape(pixels, feature.shape)
