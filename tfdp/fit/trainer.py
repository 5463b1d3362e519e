"""fit, evaluate and predict as Keras has them, whoever runs the steps.

The methods take what Keras's take and return what Keras's return. What differs between replicas in
sync and parameter servers is what an engine adds: how data is read, how the model is prepared, how
an epoch is trained, tested or predicted.

    class SyncTrainer(trainer.Trainer): ...
    history = SyncTrainer(model, strategy, communication).fit(dataset, epochs=3)
"""

import abc
import contextlib
import warnings
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import keras
import tensorflow as tf

from tfdp.compat import compiled, data_adapters
from tfdp.error import Error
from tfdp.fit import call, evaluator, observers, pace, predictions
from tfdp.fit import callbacks as callbacks_lib
from tfdp.fit.recovery import backup as backup_lib
from tfdp.fit.recovery import preemption
from tfdp.fit.recovery import settings as settings_lib

Logs: TypeAlias = dict[str, Any]
Callbacks: TypeAlias = keras.callbacks.CallbackList


class Trainer(abc.ABC):
    """Trains one model; engines are made from it.

    Args:
        model: A model made under `strategy.scope()`.
        strategy: The strategy.
        chief: Whether this process writes files and shows progress.
    """

    def __init__(self, model: keras.Model, strategy: tf.distribute.Strategy, chief: bool = True):
        self.model = model
        self.strategy = strategy
        self.chief = chief
        self.backup: backup_lib.Backup | None = None
        self.pace: pace.Pace | None = None
        # How the steps of this fit measure the gradients' noise: see replicas/noise.py.
        self.noise: Any = None
        self._hint = pace.Hint()

    # -- what an engine does --------------------------------------------------------------------

    @abc.abstractmethod
    def feed(self, data: call.Data, trains: bool = False) -> Any:
        """Return the batches of what a method is given; `trains` for what fit trains on."""

    @abc.abstractmethod
    def prepare(self, method: str, feed: Any, labelled: bool = True) -> Any:
        """Build the model from the spec of a batch; return what runs the steps of it.

        fit goes on with that when a callback compiles the model anew, or freezes layers, as in
        Keras. Without labels (predict) the compiled losses and metrics stay as they are.
        """

    def check(self, method: str, feed: Any, more: Logs | None = None) -> None:
        """Compare a call with those of other tasks, before anything is exchanged."""
        del method, feed, more  # where one task trains there is nothing to compare

    @abc.abstractmethod
    def announce(self, feed: Any) -> None:
        """Log who reads what, and which settings change nothing here."""

    def plan(self, callbacks: Any, evaluation: Any) -> Logs:
        """Return what tasks compare of a fit beside its model and its data."""
        del callbacks, evaluation
        return {}

    def show(self, watching: list[Any], data: call.Data, feed: Any) -> Any:
        """Let observers measure a fit before it begins; return what runs its steps.

        Args:
            watching: What `observers.due` returned.
            data: The data of the fit.
            feed: Of the fit.

        Raises:
            Error: If such a training cannot be measured.
        """
        raise Error(
            "The bench measures replicas that are kept in sync, and parameter servers are not: "
            "each worker takes its steps by itself. Leave out --bench (tfdp.callbacks.Bench), or "
            "measure the same script with --workers=N and neither --chief nor --ps."
        )

    @abc.abstractmethod
    def measure_noise(self, every: int | None, smoothing: float) -> Any:
        """Let the steps of the fit that begins measure how much replicas' gradients differ.

        Args:
            every: Steps from one measurement to the next; None: what is usual for this engine.
            smoothing: Weight of the past in the moving averages.

        Returns:
            What reads how many steps were measured, and the averages of |G|^2 and tr(S).

        Raises:
            Error: Where that cannot be measured.
        """

    def first_epoch(self, steps: Any, callbacks: Callbacks, initial_epoch: int) -> int:
        """Return the epoch to begin with, after callbacks may have restored a state."""
        del steps, callbacks
        return compiled.initial_epoch(self.model) or initial_epoch

    def begin_epoch(self, steps: Any) -> None:
        """Reset the metrics."""
        del steps  # where each epoch has sums of its own there is nothing to reset

    @abc.abstractmethod
    def train_epoch(
        self,
        steps: Any,
        feed: Any,
        callbacks: Callbacks,
        points: callbacks_lib.SavePoints,
        epoch: int,
    ) -> tuple[Logs, bool]:
        """Train on one epoch; return its logs, and whether there is no data for another."""

    @abc.abstractmethod
    def test(self, steps: Any, feed: Any, callbacks: Callbacks, what: str = "data") -> Logs:
        """Test on all batches; return the logs. `what` names the data where tasks compare it."""

    @abc.abstractmethod
    def predict_batches(self, steps: Any, feed: Any, callbacks: Callbacks) -> list[Any]:
        """Return the predictions of all batches, in order."""

    @abc.abstractmethod
    def on_batch(self, kind: str, data: tuple[Any, ...]) -> Logs:
        """Take one step of `kind` ("train", "test") on (x, y, sample_weight, class_weight)."""

    def agree(self, steps: Any, *asks: bool) -> tuple[bool, ...]:
        """Return, for each thing that this task asks for, whether any task does."""
        del steps
        return asks

    def finalize(self, steps: Any) -> None:
        """Let the optimizer set the last values of the variables (averages over the steps)."""
        del steps

    def share(self, text: str) -> str:
        """Give the chief's text to all processes."""
        return text

    @abc.abstractmethod
    def snapshot(
        self, steps: Any, copy: Callable[[str, Any], Any]
    ) -> tuple[dict[str, Any], dict[str, str]]:
        """Return copies of all that the model holds, and how replicas' values become one.

        Args:
            steps: Runs the steps.
            copy: Copies an array, given its name.
        """

    @abc.abstractmethod
    def restore(
        self, steps: Any, arrays: Mapping[str, Any], ways: dict[str, str]
    ) -> Mapping[str, Any]:
        """Give the model what `snapshot` returned on the chief; return the rest, everywhere."""

    def state_size(self, steps: Any) -> tuple[int, int]:
        """Return how many arrays `snapshot` copies, and their bytes; zeros: it is not known."""
        del steps
        return 0, 0

    @abc.abstractmethod
    def seeds(self, steps: Any) -> Callable[[], None]:
        """Return what puts the model's seed generators back to where they are now."""

    # -- the methods of keras.Model -------------------------------------------------------------

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
        call.check_compiled(self.model, "fit")
        epochs = call.limit_epochs(epochs)
        if validation_split and validation_data is None:
            (x, y, sample_weight), validation_data = data_adapters.train_validation_split(
                (x, y, sample_weight), validation_split
            )
        data = call.Data(x, y, sample_weight, batch_size, steps_per_epoch, shuffle, class_weight)
        evaluated = None
        if validation_data is not None:
            val_x, val_y, val_weight = keras.utils.unpack_x_y_sample_weight(validation_data)
            size = validation_batch_size or batch_size
            evaluated = call.Data(val_x, val_y, val_weight, size, validation_steps)
        with contextlib.ExitStack() as stack:
            callbacks = observers.with_added(callbacks)
            if not isinstance(callbacks, keras.callbacks.CallbackList):
                callbacks = callbacks_lib.prepare(callbacks, self.chief)
                initial_epoch = self._find_backup(callbacks, initial_epoch, stack)
            if self.backup is not None:
                data = self.backup.resume.starting(data)
            feed = self.feed(data, trains=True)
            stack.callback(feed.close)
            self.noise = None
            for callback in getattr(callbacks, "callbacks", callbacks) or ():
                if hasattr(callback, "tfdp_measures_noise"):
                    callback.tfdp_measures_noise(self.measure_noise)
            steps = self.prepare("fit", feed)
            self.announce(feed)
            evaluation = None
            if evaluated is not None:
                evaluation = self.feed(evaluated)
                stack.callback(evaluation.close)
            start: Logs = {"epochs": epochs, "initial_epoch": initial_epoch}
            # In this order: where several things differ, the first is told.
            start |= self.plan(callbacks, evaluation)
            start["validation_freq"] = validation_freq if evaluation else None
            self.check("fit", feed, start)
            if watching := observers.due(callbacks):
                steps = self.show(watching, data, feed)
            callbacks = self._callbacks(callbacks, verbose, feed, epochs=epochs, add_history=True)
            stack.enter_context(callbacks_lib.chief_writes(self.model, self.chief))
            epoch_numbers = range(initial_epoch, epochs)
            self._fit(steps, feed, evaluation, callbacks, epoch_numbers, validation_freq)
        return self.model.history

    def _find_backup(
        self, callbacks: list[Any], initial_epoch: int, stack: contextlib.ExitStack
    ) -> int:
        """Look for a checkpoint to go on from; return the first epoch."""
        settings = settings_lib.of(callbacks)
        if settings is None:
            preemption.end_at_once()
            return initial_epoch
        ask = stack.enter_context(preemption.asked())
        self.backup = backup_lib.Backup(settings, self, ask)
        stack.callback(setattr, self, "backup", None)
        stack.callback(self.backup.close)
        return self.backup.resume.find(initial_epoch).epoch

    def _fit(
        self,
        steps: Any,
        feed: Any,
        evaluation: Any,
        callbacks: Callbacks,
        epochs: range,
        validation_freq: Any,
    ) -> None:
        """Train epoch by epoch, from the first of `epochs` or where a checkpoint was taken."""
        model, backup = self.model, self.backup
        model.stop_training = False
        if self.chief:
            evaluator.begins(callbacks.callbacks)
        if backup is not None:
            backup.opens(steps, feed, evaluation, callbacks)
        callbacks.on_train_begin()
        if backup is not None:
            backup.resume.restore()
        logs: Logs = {}
        points = callbacks_lib.SavePoints(callbacks.callbacks)
        first = self.first_epoch(steps, callbacks, epochs.start)
        if backup is not None and backup.resume.position.stopped:  # it had come to its end
            model.stop_training, first = True, epochs.stop
        for epoch in range(first, epochs.stop):
            self.begin_epoch(steps)
            callbacks.on_epoch_begin(epoch)
            trained = backup.resume.enter(epoch, steps) if backup is not None else None
            if trained is None:
                logs, ended = self.train_epoch(steps, feed, callbacks, points, epoch)
                if backup is not None:
                    backup.after_training(steps, epoch, logs)
            else:
                logs, ended = trained, False
            if call.validates(epoch, validation_freq) and evaluation is not None:
                with backup.validating(steps) if backup is not None else contextlib.nullcontext():
                    results = self.test(steps, evaluation, callbacks, "validation data")
                logs.update({f"val_{name}": value for name, value in results.items()})
            if self.pace is not None:
                pace.tell(callbacks, epoch, self.pace)
                self._hint(epoch, self.pace)
            callbacks.on_epoch_end(epoch, logs)
            asks = backup.asks() if backup is not None else ()
            stop, *asked = self.agree(steps, bool(model.stop_training), *asks)
            if backup is not None:
                last = ended or epoch + 1 == epochs.stop
                backup.after_epoch(steps, epoch, stop, last, *asked)
            if stop:
                model.stop_training = True
                break
            if ended:
                if epoch + 1 < epochs.stop:
                    warnings.warn(
                        "The generator can be read only once and has come to its end: "
                        f"training ends after epoch {epoch + 1} of {epochs.stop}. Give "
                        "steps_per_epoch, a tf.data.Dataset or a keras.utils.PyDataset.",
                        stacklevel=4,
                    )
                break
        if model.optimizer is not None and epochs.stop > 0:
            self.finalize(steps)
        callbacks.on_train_end(logs=logs)
        if backup is not None:
            backup.ended()
        if self.chief:
            evaluator.ended(callbacks.callbacks)

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
        call.check_compiled(self.model, "evaluate")
        feed = self.feed(call.Data(x, y, sample_weight, batch_size, steps))
        prepared = self.prepare("evaluate", feed)
        self.check("evaluate", feed)
        with contextlib.closing(feed):
            logs = self.test(prepared, feed, self._callbacks(callbacks, verbose, feed))
        return self._returned(logs, return_dict)

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
        feed = self.feed(call.Data(x, batch_size=batch_size, steps=steps))
        prepared = self.prepare("predict", feed, labelled=False)
        self.check("predict", feed)
        callbacks = self._callbacks(callbacks, verbose, feed)
        self.model.stop_predicting = False
        callbacks.on_predict_begin()
        with contextlib.closing(feed):
            batches = self.predict_batches(prepared, feed, callbacks)
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
        call.check_compiled(self.model, "train_on_batch")
        return self._returned(
            self.on_batch("train", (x, y, sample_weight, class_weight)), return_dict
        )

    def test_on_batch(
        self, x: Any, y: Any = None, sample_weight: Any = None, return_dict: bool = False
    ) -> Any:
        """Test on one global batch, as `keras.Model.test_on_batch`."""
        call.check_compiled(self.model, "test_on_batch")
        return self._returned(self.on_batch("test", (x, y, sample_weight, None)), return_dict)

    @abc.abstractmethod
    def predict_on_batch(self, x: Any) -> Any:
        """Predict one global batch, as `keras.Model.predict_on_batch`."""

    # -- the parts ------------------------------------------------------------------------------

    def _returned(self, logs: Logs, return_dict: bool) -> Any:
        return logs if return_dict else compiled.flatten_metrics_in_order(self.model, logs)

    def _callbacks(
        self, callbacks: Any, verbose: Any, feed: Any, epochs: int = 1, add_history: bool = False
    ) -> Callbacks:
        if isinstance(callbacks, keras.callbacks.CallbackList):
            return callbacks
        verbose = call.verbosity(verbose) if self.chief else 0
        given = callbacks_lib.prepare(callbacks, self.chief)
        shows = verbose != 0 and add_history
        if shows and not any(isinstance(c, keras.callbacks.ProgbarLogger) for c in given):
            given = [*given, pace.Progress()]
        return keras.callbacks.CallbackList(
            given,
            add_history=add_history,
            add_progbar=verbose != 0,
            verbose=verbose,
            epochs=epochs,
            steps=feed.steps,
            model=self.model,
        )

    def _warn_of_end(self, steps: Any) -> None:
        """Warn of an epoch that has ended before its steps."""
        warnings.warn(
            f"The input ran out of data after {steps} steps of an epoch. Give a dataset that "
            "holds steps_per_epoch * epochs batches; dataset.repeat() makes one endless.",
            stacklevel=6,
        )
