"""Who makes which part. Two Claims of one process hold their locks as two processes do."""

import subprocess
import sys

import pytest

from tfdp.inference import claims as claims_lib
from tfdp.inference.claims import Claims
from tfdp.inference.failures import JobFailed
from tfdp.inference.folder import Parts


@pytest.fixture
def parts(tmp_path, monkeypatch):
    """Six parts; nobody waits long."""
    monkeypatch.setattr(claims_lib, "_POLL_SECONDS", 0.01)
    parts = Parts(tmp_path, rows=12, shard_rows=2, extension="csv", key="k")
    parts.writing.mkdir(parents=True)
    return parts


def finish(parts, claims, number):
    parts.path(number).touch()
    claims.give_back(number)


def test_each_part_is_made_once_whoever_is_idle(parts):
    one, two = Claims(parts, 60), Claims(parts, 60)
    first = one.take()
    assert next(first) == 0
    # The other one does all the rest meanwhile, and waits until part 0 is there.
    made, waited = [], []

    def goes_on():
        if len(made) == 5 and not waited:
            waited.append(True)
            finish(parts, one, 0)
        return True

    for number in two.take(goes_on):
        made.append(number)
        finish(parts, two, number)
    assert made == [1, 2, 3, 4, 5]
    assert waited == [True]
    assert list(first) == []


def test_parts_that_are_there_are_not_made(parts):
    for number in (0, 2, 5):
        parts.path(number).touch()
    claims, left, made = Claims(parts, 60), [], []
    for number in claims.take(before=left.append):
        made.append(number)
        finish(parts, claims, number)
    assert made == [1, 3, 4]
    assert left == [3, 2, 1, 0]


CLAIM = """
import pathlib, sys
from tfdp.inference.claims import Claims
from tfdp.inference.folder import Parts
parts = Parts(pathlib.Path(sys.argv[1]), rows=12, shard_rows=2, extension="csv", key="k")
claims = Claims(parts, 60).take()
print(next(claims), next(claims), flush=True)
sys.stdin.read()
"""


def test_the_parts_of_a_killed_process_are_free(parts, tmp_path):
    command = [sys.executable, "-c", CLAIM, str(tmp_path)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as other:
        try:
            assert other.stdout.readline() == "0 1\n"
            claims, made = Claims(parts, 60), []
            for number in claims.take():
                made.append(number)
                finish(parts, claims, number)
                if number == 5:
                    other.kill()
        finally:
            other.kill()
    assert made == [2, 3, 4, 5, 0, 1]


def test_a_claim_that_is_not_touched_is_taken(parts, monkeypatch):
    monkeypatch.setattr(claims_lib, "_TOUCH_SECONDS", 60)  # as a process that is stopped
    stopped, claims, third = Claims(parts, 60), Claims(parts, 0.1), Claims(parts, 60)
    answers = iter([True, False])
    assert next(stopped.take()) == 0
    made = []
    for number in claims.take():
        made.append(number)
        if number == 0:
            # What the stopped one gives back when it goes on is not the claim of its successor.
            stopped.give_back(0)
            assert list(third.take(lambda: next(answers))) == []
        finish(parts, claims, number)
    assert made == [1, 2, 3, 4, 5, 0]


def test_who_does_not_go_on_does_not_wait(parts):
    one, two = Claims(parts, 60), Claims(parts, 60)
    assert next(one.take()) == 0
    answers = iter([True, False])
    made = []
    for number in two.take(lambda: next(answers)):
        made.append(number)
        finish(parts, two, number)
    assert made == [1, 2, 3, 4, 5]


def test_a_worker_whose_job_is_gone_fails(parts):
    claims = Claims(parts, 60).take()
    assert next(claims) == 0
    for path in parts.writing.iterdir():
        path.unlink()
    parts.writing.rmdir()
    with pytest.raises(JobFailed) as raised:
        next(claims)
    assert str(raised.value) == (
        f"{parts.writing}/00001 cannot be written: No such file or directory."
    )
