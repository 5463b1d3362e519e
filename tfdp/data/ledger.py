"""Which records were trained on: a line of JSON for each batch.

    {"epoch": 0, "ids": ["data/a.tfrecord:17", "data/a.tfrecord:3"]}

A batch is written when it leaves the pipeline, in order. Pipelines fetch a few batches ahead, so
that a run which is stopped early leaves some that were not trained on.
"""

import json
import os
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from tfdp.error import Error


def writer(path: str, name_of: Callable[[int], str]) -> Callable[..., Any]:
    """Return what takes (epoch, ids, x, y) in a graph, writes the ids, and returns (x, y).

    Raises:
        Error: If the file cannot be written.
    """
    try:
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
        with open(path, "w"):
            pass
    except OSError as error:
        raise Error(
            f"config.data.ledger: {path} cannot be written: {error.strerror or error}."
        ) from error
    lock = threading.Lock()

    def write(epoch: np.int64, ids: np.ndarray) -> np.int64:
        line = json.dumps({"epoch": int(epoch), "ids": [name_of(one) for one in ids]})
        with lock, open(path, "a") as file:
            file.write(line + "\n")
        return epoch

    def keep(epoch: Any, ids: Any, x: Any, y: Any) -> tuple[Any, Any]:
        written = tf.numpy_function(write, [epoch, ids], tf.int64)
        with tf.control_dependencies([written]):
            return tf.nest.map_structure(tf.identity, (x, y))

    return keep
