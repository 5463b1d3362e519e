"""Saves a fit now and then, and lets a later one go on from there.

    backup = Backup(of(callbacks), trainer, ask)    # `of` is None without a BackupAndRestore
    begins = backup.find(initial_epoch)             # before the data is opened
    ...
    backup.opens(steps, feed, evaluation, callbacks)
    backup.restore()                                # when callbacks.on_train_begin was called
    backup.after_step(...), backup.after_epoch(...), backup.ended()

The chief alone reads and writes the folder: what others need of it travels to them, so that the
folder need not be shared.
"""

import collections
import contextlib
import dataclasses
import json
import logging
import os
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from tfdp.checkpoints.copies import Copies
from tfdp.checkpoints.store import Checkpoint, Place, Store
from tfdp.checkpoints.tensors import Spec
from tfdp.compat import data_adapters
from tfdp.error import Error
from tfdp.fit import call, random_state
from tfdp.fit.recovery import callback_state, fingerprint, preemption
from tfdp.fit.recovery.writer import Writer

_log = logging.getLogger("tfdp")

WITHIN, TRAINED, ENDED = range(3)  # phases: see checkpoints.store.Place
# What the log of a run that goes on says of the data, where reading up to there takes long.
_SLOW_SECONDS = 5.0


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is saved when.

    Attributes:
        folder: Where.
        save_freq: "epoch", or the number of steps between two checkpoints; 0 for neither.
        save_seconds: The time between two checkpoints; None for no such.
        keep: How many checkpoints stay.
        asynchronous: Whether training goes on while one is written.
        delete: Whether they are removed when training has ended.
    """

    folder: str
    save_freq: str | int = "epoch"
    save_seconds: float | None = None
    keep: int = 3
    asynchronous: bool = True
    delete: bool = True


@dataclasses.dataclass(frozen=True)
class Position:
    """Where training goes on.

    Attributes:
        epoch: The epoch, from 0.
        step: Steps of it that are done.
        phase: WITHIN an epoch; TRAINED: its validation comes next; ENDED: the epoch before is done.
        steps: Steps since the beginning, over all epochs.
        stopped: Whether a callback has ended the training.
    """

    epoch: int
    step: int = 0
    phase: int = ENDED
    steps: int = 0
    stopped: bool = False


class InPlace(keras.callbacks.Callback):
    """Stands where a BackupAndRestore was given: fit itself does its work.

    Args:
        settings: What is saved when.

    Attributes:
        restore: Gives the model what a checkpoint holds. Callbacks that begin after this one find
            it in the model, as in Keras.
    """

    def __init__(self, settings: Settings):
        super().__init__()
        self.settings = settings
        self.restore: Callable[[], None] = _nothing

    def on_train_begin(self, logs: Any = None) -> None:
        """Restore the model, when it is this callback's turn."""
        self.restore()


