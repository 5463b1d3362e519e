"""Data that each worker of parameter servers reads itself, instead of the coordinator.

    def clicks(context):
        files = tf.data.Dataset.list_files("clicks-*.tfrecord", seed=context.input_pipeline_id)
        return files.shard(context.num_input_pipelines, context.input_pipeline_id)...batch(256)

    model.fit(clicks, steps_per_epoch=1000)

The function is called for each worker and says what that worker reads: a shard of its own, or all
of it in an order of its own. Of arrays and datasets `reader` makes such a function. A step goes to
whichever worker is free, and each worker goes round its data: an epoch is so many steps, not each
record once.
"""

import dataclasses
import functools
import types
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from tfdp.compat import data_adapters, parameter_server
from tfdp.fit import call
from tfdp.fit import feed as feed_lib

_OFF = tf.data.experimental.AutoShardPolicy.OFF
READINGS = ("coordinator", "shard", "replicated")


@dataclasses.dataclass(frozen=True)
class Reader:
    """What workers read.

    Attributes:
        function: Returns the dataset of batches of one `tf.distribute.InputContext`.
        steps: Steps of an epoch; None for as many batches as the workers' datasets hold together.
        what: What a worker reads, in words.
    """

    function: Callable[[tf.distribute.InputContext], tf.data.Dataset]
    steps: int | None
    what: str


def reader(reading: str, data: call.Data) -> Reader:
    """Return a reader of what fit was given.

    Args:
        reading: "shard": worker i of n reads rows i, i + n, ... of arrays, shuffled anew each
            time; of a dataset what tf.data's auto-sharding gives it, files or batches.
            "replicated": every worker reads all rows of arrays, in an order of its own.
        data: Arrays, a tf.data.Dataset, or a function of InputContext, which `reading` leaves
            alone.

    Raises:
        ValueError: If that cannot be read so.
    """
    x, steps = data.x, data.most_steps
    check_readable(x)
    if feed_lib.is_distributed(x):
        if any(one is not None for one in (data.y, data.sample_weight, data.class_weight)):
            raise ValueError("A function of InputContext gives labels and weights itself.")
        return Reader(x, steps, "what the function gives for its InputContext")
    dataset = isinstance(x, tf.data.Dataset)
    # Keras checks arrays, casts them and puts them together: as one batch of all rows.
    shapes = [getattr(leaf, "shape", None) for leaf in keras.tree.flatten(x)]
    rows = int(shapes[0][0]) if shapes and shapes[0] and not dataset else 0
    adapter = dataclasses.replace(
        data, batch_size=rows or data.batch_size, steps=None, shuffle=False
    ).adapter()
    if dataset:
        return _of_dataset(reading, data_adapters.dataset(adapter), steps)
    if reading == "replicated" and not data.shuffle:
        raise ValueError(
            "reading='replicated' with shuffle=False would train each batch once on every worker: "
            "use reading='shard', or leave out shuffle=False."
        )
    if not rows:
        raise ValueError("The arrays hold no row.")
    arrays = next(iter(data_adapters.dataset(adapter)))
    if any(isinstance(leaf, tf.SparseTensor) for leaf in keras.tree.flatten(arrays)):
        raise ValueError(
            f"reading={reading!r} takes no sparse arrays: give a tf.data.Dataset, or let the "
            "coordinator read (reading='coordinator')."
        )
    return _of_arrays(reading, arrays, rows, data.batch_size or 32, steps, bool(data.shuffle))


