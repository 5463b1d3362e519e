"""Where the batches of an epoch come from: fit's input, as a dataset of global batches.

Everything that Keras's fit takes becomes a tf.data.Dataset of *global* batches. Every process
reads the same batches, and each replica keeps its rows of them: see `split`. A dataset whose
options ask tf.data for FILE, HINT or OFF sharding, and one that is distributed already, is left to
tf.distribute: each process reads what that gives it.

    feed = Feed(strategy, first_replica=0, data=call.Data(x, y, batch_size=32).adapter())
    feed.begin_epoch()
    batch, rows = feed.split.batch(feed.split.parts(next(feed.iterator)), local=0)
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from tfdp.compat import data_adapters, iterators
from tfdp.fit import random_state
from tfdp.fit.split import Split, build_spec, static_rows

_Policy = tf.data.experimental.AutoShardPolicy


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
        self._goes_on = self._is_endless_pass = False
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
        if none_ahead:
            options = tf.data.Options()
            # tf.data would add prefetching and parallel maps of its own.
            options.experimental_optimization.apply_default_optimizations = False
            options.experimental_optimization.inject_prefetch = False
            dataset = dataset.with_options(options)
        # Passes that are all alike follow one another in one iterator: making one takes longer than
        # a step.
        self._repeats = (
            self.steps_per_epoch is None
            and bool(self.batches)
            and not none_ahead
            and isinstance(dataset, tf.data.Dataset)
            and data_adapters.is_the_same_each_time(dataset)
        )
        if self._repeats:
            dataset = dataset.repeat()
        if by_rows and self._replicas > 1 and not none_ahead:
            dataset = dataset.prefetch(tf.data.AUTOTUNE)
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
        if self._is_between_passes:
            self._passes += 1
            self._drawn = random_state.now()
        elif self.iterator is None or not persistent:
            self.close()
            self._begin_pass()
        self.step, self._first_step = self._first_step, 0

    @property
    def _is_between_passes(self) -> bool:
        """Whether the iterator has given all of a pass, and gives the next one."""
        return self._repeats and self.iterator is not None and self._seen == 0

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

    def begin_endless(self) -> None:
        """Begin a pass that is followed by others for ever: for who measures, not for epochs.

        Steps are taken as in an epoch: with a look at the end of the data, or without.
        """
        if self._adapter and not self._is_endless_pass:  # its epoch has no end
            self._adapter.on_epoch_begin()
        self._is_endless_pass = True
        self.close()
        dataset = self._dataset
        # What MultiDeviceIterator splits has no repeat: there passes begin anew.
        self.iterator = iter(dataset.repeat() if hasattr(dataset, "repeat") else dataset)
        self.step, self.steps_per_epoch = 0, 1 << 60
        self._endless = self._endless or self.batches is not None
        self.batches = None

    # -- a run that goes on ---------------------------------------------------------------

    def place(self) -> dict[str, Any]:
        """Return where the feed stands, as plain data."""
        return {
            "passes": self._passes,
            "is_open": self.iterator is not None and not self._is_between_passes,
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
        draws = isinstance(self._dataset, tf.data.Dataset) and not self._repeats
        while self._passes < before and draws:
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
        if not self.once and not self._is_between_passes:
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
        at_end = self.batches is not None and self._seen >= self.batches
        if at_end and self._repeats:
            self._seen = 0
        elif at_end or (exhausted and not self.once):
            self.close()


def is_generator(data: Any) -> bool:
    """Say whether data is a Python generator, which gives each batch once."""
    return inspect.isgenerator(data)


def is_distributed(data: Any) -> bool:
    """Say whether tf.distribute has split the data, or a function of InputContext will."""
    function = inspect.isroutine(data) or isinstance(data, functools.partial)
    return function or isinstance(data, tf.distribute.DistributedDataset)


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
