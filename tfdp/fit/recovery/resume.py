"""Lets a fit go on from the newest checkpoint of a folder.

    resume = Resume(settings, trainer, store)
    begins = resume.find(initial_epoch)         # before the data is opened
    data = resume.starting(data)
    resume.opens(parts, steps)
    resume.restore()                            # when callbacks.on_train_begin was called
    resume.enter(epoch, steps)                  # at the beginning of each epoch

The chief alone reads the folder: what others need of it travels to them.
"""

import collections
import dataclasses
import json
import logging
import pathlib
import time
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from tfdp.checkpoints.store import Checkpoint, Store
from tfdp.compat import distribute
from tfdp.error import Error
from tfdp.fit import call, random_state
from tfdp.fit.recovery import callback_state, fingerprint
from tfdp.fit.recovery.settings import ENDED, TRAINED, WITHIN, InPlace, Position, Settings

_log = logging.getLogger("tfdp")

# What the log of a run that goes on says of the data, where reading up to there takes long.
_SLOW_SECONDS = 5.0


@dataclasses.dataclass(frozen=True)
class Parts:
    """What a fit consists of.

    Attributes:
        feed: Gives its batches.
        evaluation: Gives those of its validation; None without one.
        callbacks: Keras's list of its callbacks.
        fingerprint: What tells its data from other data.
    """

    feed: Any
    evaluation: Any
    callbacks: Any
    fingerprint: dict[str, Any]

    def kept(self) -> dict[str, keras.callbacks.Callback]:
        """Return the callbacks whose state is kept: by class, and their number among these."""
        kept: dict[str, keras.callbacks.Callback] = {}
        counts: collections.Counter[str] = collections.Counter()
        for callback in self.callbacks.callbacks:
            if isinstance(callback, keras.callbacks.ProgbarLogger | InPlace):
                continue
            name = type(callback).__name__
            kept[f"{name}-{counts[name]}"] = callback
            counts[name] += 1
        return kept


class Resume:
    """Puts back what the newest checkpoint holds.

    Args:
        settings: What is saved when, and where.
        trainer: Runs the fit.
        store: The checkpoints of the folder.

    Attributes:
        position: Where training goes on.
    """

    def __init__(self, settings: Settings, trainer: Any, store: Store):
        self.position = Position(0)
        self._settings = settings
        self._trainer = trainer
        self._store = store
        self._found: Checkpoint | None = None
        self._run: dict[str, Any] = {}  # of the checkpoint that the fit goes on from
        self._arrays: Mapping[str, np.ndarray] = {}
        self._data: Any = None
        self._starts = False  # the data begins where training goes on

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
        self.position = Position(initial_epoch)
        if self._run:
            self.position = Position(**self._run["position"])
        return self.position

    def _look(self) -> dict[str, Any]:
        try:
            self._store.claim()
            self._found = self._store.newest()
        except Error as error:
            return {"problem": str(error), "run": {}}
        except OSError as error:
            return {"problem": f"{self._settings.folder}: {error.strerror}.", "run": {}}
        folder = pathlib.Path(self._settings.folder)
        if self._found is None and (folder / "latest.weights.h5").exists():
            _log.warning(
                "%s holds a backup of Keras's own, which has no place in the data: it is not used.",
                folder,
            )
        return {"problem": "", "run": self._found.run if self._found else {}}

    def starting(self, data: call.Data) -> call.Data:
        """Return the data from where training goes on, if it can begin there."""
        self._data, position = data, self.position
        if not self._run:
            return data
        epoch = position.epoch + (position.phase == TRAINED)
        found = data.starting_at(epoch, position.step if position.phase == WITHIN else 0)
        self._starts = found is not None
        return found or data

    def parts(self, feed: Any, evaluation: Any, callbacks: Any) -> Parts:
        """Return what the fit consists of, once its data is open."""
        data, self._data = self._data, None
        return Parts(feed, evaluation, callbacks, fingerprint.of(data, feed.spec))

    def opens(self, parts: Parts, steps: Any) -> None:
        """Compare the fit with the one that was saved, before its callbacks hear that it begins.

        Raises:
            Error: On every process, if it is other data, or in other batches.
        """
        self._parts = parts
        callback_state.say_what_is_not_kept(parts.kept().values())
        if not self._run:
            return
        if self._run["steps"] != parts.feed.steps:
            raise Error(
                f"The checkpoint in {self._settings.folder} is of epochs of {self._run['steps']} "
                f"steps, and these have {parts.feed.steps}: the data or the global batch size is "
                "another one. Take those that the training began with, or choose another folder."
            )
        self._compare_data()
        for callback in parts.callbacks.callbacks:
            if isinstance(callback, InPlace):
                callback.restore = lambda: self._put(steps)
        if not self._trainer.chief:
            return
        for callback in parts.callbacks.callbacks:
            if isinstance(callback, keras.callbacks.CSVLogger):
                callback_state.cut_csv(callback, self.position.epoch)

    def _compare_data(self) -> None:
        other, values = fingerprint.difference(self._run["data"], self._parts.fingerprint)
        # The chief's counts: the others may read shards of their own.
        if other := self._trainer.share(other):
            raise Error(
                f"The checkpoint in {self._settings.folder} is of other data ({other}). Take those "
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
        position, run = self.position, self._run
        if position.phase == ENDED:
            self._put_callbacks()
        done = position.step if position.phase == WITHIN else 0
        drawn = False
        if self._starts:
            self._parts.feed.begin_within(done)
        else:
            drawn = self._parts.feed.resume(run["feed"], done)
        if self._parts.evaluation is not None and run["validation"]:
            self._parts.evaluation.resume({**run["validation"], "is_open": False}, 0)
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
        before, now = self._run["seed"], random_state.seed()
        if before != now:
            _log.warning(
                "The training began with the seed %s, and this start has %s: what the script "
                "shuffles without a seed of its own comes in another order. To train on each row "
                "once, call keras.utils.set_random_seed(NUMBER) in the script before the data is "
                "made, or start with the same TFDP_SEED.",
                before or "none",
                now or "none",
            )
        elif distribute.global_seed() is None:
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
        position = self.position
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
        for name, callback in self._parts.kept().items():
            if (plain := self._run["callbacks"].get(name)) is None:
                continue  # it was not there
            prefix = f"callback/{name}/"
            own = {n[len(prefix) :]: np.array(arrays[n]) for n in arrays if n.startswith(prefix)}
            callback_state.restore(callback, plain, own)