def _of_arrays(
    reading: str, arrays: Any, rows: int, batch_size: int, steps: int | None, shuffle: bool
) -> Reader:
    @functools.cache
    def part(count: int, index: int) -> Any:
        # Eager tensors travel beside the graph of a worker's function, which 2 GB limit.
        mine = tf.range(index, rows, count)
        return keras.tree.map_structure(lambda leaf: tf.gather(leaf, mine), arrays)

    def function(context: tf.distribute.InputContext) -> tf.data.Dataset:
        count, index = context.num_input_pipelines, context.input_pipeline_id
        mine = arrays if reading == "replicated" else part(count, index)
        size = rows if reading == "replicated" else len(range(index, rows, count))
        order = tf.data.Dataset.range(size)
        if shuffle:
            # Another seed for each worker, so that no two of them have the same order.
            order = order.shuffle(max(1, size), seed=index)
        return order.batch(batch_size).map(
            lambda indices: keras.tree.map_structure(lambda leaf: tf.gather(leaf, indices), mine),
            num_parallel_calls=tf.data.AUTOTUNE,
        )

    if reading == "replicated":
        whole = -(-rows // batch_size)
        return Reader(function, steps or whole, "all rows, in an order of its own")
    return Reader(function, steps, "its shard of the rows")


def _of_dataset(reading: str, dataset: tf.data.Dataset, steps: int | None) -> Reader:
    if reading == "replicated":
        raise ValueError(
            "reading='replicated' shuffles arrays for each worker; a tf.data.Dataset has the order "
            "that it was made with. Use reading='shard', or a function of "
            "tf.distribute.InputContext that shuffles with context.input_pipeline_id."
        )
    if dataset.options().experimental_distribute.auto_shard_policy == _OFF:
        raise ValueError(
            "The dataset's auto_shard_policy is OFF, so that every worker would read the same: "
            "set another, or let the coordinator read (reading='coordinator')."
        )
    _check_python(dataset)
    size = int(dataset.cardinality())
    if steps is None and size < 0:
        raise ValueError(
            "The dataset is of unknown or endless size: give steps_per_epoch=, or let it tell "
            "(tf.data.experimental.assert_cardinality)."
        )
    shard = data_adapters.shardable(dataset)
    return Reader(
        lambda context: shard(context.num_input_pipelines, context.input_pipeline_id),
        size if steps is None else steps,
        "its shard of the dataset",
    )


def _check_python(dataset: tf.data.Dataset) -> None:
    if data_adapters.runs_python(dataset):
        raise ValueError(
            "The data goes through Python code (py_function, numpy_function, from_generator), "
            "which the workers do not have. Use TensorFlow's own functions, or let the "
            "coordinator read: give fit the dataset itself, with reading='coordinator'."
        )


def check_readable(x: Any) -> None:
    """Refuse data that cannot be read again when a worker has died, or is split already."""
    if isinstance(x, types.GeneratorType) or isinstance(x, keras.utils.PyDataset):
        raise ValueError(
            f"fit on parameter servers takes no {type(x).__name__}: it cannot be read again "
            "when a worker has died. Give arrays, a tf.data.Dataset (from_generator makes "
            "one), or a function of tf.distribute.InputContext that returns one."
        )
    if isinstance(x, tf.distribute.DistributedDataset):
        raise ValueError(
            "The dataset is distributed already. Give the tf.data.Dataset itself, or a "
            "function of tf.distribute.InputContext."
        )


class WorkerFeed:
    """An iterator on each worker.

    Args:
        coordinator: The ClusterCoordinator.
        workers: Number of workers.
        reader: What each reads.

    Attributes:
        spec: The structure of a batch.
        steps: Steps of an epoch.
        iterator: What a step takes: each worker's own.
        description: Who reads what, for the log.

    Raises:
        ValueError: If there is no telling how long an epoch is, or a worker cannot read it.
    """

    def __init__(self, coordinator: Any, workers: int, reader: Reader):
        def of(worker: int) -> tf.data.Dataset:
            return reader.function(tf.distribute.InputContext(workers, worker, 1))

        datasets = [of(worker) for worker in range(workers)]
        sizes = [int(dataset.cardinality()) for dataset in datasets]
        if reader.steps is None and min(sizes) < 0:
            raise ValueError(
                "The function of InputContext returns a dataset of unknown or endless size: give "
                "steps_per_epoch=, or let it tell (tf.data.experimental.assert_cardinality)."
            )
        if 0 in sizes:
            raise ValueError(
                f"Pipeline {sizes.index(0)} of {workers} has no batch: give every worker data, or "
                "start fewer workers."
            )
        _check_python(datasets[0])
        self.steps = sum(sizes) if reader.steps is None else reader.steps
        self.spec = datasets[0].element_spec
        self.description = (
            f"each of {workers} workers reads {reader.what}, again and again; an epoch is "
            f"{self.steps} steps of all together"
        )

        functions = [lambda worker=worker: of(worker).repeat() for worker in range(workers)]
        self.iterator = parameter_server.per_worker_iterator(coordinator, functions)
        self.step = 0
        self._goes_on = False

    def begin_epoch(self) -> int:
        """Return the steps of the epoch that are done when it begins."""
        self.step = self.step if self._goes_on else 0
        self._goes_on = False
        return self.step

    def place(self) -> dict[str, Any]:
        """Return where the feed stands: nobody knows what each worker has read."""
        return {}

    def resume(self, place: dict[str, Any], step: int) -> bool:
        """Go on at a step of an epoch; each worker begins anew with what it reads."""
        del place
        self.begin_within(step)
        return False

    def begin_within(self, step: int) -> None:
        """Go on at a step of an epoch; what the workers read begins about there."""
        self.step, self._goes_on = step, step > 0

    def close(self) -> None:
        """Do nothing: the workers drop their iterators when this object goes."""
