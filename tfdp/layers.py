"""Layers for tables that are too large to be read at every step.

table = tfdp.layers.Embedding(2_000_000, 64)
vectors = table(ids)
"""

from typing import Any

import keras
import tensorflow as tf

from tfdp.compat import parameter_server
from tfdp.fit import gradients


@keras.saving.register_keras_serializable(package="tfdp")
class Embedding(keras.layers.Embedding):
    """keras.layers.Embedding that reads the rows it needs, and no others.

    The same arguments, weights and results. Keras turns the table into a tensor at each step: where
    it lies on parameter servers, the whole of it travels to the worker. Here each row that a batch
    names travels once, from the partition that has it, and so does its gradient.

    Args:
        input_dim: Rows of the table: ids are 0 to input_dim - 1.
        output_dim: Width of a row.
        **kwargs: As keras.layers.Embedding; `lora_rank` and quantization look the whole table up.
    """

    def build(self, input_shape: Any = None) -> None:
        """Make the table."""
        super().build(input_shape)
        object.__setattr__(self._embeddings, gradients.ROWS_ONCE, True)

    def call(self, inputs: Any) -> Any:
        """Return the rows of the ids `inputs`, of any shape: (..., output_dim)."""
        parts = [
            parameter_server.current_value(part)
            for part in parameter_server.partitions(self._embeddings)
        ]
        if self.lora_enabled or self.quantization_mode or any(part is None for part in parts):
            return super().call(inputs)
        if inputs.dtype not in ("int32", "int64"):
            inputs = keras.ops.cast(inputs, "int32")
        ids, where = tf.unique(tf.reshape(inputs, (-1,)))
        rows = _read(parts[0], ids) if len(parts) == 1 else _look_up(parts, ids)
        rows = tf.gather(tf.cast(rows, self.compute_dtype), where)
        shape = tf.concat([tf.shape(inputs), [self.output_dim]], 0)
        result = tf.reshape(rows, shape)
        result.set_shape([*inputs.shape, self.output_dim])
        return result


def _look_up(parts: list[tf.Variable], ids: tf.Tensor) -> tf.Tensor:
    """Return the rows of different ids from the partitions, which follow one another."""
    sizes = [int(part.shape[0]) for part in parts]
    begins = [sum(sizes[:number]) for number in range(len(parts))]
    # An id outside of the table has to be told by a partition, not left out.
    owner = tf.zeros_like(ids, tf.int32)
    for begin in begins[1:]:
        owner += tf.cast(ids >= begin, tf.int32)
    places = tf.dynamic_partition(tf.range(tf.size(ids)), owner, len(parts))
    wanted = tf.dynamic_partition(ids, owner, len(parts))
    rows = [
        part.sparse_read(some - tf.cast(begin, some.dtype))
        for part, some, begin in zip(parts, wanted, begins, strict=True)
    ]
    return tf.dynamic_stitch(places, rows)


def _read(table: Any, ids: tf.Tensor) -> tf.Tensor:
    """Return rows of a variable, or of what stands for one: a tensor, the copies of replicas."""
    if isinstance(table, tf.Variable) and not isinstance(table, tf.distribute.DistributedValues):
        return table.sparse_read(ids)
    return tf.gather(tf.convert_to_tensor(table), ids)
