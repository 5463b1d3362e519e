"""How a global batch becomes the replicas' batches: by rows.

Replica r of R keeps the rows from floor(r * rows / R) up to floor((r + 1) * rows / R): so the rows
of all replicas together are the batch one device would have trained on, in order, whatever the
sizes. A part of a batch is a dense, ragged or sparse tensor, an absent one, or None.

    parts = split.parts(next(iterator))
    batch, rows = split.batch(parts, local=0)
"""

import dataclasses
from typing import Any

import keras
import tensorflow as tf

from tfdp.compat import data_adapters
from tfdp.fit import digest


@dataclasses.dataclass(frozen=True)
class Split:
    """How an element of a feed's iterator becomes the replicas' batches, in the graph of a step.

    A dataset that did so would make each new iterator slower by 18 ms on one core: the functions of
    its maps are instantiated again for each.

    Attributes:
        by_rows: Whether fit splits global batches by rows; otherwise tf.distribute has split.
        replicas: Number of replicas in sync.
        own: The numbers of this process's replicas among all.
        may_be_empty: Whether a replica may get a batch without a row.
        nominal_rows: Rows of a full global batch, where the shapes of a dataset that tf.distribute
            splits say so; 0 where they do not.
        has_digests: Whether the parts come with digests of the global batch, for other processes
            that are to read the same: see `digest`.
        ends_apart: Whether processes that read shards of their own may come to the end of their
            data at different steps: those that have ended take part without rows.
    """

    by_rows: bool
    replicas: int
    own: range
    may_be_empty: bool
    nominal_rows: int = 0
    has_digests: bool = False
    ends_apart: bool = False

    def parts(self, element: Any) -> Any:
        """Return what `batch` and `total_rows` take: a global batch in parts, beside its rows.

        Raises:
            ValueError, tf.errors.InvalidArgumentError: See `of_equal_rows`.
        """
        if not self.by_rows or self.replicas == 1:
            return element
        batch, count = of_equal_rows(element)
        parts = []
        for replica in self.own:
            start = replica * count // self.replicas
            stop = (replica + 1) * count // self.replicas
            parts.append(
                keras.tree.map_structure(lambda leaf, a=start, b=stop: cut(leaf, a, b), batch)
            )
        whole = (tuple(parts), tf.cast(count, tf.float32))
        return (*whole, digest.of_batch(batch)) if self.has_digests else whole

    def batch(self, data: Any, local: int, stand_in: bool = True) -> tuple[Any, Any]:
        """Return the batch of this process's replica `local`, and its rows.

        Args:
            data: What `parts` returned.
            local: The replica.
            stand_in: Whether a replica without a row gets one of zeros in its place, because
                not every kernel takes an empty batch (a fused convolution of oneDNN gives the
                wrong shape). Its rows are 0 all the same, and give it no weight.
        """
        if self.by_rows and self.replicas > 1:
            data = data[0][local]
        batch = keras.tree.map_structure(
            lambda leaf: None if isinstance(leaf, tf.experimental.Optional) else leaf, data
        )
        count = rows(batch)
        if self.may_be_empty:
            count = tf.convert_to_tensor(count)  # a number would say more on one than on another
        if self.may_be_empty and stand_in:
            empty = tf.equal(count, 0)
            batch = keras.tree.map_structure(lambda leaf: _stand_in(leaf, empty), batch)
        return batch, count

    def total_rows(self, data: Any) -> Any:
        """Return the rows of the global batch (int or scalar tensor); None if not known here."""
        if self.replicas == 1:
            return self.batch(data, 0)[1]
        return data[1] if self.by_rows else None


class Whole:
    """One global batch that is there already, split as a feed splits.

    Args:
        strategy: The strategy.
        first_replica: Number of this process's first replica among all.
        batch: A structure of tensors.

    Attributes:
        spec, split: As of a `Feed`.
    """

    def __init__(self, strategy: tf.distribute.Strategy, first_replica: int, batch: Any):
        replicas, local = strategy.num_replicas_in_sync, len(strategy.extended.worker_devices)
        self.data = batch
        self.spec = keras.tree.map_structure(tf.TensorSpec.from_tensor, batch)
        empty = replicas > 1 and rows(batch) < replicas
        own = range(first_replica, first_replica + local)
        self.split = Split(True, replicas, own, empty, has_digests=replicas > local)


