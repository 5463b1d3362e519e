"""fit of an evaluator: wait for checkpoints, evaluate each once, end with the training.

The evaluator runs the script that trains. Its `fit` finds the ModelCheckpoint and the TensorBoard
among the callbacks, evaluates every file that the former writes on `validation_data`, and writes
what it found below the folder of the latter. It returns when the chief's fit has ended.

    history = Evaluator(trainer).fit(data, validation_data=..., callbacks=[ModelCheckpoint(...)])

The chief says that its fit has ended in a file beside the checkpoints, which holds how many of its
fits have, and the name of the run: a script may call fit several times, and an evaluator may start
again after the end.
"""

import contextlib
import logging
import os
import pathlib
import re
import shutil
import tempfile
import time
import warnings
import zipfile
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from tfdp.compat import saved_models
from tfdp.fit import call

_log = logging.getLogger("tfdp")

_POLL_SECONDS = 0.5
# A file that cannot be read for so long is not one that is still being written.
_UNREADABLE_SECONDS = 20.0
_ENDED = ".training_ended"

# What the run is called; None without an evaluator.
_run: str | None = None
# How many fits with checkpoints in a folder this process has ended, or waited for.
_fits: dict[pathlib.Path, int] = {}
# A run without a name is known by the time: its tasks start together.
_started = time.time()


def set_run(run: str | None) -> None:
    """Set what the run is called, "" where nobody has named it; None without an evaluator."""
    global _run
    if run != _run:
        _fits.clear()
    _run = run


def begins(callbacks: Sequence[keras.callbacks.Callback]) -> None:
    """Called by the chief when its fit begins: what an earlier run has left does not count."""
    for folder in _folders(callbacks) if _run is not None else ():
        if folder not in _fits:
            (folder / _ENDED).unlink(missing_ok=True)


def ended(callbacks: Sequence[keras.callbacks.Callback]) -> None:
    """Called by the chief when its fit has ended: no more checkpoints come."""
    for folder in _folders(callbacks) if _run is not None else ():
        _fits[folder] = _fits.get(folder, 0) + 1
        folder.mkdir(parents=True, exist_ok=True)
        being_written = folder / f"{_ENDED}.part"
        being_written.write_text(f"{_fits[folder]} {_run}\n")
        being_written.replace(folder / _ENDED)


def check_stock_fit(model: keras.Model, callbacks: Any) -> None:
    """Refuse what Keras itself would do in the evaluator: train, and write checkpoints.

    Raises:
        ValueError: If there is a ModelCheckpoint among the callbacks.
    """
    if _folders(keras.tree.flatten(callbacks) if callbacks else []):
        raise ValueError(
            f"Model {model.name!r} was made outside of any strategy's scope: its fit would train "
            "here as well, and write over the checkpoints that an evaluator waits for. Write:  "
            "with tfdp.strategy().scope(): model = ...; model.compile(...)"
        )


class _File(NamedTuple):
    """A version of a checkpoint."""

    path: str
    changed: int  # in nanoseconds
    epoch: int | None  # from 0; None where the name does not tell it


class Evaluator:
    """What a model's methods are in the evaluator: fit evaluates, all others are the trainer's.

    Args:
        trainer: Trains and evaluates on this machine.
        is_ended: Says whether the training has ended; by default that is seen at the file which
            the chief leaves beside the checkpoints.
    """

    def __init__(self, trainer: Any, is_ended: Callable[[], bool] | None = None):
        self._trainer = trainer
        self._is_ended = is_ended
        self.strategy = trainer.strategy

    def __getattr__(self, name: str) -> Any:
        return getattr(self._trainer, name)

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
        """Evaluate each checkpoint once; return a History with one value for each.

        Raises:
            ValueError: If there is no ModelCheckpoint to wait for, or nothing to evaluate on.
            OSError: If a checkpoint cannot be read.
        """
        model = self._trainer.model
        given = keras.tree.flatten(callbacks) if callbacks else []
        checkpoints = [c for c in given if isinstance(c, keras.callbacks.ModelCheckpoint)]
        if not checkpoints or validation_data is None:
            missing = "validation_data" if checkpoints else "callbacks=[ModelCheckpoint(...)]"
            raise ValueError(
                f"The evaluator evaluates the checkpoints of ModelCheckpoint on validation_data: "
                f"give fit {missing}, or start no evaluator."
            )
        folders = _folders(checkpoints)
        for folder in folders:
            if re.search(r"\{[^}]*\}", str(folder)):
                raise ValueError(
                    f"The evaluator looks for the files of ModelCheckpoint in one folder, not in "
                    f"{folder}: let only the name of the file hold {{epoch}} and the like."
                )
            _fits[folder] = _fits.get(folder, 0) + 1
        boards = [c for c in given if isinstance(c, keras.callbacks.TensorBoard)]
        val_x, val_y, val_weight = keras.utils.unpack_x_y_sample_weight(validation_data)
        settings = {
            "sample_weight": val_weight,
            "batch_size": validation_batch_size or batch_size,
            "steps": validation_steps,
            "verbose": 0,
            "return_dict": True,
        }
        # Builds the model, so that there is something to load weights into.
        self._trainer.evaluate(val_x, val_y, **{**settings, "steps": 1})
        history = keras.callbacks.History()
        history.set_model(model)
        history.on_train_begin()
        writers = [
            tf.summary.create_file_writer(str(pathlib.Path(board.log_dir, "evaluator")))
            for board in boards
        ]
        looked: list[_File] = []
        seen: set[_File] = set()
        while True:
            over = self._is_ended() if self._is_ended else _has_ended(folders)
            before, looked = looked, _files(checkpoints)
            for file in looked:
                if file in seen:
                    continue
                # One that has changed since the look before may still be being written.
                loaded, iterations = _load(model, file.path) if file in before else (False, None)
                if not loaded:
                    over = False
                    continue
                seen.add(file)
                logs = self._trainer.evaluate(val_x, val_y, **settings)
                values = ", ".join(f"{name} {value:.4f}" for name, value in logs.items())
                # The chief alone tells at a lower level, and this is the chief of nothing.
                _log.warning("%s: %s", file.path, values)
                history.on_epoch_end(len(seen) - 1 if file.epoch is None else file.epoch, logs)
                for writer in writers:
                    _write(writer, file.epoch, iterations or len(seen) - 1, logs)
                call.report(iterations or 0, file.epoch or 0)
            if over:
                break
            time.sleep(_POLL_SECONDS)
        for writer in writers:
            writer.close()
        model.history = history
        return history


