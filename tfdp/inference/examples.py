"""Serialized records and encoded images to the inputs of a signature.

    convert = converter({"x": Spec("float32", (None, 4))}, {"x": ["x"]})
    convert([serialized, serialized])       # {"x": array of shape (2, 4)}

A number may be stored as float or int64 values, or as its raw bytes; an image also encoded.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfdp.data import images
from tfdp.inference.failures import RowError
from tfdp.inference.signature import Spec
from tfdp.serving import request_inputs

_Convert = Callable[[Sequence[bytes]], dict[str, np.ndarray]]
_LISTS = {"bytes_list": tf.string, "float_list": tf.float32, "int64_list": tf.int64}


def converter(inputs: Mapping[str, Spec], columns: Mapping[str, Sequence[str]]) -> _Convert:
    """Return what makes the inputs of serialized Examples."""
    features = {name: columns[name][0] for name in inputs}

    def convert(raws: Sequence[bytes]) -> dict[str, np.ndarray]:
        # How the first record stores a feature is how all do, or the batch is taken row by row.
        kinds = _kinds(raws[0], inputs, features)
        parsed = tf.io.parse_example(
            np.array(raws, object),
            {
                feature: tf.io.FixedLenFeature(_stored_shape(kinds[name], inputs[name]),
                                               _LISTS[kinds[name]])
                for name, feature in features.items()
            },
        )  # fmt: skip
        return {
            name: _values(parsed[feature].numpy(), kinds[name], inputs[name], feature)
            for name, feature in features.items()
        }

    return convert


def tfds_converter(
    inputs: Mapping[str, Spec], columns: Mapping[str, Sequence[str]], features: Any
) -> _Convert:
    """Return what makes the inputs of the records of a TFDS dataset.

    Args:
        inputs: Of the signature.
        columns: See signature.bind.
        features: The dataset's tfds.features.FeaturesDict.
    """
    wanted = {name: columns[name][0] for name in inputs}
    specs = features.get_tensor_spec()

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string)])
    def decode(serialized: tf.Tensor) -> dict[str, tf.Tensor]:
        return tf.map_fn(
            lambda one: {
                name: features.deserialize_example(one)[feature] for name, feature in wanted.items()
            },
            serialized,
            fn_output_signature={name: specs[feature] for name, feature in wanted.items()},
        )

    def convert(raws: Sequence[bytes]) -> dict[str, np.ndarray]:
        decoded = decode(tf.constant(list(raws)))
        return {
            name: array.numpy()
            if inputs[name].dtype == "string"
            else array.numpy().astype(inputs[name].dtype)
            for name, array in decoded.items()
        }

    return convert


def image_converter(name: str, spec: Spec) -> _Convert:
    """Return what makes one input of encoded images: their pixels, or the strings themselves."""
    if spec.dtype == "string":
        return string_converter(name, spec)
    return lambda raws: {name: np.stack([_pixels(raw, spec) for raw in raws])}


def string_converter(name: str, spec: Spec) -> _Convert:
    """Return what makes one input of whole records, as they are."""
    return lambda raws: {name: np.array(raws, object).reshape(-1, *spec.row)}


def feature_names(raw: bytes) -> list[str]:
    """Return the names of the features of a record.

    Raises:
        RowError: If it is no Example.
    """
    return sorted(_parse(raw).features.feature)


def id_of(raw: bytes, feature: str) -> str:
    """Return the id that a feature of a record holds.

    Raises:
        RowError: If it holds none.
    """
    found = _parse(raw).features.feature
    kind = found[feature].WhichOneof("kind") if feature in found else None
    values: Sequence[Any] = getattr(found[feature], kind).value if kind else []
    if len(values) != 1:
        raise RowError(f"the feature {feature!r} holds no id")
    return values[0].decode(errors="replace") if kind == "bytes_list" else str(values[0])


def _parse(raw: bytes) -> Any:
    try:
        return tf.train.Example.FromString(raw)
    except Exception:
        raise RowError("it is no tf.train.Example") from None


def _kinds(raw: bytes, inputs: Mapping[str, Spec], features: Mapping[str, str]) -> dict[str, str]:
    """Return how each feature is stored: the names of the lists in its protocol buffer."""
    found, kinds = _parse(raw).features.feature, {}
    for name, feature in features.items():
        kind = found[feature].WhichOneof("kind") if feature in found else None
        if kind is None:
            has = ", ".join(sorted(found)[:20]) or "none"
            raise RowError(f"it has no feature {feature!r} (it has {has})")
        spec = inputs[name]
        count = len(getattr(found[feature], kind).value)
        wanted = 1 if kind == "bytes_list" and spec.dtype != "string" else spec.size
        if count != wanted:
            raise RowError(f"the feature {feature!r} has {count} values, not {wanted}")
        if (kind != "bytes_list" and spec.dtype == "string") or (
            kind == "float_list" and "float" not in spec.dtype
        ):
            raise RowError(f"the feature {feature!r} is a {kind}, but {name} is {spec}")
        kinds[name] = kind
    return kinds


def _stored_shape(kind: str, spec: Spec) -> Sequence[int | None]:
    return () if kind == "bytes_list" and spec.dtype != "string" else spec.row


def _values(stored: np.ndarray, kind: str, spec: Spec, feature: str) -> np.ndarray:
    if spec.dtype == "string":
        return stored
    if kind == "bytes_list":
        return np.stack([_from_bytes(value, spec, feature) for value in stored])
    if kind == "int64_list" and "int" in spec.dtype:
        limits = np.iinfo(spec.dtype)
        if stored.min() < limits.min or stored.max() > limits.max:
            raise RowError(f"the feature {feature!r} has values that are no {spec.dtype}")
    return stored.astype(spec.dtype)


def _from_bytes(value: bytes, spec: Spec, feature: str) -> np.ndarray:
    dtype = tf.as_dtype(spec.dtype).as_numpy_dtype
    is_image = len(spec.row) == 3 and spec.row[-1] in (1, 3, 4)
    is_encoded = is_image and value.startswith(request_inputs.MAGIC)
    if len(value) == (spec.size or 0) * np.dtype(dtype).itemsize and not is_encoded:
        return np.frombuffer(value, dtype).reshape([size or 0 for size in spec.row])
    if is_image:
        return _pixels(value, spec)
    raise RowError(f"the feature {feature!r} has {len(value)} bytes, which are no {spec}")


def _pixels(value: bytes, spec: Spec) -> np.ndarray:
    """Return the pixels of one image, in the type of `spec`: 0 to 255 whatever that is."""
    try:
        pixels = images.decode(value, spec.row[-1] or 0)
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
