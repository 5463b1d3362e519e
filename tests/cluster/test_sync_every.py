"""Two workers that train by themselves between two meetings."""

import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from fit import test_sync_every as problem

pytestmark = pytest.mark.cluster

SCRIPT = pathlib.Path(__file__).parent / "scripts" / "apart.py"


@pytest.fixture(scope="module")
def workers(tmp_path_factory, environment):
    """Runs apart.py on two workers; returns what each of them saw."""
    folder = tmp_path_factory.mktemp("apart")
    command = [sys.executable, "-m", "tfdp", "launch", "--workers=2", f"--log_dir={folder}"]
    done = subprocess.run(
        [*command, "--", str(SCRIPT), str(folder)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return [json.loads((folder / f"worker-{i}.json").read_text()) for i in (0, 1)]


def uneven(*sizes):
    """The rows of each worker, two a step, one worker's after the other's."""
    begins = [sum(sizes[:i]) for i in range(len(sizes))]
    steps = -(-max(sizes) // 2)
    return [
        [
            np.arange(begin + 2 * step, max(begin + 2 * step, min(begin + 2 * step + 2, begin + n)))
            for begin, n in zip(begins, sizes, strict=True)
        ]
        for step in range(steps)
    ]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("shared_memory", lambda: problem.by_hand(problem.split(2), 4, after=3)),
        ("ring", lambda: problem.by_hand(problem.split(2), 4, after=3)),
        ("outer", lambda: problem.by_hand(problem.split(2), 2, outer=(0.7, 0.9))),
        ("uneven", lambda: problem.by_hand(uneven(17, 9), 3)),
        ("uneven_at_a_meeting", lambda: problem.by_hand(uneven(16, 10), 4)),
    ],
)
def test_the_numbers_are_those_of_numpy(name, expected, workers):
    weights, losses = expected()
    for found in (worker[name] for worker in workers):
        np.testing.assert_allclose(found["weights"], weights, atol=1e-6)
        np.testing.assert_allclose(found["loss"], losses, rtol=1e-5)
        assert found["optimizer"] == workers[0][name]["optimizer"]


def test_who_has_ended_is_told_where_the_others_are(workers):
    """9 steps here, 5 there, met after 3, 6 and 9."""
    assert workers[0]["uneven"]["steps"] == [*range(9)] * 2
    assert workers[1]["uneven"]["steps"] == [0, 1, 2, 3, 4, 5, 8] * 2
    # 8 steps and 5, met after 4 and 8: there is nothing more.
    assert workers[0]["uneven_at_a_meeting"]["steps"] == [*range(8)] * 2
    assert workers[1]["uneven_at_a_meeting"]["steps"] == [0, 1, 2, 3, 4, 7] * 2


def test_all_stop_at_one_meeting(workers):
    """Asked for in step 2 by one; heard of where they meet first."""
    assert [worker["stopped"]["steps"] for worker in workers] == [4, 4]
    assert workers[0]["stopped"]["weights"] == workers[1]["stopped"]["weights"]


def test_a_training_goes_on_between_two_meetings(workers):
    for worker in workers:
        assert worker["resumed"]["resumed"] == worker["resumed"]["unbroken"]


def test_saves_wait_for_who_has_not_ended(workers):
    """Where ModelCheckpoint saves they meet, after 3, 5, 8 and 9 steps."""
    assert workers[0]["uneven_and_saved"] == workers[1]["uneven_and_saved"]
    assert np.isfinite(workers[0]["uneven_and_saved"]["weights"]).all()