def rows(batch: Any) -> Any:
    """Return the number of rows of a batch: int where it is static, else a scalar int tensor."""
    for leaf in keras.tree.flatten(batch):
        if isinstance(leaf, tf.RaggedTensor):
            return leaf.nrows()
        if isinstance(leaf, tf.SparseTensor):
            static = leaf.shape[0] if leaf.shape.rank else None
            return static if static is not None else leaf.dense_shape[0]
        if leaf is None or isinstance(leaf, tf.experimental.Optional):
            continue
        if leaf.shape.rank is None or leaf.shape.rank > 0:
            static = leaf.shape[0] if leaf.shape.rank else None
            return static if static is not None else tf.shape(leaf, tf.int64)[0]
    raise ValueError("A batch needs a tensor with a batch axis; this one has none.")


def of_equal_rows(batch: Any) -> tuple[Any, Any]:
    """Return a batch whose parts all have as many rows (or no axis at all), and how many.

    Raises:
        ValueError: If the shapes say that one part has not.
        tf.errors.InvalidArgumentError: When one has not, in a graph.
    """
    _, y, _ = keras.utils.unpack_x_y_sample_weight(batch)
    count = rows(batch if y is None else y)

    def checked(path: tuple[Any, ...], leaf: Any) -> Any:
        absent = leaf is None or isinstance(leaf, tf.experimental.Optional)
        if absent or leaf.shape.rank == 0:
            return leaf
        mine = rows(leaf)
        problem = (
            f"{_place(path)} of a batch has %s. Each replica gets its rows of every part: repeat "
            "it for every row, or give what belongs to the whole batch to the model as a constant."
        )
        if isinstance(mine, int) and isinstance(count, int):
            if mine != count:
                raise ValueError(problem % f"{mine} rows where the batch has {count}")
            return leaf
        equal = tf.debugging.assert_equal(
            tf.cast(mine, tf.int64),
            tf.cast(count, tf.int64),
            message=problem % "other rows (x below) than the batch (y below)",
        )
        with tf.control_dependencies([] if equal is None else [equal]):
            return tf.identity(leaf) if isinstance(leaf, tf.Tensor) else leaf

    paths = keras.tree.flatten_with_path(batch)
    return keras.tree.pack_sequence_as(batch, [checked(p, leaf) for p, leaf in paths]), count


def static_rows(spec: Any) -> int | None:
    """Return the number of rows that every batch of a spec has, or None."""
    for leaf in keras.tree.flatten(spec):
        if getattr(leaf, "shape", None) is not None and leaf.shape.rank:
            return leaf.shape[0]
    return None


def build_spec(spec: Any) -> Any:
    """Return the spec of a batch to build a model from: its batch axis free.

    Raises:
        ValueError: If it does not say the shape of an element.
    """

    def free(leaf: Any) -> Any:
        if not isinstance(leaf, tf.TensorSpec | tf.SparseTensorSpec | tf.RaggedTensorSpec):
            return None  # an Optional: stands for None
        if leaf.shape.rank is None:
            raise ValueError(
                "The model is not built and the dataset does not say the shape of its elements: "
                f"{leaf}. Give from_generator an output_signature with shapes, or build the model "
                "(an Input, model.build(shape)) before fit."
            )
        if isinstance(leaf, tf.RaggedTensorSpec):
            return leaf
        shape = (None, *leaf.shape.as_list()[1:]) if leaf.shape.rank else ()
        return type(leaf)(shape, leaf.dtype)

    return keras.tree.map_structure(free, spec)


