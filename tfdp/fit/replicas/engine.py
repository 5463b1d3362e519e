"""fit, evaluate and predict under one device, MirroredStrategy and MultiWorkerMirroredStrategy.

The methods take what Keras's take and return what Keras's return. Every process of a
multi-worker cluster calls them with the same model and data.

    trainer = SyncTrainer(model, strategy, communication)
    history = trainer.fit(dataset, epochs=3)
"""

import contextlib
import functools
import logging
import warnings
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfdp.compat import compiled, data_adapters
from tfdp.fit import call as call_lib
from tfdp.fit import callbacks as callbacks_lib
from tfdp.fit import digest, evaluator, predictions
from tfdp.fit import feed as feed_lib
from tfdp.fit.replicas import agreement, gather, transport
from tfdp.fit.replicas import communication as communication_lib
from tfdp.fit.replicas import loop as loop_lib
from tfdp.fit.replicas import replica as replica_lib
from tfdp.fit.replicas import step as step_lib

_log = logging.getLogger("tfdp")

# Workers sum their metrics up at the first step and then every so many: one small collective.
_AGGREGATE_EVERY = 16


class SyncTrainer:
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
        self.model = model
        self.strategy = strategy
        self.communication = communication
        self._first = replica_lib.first_replica(strategy)
        self._chief = self._first == 0
        self._several = strategy.num_replicas_in_sync > len(strategy.extended.worker_devices)
        self._calls_on_batch = 0
        self._key: tuple[Any, ...] = ()
        self._loop: loop_lib.Loop

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
        call_lib.check_compiled(self.model, "fit")
        epochs = call_lib.limit_epochs(epochs)
        if validation_split and validation_data is None:
            (x, y, sample_weight), validation_data = data_adapters.train_validation_split(
                (x, y, sample_weight), validation_split
            )
        feed = self._feed(
            x,
            y,
            sample_weight=sample_weight,
            batch_size=batch_size,
            steps=steps_per_epoch,
            shuffle=shuffle,
            class_weight=class_weight,
        )
        loop = self._prepare("fit", feed)
        _log.info("Input: %s.", feed.description)
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

        validation = agreement.data_plan(evaluation, "validation data") if evaluation else {}
        start = {"epochs": epochs, "initial_epoch": initial_epoch, **validation}
        given = getattr(callbacks, "callbacks", None) or keras.tree.flatten(callbacks or [])
        start["callbacks"] = agreement.callbacks_plan(given)
        start["validation_freq"] = validation_freq if evaluation else None
        self._check("fit", feed, start)
        verbose = call_lib.verbosity(verbose) if self._chief else 0
        if not isinstance(callbacks, keras.callbacks.CallbackList):
            callbacks = keras.callbacks.CallbackList(
                callbacks_lib.prepare(callbacks, self._chief),
                add_history=True,
                add_progbar=verbose != 0,
                verbose=verbose,
                epochs=epochs,
                steps=feed.steps,
                model=model,
            )
        with contextlib.ExitStack() as stack:
            stack.enter_context(callbacks_lib.chief_writes(model, self._chief))
            stack.callback(feed.close)
            if evaluation is not None:
                stack.callback(evaluation.close)
            model.stop_training = False
            if self._chief:
                evaluator.begins(callbacks.callbacks)
            callbacks.on_train_begin()
            initial_epoch = self._agree_on_start(callbacks, initial_epoch)
            logs: dict[str, Any] = {}
            points = callbacks_lib.SavePoints(callbacks.callbacks)
            for epoch in range(initial_epoch, epochs):
                loop.replicas.reset_metrics()
                callbacks.on_epoch_begin(epoch)
                logs, ended = self._train_epoch(loop, feed, callbacks, points, epoch)
                if call_lib.validates(epoch, validation_freq) and evaluation is not None:
                    results = self._evaluate(loop, evaluation, callbacks, "validation data")
                    logs.update({f"val_{name}": value for name, value in results.items()})
                callbacks.on_epoch_end(epoch, logs)
                if self._agree(loop, bool(model.stop_training)):
                    model.stop_training = True
                    break
                if ended:
                    if epoch + 1 < epochs:
                        warnings.warn(
                            "The generator can be read only once and has come to its end: "
                            f"training ends after epoch {epoch + 1} of {epochs}. Give "
                            "steps_per_epoch, a tf.data.Dataset or a keras.utils.PyDataset.",
                            stacklevel=3,
                        )
                    break
            if model.optimizer is not None and epochs > 0:
                loop.finalize()
            callbacks.on_train_end(logs=logs)
            if self._chief:
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
        """Evaluate; the arguments and the result are those of `keras.Model.evaluate`."""
        call_lib.check_compiled(self.model, "evaluate")
        feed = self._feed(x, y, sample_weight=sample_weight, batch_size=batch_size, steps=steps)
        loop = self._prepare("evaluate", feed)
        self._check("evaluate", feed)
        callbacks = self._callbacks(callbacks, verbose, feed)
        with contextlib.closing(feed):
            logs = self._evaluate(loop, feed, callbacks)
        return logs if return_dict else compiled.flatten_metrics_in_order(self.model, logs)

    def predict(
        self,
        x: Any,
        batch_size: int | None = None,
        verbose: Any = "auto",
        steps: int | None = None,
        callbacks: Any = None,
    ) -> Any:
        """Predict; the arguments and the result are those of `keras.Model.predict`.

        Every process of a cluster gets all rows, in the order of the input.
        """
        model = self.model
        feed = self._feed(x, batch_size=batch_size, steps=steps)
        loop = self._prepare("predict", feed, labelled=False)
        self._check("predict", feed)
        callbacks = self._callbacks(callbacks, verbose, feed)
        model.stop_predicting = False
        callbacks.on_predict_begin()
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
            if model.stop_predicting or len(together) < limit:
                break
        feed.end_epoch(exhausted=False)
        feed.close()
        loop.merge_state("predict")
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
        """Train on one global batch, as `keras.Model.train_on_batch`."""
        call_lib.check_compiled(self.model, "train_on_batch")
        return self._on_batch("train", (x, y, sample_weight, class_weight), return_dict)

    def test_on_batch(
        self, x: Any, y: Any = None, sample_weight: Any = None, return_dict: bool = False
    ) -> Any:
        """Test on one global batch, as `keras.Model.test_on_batch`."""
        call_lib.check_compiled(self.model, "test_on_batch")
        return self._on_batch("test", (x, y, sample_weight, None), return_dict)

    def predict_on_batch(self, x: Any) -> Any:
        """Predict one global batch, as `keras.Model.predict_on_batch`."""
        whole, loop = self._whole("predict", x)
        loop.replicas.begin()
        if isinstance(whole, feed_lib.Whole):
            parts = loop.on_batch("predict", whole)
        else:
            whole.begin_epoch()
            parts = loop.predict(whole) or ()
            whole.close()
        loop.merge_state("predict")
        return predictions.rows([gather.batch(self.strategy, parts, self._several)])

    # -- epochs -------------------------------------------------------------------------------

    def _train_epoch(
        self,
        loop: loop_lib.Loop,
        feed: feed_lib.Feed,
        callbacks: keras.callbacks.CallbackList,
        points: callbacks_lib.SavePoints,
        epoch: int,
    ) -> tuple[dict[str, Any], bool]:
        """Run one epoch; return its logs, and whether there is no data for another."""
        model = self.model
        run = callbacks_lib.BatchHooks(callbacks, "train", call_lib.progress_is_shown(callbacks))
        feed.begin_epoch()
        loop.begin_digests()
        logs: dict[str, Any] = {}
        exhausted = agreed = False
        while not agreed and ((left := feed.steps_left()) is None or left > 0):
            limit = self._limit(feed, left)
            run.begin(feed.step)
            before = feed.step
            done = loop.advance("train", feed, limit)
            exhausted = done < limit
            if feed.comparisons == 0:
                self._compare_rows(loop, feed, "data")
            if not done:
                break
            call_lib.report(feed.step, epoch)
            if points.reached(done):
                loop.merge_state("train")
            if self._aggregates(before, done, run.wanted):
                logs, agreed = loop.aggregate("train", bool(model.stop_training))
                model.stop_training = model.stop_training or agreed
            run.end(feed.step - 1, logs)
            if exhausted:
                break
            agreed = agreed or (not self._several and bool(model.stop_training))
        steps = feed.step
        short = feed.steps_per_epoch is not None and steps < feed.steps_per_epoch
        stopped = bool(model.stop_training)
        if not stopped and (short or steps == 0) and not (exhausted and feed.once):
            warnings.warn(
                f"The input ran out of data after {steps} steps of an epoch. Give a dataset that "
                "holds steps_per_epoch * epochs batches; dataset.repeat() makes one endless.",
                stacklevel=4,
            )
        feed.end_epoch(exhausted)
        if feed.comparisons == 1:
            self._compare_rows(loop, feed, "data")
        loop.merge_state("train")
        logs, _ = loop.aggregate("train", stopped)
        return call_lib.to_python(logs), exhausted and feed.once

    def _evaluate(
        self,
        loop: loop_lib.Loop,
        feed: feed_lib.Feed,
        callbacks: keras.callbacks.CallbackList,
        what: str = "data",
    ) -> dict[str, Any]:
        model = self.model
        run = callbacks_lib.BatchHooks(callbacks, "test", call_lib.progress_is_shown(callbacks))
        model.stop_evaluating = False
        callbacks.on_test_begin()
        loop.replicas.reset_metrics()
        feed.restart()
        feed.begin_epoch()
        loop.begin_digests()
        logs: dict[str, Any] = {}
        exhausted = False
        agreed = False
        while not agreed and ((left := feed.steps_left()) is None or left > 0):
            limit = self._limit(feed, left)
            run.begin(feed.step)
            before = feed.step
            done = loop.advance("test", feed, limit)
            exhausted = done < limit
            if feed.comparisons == 0:
                self._compare_rows(loop, feed, what)
            if not done:
                break
            if self._aggregates(before, done, run.wanted):
                logs, agreed = loop.aggregate("test", bool(model.stop_evaluating))
            run.end(feed.step - 1, logs)
            if exhausted:
                break
            agreed = agreed or (not self._several and bool(model.stop_evaluating))
        feed.end_epoch(exhausted)
        if feed.comparisons == 1:
            self._compare_rows(loop, feed, what)
        loop.merge_state("test")
        logs, _ = loop.aggregate("test", False)
        logs = call_lib.to_python(logs)
        callbacks.on_test_end(logs)
        return logs

    def _on_batch(self, kind: str, data: tuple[Any, ...], return_dict: bool) -> Any:
        whole, loop = self._whole(kind, *data)
        if compiled.BATCH_METHODS_RESET_METRICS:
            loop.replicas.reset_metrics()
        else:
            loop.replicas.begin()
        if isinstance(whole, feed_lib.Whole):
            loop.on_batch(kind, whole)
        else:
            whole.begin_epoch()
            loop.advance(kind, whole, 1)
            whole.close()
        loop.merge_state(kind)
        logs = call_lib.to_python(loop.aggregate(kind, False)[0])
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
        data = x
        if not feed_lib.is_distributed(x):
            data = call_lib.adapter(
                x,
                y,
                sample_weight=sample_weight,
                batch_size=batch_size,
                steps=steps,
                shuffle=shuffle,
                class_weight=class_weight,
            )
        of_all = functools.partial(agreement.of_all, self.strategy, "batches of its shard")
        return feed_lib.Feed(self.strategy, self._first, data, call_lib.limit_steps(steps), of_all)

    def _whole(
        self, kind: str, x: Any, y: Any = None, sample_weight: Any = None, class_weight: Any = None
    ) -> tuple[feed_lib.Whole | feed_lib.Feed, loop_lib.Loop]:
        """Return one batch, all that was given, and the loop that takes it.

        Tasks compare what they were given at the first call, the second, the fourth and so on.
        """
        batch = data_adapters.whole_batch(x, y, sample_weight, class_weight)
        whole: feed_lib.Whole | feed_lib.Feed
        if batch is None:  # a sparse matrix, say
            count = int(np.shape(keras.tree.flatten(x)[0])[0])
            more = {"sample_weight": sample_weight, "class_weight": class_weight}
            whole = self._feed(x, y, batch_size=max(1, count), **more)
        else:
            whole = feed_lib.Whole(self.strategy, self._first, batch)
        loop = self._prepare(f"{kind}_on_batch", whole, labelled=kind != "predict")
        if whole.split.has_digests:
            calls = self._calls_on_batch = self._calls_on_batch + 1
            if calls & (calls - 1) == 0 and batch is not None:
                labels, inputs = digest.of_batch(batch).numpy().tolist()
                agreement.check_rows(self.strategy, f"{kind}_on_batch", labels, inputs)
        return whole, loop

    def _prepare(
        self, call: str, feed: feed_lib.Feed | feed_lib.Whole, labelled: bool = True
    ) -> loop_lib.Loop:
        """Return the loop of the model as it is compiled now, built from the feed's spec.

        Without labels (predict) the compiled losses and metrics stay as they are.
        """
        model = self.model
        transport.choose(self.strategy, self.communication, call)
        if not compiled.is_built(model, compiled=labelled):
            with self.strategy.scope():
                compiled.build(model, feed_lib.build_spec(feed.spec), compiled=labelled)
        key = (
            *compiled.compiled_state(model),
            compiled.is_built(model),
            self.communication,
            model.run_eagerly,
            model.jit_compile,
            model.steps_per_execution,
            tuple(id(v) for v in model.trainable_variables),
        )
        if key != self._key:
            self._loop = loop_lib.Loop(step_lib.Steps(model, self.strategy, self.communication))
            self._key = key
        return self._loop

    def _check(self, call: str, feed: feed_lib.Feed, more: Any = None) -> None:
        """Compare this call with that of the other tasks, before they exchange anything."""
        if self._several:
            settings = agreement.settings(self.model, self.strategy, self.communication, feed)
            agreement.check(self.strategy, call, {**settings, **(more or {})})

    def _compare_rows(self, loop: loop_lib.Loop, feed: feed_lib.Feed, of: str) -> None:
        """Compare what the tasks have read, after the first step and the first pass."""
        feed.comparisons += 1
        if feed.split.has_digests:
            agreement.check_rows(self.strategy, of, *loop.digests())

    def _callbacks(
        self, callbacks: Any, verbose: Any, feed: feed_lib.Feed
    ) -> keras.callbacks.CallbackList:
        if isinstance(callbacks, keras.callbacks.CallbackList):
            return callbacks
        verbose = call_lib.verbosity(verbose) if self._chief else 0
        return keras.callbacks.CallbackList(
            callbacks_lib.prepare(callbacks, self._chief),
            add_progbar=verbose != 0,
            verbose=verbose,
            epochs=1,
            steps=feed.steps,
            model=self.model,
        )

    def _limit(self, feed: feed_lib.Feed, left: int | None) -> int:
        limit = int(self.model.steps_per_execution)
        if left is not None:
            return min(limit, left)
        if feed.steps_per_epoch is not None:
            return min(limit, feed.steps_per_epoch - feed.step)
        return limit

    def _aggregates(self, before: int, done: int, wanted: bool) -> bool:
        """Say whether metrics are summed up after the steps [before, before + done).

        Across processes that depends on the step's number alone, so that all of them agree.
        """
        if not self._several:
            return wanted
        after = before + done
        return before == 0 or before // _AGGREGATE_EVERY != after // _AGGREGATE_EVERY

    def _agree_on_start(self, callbacks: keras.callbacks.CallbackList, initial_epoch: int) -> int:
        """Return the first epoch; after a restore, take the chief's state everywhere."""
        restored = compiled.initial_epoch(self.model)
        start = restored or initial_epoch
        restores = (keras.callbacks.BackupAndRestore, callbacks_lib._RestoreOnly)
        if self._several and any(isinstance(c, restores) for c in callbacks.callbacks):
            start = self._loop.take_from_chief(start)
        return start

    def _agree(self, loop: loop_lib.Loop, stop: bool) -> bool:
        return loop.agree(stop) if self._several else stop
