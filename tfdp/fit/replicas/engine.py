"""fit, evaluate and predict under one device, MirroredStrategy and MultiWorkerMirroredStrategy.

Every process of a multi-worker cluster calls them with the same model and data.

    history = SyncTrainer(model, strategy, communication).fit(dataset, epochs=3)
"""

import functools
import logging
import math
from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfdp.compat import compiled, data_adapters, keras_variables
from tfdp.error import Error
from tfdp.fit import call as call_lib
from tfdp.fit import callbacks as callbacks_lib
from tfdp.fit import digest, predictions, random_state, trainer
from tfdp.fit import feed as feed_lib
from tfdp.fit import noise as noise_scale
from tfdp.fit import pace as pace_lib
from tfdp.fit import split as split_lib
from tfdp.fit.replicas import agreement, exchange, gather, rehearsal, snapshot, transport
from tfdp.fit.replicas import communication as communication_lib
from tfdp.fit.replicas import loop as loop_lib
from tfdp.fit.replicas import meetings as meetings_lib
from tfdp.fit.replicas import noise as noise_lib
from tfdp.fit.replicas import replica as replica_lib
from tfdp.fit.replicas import step as step_lib

_log = logging.getLogger("tfdp")

# Workers sum their metrics up at the first step and then every so many: one small collective.
_AGGREGATE_EVERY = 16


