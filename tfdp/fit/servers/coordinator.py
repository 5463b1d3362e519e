"""The batches of one epoch, handed out to the workers of parameter servers.

epochs = Epochs(model, strategy, coordinator, Options(max_staleness=4), workers=2)
epochs.use(steps)
epochs.run("train", feed, begin, took, stopped)
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import keras
import tensorflow as tf

from tfdp.compat import keras_optimizers, parameter_server
from tfdp.fit import feed as feed_lib
from tfdp.fit import retrace
from tfdp.fit.servers import noise as noise_lib
from tfdp.fit.servers import scheduled, synchronous, worker_feed, worker_step

# Batches that are handed out for each worker: the one it has, and some that wait for it.
_AHEAD = 4


@dataclasses.dataclass(frozen=True)
class Options:
    """How a model is trained on parameter servers.

    Attributes:
        max_staleness: The largest number of steps between reading the weights and the update;
            0 for synchronous training, None for no limit.
        lazy_rows: Whether a sparse gradient changes the rows it has and no others, whatever the
            optimizer.
        reading: Who reads the arrays or the dataset that fit is given. "coordinator": it hands
            out each batch once in each epoch. "shard" and "replicated": each worker reads for
            itself, see worker_feed.reader. evaluate and predict always read in the coordinator.
    """

    max_staleness: int | None = None
    lazy_rows: bool = False
    reading: str = "coordinator"

    def __post_init__(self) -> None:
        if self.max_staleness is not None and (
            isinstance(self.max_staleness, bool)
            or not isinstance(self.max_staleness, int)
            or self.max_staleness < 0
        ):
            raise ValueError(
                f"max_staleness={self.max_staleness!r}: use a whole number of steps from 0 "
                "(0: synchronous), or None for no limit."
            )
        if self.reading not in worker_feed.READINGS:
            raise ValueError(
                f"reading={self.reading!r}: use one of {', '.join(worker_feed.READINGS)}."
            )
        if self.reading != "coordinator" and self.max_staleness == 0:
            raise ValueError(
                f"reading={self.reading!r}: max_staleness=0 splits each batch over the workers, so "
                "that the coordinator reads. Leave out one of the two."
            )

    def describe(self, workers: int) -> str:
        """Say what becomes of data that the coordinator reads."""
        them = f"{workers} worker{'s'[: workers > 1]}"
        if self.max_staleness == 0:
            return (
                f"the coordinator reads the data and splits each batch by rows over {them}; their "
                "gradients are summed"
            )
        return (
            f"the coordinator reads the data and hands each batch to one of {them}; a batch is a "
            "step, and each is trained once"
        )

    def ahead(self, workers: int) -> int:
        """Return how many batches may be out at a time.

        They are taken back in order. While one is out, at most those before it and as many after
        it are applied.
        """
        if self.max_staleness is None:
            return _AHEAD * workers
        return min(_AHEAD * workers, self.max_staleness // 2 + 1)


class Epochs:
    """Runs epochs of one model.

    Args:
        model: The model.
        strategy: A ParameterServerStrategy.
        coordinator: Its ClusterCoordinator.
        options: How to train.
        workers: Number of workers.

    Attributes:
        steps: The step functions of the model as it is compiled now.
        noise: Measures how much the parts of a batch differ (max_staleness=0); None: nobody asks.
    """

    def __init__(
        self, model: keras.Model, strategy: Any, coordinator: Any, options: Options, workers: int
    ):
        self._model = model
        self._strategy = strategy
        self._coordinator = coordinator
        self._options = options
        self._workers = workers
        self.numbers: dict[str, int] = {}  # of the next batch of each kind
        self._summed: dict[str, synchronous.Summed] = {}
        self.steps: worker_step.RemoteSteps
        self.noise: noise_lib.Noise | None = None
        self._settle: Callable[[], None] = _nothing

    def settle(self) -> None:
        """Wait until all that was handed out is done, and take it back."""
        self._settle()

    def use(self, steps: worker_step.RemoteSteps) -> None:
        """Go on with these step functions."""
        self.steps = steps
        self._summed = {}

    def run(
        self,
        kind: str,
        feed: feed_lib.Feed,
        begin: Callable[[int], None],
        took: Callable[[Any], None],
        stopped: Callable[[], Any],
        after: Callable[[int], None] = lambda steps: None,
    ) -> None:
        """Hand the batches of one epoch out, and take the results back in order.

        Args:
            kind: "train", "test" or "predict".
            feed: The batches.
            begin: Called with the number of each batch before it is handed out.
            took: Called with each result, in the order of the batches.
            stopped: Says whether to hand out no more.
            after: Called with the number of steps that were just handed out; it may `settle`.
        """
        ahead = self._options.ahead(self._workers) if kind == "train" else _AHEAD * self._workers
        with self._handing_out(ahead, took) as work:
            for batch in _batches(feed, begin, stopped):
                while work.full:
                    took(work.take())
                number = self._next(kind)
                function = functools.partial(self.steps.function, kind, feed.spec)
                arguments = (tf.constant(number, tf.int64), *worker_step.flatten(batch))
                self._put(work, function, arguments)
                after(1)
            for result in work.drain():
                took(result)

    def run_reading(
        self,
        feed: worker_feed.WorkerFeed,
        begin: Callable[[int], None],
        took: Callable[[Any], None],
        stopped: Callable[[], Any],
        after: Callable[[int], None] = lambda steps: None,
    ) -> None:
        """Train one epoch on what the workers read: see `run`."""
        ahead = self._options.ahead(self._workers)
        with self._handing_out(ahead, took) as work:
            together = max(1, int(self._model.steps_per_execution))
            done = feed.begin_epoch()
            while done < feed.steps and not stopped():
                begin(done)
                while work.full:
                    took(work.take())
                steps = min(together, feed.steps - done)
                number = self._next("train", steps)
                done += steps
                function = functools.partial(
                    self.steps.reading,
                    feed.spec,
                    parameter_server.remote_spec(feed.iterator),
                    steps,
                )
                self._put(work, function, (tf.constant(number, tf.int64), feed.iterator))
                feed.step = done
                after(steps)
            for result in work.drain():
                took(result)

    def _next(self, kind: str, steps: int = 1) -> int:
        """Return the number of the next batch of a kind, and count `steps` of them.

        Training goes on where the optimizer's own counter stands, in a run that was resumed too.
        """
        if kind not in self.numbers:
            trained = kind == "train" and self._model.optimizer.built
            self.numbers[kind] = (
                int(keras_optimizers.step_count(self._model.optimizer)) if trained else 0
            )
        number = self.numbers[kind]
        self.numbers[kind] += steps
        return number

    def _put(self, work: scheduled.Work, function: Callable[[], Any], args: Any) -> None:
        """Hand out one call; the first time the step is traced, perhaps more than once."""

        def traced() -> Any:
            with self._strategy.scope():
                return function()

        work.put(retrace.until_traced(traced, self._strategy, forget=lambda: None), args)

    def run_summed(
        self,
        kind: str,
        feed: feed_lib.Feed,
        begin: Callable[[int], None],
        took: Callable[[Any], None],
        stopped: Callable[[], Any],
        after: Callable[[int], None] = lambda steps: None,
    ) -> None:
        """Train on the batches of one epoch, each split over the workers: see `run`."""
        assert kind == "train"
        with scheduled.Work(self._strategy, self._coordinator, self._workers) as work:
            key = repr(feed.spec)
            if key not in self._summed:
                self._summed[key] = synchronous.Summed(
                    self.steps, feed.spec, self._workers, self._options.lazy_rows
                )
            for batch in _batches(feed, begin, stopped):
                took(self._summed[key].step(work, self._next(kind), batch, self.noise))
                after(1)

    @contextlib.contextmanager
    def _handing_out(self, ahead: int, took: Callable[[Any], None]) -> Iterator[scheduled.Work]:
        """Open what hands out; meanwhile `settle` takes back all that is out."""
        with scheduled.Work(self._strategy, self._coordinator, ahead) as work:

            def settle() -> None:
                for result in work.drain():
                    took(result)

            before, self._settle = self._settle, settle
            try:
                yield work
            finally:
                self._settle = before


def _nothing() -> None:
    """Wait for nothing: nothing is handed out."""


def _batches(
    feed: feed_lib.Feed, begin: Callable[[int], None], stopped: Callable[[], Any]
) -> Iterator[Any]:
    """Give the batches of one epoch, until `stopped`; `begin` is told the number of each."""
    feed.begin_epoch()
    exhausted = False
    while not stopped() and ((left := feed.steps_left()) is None or left > 0):
        batch = next(feed.iterator, None)
        if batch is None:
            exhausted = True
            break
        begin(feed.step)
        feed.took(1)
        yield batch
    feed.end_epoch(exhausted)
