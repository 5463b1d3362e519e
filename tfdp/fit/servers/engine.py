"""fit, evaluate and predict on parameter servers.

The coordinator (the chief) runs the script. It reads the data and hands batches out to the workers;
each applies its gradients on the servers without waiting for the others. One batch is one step. The
methods take what Keras's take and return what Keras's return.

    trainer = ServerTrainer(model, strategy, Options())
    history = trainer.fit(dataset, epochs=3)
"""

import logging
import warnings
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfdp.compat import compiled, data_adapters, parameter_server
from tfdp.fit import call, evaluator, predictions
from tfdp.fit import callbacks as callbacks_lib
from tfdp.fit import feed as feed_lib
from tfdp.fit.servers import coordinator, partitions, update, worker_feed, worker_step

_log = logging.getLogger("tfdp")

# Steps between two moves of the progress bar.
_AGGREGATE_EVERY = 16


class ServerTrainer:
    """Trains one model on parameter servers.

    Args:
        model: A model made under `strategy.scope()`.
        strategy: A ParameterServerStrategy.
        options: How to train.
    """

    def __init__(
        self, model: keras.Model, strategy: tf.distribute.Strategy, options: coordinator.Options
    ):
        self.model = model
        self.strategy = strategy
        self.options = options
        self._coordinator = tf.distribute.coordinator.ClusterCoordinator(strategy)
        parameter_server.quieten_coordinator()
        self._workers = parameter_server.worker_count(strategy)
        self._key: tuple[Any, ...] = ()
        self._left_out: list[str] = []
        self._epochs = coordinator.Epochs(
            model, strategy, self._coordinator, options, self._workers
        )

    # -- the methods of keras.Model -----------------------------------------------------------

    def fit(
        self,
        x: Any = None,
        y: Any = None,
        batch_size: int | None = None,
        epochs: int = 1,
        verbose: Any = "auto",
        callbacks: Any = None,
        validation_split: float = 0.0,
        validation_data: Any = None,
        shuffle: Any = True,
        class_weight: Any = None,
        sample_weight: Any = None,
        initial_epoch: int = 0,
        steps_per_epoch: int | None = None,
        validation_steps: int | None = None,
        validation_batch_size: int | None = None,
        validation_freq: Any = 1,
    ) -> keras.callbacks.History:
        """Train; the arguments and the result are those of `keras.Model.fit`."""
        model = self.model
        call.check_compiled(model, "fit")
        epochs = call.limit_epochs(epochs)
        if validation_split and validation_data is None:
            (x, y, sample_weight), validation_data = data_adapters.train_validation_split(
                (x, y, sample_weight), validation_split
            )
        given = {
            "sample_weight": sample_weight,
            "batch_size": batch_size,
            "shuffle": shuffle,
            "class_weight": class_weight,
        }
        feed: feed_lib.Feed | worker_feed.WorkerFeed
        reading = self.options.reading
        if feed_lib.is_distributed(x) or reading != "coordinator":
            if self.options.max_staleness == 0:
                raise ValueError(
                    "max_staleness=0 splits each batch over the workers, so the coordinator reads "
                    "the data: give a tf.data.Dataset or arrays, not a function of InputContext."
                )
            steps = call.limit_steps(steps_per_epoch)
            reader = worker_feed.reader(reading, x, y, steps=steps, **given)
            feed = worker_feed.WorkerFeed(self._coordinator, self._workers, reader)
        else:
            feed = self._feed(x, y, steps=steps_per_epoch, **given)
        self._prepare(feed.spec)
        reads = isinstance(feed, worker_feed.WorkerFeed)
        said = feed.description if reads else self.options.describe(self._workers)
        _log.info("Input: %s.", said)
        self._say_what_is_left_out(reads)
        evaluation = None
        if validation_data is not None:
            val_x, val_y, val_weight = keras.utils.unpack_x_y_sample_weight(validation_data)
            evaluation = self._feed(
                val_x,
                val_y,
                sample_weight=val_weight,
                batch_size=validation_batch_size or batch_size,
                steps=validation_steps,
            )
        verbose = call.verbosity(verbose)
        if not isinstance(callbacks, keras.callbacks.CallbackList):
            callbacks = keras.callbacks.CallbackList(
                keras.tree.flatten(callbacks) if callbacks else [],
                add_history=True,
                add_progbar=verbose != 0,
                verbose=verbose,
                epochs=epochs,
                steps=feed.steps,
                model=model,
            )
        model.stop_training = False
        evaluator.begins(callbacks.callbacks)
        callbacks.on_train_begin()
        logs: dict[str, Any] = {}
        for epoch in range(compiled.initial_epoch(model) or initial_epoch, epochs):
            callbacks.on_epoch_begin(epoch)
            logs = self._train_epoch(feed, callbacks, epoch)
            if call.validates(epoch, validation_freq) and evaluation is not None:
                results = self._evaluate(evaluation, callbacks)
                logs.update({f"val_{name}": value for name, value in results.items()})
            callbacks.on_epoch_end(epoch, logs)
            if model.stop_training:
                break
        if epochs > 0 and update.innermost(model.optimizer).use_ema:
            self._finalize()
        callbacks.on_train_end(logs=logs)
        evaluator.ended(callbacks.callbacks)
        return model.history

    def evaluate(
        self,
        x: Any = None,
        y: Any = None,
        batch_size: int | None = None,
        verbose: Any = "auto",
        sample_weight: Any = None,
        steps: int | None = None,
        callbacks: Any = None,
        return_dict: bool = False,
    ) -> Any:
        """Evaluate, every sample once; arguments and result are `keras.Model.evaluate`'s."""
        call.check_compiled(self.model, "evaluate")
        feed = self._feed(x, y, sample_weight=sample_weight, batch_size=batch_size, steps=steps)
        self._prepare(feed.spec)
        logs = self._evaluate(feed, self._callbacks(callbacks, verbose, feed))
        return logs if return_dict else compiled.flatten_metrics_in_order(self.model, logs)

    def predict(
        self,
        x: Any,
        batch_size: int | None = None,
        verbose: Any = "auto",
        steps: int | None = None,
        callbacks: Any = None,
    ) -> Any:
        """Predict, rows in the order of the input; as `keras.Model.predict`."""
        model = self.model
        feed = self._feed(x, batch_size=batch_size, steps=steps)
        self._prepare(feed.spec, labelled=False)
        callbacks = self._callbacks(callbacks, verbose, feed)
        model.stop_predicting = False
        callbacks.on_predict_begin()
        batches: list[Any] = []

        def took(outputs: Any) -> None:
            batches.append(keras.tree.map_structure(_to_tensor, outputs))
            callbacks.on_predict_batch_end(len(batches) - 1, {"outputs": batches[-1]})

        self._epochs.run(
            "predict", feed, callbacks.on_predict_batch_begin, took, lambda: model.stop_predicting
        )
        callbacks.on_predict_end()
        if not batches:
            raise ValueError("predict: the data held no batch.")
        return predictions.rows(batches)

    def train_on_batch(
        self,
        x: Any,
        y: Any = None,
        sample_weight: Any = None,
        class_weight: Any = None,
        return_dict: bool = False,
    ) -> Any:
        """Train on one batch, on one worker, as `keras.Model.train_on_batch`."""
        call.check_compiled(self.model, "train_on_batch")
        return self._on_batch("train", (x, y, sample_weight, class_weight), return_dict)

    def test_on_batch(
        self, x: Any, y: Any = None, sample_weight: Any = None, return_dict: bool = False
    ) -> Any:
        """Test on one batch, as `keras.Model.test_on_batch`."""
        call.check_compiled(self.model, "test_on_batch")
        return self._on_batch("test", (x, y, sample_weight, None), return_dict)

    def predict_on_batch(self, x: Any) -> Any:
        """Predict one batch, as `keras.Model.predict_on_batch`."""
        return self.predict(x, batch_size=_count(x), verbose=0)

    # -- epochs -------------------------------------------------------------------------------

    def _train_epoch(
        self,
        feed: feed_lib.Feed | worker_feed.WorkerFeed,
        callbacks: keras.callbacks.CallbackList,
        epoch: int,
    ) -> dict[str, Any]:
        model = self.model
        progress = call.progress_is_shown(callbacks)
        hooks = callbacks_lib.BatchHooks(callbacks, "train", progress)
        own = callbacks_lib.BatchHooks(callbacks, "train", progress=False)
        totals = self._epochs.steps.totals("train")
        logs: dict[str, Any] = {}

        def took(report: Any) -> None:
            nonlocal logs
            totals.add(report)
            call.report(totals.steps, epoch)
            if own.wanted or (hooks.wanted and totals.steps % _AGGREGATE_EVERY == 1):
                logs = totals.logs()
            hooks.end(totals.steps - 1, logs)

        if isinstance(feed, worker_feed.WorkerFeed):
            self._epochs.run_reading(feed, hooks.begin, took, lambda: model.stop_training)
            short = False
        else:
            run = self._epochs.run_summed if self.options.max_staleness == 0 else self._epochs.run
            run("train", feed, hooks.begin, took, lambda: model.stop_training)
            short = feed.steps_per_epoch is not None and totals.steps < feed.steps_per_epoch
        if not model.stop_training and (short or totals.steps == 0):
            warnings.warn(
                f"The input ran out of data after {totals.steps} steps of an epoch. Give a dataset "
                "that holds steps_per_epoch * epochs batches; dataset.repeat() makes one endless.",
                stacklevel=4,
            )
        logs = call.to_python(totals.logs())
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
        return logs

    def _evaluate(
        self, feed: feed_lib.Feed, callbacks: keras.callbacks.CallbackList
    ) -> dict[str, Any]:
        model = self.model
        hooks = callbacks_lib.BatchHooks(callbacks, "test", call.progress_is_shown(callbacks))
        model.stop_evaluating = False
        callbacks.on_test_begin()
        totals = self._epochs.steps.totals("test")
        logs: dict[str, Any] = {}

        def took(report: Any) -> None:
            nonlocal logs
            totals.add(report)
            if hooks.wanted:
                logs = totals.logs()
            hooks.end(totals.steps - 1, logs)

        feed.restart()
        self._epochs.run("test", feed, hooks.begin, took, lambda: model.stop_evaluating)
        logs = call.to_python(totals.logs())
        callbacks.on_test_end(logs)
        return logs

    def _on_batch(self, kind: str, data: tuple[Any, ...], return_dict: bool) -> Any:
        x, y, sample_weight, class_weight = data
        feed = self._feed(
            x, y, sample_weight=sample_weight, batch_size=_count(x), class_weight=class_weight
        )
        self._prepare(feed.spec)
        totals = self._epochs.steps.totals(kind)
        summed = kind == "train" and self.options.max_staleness == 0
        run = self._epochs.run_summed if summed else self._epochs.run
        run(kind, feed, lambda step: None, totals.add, lambda: False)
        logs = call.to_python(totals.logs())
        return logs if return_dict else compiled.flatten_metrics_in_order(self.model, logs)

    # -- the parts ------------------------------------------------------------------------------

    def _feed(
        self,
        x: Any,
        y: Any = None,
        *,
        sample_weight: Any = None,
        batch_size: int | None = None,
        steps: int | None = None,
        shuffle: Any = False,
        class_weight: Any = None,
    ) -> feed_lib.Feed:
        worker_feed.check_readable(x)
        if feed_lib.is_distributed(x):
            x = x(tf.distribute.InputContext())  # every record once
        data = call.adapter(
            x,
            y,
            sample_weight=sample_weight,
            batch_size=batch_size,
            steps=steps,
            shuffle=shuffle,
            class_weight=class_weight,
        )
        return feed_lib.Feed(self.strategy, 0, data, call.limit_steps(steps))

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

    def _prepare(self, spec: Any, labelled: bool = True) -> None:
        """Build the model from the spec of a batch, its optimizer and its steps."""
        model = self.model
        optimizer = getattr(model, "optimizer", None)
        if not compiled.is_built(model, compiled=labelled):
            with self.strategy.scope():
                compiled.build(
                    model,
                    feed_lib.build_spec(spec),
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

    def _callbacks(
        self, callbacks: Any, verbose: Any, feed: feed_lib.Feed
    ) -> keras.callbacks.CallbackList:
        if isinstance(callbacks, keras.callbacks.CallbackList):
            return callbacks
        verbose = call.verbosity(verbose)
        return keras.callbacks.CallbackList(
            keras.tree.flatten(callbacks) if callbacks else [],
            add_progbar=verbose != 0,
            verbose=verbose,
            epochs=1,
            steps=feed.steps,
            model=self.model,
        )

    def _finalize(self) -> None:
        """Overwrite the weights by their averages."""
        averages = parameter_server.moving_averages(update.innermost(self.model.optimizer))
        for variable, average in zip(self._epochs.steps.variables, averages, strict=True):
            parameter_server.stored_value(variable).assign(parameter_server.stored_value(average))


def _to_tensor(leaf: Any) -> Any:
    return tf.convert_to_tensor(leaf) if isinstance(leaf, np.ndarray | np.generic) else leaf


def _count(x: Any) -> int:
    return max(1, int(np.shape(keras.tree.flatten(x)[0])[0]))
