"""Warm-up requests in the layout of TensorFlow Serving, so that the first client waits for nothing.

    write(folder, "digits", {"serving_default": {"image": array_of_one_row}})

TensorFlow Serving replays `assets.extra/tf_serving_warmup_requests`, a TFRecord file of
tensorflow.serving.PredictionLog messages, before it makes a version available
(tensorflow.org/tfx/serving/saved_model_warmup).
"""

import pathlib
from collections.abc import Mapping

import numpy as np
import tensorflow as tf

PATH = pathlib.PurePosixPath("assets.extra/tf_serving_warmup_requests")

# Field numbers of tensorflow_serving/apis: prediction_log.proto, predict.proto and model.proto.
# The messages are written by hand, since their Python package is for clients of a server and as
# tightly bound to TensorFlow's version as TensorFlow itself. A test reads them with it.
_PREDICT_LOG = 6  # of PredictionLog
_REQUEST = 1  # of PredictLog
_MODEL_SPEC, _INPUTS = 1, 2  # of PredictRequest
_NAME, _SIGNATURE_NAME = 1, 3  # of ModelSpec
_KEY, _VALUE = 1, 2  # of an entry of a map


def write(
    folder: pathlib.Path, model: str, requests: Mapping[str, Mapping[str, np.ndarray]]
) -> None:
    """Write one request for each signature.

    Args:
        folder: The folder of a version.
        model: The name that the model is served by.
        requests: Inputs by name, by signature.
    """
    path = folder / PATH
    path.parent.mkdir(exist_ok=True)
    with tf.io.TFRecordWriter(str(path)) as writer:
        for signature, inputs in requests.items():
            writer.write(_prediction_log(model, signature, inputs))


def _prediction_log(model: str, signature: str, inputs: Mapping[str, np.ndarray]) -> bytes:
    spec = _field(_NAME, model.encode()) + _field(_SIGNATURE_NAME, signature.encode())
    request = _field(_MODEL_SPEC, spec)
    for name, array in sorted(inputs.items()):
        value = tf.make_tensor_proto(array).SerializeToString(deterministic=True)
        request += _field(_INPUTS, _field(_KEY, name.encode()) + _field(_VALUE, value))
    return _field(_PREDICT_LOG, _field(_REQUEST, request))


def _field(number: int, payload: bytes) -> bytes:
    """Return a field of strings, bytes or messages as protocol buffers are encoded."""
    return _varint(number << 3 | 2) + _varint(len(payload)) + payload


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
