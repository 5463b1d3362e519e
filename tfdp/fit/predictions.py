"""Predictions of several batches, put together.

result = rows([batch, ...])     # numpy arrays, in order
"""

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf


def rows(batches: Sequence[Any]) -> Any:
    """Return all batches as one: numpy arrays; ragged and sparse tensors stay what they are."""
    return keras.tree.map_structure(_to_numpy, concat(batches))


def concat(parts: Sequence[Any]) -> Any:
    """Put structures of tensors one after the other along the first axis."""
    if len(parts) == 1:
        return parts[0]
    return keras.tree.map_structure(lambda *leaves: _concat(leaves), *parts)


def _concat(leaves: Sequence[Any]) -> Any:
    if isinstance(leaves[0], tf.SparseTensor):
        return tf.sparse.concat(axis=0, sp_inputs=leaves, expand_nonconcat_dims=True)
    if isinstance(leaves[0], tf.RaggedTensor):
        return tf.concat(leaves, axis=0)
    if leaves[0].shape.rank == 0:
        return tf.stack(leaves)
    shapes = {tuple(leaf.shape[1:]) for leaf in leaves if leaf.shape[0] != 0}
    if len(shapes) > 1:  # as Keras: batches padded to different lengths become ragged
        return tf.concat([tf.RaggedTensor.from_tensor(leaf) for leaf in leaves], axis=0)
    with_rows = [leaf for leaf in leaves if leaf.shape[0] != 0]
    return tf.concat(with_rows or leaves[:1], axis=0)


def _to_numpy(leaf: Any) -> Any:
    return leaf if isinstance(leaf, tf.RaggedTensor | tf.SparseTensor) else leaf.numpy()
