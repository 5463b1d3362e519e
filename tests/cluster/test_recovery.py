"""Two workers that are killed end as two that were not, and so do other numbers of workers."""

import csv
import json
import pathlib
import re
import signal
import subprocess
import sys

import numpy as np
import pytest

from cluster import processes, soak

pytestmark = pytest.mark.cluster

SCRIPT = str(pathlib.Path(__file__).with_name("scripts") / "recovering.py")
EPOCHS = 6
DIGITS = str(pathlib.Path(__file__).parents[2] / "configs" / "digits.py")


SERVERS = {"STRATEGY": "parameter_server"}


def launch(
    folder, environment, workers=2, restarts=0, backup="backup", ps=0, min_workers=0, **variables
):
    command = [sys.executable, "-m", "tfdp", "launch", f"--workers={workers}", "--log_dir=logs"]
    command += ["--chief", f"--ps={ps}"] if ps else []
    command += [f"--min-workers={min_workers}"]
    command += [f"--max-restarts={restarts}", "--", SCRIPT, backup, str(EPOCHS)]
    return subprocess.run(
        command,
        cwd=folder,
        env={**environment, **variables},
        capture_output=True,
        text=True,
        timeout=400,
    )


def told(folder, worker=0, kind="worker"):
    lines = (folder / "logs" / f"{kind}-{worker}.log").read_text().splitlines()
    return json.loads([line for line in lines if line.startswith("ended: ")][-1][7:])


@pytest.mark.exhaustive  # each kind of kill has a test
def test_kills_at_random_change_no_bit(tmp_path, environment):
    """A slice of the soak: whatever is killed, and whenever."""
    kills, runs, different = soak.soak(tmp_path, environment, workers=2, kills=8, seed=1)
    assert (kills, different) == (8, [])
    assert runs >= 1


def test_after_sigterm_and_after_a_kill_all_bits_are_as_without(tmp_path, environment):
    done = launch(tmp_path, environment, backup="whole")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    undisturbed = told(tmp_path)
    done = launch(tmp_path, environment, END="1:9")
    assert done.returncode == 128 + signal.SIGTERM, done.stdout[-3000:] + done.stderr[-3000:]
    assert "SIGTERM: the training is saved in backup after 16 steps" in done.stdout + done.stderr
    # It goes on, and the other worker is killed.
    done = launch(tmp_path, environment, restarts=1, KILLS="0:27")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "worker:0 exited with code 137" in done.stderr
    assert done.stderr.endswith("All went well after 1 restart.\n")
    assert told(tmp_path) == undisturbed


@pytest.mark.exhaustive  # fit/test_recovery has it for replicas
def test_other_numbers_of_workers_train_the_same_batches(tmp_path, environment):
    """Without Dropout, whose masks are those of workers."""
    plain = {"DROPOUT": "0"}
    done = launch(tmp_path, environment, backup="whole", **plain)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    expected = told(tmp_path)
    for workers, kill in ((2, "1:5"), (1, "0:13")):
        done = launch(tmp_path, environment, workers, KILLS=kill, **plain)
        assert done.returncode != 0, done.stdout[-3000:] + done.stderr[-3000:]
    # The last of three workers is killed for good; the launcher goes on with two.
    done = launch(tmp_path, environment, 3, min_workers=2, KILLS="2:22", **plain)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert done.stderr.endswith("All went well after 1 restart, without 1 of the workers.\n")
    found = told(tmp_path)
    assert found["epochs"] == expected["epochs"]
    for name, values in expected["history"].items():
        np.testing.assert_allclose(found["history"][name], values, rtol=1e-4)
    for ours, theirs in zip(found["some"], expected["some"], strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)


def test_parameter_servers_and_their_chief_come_back(tmp_path, environment):
    # One worker: what several of them sum up, test_servers looks at.
    done = launch(tmp_path, environment, 1, ps=2, backup="whole", **SERVERS)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    expected = told(tmp_path, kind="chief")
    kills = {"KILLS": "0:3,ps:11", **SERVERS}
    done = launch(tmp_path, environment, 1, ps=2, restarts=2, **kills)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "after 2 restarts" in done.stderr
    assert told(tmp_path, kind="chief") == expected


def test_a_run_of_tfdp_train_goes_on_with_the_tasks_it_had(tmp_path, environment):
    words = [f"--config={DIGITS}:quick", "--config.run_dir=run", "--chief", "--workers=1", "--ps=1"]
    with processes.started(["train", *words], tmp_path, environment) as launcher:
        processes.wait_for_text(
            tmp_path / "run" / "logs" / "chief-0.log", "Epoch 2/3", 120, launcher
        )
        launcher.terminate()
        out, err = launcher.communicate(timeout=60)
    assert launcher.returncode == 128 + signal.SIGTERM, out + err
    assert "SIGTERM: the training is saved in run/backup after" in err
    done = processes.run(["train", "--resume=run"], tmp_path, environment, seconds=200)
    assert done.returncode == 0, done.stderr
    assert re.search(r"The training goes on at epoch 2(, step \d+)?, from run/backup", done.stderr)
    with open(tmp_path / "run" / "history.csv") as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == ["0", "1", "2"]
    done = processes.run(["train", "--resume=run"], tmp_path, environment)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("run has come to its end: nothing is left to train.")


@pytest.mark.exhaustive  # test_servers goes on with one server and with three
def test_parameter_servers_come_back_in_another_number(tmp_path, environment):
    plain = {"DROPOUT": "0", **SERVERS}
    done = launch(tmp_path, environment, ps=2, backup="whole", **plain)
    expected = told(tmp_path, kind="chief")
    done = launch(tmp_path, environment, ps=2, END="launcher:9", **plain)
    assert done.returncode == 128 + signal.SIGTERM, done.stdout[-3000:] + done.stderr[-3000:]
    assert re.search(r"SIGTERM: the training is saved in backup after \d+ steps", done.stderr)
    done = launch(tmp_path, environment, workers=3, ps=1, **plain)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    found = told(tmp_path, kind="chief")
    assert found["epochs"] == expected["epochs"]
    for name, values in expected["history"].items():
        np.testing.assert_allclose(found["history"][name], values, rtol=1e-4)
    for ours, theirs in zip(found["some"], expected["some"], strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)
