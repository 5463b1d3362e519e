"""A fit that is measured before it begins: its steps run for a while, and leave no trace.

    def observe(rehearsal):
        with rehearsal.running() as runs:
            seconds = runs.real(20)
    fit.observe_next_fit(observe)

Everything comes back: weights, optimizers, seeds, metrics, random numbers, and the place in the
data, which is read by iterators of copies. In a cluster every task calls the same methods in the
same order.
"""

import contextlib
import copy
import dataclasses
import functools
import logging
import time
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfdp.compat import dataset_graphs, distribute, iterators
from tfdp.error import Error
from tfdp.fit import call, random_state
from tfdp.fit import feed as feed_lib
from tfdp.fit.replicas import communication as communication_lib
from tfdp.fit.replicas import exchange, snapshot, transport
from tfdp.fit.replicas import kept as kept_lib
from tfdp.fit.replicas import loop as loop_lib
from tfdp.fit.replicas import step as step_lib

_log = logging.getLogger("tfdp")


class Rehearsal:
    """What can be measured of a fit.

    Args:
        trainer: The engine that is about to fit.
        data: What it was given.

    Attributes:
        model: The model.
        strategy: Its strategy.
        communication: How its gradients travel.
        name: This task: "worker:0"; "" in a process that trains alone.
        names: All tasks, the chief first.
        is_chief: Whether this task writes files and prints.
        replicas: Replicas in sync, of all tasks.
        local_replicas: Replicas of this task.
    """

    def __init__(self, trainer: Any, data: call.Data):
        self._trainer, self._data = trainer, data
        self.model, self.strategy = trainer.model, trainer.strategy
        self.communication = trainer.communication
        self.name, self.names = exchange.members(self.strategy) or ("", [""])
        self.is_chief = trainer.chief
        self.replicas = self.strategy.num_replicas_in_sync
        self.local_replicas = len(self.strategy.extended.worker_devices)

    @property
    def dataset(self) -> tf.data.Dataset | None:
        """What the script has made, with the functions that it calls; None for other data."""
        return self._data.x if isinstance(self._data.x, tf.data.Dataset) else None

    def of_all(self, what: str, value: Any = None) -> list[Any]:
        """Return what all tasks give, plain data, the chief's first; they meet here.

        Args:
            what: The name of it, the same on every task.
            value: This task's.
        """
        return exchange.of_all(self.strategy, what, value)

    @contextlib.contextmanager
    def running(self, puts_back: bool = True) -> Iterator["Runs"]:
        """Yield what runs the steps; at its end all is as it was.

        Args:
            puts_back: Whether training goes on afterwards.

        Raises:
            Error: For data that cannot be read a second time.
        """
        data = self._again(puts_back)
        drawn, put_seeds_back = random_state.now(), distribute.eager_seeds()
        with contextlib.ExitStack() as stack:
            stack.callback(put_seeds_back)
            stack.callback(random_state.put_back, drawn)
            limit = max(1, int(self.model.steps_per_execution))
            runs = Runs(self, self._feed(data), self.loop, limit)
            stack.callback(runs.close)
            stack.callback(runs.put_back)
            runs.begin()
            yield runs

    def _again(self, puts_back: bool) -> call.Data:
        """Return the data for iterators beside those of the fit."""
        x = self._data.x
        if feed_lib.is_generator(x):
            raise Error(
                "The bench reads batches that training gets again, and fit was given a Python "
                "generator, which can be read only once. Give a tf.data.Dataset "
                "(tf.data.Dataset.from_generator takes a function), a keras.utils.PyDataset, or "
                "arrays."
            )
        problem = ""
        if isinstance(x, tf.data.Dataset):
            x, problem = dataset_graphs.independent(x)
        elif isinstance(x, tf.distribute.DistributedDataset):
            problem = "it was distributed by the script, which hides where it stands"
        elif isinstance(x, keras.utils.PyDataset):
            if x.workers > 1 or x.use_multiprocessing:
                raise Error(
                    f"The bench reads passes that it does not end, and {type(x).__name__} reads "
                    f"ahead in threads (workers={x.workers}), which wait for the end of each. "
                    "Measure with workers=1, or give a tf.data.Dataset."
                )
            x = copy.copy(x)
        if problem and puts_back:
            raise Error(
                f"After the bench the training could not begin at the same batches: {problem}. "
                "Let the run end with the report: --bench, or Bench(goes_on=False)."
            )
        return dataclasses.replace(self._data, x=x)

    def _feed(self, data: call.Data) -> feed_lib.Feed:
        return self._trainer.feed(data, trains=True)

    def feed_of(self, change: Callable[[tf.data.Dataset], tf.data.Dataset]) -> feed_lib.Feed | None:
        """Return a feed of the data after a change; None where it is not one dataset."""
        data = self._again(puts_back=False)
        if not isinstance(data.x, tf.data.Dataset):
            return None
        return self._feed(dataclasses.replace(data, x=change(data.x)))

    def loop(
        self, communication: communication_lib.Communication | None = None, jit: bool | None = None
    ) -> loop_lib.Loop:
        """Return what runs steps of the model, perhaps with other settings."""
        model, level = self.model, _log.level
        before = model.jit_compile
        _log.setLevel(logging.ERROR)  # what is to say of the model was said
        try:
            if jit is not None:
                model.jit_compile = jit
            return loop_lib.Loop(
                step_lib.Steps(model, self.strategy, communication or self.communication)
            )
        finally:
            model.jit_compile = before
            _log.setLevel(level)