def cut(leaf: Any, start: Any, stop: Any) -> Any:
    """Return the rows [start, stop) of one leaf of a batch."""
    if leaf is None:
        return None
    if isinstance(leaf, tf.experimental.Optional):
        return leaf
    if isinstance(leaf, tf.SparseTensor):
        rest = tf.shape(leaf, tf.int64)[1:]
        begin = tf.concat([[tf.cast(start, tf.int64)], tf.zeros_like(rest)], 0)
        size = tf.concat([[tf.cast(stop - start, tf.int64)], rest], 0)
        part = tf.sparse.slice(leaf, begin, size)
        part = tf.SparseTensor(part.indices, part.values, size)
        part.set_shape([None, *leaf.shape.as_list()[1:]])
        return part
    if not isinstance(leaf, tf.RaggedTensor) and leaf.shape.rank == 0:
        return leaf
    return leaf[start:stop]


def without_rows(spec: Any) -> Any:
    """Return a batch of a spec that has no row, for a replica whose data has ended."""

    def empty(leaf: Any) -> Any:
        if data_adapters.is_none_spec(leaf):
            return None
        if isinstance(leaf, tf.RaggedTensorSpec):
            inner = leaf.shape[leaf.ragged_rank + 1 :] if leaf.shape.rank else ()
            flat = tf.zeros((0, *(size or 0 for size in inner)), leaf.dtype)
            splits = [tf.zeros((1,), leaf.row_splits_dtype) for _ in range(leaf.ragged_rank)]
            return tf.RaggedTensor.from_nested_row_splits(flat, splits, validate=False)
        shape = tuple(size or 0 for size in leaf.shape)
        shape = (0, *shape[1:]) if shape else shape
        if isinstance(leaf, tf.SparseTensorSpec):
            indices = tf.zeros((0, len(shape)), tf.int64)
            return tf.SparseTensor(
                indices, tf.zeros((0,), leaf.dtype), tf.constant(shape, tf.int64)
            )
        return tf.zeros(shape, leaf.dtype)

    return keras.tree.map_structure(empty, spec)


def without_stand_in(outputs: Any, count: Any) -> Any:
    """Return what a model put out for `count` rows: nothing where a row stood in for none."""
    present = tf.greater(count, 0)

    def rest(leaf: Any) -> Any:
        if leaf.shape.rank == 0:
            return leaf
        return tf.cond(present, lambda: leaf, lambda: cut(leaf, 0, 0))

    return keras.tree.map_structure(rest, outputs)


def _stand_in(leaf: Any, empty: tf.Tensor) -> Any:
    """Return a tensor of one row of zeros where `empty`, else the leaf."""
    if leaf is None or (not isinstance(leaf, tf.RaggedTensor) and leaf.shape.rank == 0):
        return leaf

    def one_row() -> Any:
        if isinstance(leaf, tf.SparseTensor):
            shape = tf.concat([[1], leaf.dense_shape[1:]], 0)
            return tf.SparseTensor(leaf.indices, leaf.values, shape)
        if isinstance(leaf, tf.RaggedTensor):
            splits = [tf.zeros_like(split) for split in leaf.nested_row_splits]
            splits[0] = tf.zeros((2,), splits[0].dtype)
            return tf.RaggedTensor.from_nested_row_splits(leaf.flat_values, splits)
        return tf.zeros(tf.concat([[1], tf.shape(leaf)[1:]], 0), leaf.dtype)

    made = tf.cond(empty, one_row, lambda: leaf)
    if isinstance(made, tf.Tensor):
        made.set_shape([None, *leaf.shape[1:]])
    return made


def _place(path: tuple[Any, ...]) -> str:
    """Return a path into (x, y, sample_weight) in a user's words: "x['anchors']"."""
    flat: list[Any] = []
    for part in path:
        flat += part if isinstance(part, tuple) else [part]
    names = ("x", "y", "sample_weight")
    if not flat or not isinstance(flat[0], int) or flat[0] >= len(names):
        return "".join(f"[{part!r}]" for part in flat) or "x"
    return names[flat[0]] + "".join(f"[{part!r}]" for part in flat[1:])
