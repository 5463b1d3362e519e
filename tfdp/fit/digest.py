"""Digests of batches, by which processes find out whether they read the same.

total = total * FACTOR + of_batch((x, y))       # int64[2]: of labels, of inputs
"""

from typing import Any

import keras
import tensorflow as tf

# So many elements of a tensor, evenly spread, tell whether two workers have read the same.
_ELEMENTS = 4096
FACTOR = 1_000_003


def of_batch(batch: Any) -> tf.Tensor:
    """Return int64[2]: a digest of the labels of a batch, and one of its inputs.

    Without labels both are of the inputs. Of a large tensor some thousand elements are looked at.
    """
    x, y, _ = keras.utils.unpack_x_y_sample_weight(batch)
    inputs = _of(x)
    return tf.stack([inputs if y is None else _of(y), inputs])


def _of(structure: Any) -> tf.Tensor:
    total = tf.zeros((), tf.int64)
    for leaf in tf.nest.flatten(structure, expand_composites=True):
        if not isinstance(leaf, tf.Tensor) or leaf.dtype in (tf.variant, tf.resource):
            continue
        flat = tf.reshape(leaf, (-1,))
        flat = flat[:: tf.maximum(1, tf.size(flat) // _ELEMENTS)]
        if flat.dtype == tf.string:
            flat = tf.strings.to_hash_bucket_fast(flat, 1 << 62)
        elif flat.dtype == tf.bool:
            flat = tf.cast(flat, tf.uint8)
        data = tf.reshape(tf.bitcast(flat, tf.uint8), (1, -1))
        mark = tf.bitcast(tf.raw_ops.Fingerprint(data=data, method="farmhash64")[0], tf.int64)
        total = total * FACTOR + mark
    return total
