"""Workers, parameter servers and the chief are killed while fit trains."""

import contextlib
import os
import pathlib
import re
import signal
import subprocess
import sys

import pytest
from conftest import exhaustive_unless

from cluster import processes
from tfdp.cluster import Task
from tfdp.launch import machine, plan
from tfdp.launch.shape import Shape

pytestmark = pytest.mark.cluster

SCRIPT = str(pathlib.Path(__file__).with_name("scripts") / "servers_fit.py")
CLUSTER = ["--chief", "--workers=2", "--ps=2", "--log_dir=logs"]
# Promised to users.
SECONDS = 30


def pid_of(pids, task):
    """The process id of a task, by its TF_CONFIG."""
    name, index = task.split(":")
    wanted = f'"task": {{"type": "{name}", "index": {index}}}'
    for pid, command in pids.items():
        environment = pathlib.Path("/proc", str(pid), "environ").read_text()
        if "-m tfdp.run" in command and wanted in environment:
            return pid
    raise AssertionError(f"{task} is not among {pids}")


def trained_without_a_worker(command, folder, environment):
    """Runs to the end, with worker:1 killed in its third epoch; returns stdout and stderr."""
    with processes.started(command, folder, environment) as launcher:
        chief = folder / "logs" / "chief-0.log"
        processes.wait_for_text(chief, "Epoch 2 has ended", 90, launcher)
        os.kill(pid_of(processes.family(launcher.pid), "worker:1"), signal.SIGKILL)
        out, err = launcher.communicate(timeout=90)
    assert launcher.returncode == 0, err
    return out, err


@pytest.mark.parametrize("restarts", [pytest.param(0, marks=exhaustive_unless(False)), 1])
def test_the_training_goes_on_when_a_worker_is_killed(restarts, tmp_path, environment):
    command = ["launch", *CLUSTER, f"--max-restarts={restarts}", "--", SCRIPT, "12"]
    out, err = trained_without_a_worker(command, tmp_path, environment)
    # Each row once in each epoch, also those that the dead one had.
    assert [line for line in out.splitlines() if "has ended" in line] == [
        f"Epoch {epoch + 1} has ended, 201 rows." for epoch in range(12)
    ]
    assert "Traceback" not in out + err
    if restarts:
        assert "worker:1 exited with code 137" in err
        assert "It starts again" in err
        assert "(tfdp: restart 1)" in (tmp_path / "logs" / "worker-1.log").read_text()
    else:
        assert "The training goes on with 1 worker." in err


@pytest.mark.exhaustive  # above the chief hands out, and test_servers has workers that read
def test_the_training_goes_on_without_a_worker_that_read_for_itself(tmp_path, environment):
    command = ["launch", *CLUSTER, "--", SCRIPT, "8"]
    environment = {**environment, "READING": "shard"}
    out, err = trained_without_a_worker(command, tmp_path, environment)
    rows = [int(line.split()[4]) for line in out.splitlines() if "has ended" in line]
    assert len(rows) == 8
    # The other goes round its 101 rows in 26 batches, the last of one row: 51 steps hold it once or
    # twice.
    assert set(rows[3:]) <= {51 * 4 - 3, 51 * 4 - 6}
    assert "The training goes on with 1 worker." in err


@pytest.mark.exhaustive  # test_recovery kills one
def test_fit_resumes_when_a_server_was_killed(tmp_path, environment):
    command = ["launch", *CLUSTER, "--max-restarts=1", "--", SCRIPT, "12", "backup"]
    with processes.started(command, tmp_path, environment) as launcher:
        chief = tmp_path / "logs" / "chief-0.log"
        processes.wait_for_text(chief, "Epoch 3 has ended", 90, launcher)
        os.kill(pid_of(processes.family(launcher.pid), "ps:1"), signal.SIGKILL)
        out, err = launcher.communicate(timeout=120)
    assert launcher.returncode == 0, err
    assert "ps:1 exited with code 137 (killed by SIGKILL)" in err
    begins = [int(line.split()[2]) for line in out.splitlines() if line.startswith("Begins at")]
    assert begins[0] == 0
    # An epoch is saved when its callbacks are done, this one's among them.
    assert begins[1] >= 2 * 51
    assert begins[1] % 51 == 0
    assert out.splitlines()[-1] == f"Trained {12 * 51} steps."


@pytest.mark.exhaustive  # test_recovery resumes where the chief reads
def test_fit_resumes_when_workers_read_for_themselves(tmp_path, environment):
    environment = {**environment, "READING": "shard"}
    command = ["launch", *CLUSTER, "--", SCRIPT, "20", "backup"]
    with processes.started(command, tmp_path, environment) as launcher:
        chief = tmp_path / "logs" / "chief-0.log"
        processes.wait_for_text(chief, "Epoch 3 has ended", 90, launcher)
        launcher.terminate()
        out, err = launcher.communicate(timeout=60)
    assert launcher.returncode == 128 + signal.SIGTERM, out + err
    saved = int(re.search(r"is saved in backup after ([\d,]+) steps", err)[1].replace(",", ""))
    done = processes.run(command, tmp_path, environment)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    # The callbacks are told that fit begins when the weights are back.
    assert [line for line in lines if line.startswith("Begins")] == [f"Begins at {saved} steps."]
    assert lines[-1] == f"Trained {20 * 51} steps."
    # A worker goes round its 101 rows in 26 batches, of which the last has one row; the two share
    # the 51 steps of an epoch as fast as they are.
    rows = {int(line.split()[4]) for line in lines if "has ended" in line}
    assert rows <= {51 * 4 - 3 * short for short in range(4)}


@contextlib.contextmanager
def by_hand(folder, environment, epochs):
    """The tasks of a cluster without a launcher; yields their processes by task."""
    cluster = plan.local_cluster(Shape(1, chief=True, ps=1), machine.free_ports(3))
    started = {}
    try:
        for one in plan.plan(cluster, [SCRIPT, str(epochs)], seed=1, log_dir=folder):
            with open(one.log, "w") as log:
                started[one.task] = subprocess.Popen(
                    [sys.executable, *one.command[1:]],
                    env={**environment, **one.environment},
                    cwd=folder,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                )
        yield started
    finally:
        for process in started.values():
            process.kill()
            process.wait()


def test_a_killed_server_is_named(tmp_path, environment):
    with by_hand(tmp_path, environment, 10_000) as started:
        chief = started[Task("chief", 0)]
        processes.wait_for_text(tmp_path / "chief-0.log", "Epoch 2 has ended", 90, chief)
        started[Task("ps", 0)].kill()
        assert chief.wait(timeout=SECONDS) == 138
    text = (tmp_path / "chief-0.log").read_text()
    last = text.splitlines()[-1]
    assert "ServerLostError: ps:0 (127.0.0.1:" in last
    assert "was lost, and the variables that lay on it. Start the cluster again" in last
    assert text.count("Traceback (most recent call last)") == 1


def test_servers_end_when_the_chief_was_killed(tmp_path, environment):
    with by_hand(tmp_path, environment, 10_000) as started:
        chief = started.pop(Task("chief", 0))
        processes.wait_for_text(tmp_path / "chief-0.log", "Epoch 2 has ended", 90, chief)
        with processes.watched([process.pid for process in started.values()]) as handles:
            chief.kill()
            chief.wait()
            assert processes.left_after(handles, SECONDS) == []
    for name in ("worker-0", "ps-0"):
        last = (tmp_path / f"{name}.log").read_text().splitlines()[-1]
        assert last.endswith("is gone: ending.")
