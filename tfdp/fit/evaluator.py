"""fit of an evaluator: wait for checkpoints, evaluate each once, end with the training.

The evaluator runs the script that trains. Its `fit` finds the ModelCheckpoint and the TensorBoard
among the callbacks, evaluates every file that the former writes on `validation_data`, and writes
what it found below the folder of the latter. It returns when the chief's fit has ended.

    history = Evaluator(trainer).fit(data, validation_data=..., callbacks=[ModelCheckpoint(...)])
"""

import logging
import os
import pathlib
import re
import time
import zipfile
from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

_log = logging.getLogger("tfdp")

_POLL_SECONDS = 0.5
# A file that cannot be read for so long is not one that is still being written.
_UNREADABLE_SECONDS = 20.0
_ENDED = ".training_ended"


def begins(callbacks: Sequence[keras.callbacks.Callback]) -> None:
    """Called by the chief when its fit begins: nothing has ended yet."""
    for folder in _folders(callbacks):
        (folder / _ENDED).unlink(missing_ok=True)


def ended(callbacks: Sequence[keras.callbacks.Callback]) -> None:
    """Called by the chief when its fit has ended: no more checkpoints come."""
    for folder in _folders(callbacks):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / _ENDED).touch()


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
        seen: set[tuple[str, int]] = set()
        since = time.time()
        while True:
            over = self._is_ended() if self._is_ended else _has_ended(checkpoints, since)
            for path, version in _files(checkpoints):
                if (path, version) in seen:
                    continue
                if not _load(model, path):
                    over = over and time.time() - os.path.getmtime(path) > _UNREADABLE_SECONDS
                    continue
                seen.add((path, version))
                logs = self._trainer.evaluate(val_x, val_y, **settings)
                values = ", ".join(f"{name} {value:.4f}" for name, value in logs.items())
                # The chief alone tells at a lower level, and this is the chief of nothing.
                _log.warning("%s: %s", path, values)
                history.on_epoch_end(len(seen) - 1, logs)
                for board in boards:
                    _write(pathlib.Path(board.log_dir, "evaluator"), len(seen) - 1, logs)
            if over:
                break
            time.sleep(_POLL_SECONDS)
        model.history = history
        return history


def _folders(callbacks: Sequence[keras.callbacks.Callback]) -> list[pathlib.Path]:
    checkpoints = [c for c in callbacks if isinstance(c, keras.callbacks.ModelCheckpoint)]
    return [pathlib.Path(str(c.filepath)).parent for c in checkpoints]


def _has_ended(checkpoints: Sequence[Any], since: float) -> bool:
    """Say whether the chief has ended since then; an earlier run has left its own file."""
    files = [folder / _ENDED for folder in _folders(checkpoints)]
    return all(file.exists() and file.stat().st_mtime >= since for file in files)


def _files(checkpoints: Sequence[Any]) -> list[tuple[str, int]]:
    """Return the checkpoints that are there, the oldest first, each with its time of change."""
    found = []
    for checkpoint in checkpoints:
        path = pathlib.Path(str(checkpoint.filepath))
        # "{epoch:02d}-{val_loss:.2f}.weights.h5" is filled in by the chief.
        pattern = ".*".join(re.escape(part) for part in re.split(r"\{[^}]*\}", path.name))
        for entry in path.parent.iterdir() if path.parent.is_dir() else ():
            if re.fullmatch(pattern, entry.name):
                found.append((str(entry), entry.stat().st_mtime_ns))
    return sorted(found, key=lambda one: one[1])


def _load(model: keras.Model, path: str) -> bool:
    """Load a checkpoint; False while it is still being written.

    Raises:
        OSError: It is older than that, and cannot be read.
    """
    try:
        model.load_weights(path)
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        if time.time() - os.path.getmtime(path) < _UNREADABLE_SECONDS:
            return False
        raise OSError(f"The checkpoint {path} cannot be read: {error}") from error
    return True


def _write(folder: pathlib.Path, step: int, logs: dict[str, float]) -> None:
    """Write the values where TensorBoard shows them beside those of the training."""
    with tf.summary.create_file_writer(str(folder)).as_default(step=step):
        for name, value in logs.items():
            tf.summary.scalar(f"epoch_{name}", value)
