"""Checkpoints that cannot be written: training goes on, and ends after three in a row."""

import errno
import logging

import numpy as np
import pytest

from tfdp.checkpoints.lease import LeaseLost
from tfdp.checkpoints.store import Place
from tfdp.checkpoints.tensors import Spec
from tfdp.error import Error
from tfdp.fit.recovery.writer import Writer


class Failing:
    """A store whose saves do what a list says: raise an error, or succeed with None."""

    folder = "runs/a/backup"

    def __init__(self, *outcomes):
        self._outcomes = list(outcomes)
        self.saved = []

    def save(self, place, run, specs, values):
        if outcome := self._outcomes.pop(0):
            raise outcome
        self.saved.append(place.step)


def full():
    return OSError(errno.ENOSPC, "No space left on device")


def write(writer, step, waits=False):
    value = np.zeros(1, np.float32)
    writer.write(Place(step), {}, [Spec("w", "float32", (1,))], [value])
    if waits:
        writer.wait()


@pytest.mark.parametrize("asynchronous", [True, False])
def test_a_full_disk_is_said_and_training_goes_on(asynchronous, caplog):
    store = Failing(full(), full(), None, full(), None)
    writer = Writer(store, asynchronous)
    with caplog.at_level(logging.WARNING, "tfdp"):
        for step in range(1, 6):
            write(writer, step)
        writer.wait()
    assert store.saved == [3, 5]
    assert caplog.records[0].getMessage() == (
        "The checkpoint of step 1 could not be saved in runs/a/backup: No space left on device. "
        "Training goes on."
    )


@pytest.mark.parametrize("asynchronous", [True, False])
def test_three_failures_in_a_row_end_the_training(asynchronous):
    writer = Writer(Failing(full(), full(), OSError(errno.EIO, "Input/output error")), asynchronous)
    write(writer, 1)
    write(writer, 2)
    with pytest.raises(Error, match="could not be saved in runs/a/backup 3 times in a row"):
        write(writer, 3, waits=True)


@pytest.mark.parametrize("asynchronous", [True, False])
def test_a_run_that_was_replaced_ends(asynchronous):
    writer = Writer(Failing(LeaseLost("taken over")), asynchronous)
    with pytest.raises(LeaseLost):
        write(writer, 1, waits=True)
