"""Data that each worker of parameter servers reads itself: a function of InputContext.

    def clicks(context):
        files = tf.data.Dataset.list_files("clicks-*.tfrecord", seed=context.input_pipeline_id)
        return files.shard(context.num_input_pipelines, context.input_pipeline_id)...batch(256)

    model.fit(clicks, steps_per_epoch=1000)

The function is called for each worker and says what that worker reads: a shard of its own, or all
of it in an order of its own. A step goes to whichever worker is free, and each worker goes round
its data: an epoch is so many steps, not each record once.
"""

from collections.abc import Callable
from typing import Any

import tensorflow as tf


class WorkerFeed:
    """An iterator on each worker.

    Args:
        coordinator: The ClusterCoordinator.
        workers: Number of workers.
        function: Returns the dataset of batches of one `tf.distribute.InputContext`.
        steps: Steps of an epoch; None for as many batches as the workers' datasets hold together.

    Attributes:
        spec: The structure of a batch.
        steps: Steps of an epoch.
        iterator: What a step takes: each worker's own.
        description: Who reads what, for the log.

    Raises:
        ValueError: If there is no telling how long an epoch is.
    """

    def __init__(
        self, coordinator: Any, workers: int, function: Callable[..., Any], steps: int | None
    ):
        def of(worker: int) -> tf.data.Dataset:
            return function(tf.distribute.InputContext(workers, worker, 1))

        datasets = [of(worker) for worker in range(workers)]
        sizes = [int(dataset.cardinality()) for dataset in datasets]
        if steps is None and min(sizes) < 0:
            raise ValueError(
                "The function of InputContext returns a dataset of unknown or endless size: give "
                "steps_per_epoch=, or let it tell (tf.data.experimental.assert_cardinality)."
            )
        if 0 in sizes:
            raise ValueError(
                f"The function of InputContext returns no batch for pipeline {sizes.index(0)} of "
                f"{workers}: give every worker data, or start fewer workers."
            )
        self.steps = sum(sizes) if steps is None else steps
        self.spec = datasets[0].element_spec
        self.description = (
            f"each of {workers} workers reads what the function gives for its InputContext, again "
            f"and again; an epoch is {self.steps} steps of all together"
        )

        def on_worker() -> tf.data.Dataset:
            # One function for all workers, as the coordinator wants it.
            index = tf.distribute.coordinator.experimental_get_current_worker_index()
            branches = [lambda worker=worker: of(worker).repeat() for worker in range(workers)]
            return tf.switch_case(tf.cast(index, tf.int32), branches)

        self.iterator = iter(coordinator.create_per_worker_dataset(on_worker))