class SyncTrainer(trainer.Trainer):
    """Trains one model on replicas that are kept in sync.

    Args:
        model: A model made under `strategy.scope()`.
        strategy: The strategy.
        communication: How gradients travel.
    """

    def __init__(
        self,
        model: keras.Model,
        strategy: tf.distribute.Strategy,
        communication: communication_lib.Communication,
    ):
        self._first = replica_lib.first_replica(strategy)
        super().__init__(model, strategy, chief=self._first == 0)
        self.communication = communication
        self._several = strategy.num_replicas_in_sync > len(strategy.extended.worker_devices)
        self._calls_on_batch = 0
        # By kind of step, once they have met: whether any process has a callback for it.
        self._hooks_wanted: dict[str, bool] = {}
        self._key: tuple[Any, ...] = ()
        self._loop: loop_lib.Loop
        # Where replicas train by themselves between two of them: sync_every.
        self._meetings: meetings_lib.Meetings | None = None

    def feed(self, data: call_lib.Data, trains: bool = False) -> feed_lib.Feed:
        """Return the batches, split over the replicas."""
        del trains
        given = data.x if feed_lib.is_distributed(data.x) else data.adapter()
        of_all = functools.partial(exchange.of_all, self.strategy, "batches of its shard")
        return feed_lib.Feed(self.strategy, self._first, given, data.most_steps, of_all)

    def prepare(
        self, method: str, feed: feed_lib.Feed | split_lib.Whole, labelled: bool = True
    ) -> loop_lib.Loop:
        """Build the model from the feed's spec; return the loop of what is compiled now."""
        model = self.model
        transport.choose(self.strategy, self.communication, method)
        if not compiled.is_built(model, compiled=labelled):
            with self.strategy.scope():
                compiled.build(model, split_lib.build_spec(feed.spec), compiled=labelled)
        key = (
            *compiled.compiled_state(model),
            compiled.is_built(model),
            self.communication,
            model.run_eagerly,
            model.jit_compile,
            model.steps_per_execution,
            tuple(id(v) for v in model.trainable_variables),
            self.noise,
        )
        if key != self._key:
            noise = None if self.noise is None else noise_lib.Noise(self.noise)
            self._loop = loop_lib.Loop(
                step_lib.Steps(model, self.strategy, self.communication, noise)
            )
            self._meetings = None
            self._key = key
        if method == "fit" and self._trains_apart and self._meetings is None:
            self._meetings = meetings_lib.Meetings(self._loop, self.communication)
        return self._loop

    def check(self, method: str, feed: feed_lib.Feed, more: Any = None) -> None:
        """Compare this call with that of the other tasks, before they exchange anything."""
        self._hooks_wanted = {}
        if self._several:
            settings = agreement.settings(self.model, self.strategy, self.communication, feed)
            agreement.check(self.strategy, method, {**settings, **(more or {})})

    @property
    def _trains_apart(self) -> bool:
        return self.communication.sync_every > 1 and self.strategy.num_replicas_in_sync > 1

    def announce(self, feed: feed_lib.Feed) -> None:
        """Log how the batches are split, and what is given up where replicas train apart."""
        _log.info("Input: %s.", feed.description)
        if self._trains_apart:
            _log.warning(meetings_lib.describe(self.communication))
        elif self.communication.sync_every > 1:
            every = self.communication.sync_every
            _log.info("sync_every=%d changes nothing here: there is one replica.", every)

    def show(self, watching: list[Any], data: call_lib.Data, feed: feed_lib.Feed) -> loop_lib.Loop:
        """Let observers measure a fit before it begins; return a loop that has run nothing."""
        if self._trains_apart:
            _log.warning(
                "The bench measures steps that sum their gradients; with sync_every=%d one step of "
                "so many exchanges as much.",
                self.communication.sync_every,
            )
        for observe in watching:
            observe(rehearsal.Rehearsal(self, data))
        self._key = ()  # what was traced meanwhile has found out things of its own
        return self.prepare("fit", feed)

    def measure_noise(
        self, every: int | None, smoothing: float
    ) -> Callable[[], tuple[int, float, float]]:
        """Let the steps measure how much the replicas' gradients differ."""
        if type(self.model).train_step is not keras.Model.train_step:
            raise Error(noise_scale.own_train_step(self.model.name))
        if self._trains_apart:
            raise Error(
                "GradientNoiseScale compares gradients that replicas sum at each step, and with "
                f"sync_every={self.communication.sync_every} they train by themselves. Leave out "
                "one of the two."
            )
        several = self.strategy.num_replicas_in_sync > 1
        usual = noise_scale.EVERY if several else noise_scale.EVERY_OF_HALVES
        self.noise = noise_scale.Settings(every or usual, smoothing)
        return lambda: self._loop.steps.noise.read()

    def plan(self, callbacks: Any, evaluation: Any) -> trainer.Logs:
        """Return what the tasks compare of the callbacks and of the validation data."""
        given = getattr(callbacks, "callbacks", None) or keras.tree.flatten(callbacks or [])
        validation = agreement.data_plan(evaluation, "validation data") if evaluation else {}
        return {**validation, "callbacks": agreement.callbacks_plan(given)}

    def first_epoch(
        self, loop: loop_lib.Loop, callbacks: trainer.Callbacks, initial_epoch: int
    ) -> int:
        """Return the first epoch; after a restore, take the chief's state everywhere."""
        start = super().first_epoch(loop, callbacks, initial_epoch)
        restores = (keras.callbacks.BackupAndRestore, callbacks_lib._RestoreOnly)
        if self._several and any(isinstance(c, restores) for c in callbacks.callbacks):
            start = loop.take_from_chief(start)
        return start

    def agree(self, loop: loop_lib.Loop, *asks: bool) -> tuple[bool, ...]:
        """Return, for each thing that this process asks for, whether any process does."""
        return loop.agree(*asks) if self._several else asks

    def finalize(self, loop: loop_lib.Loop) -> None:
        """Let the optimizer set the variables' last values."""
        loop.finalize()

    def share(self, text: str) -> str:
        """Give the chief's text to all processes."""
        return exchange.from_chief(self.strategy, text) if self._several else text

    def snapshot(
        self, loop: loop_lib.Loop, copy: snapshot.Copy
    ) -> tuple[dict[str, Any], dict[str, str]]:
        """Return copies of all that the replicas hold, and how they become one; a collective."""
        return snapshot.take(loop.replicas, copy), snapshot.ways(loop.replicas)

    def restore(
        self, loop: loop_lib.Loop, arrays: Mapping[str, Any], ways: dict[str, str]
    ) -> Mapping[str, Any]:
        """Give the replicas what `snapshot` returned on the chief; a collective.

        Raises:
            Error: On every process, if it was taken under another strategy.
        """
        if "servers" in ways:
            raise Error(
                "The checkpoint is one of parameter servers. Choose another folder, or load its "
                "weights: it is a file of the package safetensors."
            )
        if not self._several:
            snapshot.put(loop.replicas, arrays, ways)
            return arrays
        snapshot.put(loop.replicas, arrays if self.chief else {}, ways)
        loop.take_from_chief(0)
        shared = snapshot.for_every_process(arrays)
        shared = snapshot.from_chief(self.strategy, self.chief, loop.replicas.count, shared)
        snapshot.put(loop.replicas, shared, ways)
        return shared

    def state_size(self, loop: loop_lib.Loop) -> tuple[int, int]:
        """Return how many arrays `snapshot` copies, and their bytes."""
        everything = snapshot.variables(loop.replicas)
        sizes = [math.prod(v.shape) * tf.as_dtype(v.dtype).size for v in everything]
        return len(sizes), sum(sizes)

    def seeds(self, loop: loop_lib.Loop) -> Callable[[], None]:
        """Return what puts the model's seed generators back to where they are now."""
        states = keras_variables.seed_states(self.model)
        replicas = loop.replicas
        copies = [replicas.copy(v, local) for v in states for local in range(replicas.count)]
        return random_state.returning(copies)

    def begin_epoch(self, loop: loop_lib.Loop) -> None:
        """Reset the metrics, of all replicas."""
        loop.replicas.reset_metrics()

    def train_epoch(
        self,
        loop: loop_lib.Loop,
        feed: feed_lib.Feed,
        callbacks: trainer.Callbacks,
        points: callbacks_lib.SavePoints,
        epoch: int,
    ) -> tuple[trainer.Logs, bool]:
        """Train on one epoch; return its logs, and whether there is no data for another."""
        watch = pace_lib.Stopwatch(loop.clock, traces=not loop.is_traced)

        def took(steps: int) -> None:
            watch.after_steps(steps)
            call_lib.report(feed.step, epoch)
            if points.reached(steps):
                self._make_equal("train", loop)

        def after(steps: int, asked: tuple[bool, ...], met: bool) -> None:
            if self.backup is not None:
                self.backup.after_step(loop, epoch, feed.step, steps, asked, may_save=met)

        if self._meetings is not None:
            self._meetings.begin(points)
        logs, exhausted, short = self._run(
            "train", loop, feed, callbacks, "stop_training", took, after
        )
        self.pace = watch.pace(feed.split, loop.replicas.count / loop.replicas.in_sync)
        read_once = exhausted and feed.once
        if short and not read_once and not self.model.stop_training:
            self._warn_of_end(short)
        return logs, read_once

    def test(
        self,
        loop: loop_lib.Loop,
        feed: feed_lib.Feed,
        callbacks: trainer.Callbacks,
        what: str = "data",
    ) -> trainer.Logs:
        """Test on all batches; return the logs."""
        self.model.stop_evaluating = False
        callbacks.on_test_begin()
        loop.replicas.reset_metrics()
        feed.restart()

        def after(steps: int, asked: tuple[bool, ...], met: bool) -> None:
            del steps, met
            if self.backup is not None:
                self.backup.after_test_step(loop, asked[0])

        logs, _, _ = self._run(
            "test", loop, feed, callbacks, "stop_evaluating", after=after, what=what
        )
        callbacks.on_test_end(logs)
        return logs

    def predict_batches(
        self, loop: loop_lib.Loop, feed: feed_lib.Feed, callbacks: trainer.Callbacks
    ) -> list[Any]:
        """Return the predictions of all batches, of all replicas, in order."""
        batches: list[Any] = []
        loop.replicas.begin()
        feed.begin_epoch()
        loop.begin_digests()
        while (left := feed.steps_left()) is None or left > 0:
            callbacks.on_predict_batch_begin(feed.step)
            limit = self._limit(feed, left)
            together: list[Any] = []
            while len(together) < limit:
                parts = loop.predict(feed)
                if parts is None:
                    break
                if feed.comparisons == 0:
                    self._compare_rows(loop, feed, "data")
                together.append(gather.batch(self.strategy, parts, self._several))
            if not together:
                break
            batches += together
            callbacks.on_predict_batch_end(feed.step - 1, {"outputs": predictions.concat(together)})
            if self.model.stop_predicting or len(together) < limit:
                break
        feed.end_epoch(exhausted=False)
        loop.merge_state("predict")
        return batches

    def predict_on_batch(self, x: Any) -> Any:
        """Predict one global batch, as `keras.Model.predict_on_batch`."""
        whole, loop = self._whole("predict", x)
        loop.replicas.begin()
        if isinstance(whole, split_lib.Whole):
            parts = loop.on_batch("predict", whole)
        else:
            whole.begin_epoch()
            parts = loop.predict(whole) or ()
            whole.close()
        loop.merge_state("predict")
        return predictions.rows([gather.batch(self.strategy, parts, self._several)])

    def on_batch(self, kind: str, data: tuple[Any, ...]) -> trainer.Logs:
        """Take one step on a global batch; return the logs."""
        whole, loop = self._whole(kind, *data)
        if compiled.BATCH_METHODS_RESET_METRICS:
            loop.replicas.reset_metrics()
        else:
            loop.replicas.begin()
        logs = None
        if isinstance(whole, split_lib.Whole):
            logs = loop.on_batch(kind, whole)
        else:
            whole.begin_epoch()
            loop.advance(kind, whole, 1)
            whole.close()
        loop.merge_state(kind)
        return call_lib.to_python(loop.aggregate(kind)[0] if logs is None else logs)

    # -- the parts ------------------------------------------------------------------------------

    def _run(
        self,
        kind: str,
        loop: loop_lib.Loop,
        feed: feed_lib.Feed,
        callbacks: trainer.Callbacks,
        stop: str,
        took: Callable[[int], None] = lambda steps: None,
        after: Callable[[int, tuple[bool, ...], bool], None] = lambda steps, asked, met: None,
        what: str = "data",
    ) -> tuple[trainer.Logs, bool, str]:
        """Take the batches of one epoch.

        Args:
            kind: "train" or "test".
            loop: Runs the steps.
            feed: The data.
            callbacks: Their batch hooks are called.
            stop: The model's attribute that ends the epoch.
            took: Told after each execution how many steps it made.
            after: The same, when the callbacks were told too; what any process asks a backup; and
                whether all replicas are at one step.
            what: What the tasks call the data where they compare it.

        Returns:
            Logs; whether the data came to its end; and how many steps were made, in words, where
            that is too few, else "".
        """
        model = self.model
        hooks = callbacks_lib.BatchHooks(callbacks, kind, call_lib.progress_is_shown(callbacks))
        feed.begin_epoch()
        loop.begin_digests()
        logs: trainer.Logs = {}
        exhausted = agreed = False
        together = feed.step  # where the processes have met last
        while not agreed and ((left := feed.steps_left()) is None or left > 0):
            limit = self._limit(feed, left)
            hooks.begin(feed.step)
            done, exhausted, met = self._advance(kind, loop, feed, limit)
            if feed.comparisons == 0:
                self._compare_rows(loop, feed, what)
            if not done:
                break
            took(done)
            asked = wishes = self.backup.wishes() if self.backup is not None else ()
            wanted = self._hooks_wanted.get(kind, hooks.wanted)
            looks = met or not self._several
            if looks and self._aggregates(kind, together, feed.step - together, wanted):
                asks = (bool(getattr(model, stop)), hooks.wanted, *wishes)
                logs, (agreed, self._hooks_wanted[kind], *rest) = loop.aggregate(kind, *asks)
                setattr(model, stop, getattr(model, stop) or agreed)
                asked = tuple(rest)
            elif self._several:  # until they meet again nobody knows what the others ask
                asked = (False,) * len(wishes)
            together = feed.step if met else together
            hooks.end(feed.step - 1, logs)
            after(done, asked, met)
            if exhausted:
                break
            agreed = agreed or (not self._several and bool(getattr(model, stop)))
        steps, planned = feed.step, feed.steps_per_epoch
        feed.end_epoch(exhausted)
        if feed.comparisons == 1:
            self._compare_rows(loop, feed, what)
        self._make_equal(kind, loop)
        logs = call_lib.to_python(loop.aggregate(kind)[0])
        hooks.close(steps, logs)
        short = steps == 0 or (planned is not None and steps < planned)
        return logs, exhausted, str(steps) if short else ""

    def _advance(
        self, kind: str, loop: loop_lib.Loop, feed: feed_lib.Feed, limit: int
    ) -> tuple[int, bool, bool]:
        """Take some batches; say how many, whether the data has ended, and whether all have met."""
        if kind == "train" and self._meetings is not None:
            return self._meetings.advance(feed, limit)
        done = loop.advance(kind, feed, limit)
        return done, done < limit, True

    def _make_equal(self, kind: str, loop: loop_lib.Loop) -> None:
        """Let all replicas hold the same."""
        if kind == "train" and self._meetings is not None:
            self._meetings.finish()
        loop.merge_state(kind)

    def _whole(
        self, kind: str, x: Any, y: Any = None, sample_weight: Any = None, class_weight: Any = None
    ) -> tuple[split_lib.Whole | feed_lib.Feed, loop_lib.Loop]:
        """Return one batch, all that was given, and the loop that takes it.

        Tasks compare what they were given at the first call, the second, the fourth and so on.
        """
        batch = data_adapters.whole_batch(x, y, sample_weight, class_weight)
        whole: split_lib.Whole | feed_lib.Feed
        if batch is None:  # a sparse matrix, say
            count = max(1, int(np.shape(keras.tree.flatten(x)[0])[0]))
            whole = self.feed(
                call_lib.Data(x, y, sample_weight, batch_size=count, class_weight=class_weight)
            )
        else:
            whole = split_lib.Whole(self.strategy, self._first, batch)
        loop = self.prepare(f"{kind}_on_batch", whole, labelled=kind != "predict")
        if whole.split.has_digests:
            calls = self._calls_on_batch = self._calls_on_batch + 1
            if calls & (calls - 1) == 0 and batch is not None:
                labels, inputs = digest.of_batch(batch).numpy().tolist()
                agreement.check_rows(self.strategy, f"{kind}_on_batch", labels, inputs)
        return whole, loop

    def _compare_rows(self, loop: loop_lib.Loop, feed: feed_lib.Feed, of: str) -> None:
        """Compare what the tasks have read, after the first step and the first pass."""
        feed.comparisons += 1
        if feed.split.has_digests:
            agreement.check_rows(self.strategy, of, *loop.digests())

    def _limit(self, feed: feed_lib.Feed, left: int | None) -> int:
        limit = int(self.model.steps_per_execution)
        if left is not None:
            return min(limit, left)
        if feed.steps_per_epoch is not None:
            return min(limit, feed.steps_per_epoch - feed.step)
        return limit

    def _aggregates(self, kind: str, before: int, done: int, wanted: bool) -> bool:
        """Say whether metrics are summed up after the steps [before, before + done).

        Across processes that depends on the step's number, and on what they have said before:
        whether any of them has a callback that looks at steps.
        """
        if not self._several:
            return wanted
        after = before + done
        is_first = before == 0 and (wanted or kind not in self._hooks_wanted)
        return is_first or before // _AGGREGATE_EVERY != after // _AGGREGATE_EVERY
