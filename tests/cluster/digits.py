"""The digits that every platform trains, and what they are compared with."""

import csv
import pathlib

import pytest

CONFIG = pathlib.Path(__file__).parents[2] / "configs" / "digits.py"
# Two epochs of a model whose losses are the same on any number of workers (tests/installed).
TRAIN = [
    *(f"--config={CONFIG}:quick", "--config.training.epochs=2", "--config.run_dir=run"),
    *("--config.data.global_batch_size=66", "--config.model.name=smooth_digits:build"),
]


def losses(folder):
    """The losses that a run in a folder has written."""
    with open(folder / "run" / "history.csv") as file:
        return [(float(row["loss"]), float(row["val_loss"])) for row in csv.DictReader(file)]


def check_losses(folder, expected):
    assert len(expected) == 2
    for one, other in zip(losses(folder), expected, strict=True):
        assert one == pytest.approx(other, rel=1e-5)