def _folders(callbacks: Sequence[keras.callbacks.Callback]) -> list[pathlib.Path]:
    checkpoints = [c for c in callbacks if isinstance(c, keras.callbacks.ModelCheckpoint)]
    folders = [pathlib.Path(str(c.filepath)).absolute().parent for c in checkpoints]
    return list(dict.fromkeys(folders))


def _has_ended(folders: Sequence[pathlib.Path]) -> bool:
    """Say whether the chief's fit has ended; an earlier run, or fit, has left its own file."""
    for folder in folders:
        file = folder / _ENDED
        try:
            count, _, run = file.read_text().strip().partition(" ")
            is_this_run = run == _run if _run else file.stat().st_mtime >= _started
        except FileNotFoundError:
            return False
        if not is_this_run or int(count) < _fits[folder]:
            return False
    return True


def _files(checkpoints: Sequence[Any]) -> list[_File]:
    """Return the checkpoints that are there, the oldest first."""
    found = []
    for checkpoint in checkpoints:
        path = pathlib.Path(str(checkpoint.filepath))
        pattern, tells_epoch = _pattern(path.name, checkpoint.save_freq)
        for entry in path.parent.iterdir() if path.parent.is_dir() else ():
            # Somebody may keep a few and remove the others.
            with contextlib.suppress(FileNotFoundError):
                if match := re.fullmatch(pattern, entry.name):
                    epoch = int(match["epoch"]) - 1 if tells_epoch else None
                    found.append(_File(str(entry), entry.stat().st_mtime_ns, epoch))
    return sorted(found, key=lambda file: file.changed)


def _pattern(name: str, save_freq: Any) -> tuple[str, bool]:
    """Return what matches the files of a ModelCheckpoint, and whether `epoch` in it is one's own.

    Its "{epoch:02d}-{val_loss:.2f}.weights.h5" is filled in by the chief, with epochs from 1.
    """
    parts = re.split(r"(\{[^}]*\})", name)
    at = [i for i, part in enumerate(parts) if re.match(r"\{epoch\b", part)]
    found = [
        r"\s*(?P<epoch>\d+)" if [i] == at else ".*" if part[:1] == "{" else re.escape(part)
        for i, part in enumerate(parts)
    ]
    # Between the ends of epochs an epoch has several.
    return "".join(found), len(at) == 1 and save_freq == "epoch"


def _load(model: keras.Model, path: str) -> tuple[bool, int | None]:
    """Load a checkpoint.

    Returns:
        Whether it is there, and whole: False while it is still being written.
        How many steps it was trained for; None where it does not tell.

    Raises:
        OSError: It is older than that, and cannot be read.
    """
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        # Nothing is trained here: the optimizer has no slots to load.
        warnings.filterwarnings("ignore", "Skipping variable loading for optimizer")
        copy = os.path.join(folder, os.path.basename(path))
        try:
            # HDF5 locks what it reads: the chief would fail to write this file anew.
            shutil.copyfile(path, copy)
            model.load_weights(copy)
            return True, saved_models.saved_iterations(copy)
        except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
            if not os.path.exists(path):
                return False, None
            if time.time() - os.path.getmtime(path) < _UNREADABLE_SECONDS:
                return False, None
            raise OSError(f"The checkpoint {path} cannot be read: {error}") from error


def _write(writer: Any, epoch: int | None, steps: int, logs: dict[str, float]) -> None:
    """Write the values where TensorBoard shows them beside those of the training.

    The place on the axis is the checkpoint's own, so that it is the same after a restart; names are
    those of keras.callbacks.TensorBoard, by epochs and by steps.
    """
    with writer.as_default(step=steps if epoch is None else epoch):
        for name, value in logs.items():
            tag = f"evaluation_{name}_vs_iterations" if epoch is None else f"epoch_{name}"
            tf.summary.scalar(tag, value)
    writer.flush()
