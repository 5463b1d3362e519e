"""What each replica gets at each step: fit's input, split by rows.

Everything that Keras's fit takes becomes a tf.data.Dataset of *global* batches. Every process
reads the same batches, and replica r of R keeps the rows from floor(r * rows / R) up to
floor((r + 1) * rows / R): so the rows of all replicas together are the batch one device would
have trained on, in order, whatever the sizes. A dataset whose options ask tf.data for FILE, HINT
or OFF sharding, and one that is distributed already, is left to tf.distribute: each process reads
what that gives it.

    feed = Feed(strategy, first_replica=0, data=call.Data(x, y, batch_size=32).adapter())
    feed.begin_epoch()
    batch, rows = feed.split.batch(feed.split.parts(next(feed.iterator)), local=0)
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from tfdp.compat import data_adapters, iterators
from tfdp.fit import digest, random_state

_Policy = tf.data.experimental.AutoShardPolicy


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


class Feed:
    """Batches for the replicas of this process.

    Args:
        strategy: The strategy.
        first_replica: Number of this process's first replica among all.
        data: What `call.Data.adapter` returned, a distributed dataset, or a function of
            `tf.distribute.InputContext` that returns a dataset batched per replica.
        steps_per_epoch: Steps of an epoch; None for a pass over the data.
        of_all: Returns the numbers that all processes give; called where each of them reads a
            shard of its own.

    Attributes:
        spec: The structure of a batch, as `tf.TypeSpec`s.
        split: How an element of the iterator becomes the replicas' batches.
        iterator: Of the pass that is under way, or None.
        batches: Batches of a pass; None when that shows only at the end.
        once: Whether the data can be read only once (a generator).
        step: Steps taken in this epoch.
        description: How the batches are split, for the log.
        shards: (number, index) of each `shard()` that the script has put into its dataset.
        cache_files: What the script has given to `cache(filename)`.
        comparisons: How often workers have compared what they read: see `agreement.check_rows`.

    Raises:
        ValueError: If an epoch would never end.
    """

    def __init__(
        self,
        strategy: tf.distribute.Strategy,
        first_replica: int,
        data: Any,
        steps_per_epoch: int | None = None,
        of_all: Callable[[int], list[int]] = lambda number: [number],
    ):
        self._replicas = strategy.num_replicas_in_sync
        self._local = len(strategy.extended.worker_devices)
        self.steps_per_epoch = steps_per_epoch
        self._adapter = data if hasattr(data, "get_tf_dataset") else None
        self.iterator: Any = None
        self._seen = 0
        self._passes = 0  # iterators that were made
        self._drawn = random_state.now()  # where random numbers stood before the last one
        self._goes_on = False
        self._first_step = 0
        self.step = 0

        dataset = data_adapters.dataset(data) if self._adapter else data
        given = isinstance(dataset, tf.data.Dataset) and data_adapters.is_dataset_adapter(data)
        self.shards = data_adapters.shards(dataset) if given else []
        self.cache_files = data_adapters.cache_files(dataset) if given else []
        self.comparisons = 0
        self.once = self._adapter is not None and data_adapters.is_generator_adapter(data)
        self._endless = isinstance(dataset, tf.data.Dataset) and (
            int(dataset.cardinality()) == tf.data.INFINITE_CARDINALITY
        )
        self._refuse_endless()

        policy = _policy(dataset, several=self._replicas > self._local)
        by_rows = policy is None
        # Shards may be uneven, a generator may end early: there the end is where the data ends.
        self.batches = data.num_batches if by_rows and not self.once else None
        if policy is None and self._replicas == 1:
            self.description = "one replica reads every batch whole"
        elif policy is None:
            self.description = (
                f"every process reads every batch; each of {self._replicas} replicas keeps its rows"
            )
        else:
            self.description = f"tf.distribute shards the data ({policy})"

        if isinstance(dataset, tf.data.Dataset) and policy is not None:
            dataset = strategy.experimental_distribute_dataset(dataset)
        elif policy is not None and callable(dataset):
            dataset = strategy.distribute_datasets_from_function(dataset)
        several = self._replicas > self._local
        ends_apart = False
        own = None if by_rows else iterators.own_dataset(dataset)
        if own is not None:
            counts = of_all(int(own.cardinality()))
            self._endless = all(count == tf.data.INFINITE_CARDINALITY for count in counts)
            self._refuse_endless()
            if self._local == 1:
                dataset = own
                if len(set(counts)) == 1 and counts[0] >= 0:
                    self.batches = counts[0]
                ends_apart = several and self.batches is None and not self._endless
        self.spec = data_adapters.local_spec(dataset.element_spec)
        if ends_apart:
            self.spec = build_spec(self.spec)
        static = static_rows(self.spec)
        # tf.distribute gives a worker batches without a row where a batch has fewer than workers.
        never_empty = self._replicas == 1 or (by_rows and static and static >= self._replicas)
        nominal = 0 if by_rows or not static else static * self._replicas
        self.split = Split(
            by_rows,
            self._replicas,
            range(first_replica, first_replica + self._local),
            not never_empty,
            nominal,
            by_rows and several,
            ends_apart,
        )
        # Batches of a generator, and of threads that stop between epochs, are taken only when they
        # are needed: none ahead.
        none_ahead = self.once or data_adapters.has_enqueuer(data)
        if by_rows and self._replicas > 1 and not none_ahead:
            dataset = dataset.prefetch(tf.data.AUTOTUNE)
        if none_ahead:
            options = tf.data.Options()
            # tf.data would add prefetching and parallel maps of its own.
            options.experimental_optimization.apply_default_optimizations = False
            options.experimental_optimization.inject_prefetch = False
            dataset = dataset.with_options(options)
        self._dataset = dataset

    def _refuse_endless(self) -> None:
        if self._endless and self.steps_per_epoch is None:
            raise ValueError(
                "The dataset repeats for ever, so an epoch would never end: give "
                "steps_per_epoch= (validation_steps=, steps=), or leave out repeat()."
            )

    # -- epochs ---------------------------------------------------------------------------

    def begin_epoch(self) -> None:
        """Begin the next epoch: `iterator` gives its batches."""
        if self._adapter:
            self._adapter.on_epoch_begin()
        if self._goes_on:
            self._goes_on = False
            return
        persistent = self.once or self.steps_per_epoch is not None
        if self.iterator is None or not persistent:
            self.close()
            self._begin_pass()
        self.step, self._first_step = self._first_step, 0

    def _begin_pass(self, skip: int = 0) -> None:
        self._drawn = random_state.now()
        # Python code that draws random numbers has to have drawn those when this returns.
        if skip and isinstance(self._dataset, tf.data.Dataset) and not self._runs_python():
            self.iterator = iter(self._dataset.skip(skip))
        else:
            self.iterator = iter(self._dataset)
            for _ in range(skip):
                next(self.iterator)
        self._passes += 1
        self._seen = skip

    # -- a run that goes on ---------------------------------------------------------------

    def place(self) -> dict[str, Any]:
        """Return where the feed stands, as plain data."""
        return {
            "passes": self._passes,
            "is_open": self.iterator is not None,
            "seen": self._seen,
            "drawn": random_state.plain(self._drawn),
        }

    def begin_within(self, step: int) -> None:
        """Let the next epoch begin at a step: the data starts there."""
        self._first_step = step

    def _runs_python(self) -> bool:
        """Say whether batches come from Python code, which may draw random numbers."""
        if self._adapter is not None and data_adapters.reads_python(self._adapter):
            return True
        return isinstance(self._dataset, tf.data.Dataset) and data_adapters.maps_python(
            self._dataset
        )

    def resume(self, place: dict[str, Any], step: int) -> bool:
        """Go on where a feed of the same data stood: read what it had read, and drop it.

        Args:
            place: What `place` returned.
            step: Steps that were taken in the epoch; 0 at the beginning of one.

        Returns:
            Whether random numbers stand where it left them: it reads batches before their step,
            by Python code that may draw numbers for them. Nobody else knows how many.
        """
        before = place["passes"] - bool(place["is_open"])
        while self._passes < before and isinstance(self._dataset, tf.data.Dataset):
            # A shuffle draws another order for each iterator, whether or not it is read.
            iterators.let_go(iter(self._dataset))
            self._passes += 1
        self._passes = before
        if place["is_open"]:
            random_state.take(place["drawn"])
            self._begin_pass(place["seen"])
        self.step = step
        self._goes_on = step > 0
        return bool(place["is_open"]) and not self.once and self._runs_python()

    def restart(self) -> None:
        """Let the next epoch start at the first batch."""
        if not self.once:
            self.close()

    def close(self) -> None:
        """Let go of the iterator, without waiting for its end."""
        if self.iterator is not None:
            iterators.let_go(self.iterator)
            self.iterator = None

    def __del__(self) -> None:
        if getattr(self, "iterator", None) is not None:
            self.close()

    @property
    def steps(self) -> int | None:
        """Steps of an epoch, where they are known beforehand."""
        return self.batches if self.steps_per_epoch is None else self.steps_per_epoch

    def steps_left(self) -> int | None:
        """Return how many more steps the epoch surely has; None where only the data knows."""
        left = None if self.steps_per_epoch is None else self.steps_per_epoch - self.step
        if left == 0:
            return 0
        if self.batches is None:
            return left if self._endless else None
        remaining = self.batches - self._seen
        return remaining if left is None else min(left, remaining)

    def took(self, steps: int) -> None:
        """Count the batches that were taken."""
        self.step += steps
        self._seen += steps

    def end_epoch(self, exhausted: bool) -> None:
        """Finish the epoch; the next one starts anew if the data has come to its end."""
        if self._adapter:
            self._adapter.on_epoch_end()
        if (exhausted and not self.once) or (
            self.batches is not None and self._seen >= self.batches
        ):
            self.close()


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


def without_stand_in(outputs: Any, count: Any) -> Any:
    """Return what a model put out for `count` rows: nothing where a row stood in for none."""
    present = tf.greater(count, 0)

    def rest(leaf: Any) -> Any:
        if leaf.shape.rank == 0:
            return leaf
        return tf.cond(present, lambda: leaf, lambda: cut(leaf, 0, 0))

    return keras.tree.map_structure(rest, outputs)


def is_distributed(data: Any) -> bool:
    """Say whether tf.distribute has split the data, or a function of InputContext will."""
    function = inspect.isroutine(data) or isinstance(data, functools.partial)
    return function or isinstance(data, tf.distribute.DistributedDataset)


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


def _place(path: tuple[Any, ...]) -> str:
    """Return a path into (x, y, sample_weight) in a user's words: "x['anchors']"."""
    flat: list[Any] = []
    for part in path:
        flat += part if isinstance(part, tuple) else [part]
    names = ("x", "y", "sample_weight")
    if not flat or not isinstance(flat[0], int) or flat[0] >= len(names):
        return "".join(f"[{part!r}]" for part in flat) or "x"
    return names[flat[0]] + "".join(f"[{part!r}]" for part in flat[1:])


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


def _policy(dataset: Any, several: bool) -> str | None:
    """Return what of tf.distribute splits this dataset, or None where fit does."""
    if is_distributed(dataset):
        return "function of InputContext" if callable(dataset) else "distributed by the caller"
    policy = dataset.options().experimental_distribute.auto_shard_policy
    if not several or policy in (_Policy.AUTO, _Policy.DATA):
        return None
    if policy is _Policy.HINT and not data_adapters.has_shard_hint(dataset):
        raise ValueError(
            "The dataset asks tf.data for auto_shard_policy HINT and holds no hint: every worker "
            "would train on all of it. Put dataset.shard(tf.data.experimental.SHARD_HINT, "
            "tf.data.experimental.SHARD_HINT) behind its reader, or leave the policy out."
        )
    return f"policy {policy.name}"
