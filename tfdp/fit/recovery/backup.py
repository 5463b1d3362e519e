"""Saves a fit now and then, and ends it when its process is asked to end.

    backup = Backup(settings.of(callbacks), trainer, ask)   # `of` is None without BackupAndRestore
    ...                                                     # backup.resume: see there
    backup.opens(steps, feed, evaluation, callbacks)
    backup.after_step(...), backup.after_epoch(...), backup.ended()

The chief alone writes the folder, so that it need not be shared.
"""

import contextlib
import dataclasses
import logging
import time
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np

from tfdp.checkpoints.copies import Copies
from tfdp.checkpoints.store import Place, Store
from tfdp.checkpoints.tensors import Spec
from tfdp.fit import random_state
from tfdp.fit.recovery import callback_state, preemption
from tfdp.fit.recovery.resume import Resume
from tfdp.fit.recovery.settings import ENDED, TRAINED, WITHIN, Position, Settings, nothing
from tfdp.fit.recovery.writer import Writer

_log = logging.getLogger("tfdp")


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
        self.resume = Resume(settings, trainer, self._store)
        self._position = Position(0)
        self._since = 0  # steps since the last checkpoint
        self._saved_at = time.monotonic()
        self._every = 0 if settings.save_freq == "epoch" else int(settings.save_freq)
        self._logs: dict[str, Any] = {}
        # How the draws stood before fit's own validation, and what puts the model's seeds back.
        self._before: dict[str, Any] = {}
        self._put_seeds_back: Callable[[], None] = nothing

    def opens(self, steps: Any, feed: Any, evaluation: Any, callbacks: Any) -> None:
        """Learn what the fit consists of, before its callbacks are told that it begins.

        Raises:
            Error: On every process, if it is other data than before, or in other batches.
        """
        self._parts = self.resume.parts(feed, evaluation, callbacks)
        self.resume.opens(self._parts, steps)
        self._position = self.resume.position

    def wishes(self) -> tuple[bool, ...]:
        """Return whether this process was asked to end, and whether it is time for a checkpoint."""
        seconds = self.settings.save_seconds
        late = seconds is not None and time.monotonic() - self._saved_at >= seconds
        return self._ask.ends, late and self._trainer.chief

    def after_step(
        self,
        steps: Any,
        epoch: int,
        step: int,
        done: int,
        asked: tuple[bool, ...],
        may_save: bool = True,
    ) -> None:
        """Save, if it is time, after steps of an epoch.

        Args:
            steps: Runs them.
            epoch: The epoch.
            step: Its steps that are done.
            done: How many since the last call.
            asked: What `wishes` returned, agreed on by all processes.
            may_save: Whether the replicas are equal; else what is due is done later.

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
        if not may_save:
            return
        if ends or late or (self._every and self._since >= self._every):
            self._save(steps, waits=ends)
        if ends:
            self._leave(steps)

    def after_training(self, steps: Any, epoch: int, logs: dict[str, Any]) -> None:
        """Note that all steps of an epoch are done: its validation comes next."""
        self._position = dataclasses.replace(self._position, epoch=epoch, phase=TRAINED)
        self._logs = dict(logs)
        if self._trainer.agree(steps, self._ask.ends)[0]:
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
            self._before, self._put_seeds_back = {}, nothing

    def after_test_step(self, steps: Any, ends: bool) -> None:
        """End, if this process was asked to, after a step of a validation."""
        if ends and self._before:
            self._put_seeds_back()
            self._save(steps, waits=True)
            self._leave(steps)

    def asks(self) -> tuple[bool, ...]:
        """Return what all processes agree on at the end of an epoch, for `after_epoch`."""
        return self._ask.ends, self._trainer.chief and self._writer.is_busy

    def after_epoch(
        self, steps: Any, epoch: int, stopped: bool, last: bool, ends: bool, is_busy: bool
    ) -> None:
        """Save, if it is time, when an epoch and its callbacks are done.

        Args:
            steps: Runs the steps.
            epoch: The epoch.
            stopped: Whether a callback has ended the training.
            last: Whether it was the last epoch.
            ends: Whether any process was asked to end.
            is_busy: Whether the checkpoint before is still being written.
        """
        self._position = Position(epoch + 1, 0, ENDED, self._position.steps, stopped)
        over = stopped or last
        if over and self.settings.delete:
            return  # it would be removed at once
        ends = ends and not over
        if ends or over or self.settings.save_freq == "epoch":
            self._save(steps, waits=ends or over, is_busy=is_busy)
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
        evaluation = self._parts.evaluation
        return {
            "validation": evaluation.place() if evaluation is not None else None,
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

    def _save(self, steps: Any, waits: bool = False, is_busy: bool | None = None) -> None:
        if not waits and is_busy is None:
            (is_busy,) = self._trainer.agree(steps, self._trainer.chief and self._writer.is_busy)
        if not waits and is_busy:
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
        for name, callback in self._parts.kept().items():
            callbacks[name], own = callback_state.state(callback)
            arrays |= {f"callback/{name}/{path}": value for path, value in own.items()}
        position = self._position
        run = {
            "position": dataclasses.asdict(position),
            "logs": _plain(self._logs) if position.phase == TRAINED else {},
            "ways": ways,
            "steps": self._parts.feed.steps,
            "data": self._parts.fingerprint,
            "feed": self._parts.feed.place(),
            **(self._before or self._draws()),
            "callbacks": callbacks,
            "seed": random_state.seed(),
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


def _plain(logs: dict[str, Any]) -> dict[str, Any]:
    return {name: np.asarray(value).tolist() for name, value in logs.items()}
