"""fit, evaluate and predict on parameter servers.

The coordinator (the chief) runs the script. It reads the data and hands batches out to the workers;
each applies its gradients on the servers without waiting for the others. One batch is one step.

    history = ServerTrainer(model, strategy, Options()).fit(dataset, epochs=3)
"""

import dataclasses
import json
import logging
from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfdp.compat import compiled, keras_variables, parameter_server
from tfdp.error import Error
from tfdp.fit import call, optimizers, random_state, trainer
from tfdp.fit import callbacks as callbacks_lib
from tfdp.fit import feed as feed_lib
from tfdp.fit import noise as noise_scale
from tfdp.fit import split as split_lib
from tfdp.fit.servers import (
    coordinator,
    partitions,
    snapshot,
    update,
    worker_feed,
    worker_step,
)
from tfdp.fit.servers import noise as noise_lib
from tfdp.fit.servers import reports as reports_lib

_log = logging.getLogger("tfdp")

# Steps between two moves of the progress bar.
_AGGREGATE_EVERY = 16
_REPORTS = "report/"


class ServerTrainer(trainer.Trainer):
    """Trains one model on parameter servers.

    Args:
        model: A model made under `strategy.scope()`.
        strategy: A ParameterServerStrategy.
        options: How to train.
    """

    def __init__(
        self, model: keras.Model, strategy: tf.distribute.Strategy, options: coordinator.Options
    ):
        super().__init__(model, strategy)
        self.options = options
        self._coordinator = tf.distribute.coordinator.ClusterCoordinator(strategy)
        parameter_server.quieten_coordinator()
        self._workers = parameter_server.worker_count(strategy)
        self._key: tuple[Any, ...] = ()
        self._left_out: list[str] = []
        self._totals: Any = None  # of the training steps of the epoch that is under way
        self._resumed: tuple[Any, Any] | None = None  # what they go on from
        self._epochs = coordinator.Epochs(
            model, strategy, self._coordinator, options, self._workers
        )

    def feed(self, data: call.Data, trains: bool = False) -> feed_lib.Feed | worker_feed.WorkerFeed:
        """Return the batches that the coordinator hands out, or the data that workers read."""
        reading = self.options.reading
        if trains and (feed_lib.is_distributed(data.x) or reading != "coordinator"):
            if self.options.max_staleness == 0:
                raise ValueError(
                    "max_staleness=0 splits each batch over the workers, so the coordinator reads "
                    "the data: give a tf.data.Dataset or arrays, not a function of InputContext."
                )
            reader = worker_feed.reader(reading, data)
            return worker_feed.WorkerFeed(self._coordinator, self._workers, reader)
        worker_feed.check_readable(data.x)
        if feed_lib.is_distributed(data.x):
            every = data.x(tf.distribute.InputContext())  # every record once
            data = dataclasses.replace(data, x=every)
        return feed_lib.Feed(self.strategy, 0, data.adapter(), data.most_steps)

    def prepare(
        self, method: str, feed: feed_lib.Feed | worker_feed.WorkerFeed, labelled: bool = True
    ) -> coordinator.Epochs:
        """Build the model from the spec of a batch, its optimizer and its steps."""
        model = self.model
        optimizer = getattr(model, "optimizer", None)
        if not compiled.is_built(model, compiled=labelled):
            with self.strategy.scope():
                compiled.build(
                    model,
                    split_lib.build_spec(feed.spec),
                    compiled=labelled,
                    optimizer=False,
                )
        if labelled and optimizer is not None:
            partitions.build(optimizer, model, self.strategy)
        key = (
            *compiled.compiled_state(model),
            compiled.is_built(model),
            tuple(id(v) for v in model.trainable_variables),
        )
        if key != self._key:
            self._epochs.use(worker_step.RemoteSteps(model, self.options.lazy_rows))
            self._key = key
        if method == "fit":
            self._epochs.noise = None if self.noise is None else noise_lib.Noise(self.noise)
        return self._epochs

    def measure_noise(
        self, every: int | None, smoothing: float
    ) -> Callable[[], tuple[int, float, float]]:
        """Let the coordinator measure how much the gradients of the workers differ."""
        if self.options.max_staleness != 0:
            raise Error(
                "GradientNoiseScale compares the gradients of the parts of a batch, and here each "
                "worker takes its steps by itself. Train with max_staleness=0 (tfdp.strategy, "
                "config.servers), or with --workers=N and neither --chief nor --ps, or leave the "
                "callback out."
            )
        if self._workers == 1:
            raise Error(
                "GradientNoiseScale compares the gradients of the parts of a batch, and one worker "
                "has it whole. Train with two workers or more."
            )
        if type(self.model).train_step is not keras.Model.train_step:
            raise Error(noise_scale.own_train_step(self.model.name))
        self.noise = noise_scale.Settings(every or noise_scale.EVERY, smoothing)
        return lambda: self._epochs.noise.read() if self._epochs.noise else (0, 0.0, 0.0)

    def announce(self, feed: feed_lib.Feed | worker_feed.WorkerFeed) -> None:
        """Log who reads what, and the settings of compile() that change nothing here."""
        reads = isinstance(feed, worker_feed.WorkerFeed)
        said = feed.description if reads else self.options.describe(self._workers)
        _log.info("Input: %s.", said)
        self._say_what_is_left_out(reads)

    def train_epoch(
        self,
        steps: coordinator.Epochs,
        feed: feed_lib.Feed | worker_feed.WorkerFeed,
        callbacks: trainer.Callbacks,
        points: callbacks_lib.SavePoints,
        epoch: int,
    ) -> tuple[trainer.Logs, bool]:
        """Train on one epoch; return its logs."""
        del points  # nothing waits to be put together
        model = self.model
        progress = call.progress_is_shown(callbacks)
        hooks = callbacks_lib.BatchHooks(callbacks, "train", progress)
        own = callbacks_lib.BatchHooks(callbacks, "train", progress=False)
        totals = self._totals = reports_lib.SummedReports(steps.steps, "train")
        if self._resumed is not None:
            totals.resume(*self._resumed)
            self._resumed = None
        logs: trainer.Logs = {}

        def after(done: int) -> None:
            if self.backup is not None:
                self.backup.after_step(steps, epoch, feed.step, done, self.backup.wishes())

        def took(report: Any) -> None:
            nonlocal logs
            totals.add(report)
            call.report(totals.steps, epoch)
            if own.wanted or (hooks.wanted and totals.steps % _AGGREGATE_EVERY == 1):
                logs = totals.logs()
            hooks.end(totals.steps - 1, logs)

        if isinstance(feed, worker_feed.WorkerFeed):
            steps.run_reading(feed, hooks.begin, took, lambda: model.stop_training, after)
            short = False
        else:
            run = steps.run_summed if self.options.max_staleness == 0 else steps.run
            run("train", feed, hooks.begin, took, lambda: model.stop_training, after)
            short = feed.steps_per_epoch is not None and totals.steps < feed.steps_per_epoch
        if not model.stop_training and (short or totals.steps == 0):
            self._warn_of_end(totals.steps)
        logs = call.to_python(totals.logs())
        hooks.close(totals.steps, logs)
        self._totals = None
        if self.options.max_staleness != 0:
            logs["staleness"] = totals.staleness
            _log.info(
                "Epoch %d: %d steps; %.2f on average, and %d at most, were applied between reading "
                "the weights and the update.",
                epoch + 1,
                totals.steps,
                totals.staleness,
                totals.stalest,
            )
        return logs, False

    def test(
        self,
        steps: coordinator.Epochs,
        feed: feed_lib.Feed,
        callbacks: trainer.Callbacks,
        what: str = "data",
    ) -> trainer.Logs:
        """Test on all batches, every sample once; return the logs."""
        del what
        model = self.model
        hooks = callbacks_lib.BatchHooks(callbacks, "test", call.progress_is_shown(callbacks))
        model.stop_evaluating = False
        callbacks.on_test_begin()
        totals = reports_lib.SummedReports(steps.steps, "test")
        logs: trainer.Logs = {}

        def took(report: Any) -> None:
            nonlocal logs
            totals.add(report)
            if hooks.wanted:
                logs = totals.logs()
            hooks.end(totals.steps - 1, logs)

        def after(done: int) -> None:
            del done
            if self.backup is not None:
                self.backup.after_test_step(steps, self.backup.wishes()[0])

        feed.restart()
        steps.run("test", feed, hooks.begin, took, lambda: model.stop_evaluating, after)
        logs = call.to_python(totals.logs())
        hooks.close(totals.steps, logs)
        callbacks.on_test_end(logs)
        return logs

    def predict_batches(
        self, steps: coordinator.Epochs, feed: feed_lib.Feed, callbacks: trainer.Callbacks
    ) -> list[Any]:
        """Return the predictions of all batches, in order."""
        model = self.model
        batches: list[Any] = []

        def took(outputs: Any) -> None:
            batches.append(keras.tree.map_structure(_to_tensor, outputs))
            callbacks.on_predict_batch_end(len(batches) - 1, {"outputs": batches[-1]})

        begin = callbacks.on_predict_batch_begin
        steps.run("predict", feed, begin, took, lambda: model.stop_predicting)
        return batches

    def predict_on_batch(self, x: Any) -> Any:
        """Predict one batch, as `keras.Model.predict_on_batch`."""
        return self.predict(x, batch_size=_count(x), verbose=0)

    def on_batch(self, kind: str, data: tuple[Any, ...]) -> trainer.Logs:
        """Take one step on a batch, on one worker unless it is synchronous; return the logs."""
        x, y, sample_weight, class_weight = data
        feed: Any = self.feed(
            call.Data(x, y, sample_weight, batch_size=_count(x), class_weight=class_weight)
        )
        steps = self.prepare(f"{kind}_on_batch", feed)
        totals = reports_lib.SummedReports(steps.steps, kind)
        summed = kind == "train" and self.options.max_staleness == 0
        run = steps.run_summed if summed else steps.run
        run(kind, feed, lambda step: None, totals.add, lambda: False)
        return call.to_python(totals.logs())

    def finalize(self, steps: coordinator.Epochs) -> None:
        """Overwrite the weights by their averages, where the optimizer keeps some."""
        if not update.innermost(self.model.optimizer).use_ema:
            return
        averages = parameter_server.moving_averages(update.innermost(self.model.optimizer))
        for variable, average in zip(steps.steps.variables, averages, strict=True):
            parameter_server.stored_value(variable).assign(parameter_server.stored_value(average))

    def snapshot(
        self, steps: coordinator.Epochs, copy: Callable[[str, Any], Any]
    ) -> tuple[dict[str, Any], dict[str, str]]:
        """Return copies of all that the servers hold, when no step is under way."""
        steps.settle()
        arrays, reports = snapshot.take(steps.steps, copy), None
        if self._totals is not None:
            own, reports = self._totals.state()
            arrays |= {f"{_REPORTS}{name}": value for name, value in own.items()}
        plain = {
            "numbers": steps.numbers,
            "reports": reports,
            "optimizers": optimizers.built_on(self.model),
        }
        return arrays, {"servers": json.dumps(plain)}

    def seeds(self, steps: coordinator.Epochs) -> Callable[[], None]:
        """Return what puts the model's seed generators back to where they are now."""
        states = keras_variables.seed_states(self.model)
        put = random_state.returning([parameter_server.stored_value(v) for v in states])

        def put_back() -> None:
            steps.settle()  # steps under way move them
            put()

        return put_back

    def restore(
        self, steps: coordinator.Epochs, arrays: Mapping[str, Any], ways: dict[str, str]
    ) -> Mapping[str, Any]:
        """Give the servers what `snapshot` returned.

        Raises:
            Error: If it was taken under another strategy.
        """
        if "servers" not in ways:
            raise Error(
                "The checkpoint is not one of parameter servers. Choose another folder, or load "
                "its weights: it is a file of the package safetensors."
            )
        plain = json.loads(ways["servers"])
        with self.strategy.scope():
            optimizers.build_on(self.model, plain["optimizers"])
        snapshot.put(steps.steps, arrays)
        steps.numbers = dict(plain["numbers"])
        if plain["reports"] is not None:
            own = {n[len(_REPORTS) :]: arrays[n] for n in arrays if n.startswith(_REPORTS)}
            self._resumed = (own, plain["reports"])
        return arrays

    # -- the parts ------------------------------------------------------------------------------

    def _say_what_is_left_out(self, workers_read: bool) -> None:
        """Log the settings of compile() that change nothing here, once for each model."""
        model = self.model
        together = model.steps_per_execution > 1 and not workers_read
        settings = {
            "run_eagerly=True": model.run_eagerly,
            "jit_compile=True": model.jit_compile,
            f"steps_per_execution={model.steps_per_execution}": together,
        }
        left_out = [name for name, holds in settings.items() if holds]
        if left_out and left_out != self._left_out:
            _log.warning(
                "%s: without effect on parameter servers, where a step is one batch, as a graph.",
                ", ".join(left_out),
            )
        self._left_out = left_out


def _to_tensor(leaf: Any) -> Any:
    return tf.convert_to_tensor(leaf) if isinstance(leaf, np.ndarray | np.generic) else leaf


def _count(x: Any) -> int:
    return max(1, int(np.shape(keras.tree.flatten(x)[0])[0]))