class Runs:
    """Runs steps: whole ones, and parts of them. Each method returns the seconds that they took.

    Args:
        rehearsal: The rehearsal.
        feed: Gives the batches.
        make_loop: Returns what takes the steps.
        limit: Steps in one execution.

    Attributes:
        feed: The feed.
        rows: Rows of the batch that is kept, over all replicas.
        half_rows: Rows of half of it; 0 where it cannot be halved.
        data_wait: The share of the last `real` that this process waited for batches.
    """

    def __init__(
        self,
        rehearsal: Rehearsal,
        feed: feed_lib.Feed,
        make_loop: Callable[[], loop_lib.Loop],
        limit: int,
    ):
        self._rehearsal = rehearsal
        self.feed = feed
        self._make_loop = make_loop
        self._limit = limit
        self._saved: list[tuple[tf.Variable, tf.Tensor]] = []
        self._kept: kept_lib.Kept | None = None
        self._half: kept_lib.Kept | None = None
        self.rows = self.half_rows = 0
        self.data_wait = 0.0

    @functools.cached_property
    def _loop(self) -> loop_lib.Loop:
        return self._make_loop()

    @functools.cached_property
    def _alone(self) -> loop_lib.Loop:
        """What takes steps that exchange nothing: another, as it traces other graphs."""
        return self._loop if self._rehearsal.replicas == 1 else self._make_loop()

    def begin(self) -> None:
        """Open the data, keep a batch, and remember what the model holds."""
        self.feed.begin_endless()
        element = next(self.feed.iterator, None)
        if element is None:
            raise Error("The bench found no batch in the data. Give fit data that holds one.")
        strategy = self._rehearsal.strategy
        self._kept = kept_lib.Kept(strategy, self.feed, element)
        self.rows = self._rows(element)
        half = kept_lib.half(element, self._rehearsal.replicas) if self._kept.is_plain else None
        if half is not None:
            self._half = kept_lib.Kept(strategy, self.feed, half)
            self.half_rows = self._rows(half)
        self.feed.close()
        self.trace()
        self._saved = [(one, tf.identity(one)) for one in self._held()]
        self._loop.replicas.reset_metrics()

    def trace(self) -> None:
        """Trace a step: a train_step may build an optimizer then, and packs are made."""
        if not self._rehearsal.model.run_eagerly:
            self._loop.trace("train", self._kept, self._limit)

    def _rows(self, element: Any) -> int:
        here = int(self._loop.rows_here(self.feed.split, element))
        local, everywhere = self._rehearsal.local_replicas, self._rehearsal.replicas
        return here if self.feed.split.by_rows else here * everywhere // local

    def _held(self) -> list[tf.Variable]:
        replicas = self._loop.replicas
        held = [
            replicas.copy(v, local)
            for v in snapshot.variables(replicas)
            for local in range(replicas.count)
        ]
        held += [v.value for v in replicas.metrics]
        return list({id(v): v for v in held}.values())

    def put_back(self) -> None:
        """Give the model what it held at the beginning."""
        for variable, value in self._saved:
            variable.assign(value)

    def close(self) -> None:
        """Let go of the data."""
        self.feed.close()
        for kept in (self._kept, self._half):
            if kept is not None:
                iterators.let_go(kept.iterator)

    # -- the runs ---------------------------------------------------------------------------

    def real(self, steps: int) -> float:
        """Take steps on the real data, as fit does (E5)."""
        self._loop.clock.take()
        seconds = self._advance(self._loop, self.feed, steps)
        waited, _ = self._loop.clock.take()
        self.data_wait = 0.0 if waited is None else min(1.0, waited / seconds)
        return seconds

    def kept(self, steps: int) -> float:
        """Take steps on one batch that is kept (E3)."""
        return self._advance(self._loop, self._kept, steps)

    def alone(self, steps: int, half: bool = False) -> float:
        """Take steps on a kept batch, or on half of one, without exchanging anything (E2).

        All replicas of all tasks work at the same time, as in a real step.
        """
        with communication_lib.left_out():
            return self._advance(self._alone, self._half if half else self._kept, steps)

    def input(self, steps: int) -> float:
        """Read batches, and do nothing with them (E1)."""
        begin = time.perf_counter()
        try:
            int(self._read(self.feed.iterator, tf.constant(steps)))
        except tf.errors.OutOfRangeError:  # of data that has no repeat
            self.feed.begin_endless()
        return time.perf_counter() - begin

    @functools.cached_property
    def _read(self) -> Callable[..., Any]:
        def read(iterator: Any, limit: tf.Tensor) -> tf.Tensor:
            def body(step: tf.Tensor) -> tuple[tf.Tensor]:
                iterator.get_next()
                return (step + 1,)

            start = (tf.constant(0),)
            return tf.while_loop(lambda i: i < limit, body, start, parallel_iterations=1)[0]

        return distribute.function(read, reduce_retracing=True)

    def exchange(self, times: int, size: int = 0) -> float:
        """Exchange packs as those of the gradients, or so many bytes, alone (E4)."""
        begin = time.perf_counter()
        for _ in range(times):
            self._loop.exchange(self.feed.split, size)
        self._wait()
        return time.perf_counter() - begin

    def packs_in_bytes(self) -> list[int]:
        """Return the bytes of each pack that a replica gives away in a step."""
        if self._rehearsal.replicas == 1:
            return []
        return self._loop.steps.packs_in_bytes(self.feed.split)

    def changed(
        self,
        communication: communication_lib.Communication | None = None,
        jit: bool | None = None,
        feed: feed_lib.Feed | None = None,
        limit: int | None = None,
    ) -> "Runs":
        """Return runs of the same model with other settings, or on other data.

        Args:
            communication: How its gradients travel.
            jit: Whether XLA compiles its steps.
            feed: The other data.
            limit: Steps in one execution.
        """
        make = self._make_loop
        if communication is not None or jit is not None:
            make = functools.partial(self._rehearsal.loop, communication, jit)
        other = Runs(self._rehearsal, feed or self.feed, make, limit or self._limit)
        if make is self._make_loop:
            other._loop, other._alone = self._loop, self._alone
        other._kept, other._half, other._saved = self._kept, self._half, self._saved
        other.rows, other.half_rows = self.rows, self.half_rows
        return other

    def open(self) -> None:
        """Begin to read the real data, as for an epoch."""
        self.feed.begin_endless()

    def pause(self) -> None:
        """Let go of the real data's iterator: nothing is read ahead while others are measured."""
        self.feed.close()

    @property
    def batches_to_cache(self) -> int:
        """Batches of a pass, if the script's dataset holds a cache that one fills; else 0."""
        dataset = self._rehearsal.dataset
        return dataset_graphs.batches_to_cache(dataset) if dataset is not None else 0

    @property
    def carried_by(self) -> str:
        """What carries the sums: "gloo", "shared_memory", or what was asked of TensorFlow."""
        if (carrier := transport.of(self._rehearsal.strategy)) is not None:
            return carrier.kind
        return self._rehearsal.communication.implementation

    def _advance(self, loop: loop_lib.Loop, feed: Any, steps: int) -> float:
        begin, left = time.perf_counter(), steps
        while left > 0:
            limit = min(left, self._limit)
            done = loop.advance("train", feed, limit)
            left -= done
            if done < limit:
                feed.begin_endless()
        self._wait()
        return time.perf_counter() - begin

    def _wait(self) -> None:
        """Wait until what was started has ended: a GPU works while Python goes on."""
        if self._saved:
            smallest = min((v for v, _ in self._saved), key=lambda v: np.prod(v.shape))
            smallest.numpy()
