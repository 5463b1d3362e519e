"""Steps in a row: graph loops over an iterator, and the points where metrics are summed up.

loop = Loop(steps)
done = loop.advance("train", feed, limit=20)
logs, stopped = loop.aggregate("train", stop=False)
loop.clock.take()       # how long these steps have waited for their batches
"""

import contextlib
import functools
import time
from collections.abc import Callable, Iterator
from typing import Any

import tensorflow as tf

from tfdp.compat import distribute
from tfdp.fit import feed as feed_lib
from tfdp.fit import retrace
from tfdp.fit import split as split_lib
from tfdp.fit.replicas import clock as clock_lib
from tfdp.fit.replicas import communication, snapshot
from tfdp.fit.replicas import replica as replica_lib
from tfdp.fit.replicas import step as step_lib

# The kind of training steps that exchange nothing: see meetings.
APART = "apart"


class Loop:
    """Runs the steps of one compiled model.

    Args:
        steps: The step functions.

    Attributes:
        replicas: Those of this process.
        clock: Of the training steps.
    """

    def __init__(self, steps: step_lib.Steps):
        self.steps, self.replicas = steps, steps.replicas
        self.clock = clock_lib.Clock()
        self._eager = bool(steps.model.run_eagerly)
        self._functions: dict[Any, Callable[..., Any]] = {}

    def advance(self, kind: str, feed: feed_lib.Feed, limit: int) -> int:
        """Take up to `limit` batches, each one step; return how many there were.

        With the kind APART they exchange nothing: each replica trains by itself, and each process
        for as long as its own data lasts.

        The steps run as one graph, unless the model runs eagerly. Where the feed does not know
        how many batches it has, every step first sees whether there is a batch: no step runs
        beside the data.
        """
        if self._eager:
            done = self._advance_eagerly(kind, feed, limit)
        else:
            left = feed.steps_left()
            exact = left is not None and left >= limit
            done = self._retrying(
                lambda: self._function(kind, feed.split, limit == 1, exact)(
                    feed.iterator, tf.constant(limit)
                )
            )
            done = limit if exact else int(done)
        feed.took(done)
        return done

    def on_batch(self, kind: str, whole: split_lib.Whole) -> Any:
        """Take one step of `kind` ("train", "test", "predict") on a batch that is there.

        Returns:
            The predictions; or the logs, where one replica sums up nothing; else None.
        """
        one = getattr(self.steps, kind)
        key = ("on_batch", kind, whole.split)
        # In the same graph: a call of another costs as much as a small step.
        alone = self.replicas.in_sync == 1 and kind != "predict"

        def run(batch: Any) -> Any:
            found = one(whole.split, batch)
            return self.steps.results(kind) if alone else found

        def call() -> Any:
            if self._eager:
                return run(whole.data)
            if key not in self._functions:
                self._functions[key] = distribute.function(run, reduce_retracing=True)
            return self._functions[key](whole.data)

        return self._retrying(call)

    def predict(self, feed: feed_lib.Feed) -> tuple[Any, ...] | None:
        """Return the predictions of this process's replicas for one batch; None at the end."""
        found, data = self._next(feed)
        if not found:
            return None
        feed.took(1)
        key = ("predict", feed.split)
        if self._eager:
            return self.steps.predict(feed.split, data)
        if key not in self._functions:
            self._functions[key] = distribute.function(
                lambda data, split=feed.split: self.steps.predict(split, data),
                reduce_retracing=True,
            )
        return self._functions[key](data)

    def aggregate(self, kind: str, *asks: bool) -> tuple[dict[str, Any], tuple[bool, ...]]:
        """Sum the metrics over all replicas; return the logs, and what any process asks for.

        Every process calls it at the same step: it is a collective.

        Args:
            kind: "train", "test" or "predict".
            asks: What this process asks for: to end the epoch, say.
        """
        replicas = self.replicas
        if not replicas.several_processes and self._eager:
            return self._sum_up(kind, tf.zeros(len(asks), tf.float64))[0], asks
        key = ("aggregate", kind, len(asks))
        if key not in self._functions:
            self._functions[key] = distribute.function(lambda asks: self._sum_up(kind, asks))
        logs, asked = self._functions[key](tf.constant(asks, tf.float64))
        if not replicas.several_processes:
            return logs, asks
        return logs, tuple((asked.numpy() > 0).tolist())

    def merge_state(self, kind: str) -> None:
        """Make one of what the replicas keep for themselves (BatchNormalization's statistics).

        Args:
            kind: Of the steps that ran: "train", "test" or "predict".
        """
        replicas = self.replicas
        if replicas.in_sync > 1 and kind in replicas.moves_in:
            self.collective(f"merge {replicas.moving}", replicas.merge_state)

    def take_from_chief(self, epoch: int) -> int:
        """Copy the chief's variables, and its `epoch`, to all processes."""
        variables = snapshot.variables(self.replicas)
        return int(
            self.collective(
                "take",
                lambda epoch: self.replicas.take_from_chief(variables, epoch),
                tf.constant(float(epoch), tf.float64),
            )
        )

    def agree(self, *asks: bool) -> tuple[bool, ...]:
        """Return, for each thing that this process asks for, whether any process does."""
        counts = self.collective(
            f"agree {len(asks)}", communication.all_sum, tf.constant(asks, tf.float32)
        )
        return tuple((counts.numpy() > 0).tolist())

    def finalize(self) -> None:
        """Let the optimizer set the variables' last values (averages over the steps)."""
        self.collective("finalize", self.steps.finalize)

    def trace(self, kind: str, feed: Any, limit: int) -> None:
        """Trace what `advance` runs, and run nothing; not for models that run eagerly."""
        left = feed.steps_left()
        exact = left is not None and left >= limit

        def trace() -> None:
            function: Any = self._function(kind, feed.split, limit == 1, exact)
            function.get_concrete_function(feed.iterator, tf.constant(limit))

        self._retrying(trace)

    def rows_here(self, split: split_lib.Split, element: Any) -> Any:
        """Return the rows that this process has read with an element."""
        whole = split.by_rows or self.replicas.count == 1
        strategy = self.steps.strategy
        parts = [element] if whole else replica_lib.local_results(strategy, element)
        return tf.add_n([tf.cast(split_lib.rows(p), tf.int64) for p in parts])

    def exchange(self, split: split_lib.Split, size: int = 0) -> None:
        """Exchange packs like those of the gradients alone; or so many bytes.

        Args:
            split: Of a feed for which a training step was traced.
            size: The bytes; 0 for the packs.
        """
        key = ("exchange", split, size)
        if key not in self._functions:
            steps = self.steps
            self._functions[key] = distribute.function(
                lambda: steps.exchange_bytes(size) if size else steps.exchange(split)
            )
        self._functions[key]()

    def collective(self, name: str, on_replica: Callable[..., Any], *args: Any) -> Any:
        """Run a function on every replica, in a graph; return the first result."""
        if name not in self._functions:

            def run(*args: Any) -> Any:
                results = self.steps.strategy.run(on_replica, args=args)
                return self.steps.strategy.experimental_local_results(results)[0]

            self._functions[name] = distribute.function(run)
        return self._functions[name](*args)

    def _sum_up(self, kind: str, asks: tf.Tensor) -> tuple[dict[str, Any], tf.Tensor]:
        steps, replicas = self.steps, self.replicas
        if replicas.several_processes:

            def on_replica() -> tf.Tensor:
                mine = replicas.metric_totals(replicas.here())
                return communication.all_sum(tf.concat([mine, asks], 0))

            summed = steps.strategy.run(on_replica)
            totals = steps.strategy.experimental_local_results(summed)[0]
            count = asks.shape[0]
            replicas.set_metrics(totals[: totals.shape[0] - count])
            asks = totals[totals.shape[0] - count :]
        elif replicas.in_sync > 1:
            replicas.set_metrics(
                tf.add_n([replicas.metric_totals(i) for i in range(replicas.count)])
            )
        return steps.results(kind), asks

    def begin_digests(self) -> None:
        """Start to digest what is read."""
        self.steps.digests.assign([0, 0])

    def digests(self) -> tuple[int, int]:
        """Return digests of the labels and of the inputs of all batches since `begin_digests`."""
        labels, inputs = self.steps.digests.numpy().tolist()
        return labels, inputs

    @property
    def is_traced(self) -> bool:
        """Whether a training step was traced."""
        return any(key[0] in ("train", APART) for key in self._functions)

    # -- graphs -----------------------------------------------------------------------------

    def _function(
        self, kind: str, split: split_lib.Split, single: bool, exact: bool
    ) -> Callable[..., Any]:
        # Whether time stamps are in it, too.
        key = (kind, split, single, exact, distribute.is_deterministic())
        if key not in self._functions:
            one = self._one(kind)

            def run(iterator: Any, limit: tf.Tensor) -> Any:
                with _exchanging(kind):
                    if not exact:
                        return self._until_end(one, split, iterator, limit)
                    if not single:
                        return self._counted(one, split, iterator, limit)
                    self._timed(one, split, iterator)
                    return limit

            self._functions[key] = distribute.function(run, reduce_retracing=True)
        return self._functions[key]

    def _retrying(self, call: Callable[[], Any]) -> Any:
        """Call; trace again while tracing finds out what the step still needs."""
        return retrace.until_traced(call, self.steps.strategy, self._forget)

    def _forget(self) -> None:
        self._functions.clear()
        self.steps.forget()

    def _advance_eagerly(self, kind: str, feed: feed_lib.Feed, limit: int) -> int:
        one = self._one(kind)
        with _exchanging(kind):
            for step in range(limit):
                begin = time.perf_counter()
                found, data = self._next(feed, kind)
                waited = time.perf_counter() - begin
                if not found:
                    return step
                self._retrying(functools.partial(one, feed.split, data))
                self._count(feed.split, data, waited)
        return limit

    def _one(self, kind: str) -> Callable[..., Any]:
        """Return what takes one step."""
        if kind == APART:
            return functools.partial(self.steps.train, apart=True)
        return {"train": self.steps.train, "test": self.steps.test}[kind]

    def _next(self, feed: feed_lib.Feed, kind: str = "") -> tuple[bool, Any]:
        """Return whether there is another element, and the element."""
        if feed.split.ends_apart:
            key = ("next", feed.split, kind == APART)
            if key not in self._functions:
                ahead = functools.partial(self._ahead, feed.split)
                self._functions[key] = distribute.function(ahead, reduce_retracing=True)
            _, present, optional = self._functions[key](feed.iterator)
            return bool(present), _value(feed.split, feed.iterator, optional) if present else None
        try:
            return True, next(feed.iterator)
        except (StopIteration, tf.errors.OutOfRangeError):
            return False, None

    def _ahead(self, split: split_lib.Split, iterator: Any) -> tuple[tf.Tensor, tf.Tensor, Any]:
        """Return when the next element came, whether any replica has one, and this process's.

        The last is an Optional.
        """
        optional = iterator.get_next_as_optional()
        present = optional.has_value()
        came = self.clock.now([present])
        if split.ends_apart:
            strategy = self.steps.strategy
            sums = strategy.run(communication.all_sum, args=(tf.cast(present, tf.float32),))
            present = strategy.experimental_local_results(sums)[0] > 0
        return came, present, optional

    def _counted(
        self, one: Any, split: split_lib.Split, iterator: Any, limit: tf.Tensor
    ) -> tf.Tensor:
        def body(step: tf.Tensor) -> tuple[tf.Tensor]:
            self._timed(one, split, iterator)
            return (step + 1,)

        (done,) = tf.while_loop(
            lambda step: step < limit, body, (tf.constant(0),), parallel_iterations=1
        )
        return done

    def _timed(self, one: Any, split: split_lib.Split, iterator: Any) -> None:
        """Take a step on the next batch."""
        element, waited = self.clock.next(iterator)
        one(split, element)
        self._count(split, element, waited)

    def _count(self, split: split_lib.Split, element: Any, waited: Any) -> None:
        """Add a batch to the clock."""
        self.clock.add(waited, self.rows_here(split, element))

    def _until_end(
        self, one: Any, split: split_lib.Split, iterator: Any, limit: tf.Tensor
    ) -> tf.Tensor:
        """Take batches while there are any: no step runs beside the data."""

        def cond(step: Any, ended: Any, came: Any, present: Any, optional: Any) -> tf.Tensor:
            del ended, came, optional
            return tf.logical_and(step < limit, present)

        def body(step: Any, ended: Any, came: Any, present: Any, optional: Any) -> tuple[Any, ...]:
            # The batch may have come while the step before was under way: then nothing waited.
            waited = tf.maximum(came - ended, 0.0)
            element = _value(split, iterator, optional)
            with _all_of_it() as operations:
                one(split, element)
            self._count(split, element, waited)
            following = tf.cond(
                step + 1 < limit,
                lambda: self._ahead(split, iterator),
                lambda: (came, present, optional),
            )
            return step + 1, self.clock.now(operations), *following

        begin = self.clock.now()
        with tf.control_dependencies([begin]):
            first = (tf.constant(0), begin, *self._ahead(split, iterator))
        return tf.while_loop(cond, body, first, parallel_iterations=1)[0]


def _value(split: split_lib.Split, iterator: Any, optional: Any) -> Any:
    """Return the element of an Optional: one without rows where this process's data has ended."""
    if not split.ends_apart:
        return optional.get_value()
    return tf.cond(
        optional.has_value(),
        optional.get_value,
        lambda: split_lib.without_rows(iterator.element_spec),
    )


def _exchanging(kind: str) -> contextlib.AbstractContextManager[None]:
    """Trace steps that exchange what those of their kind do."""
    return communication.left_out() if kind == APART else contextlib.nullcontext()


@contextlib.contextmanager
def _all_of_it() -> Iterator[list[Any]]:
    """Yield a list that at the end holds the operations traced in here that have effects."""
    graph = tf.compat.v1.get_default_graph()
    before = len(graph.get_operations())
    operations: list[Any] = []
    yield operations
    operations += [op for op in graph.get_operations()[before:] if op.op_def.is_stateful]
