"""Predictions of all replicas: rows in the order of the input, on every process.

whole = batch(strategy, parts, several)     # one global batch
"""

import struct
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfdp.fit import predictions
from tfdp.fit.replicas import transport


def batch(strategy: tf.distribute.Strategy, parts: Sequence[Any], several: bool) -> Any:
    """Return the rows of one global batch.

    Args:
        strategy: The strategy.
        parts: The outputs of this process's replicas: structures of tensors of any kind.
        several: Whether other processes hold parts of the batch too.
    """
    if several:
        parts = [_decode(message, parts[0]) for message in _exchange(strategy, parts)]
    return predictions.concat(parts)


def _exchange(strategy: tf.distribute.Strategy, parts: Sequence[Any]) -> list[bytes]:
    """Return every replica's part, encoded, in the order of the replicas.

    Encoded, because collectives know neither strings nor ragged tensors.
    """
    return exchange(strategy, [np.frombuffer(_encode(part), np.int32) for part in parts])


def exchange(strategy: tf.distribute.Strategy, mine: Sequence[np.ndarray]) -> list[bytes]:
    """Return every replica's numbers as bytes, in the order of the replicas; a collective.

    Args:
        strategy: The strategy, of several processes.
        mine: int32 vectors of any length, one for each replica of this process.
    """
    if carrier := transport.of(strategy):
        return [part.tobytes() for part in carrier.gather(mine[0])]
    values = strategy.experimental_distribute_values_from_function(
        lambda context: tf.constant(mine[context.replica_id_in_sync_group % len(mine)])
    )
    gathered, lengths = _gather(strategy, values)
    return [part.numpy().tobytes() for part in tf.split(gathered, lengths.numpy().tolist())]


@tf.function(autograph=False, reduce_retracing=True)
def _gather(strategy: Any, values: Any) -> Any:
    def on_replica(value: tf.Tensor) -> Any:
        context = tf.distribute.get_replica_context()
        value = tf.identity(value)  # on this replica's device, which collectives ask for
        return context.all_gather(value, axis=0), context.all_gather(tf.shape(value), axis=0)

    gathered, lengths = strategy.run(on_replica, args=(values,))
    local = strategy.experimental_local_results
    return local(gathered)[0], local(lengths)[0]


def _encode(part: Any) -> bytes:
    """Return a structure of tensors as bytes, a multiple of four of them."""
    tensors = [t for leaf in keras.tree.flatten(part) for t in _components(leaf)]
    blobs = [tf.io.serialize_tensor(tensor).numpy() for tensor in tensors]
    message = b"".join([struct.pack("<q", len(blob)) + blob for blob in blobs])
    return message + b"\0" * (-len(message) % 4)


def _decode(message: bytes, like: Any) -> Any:
    """Return the structure that `_encode` was given; `like` is another of the same kind."""
    start = 0

    def read(dtype: tf.DType) -> tf.Tensor:
        nonlocal start
        (length,) = struct.unpack_from("<q", message, start)
        start += 8 + length
        return tf.io.parse_tensor(message[start - length : start], dtype)

    leaves = [
        _assemble(leaf, [read(tensor.dtype) for tensor in _components(leaf)])
        for leaf in keras.tree.flatten(like)
    ]
    return keras.tree.pack_sequence_as(like, leaves)


def _components(leaf: Any) -> list[tf.Tensor]:
    if isinstance(leaf, tf.RaggedTensor):
        return [leaf.flat_values, *leaf.nested_row_splits]
    if isinstance(leaf, tf.SparseTensor):
        return [leaf.indices, leaf.values, leaf.dense_shape]
    return [leaf]


def _assemble(like: Any, components: list[tf.Tensor]) -> Any:
    if isinstance(like, tf.RaggedTensor):
        return tf.RaggedTensor.from_nested_row_splits(components[0], components[1:])
    if isinstance(like, tf.SparseTensor):
        return tf.SparseTensor(*components)
    return components[0]