class Backup:
    """Saves one fit.

    Args:
        settings: What is saved when.
        trainer: Runs the fit.
        ask: Whether this process was asked to end.
    """

    def __init__(self, settings: Settings, trainer: Any, ask: preemption.Ask):
        self.settings = settings
        self._trainer = trainer
        self._ask = ask
        self._store = Store(settings.folder, settings.keep)
        self._writer = Writer(self._store, settings.asynchronous)
        self._copies = Copies()
        self._reserved = False  # memory for them: the first step has built the optimizer
        self._found: Checkpoint | None = None
        self._run: dict[str, Any] = {}  # of the checkpoint that the fit goes on from
        self._arrays: Mapping[str, np.ndarray] = {}
        self._position = Position(0)
        self._since = 0  # steps since the last checkpoint
        self._saved_at = time.monotonic()
        self._data: Any = None
        self._fingerprint: dict[str, Any] = {}
        self._feed: Any = None
        self._evaluation: Any = None
        self._callbacks: Any = None
        self._logs: dict[str, Any] = {}
        self._every = 0
        # How the draws stood before fit's own validation, and what puts the model's seeds back.
        self._before: dict[str, Any] = {}
        self._put_seeds_back: Callable[[], None] = _nothing
        self._starts = False  # the data begins where training goes on

    # -- the beginning --------------------------------------------------------------------------

    def find(self, initial_epoch: int) -> Position:
        """Look for the newest checkpoint; return where training begins.

        Raises:
            Error: On every process, if all checkpoints are damaged, or the folder is another's.
        """
        text = ""
        if self._trainer.chief:
            text = json.dumps(self._look())
        answer = json.loads(self._trainer.share(text))
        if answer["problem"]:
            raise Error(answer["problem"])
        self._run = answer["run"]
        self._position = Position(initial_epoch)
        if self._run:
            self._position = Position(**self._run["position"])
        return self._position

    def _look(self) -> dict[str, Any]:
        try:
            self._store.claim()
            self._found = self._store.newest()
        except Error as error:
            return {"problem": str(error), "run": {}}
        except OSError as error:
            return {"problem": f"{self.settings.folder}: {error.strerror}.", "run": {}}
        folder = pathlib.Path(self.settings.folder)
        if self._found is None and (folder / "latest.weights.h5").exists():
            _log.warning(
                "%s holds a backup of Keras's own, which has no place in the data: it is not used.",
                folder,
            )
        return {"problem": "", "run": self._found.run if self._found else {}}

    def starting(self, data: call.Data) -> call.Data:
        """Return the data from where training goes on, if it can begin there."""
        self._data, position = data, self._position
        if not self._run:
            return data
        epoch = position.epoch + (position.phase == TRAINED)
        found = data.starting_at(epoch, position.step if position.phase == WITHIN else 0)
        self._starts = found is not None
        return found or data

    def opens(self, steps: Any, feed: Any, evaluation: Any, callbacks: Any) -> None:
        """Learn what the fit consists of, before its callbacks are told that it begins.

        Raises:
            Error: On every process, if it is other data, or in other batches.
        """
        self._feed, self._evaluation, self._callbacks = feed, evaluation, callbacks
        self._fingerprint = fingerprint.of(self._data, feed.spec)
        self._data = None
        if self.settings.save_freq != "epoch":
            self._every = int(self.settings.save_freq)
        callback_state.say_what_is_not_kept(self._kept().values())
        if not self._run:
            return
        if self._run["steps"] != feed.steps:
            raise Error(
                f"The checkpoint in {self.settings.folder} is of epochs of {self._run['steps']} "
                f"steps, and these have {feed.steps}: the data or the global batch size is another "
                "one. Take those that the training began with, or choose another folder."
            )
        self._compare_data()
        for callback in callbacks.callbacks:
            if isinstance(callback, InPlace):
                callback.restore = lambda: self._put(steps)
        if not self._trainer.chief:
            return
        for callback in callbacks.callbacks:
            if isinstance(callback, keras.callbacks.CSVLogger):
                callback_state.cut_csv(callback, self._position.epoch)

    def _compare_data(self) -> None:
        other, values = fingerprint.difference(self._run["data"], self._fingerprint)
        # The chief's counts: the others may read shards of their own.
        if other := self._trainer.share(other):
            raise Error(
                f"The checkpoint in {self.settings.folder} is of other data ({other}). Take those "
                "that the training began with, or choose another folder."
            )
        if values:
            _log.warning(
                "The training goes on with other data: since its checkpoint the values of %s have "
                "changed.",
                values,
            )

    def restore(self) -> None:
        """Give the data and the callbacks what the checkpoint holds, when all have begun.

        Within an epoch the callbacks get theirs from `enter`.
        """
        if not self._run:
            return
        begin = time.monotonic()
        position, run = self._position, self._run
        if position.phase == ENDED:
            self._put_callbacks()
        done = position.step if position.phase == WITHIN else 0
        drawn = False
        if self._starts:
            self._feed.begin_within(done)
        else:
            drawn = self._feed.resume(run["feed"], done)
        if self._evaluation is not None and run["validation"]:
            self._evaluation.resume({**run["validation"], "is_open": False}, 0)
        if not drawn:
            random_state.take(run["random"])
        if position.phase == WITHIN and not self._starts:
            self._warn_of_seeds()
        seconds = time.monotonic() - begin
        where = f"epoch {position.epoch + 1}"
        if position.phase == WITHIN:
            where += f", step {position.step + 1}"
        _log.info(
            "The training goes on at %s, from %s (%.1f s%s).",
            where,
            self._found.path if self._found else "the chief's checkpoint",
            seconds,
            ", of which most is for reading up to there" if seconds > _SLOW_SECONDS else "",
        )

    def _warn_of_seeds(self) -> None:
        """Warn of a shuffle without a seed of its own, which goes on in another order."""
        before, now = self._run["seed"], os.environ.get("TFDP_SEED", "")
        if before != now:
            _log.warning(
                "The training began with TFDP_SEED=%s, and this start has %s: what the script "
                "shuffles without a seed of its own comes in another order. To train on each row "
                "once, start with TFDP_SEED=%s.",
                before or "''",
                now or "none",
                before,
            )
        elif not data_adapters.is_seeded():
            _log.warning(
                "No seed is set: data that is shuffled without a seed of its own comes in another "
                "order, and rows of this epoch are trained on twice or not at all. Call "
                "keras.utils.set_random_seed(NUMBER) before the data is made."
            )

    def enter(self, epoch: int, steps: Any) -> dict[str, Any] | None:
        """Give the model and the callbacks theirs, where training goes on within an epoch.

        Once more: its beginning has reset the metrics, and callbacks may have changed the rate.

        Returns:
            The logs of its steps, where they are all done; else None.
        """
        position = self._position
        if not self._run or epoch != position.epoch or position.phase == ENDED:
            return None
        self._put(steps)
        self._put_callbacks()
        return dict(self._run["logs"]) if position.phase == TRAINED else None

    def _put(self, steps: Any) -> None:
        arrays: Mapping[str, np.ndarray] = {}
        if self._found is not None:
            reader = self._found.arrays()
            arrays = {name: reader.map(name) for name in reader.specs}
        self._arrays = self._trainer.restore(steps, arrays, self._run["ways"])

    def _put_callbacks(self) -> None:
        arrays = self._arrays
        for name, callback in self._kept().items():
            if (plain := self._run["callbacks"].get(name)) is None:
                continue  # it was not there
            prefix = f"callback/{name}/"
            own = {n[len(prefix) :]: np.array(arrays[n]) for n in arrays if n.startswith(prefix)}
            callback_state.restore(callback, plain, own)

    def _kept(self) -> dict[str, keras.callbacks.Callback]:
        """Return the callbacks whose state is kept: by class, and their number among these."""
        kept: dict[str, keras.callbacks.Callback] = {}
        counts: collections.Counter[str] = collections.Counter()
        for callback in self._callbacks.callbacks:
            if isinstance(callback, keras.callbacks.ProgbarLogger | InPlace):
                continue
            name = type(callback).__name__
            kept[f"{name}-{counts[name]}"] = callback
            counts[name] += 1
        return kept

    # -- while it trains ------------------------------------------------------------------------

    @property
    def stopped(self) -> bool:
        """Whether a callback had ended the training."""
        return self._position.stopped

    def wishes(self) -> tuple[bool, ...]:
        """Return whether this process was asked to end, and whether it is time for a checkpoint."""
        seconds = self.settings.save_seconds
        late = seconds is not None and time.monotonic() - self._saved_at >= seconds
        return self._ask.ends, late and self._trainer.chief

    def after_step(
        self, steps: Any, epoch: int, step: int, done: int, asked: tuple[bool, ...]
    ) -> None:
        """Save, if it is time, after steps of an epoch.

        Args:
            steps: Runs them.
            epoch: The epoch.
            step: Its steps that are done.
            done: How many since the last call.
            asked: What `wishes` returned, agreed on by all processes.

        Raises:
            SystemExit: When this process was asked to end.
        """
        before = self._position
        if not self._reserved:
            self._reserved = True
            arrays, size = self._trainer.state_size(steps)
            if self._trainer.chief and arrays:
                self._copies.reserve(arrays, size)
        self._position = Position(epoch, step, WITHIN, before.steps + done)
        self._since += done
        ends, late = asked
        if ends or late or (self._every and self._since >= self._every):
            self._save(steps, waits=ends)
        if ends:
            self._leave(steps)

    def after_training(self, steps: Any, epoch: int, logs: dict[str, Any]) -> None:
        """Note that all steps of an epoch are done: its validation comes next."""
        self._position = dataclasses.replace(self._position, epoch=epoch, phase=TRAINED)
        self._logs = dict(logs)
        if self._trainer.agree(steps, self._ask.ends):
            self._save(steps, waits=True)
            self._leave(steps)

    @contextlib.contextmanager
    def validating(self, steps: Any) -> Iterator[None]:
        """Let SIGTERM end fit's own validation; those of callbacks come to their end.

        One that has ended so begins anew, and draws the numbers that it drew.
        """
        self._before, self._put_seeds_back = self._draws(), self._trainer.seeds(steps)
        try:
            yield
        finally:
            self._before, self._put_seeds_back = {}, _nothing

    def after_test_step(self, steps: Any, ends: bool) -> None:
        """End, if this process was asked to, after a step of a validation."""
        if ends and self._before:
            self._put_seeds_back()
            self._save(steps, waits=True)
            self._leave(steps)

    def after_epoch(self, steps: Any, epoch: int, stopped: bool, last: bool) -> None:
        """Save, if it is time, when an epoch and its callbacks are done."""
        self._position = Position(epoch + 1, 0, ENDED, self._position.steps, stopped)
        over = stopped or last
        if over and self.settings.delete:
            return  # it would be removed at once
        ends = self._trainer.agree(steps, self._ask.ends) and not over
        if ends or over or self.settings.save_freq == "epoch":
            self._save(steps, waits=ends or over)
        if ends:
            self._leave(steps)

    def ended(self) -> None:
        """Remove what is not needed any more when fit returns."""
        if self._trainer.chief:
            self._writer.wait()
            if self.settings.delete:
                self._store.clear()

    def close(self) -> None:
        """Let what is being written come to its end, whatever ends the fit."""
        if self._trainer.chief:
            self._writer.wait()

    def _draws(self) -> dict[str, Any]:
        """Return where the validation's data and the random numbers stand."""
        return {
            "validation": self._evaluation.place() if self._evaluation is not None else None,
            "random": random_state.plain(random_state.now()),
        }

    def _leave(self, steps: Any) -> None:
        self._trainer.agree(steps, True)  # the chief has written: now all may go
        _log.warning(
            "SIGTERM: the training is saved in %s after %s steps, and ends.",
            self.settings.folder,
            f"{self._position.steps:,}",
        )
        raise SystemExit(preemption.EXIT_CODE)

    def _save(self, steps: Any, waits: bool = False) -> None:
        if not waits and self._trainer.agree(steps, self._trainer.chief and self._writer.is_busy):
            _log.info(
                "The checkpoint of step %s is left out: the one before is still being written.",
                f"{self._position.steps:,}",
            )
            return
        self._since, self._saved_at = 0, time.monotonic()
        self._writer.wait()  # it writes from the memory that is copied to
        arrays, ways = self._trainer.snapshot(steps, self._copies)
        if not self._trainer.chief:
            return
        callbacks = {}
        for name, callback in self._kept().items():
            callbacks[name], own = callback_state.state(callback)
            arrays |= {f"callback/{name}/{path}": value for path, value in own.items()}
        position = self._position
        run = {
            "position": dataclasses.asdict(position),
            "logs": _plain(self._logs) if position.phase == TRAINED else {},
            "ways": ways,
            "steps": self._feed.steps,
            "data": self._fingerprint,
            "feed": self._feed.place(),
            **(self._before or self._draws()),
            "callbacks": callbacks,
            "seed": os.environ.get("TFDP_SEED", ""),
            "replicas": self._trainer.strategy.num_replicas_in_sync,
            "versions": {"keras": keras.__version__},
        }
        specs = [Spec(name, value.dtype.name, value.shape) for name, value in arrays.items()]
        # What is read part by part while it is written must not change meanwhile.
        waits = waits or not all(isinstance(value, np.ndarray) for value in arrays.values())
        place = Place(position.steps, position.phase)
        self._writer.write(place, run, specs, list(arrays.values()))
        if waits:
            self._writer.wait()


WRITE_ONLY = (
    keras.callbacks.CSVLogger,
    keras.callbacks.RemoteMonitor,
    keras.callbacks.TensorBoard,
)


def of(callbacks: Sequence[keras.callbacks.Callback]) -> Settings | None:
    """Return the settings of the BackupAndRestore among callbacks that were prepared, if any."""
    return next((c.settings for c in callbacks if isinstance(c, InPlace)), None)


def _nothing() -> None:
    """Restore nothing: the training begins."""


def _plain(logs: dict[str, Any]) -> dict[str, Any]:
    return {name: np.asarray(value).tolist() for name, value in logs.items()}
