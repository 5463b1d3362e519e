"""Two workers that are killed end as two that were not, and so do other numbers of workers."""

import json
import pathlib
import signal
import subprocess
import sys

import numpy as np
import pytest

pytestmark = pytest.mark.cluster

SCRIPT = str(pathlib.Path(__file__).with_name("scripts") / "recovering.py")
EPOCHS = 6


def launch(folder, environment, workers=2, restarts=0, backup="backup", **variables):
    command = [sys.executable, "-m", "tfdp", "launch", f"--workers={workers}", "--log_dir=logs"]
    command += [f"--max-restarts={restarts}", "--", SCRIPT, backup, str(EPOCHS)]
    return subprocess.run(
        command,
        cwd=folder,
        env={**environment, **variables},
        capture_output=True,
        text=True,
        timeout=400,
    )


def told(folder, worker=0):
    lines = (folder / "logs" / f"worker-{worker}.log").read_text().splitlines()
    return json.loads([line for line in lines if line.startswith("ended: ")][-1][7:])


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, environment):
    folder = tmp_path_factory.mktemp("undisturbed")
    done = launch(folder, environment)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return told(folder)


def test_kills_of_either_worker_change_no_bit(tmp_path, environment, undisturbed):
    done = launch(tmp_path, environment, restarts=3, KILLS="0:3,1:11,0:20")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "after 3 restarts" in done.stderr
    for worker in range(2):
        assert told(tmp_path, worker) == undisturbed


def test_sigterm_to_one_worker_saves_and_ends_all(tmp_path, environment, undisturbed):
    done = launch(tmp_path, environment, END="1:9")
    assert done.returncode == 128 + signal.SIGTERM, done.stdout[-3000:] + done.stderr[-3000:]
    assert "SIGTERM: the training is saved in backup after 16 steps" in done.stdout + done.stderr
    done = launch(tmp_path, environment)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert told(tmp_path) == undisturbed


def test_other_numbers_of_workers_train_the_same_batches(tmp_path, environment):
    """Without Dropout, whose masks are those of workers."""
    plain = {"DROPOUT": "0"}
    done = launch(tmp_path, environment, backup="whole", **plain)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    expected = told(tmp_path)
    for workers, kill in ((2, "1:5"), (1, "0:13"), (3, "2:22"), (2, "")):
        done = launch(tmp_path, environment, workers, KILLS=kill, **plain)
        assert (done.returncode == 0) is (kill == ""), done.stdout[-3000:] + done.stderr[-3000:]
    found = told(tmp_path)
    assert found["epochs"] == expected["epochs"]
    for name, values in expected["history"].items():
        np.testing.assert_allclose(found["history"][name], values, rtol=1e-4)
    for ours, theirs in zip(found["some"], expected["some"], strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)
