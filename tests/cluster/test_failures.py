"""Whatever ends a run, nothing of it is left, and the last line says why."""

import os
import pathlib
import re
import signal

import pytest
from conftest import exhaustive_unless

from cluster import processes

pytestmark = pytest.mark.cluster

SCRIPT = pathlib.Path(__file__).with_name("scripts") / "endless.py"
COMMAND = ["launch", "--workers=2", "--log_dir=logs", "--", str(SCRIPT)]
# The most that a run may take to be gone: a requirement, not a guess.
SECONDS = 5


def task_pids(pids):
    """The processes of the tasks, in the order of their start."""
    return sorted(pid for pid, command in pids.items() if "-m tfdp.run" in command)


def end(launcher, folder, kill, processes_each=1):
    """Waits until both workers train, ends the run by `kill(pids)`; returns what was left."""
    for worker in range(2):
        log = folder / "logs" / f"worker-{worker}.log"
        processes.wait_for_text(log, "Epoch 3 has ended.", 90, launcher)
    pids = processes.whole_family(launcher, tasks=2)
    assert len(pids) == 1 + 2 * processes_each  # the launcher, and the workers'
    with processes.watched(pids) as handles:
        kill(pids)
        return processes.left_after(handles, SECONDS)


@pytest.mark.exhaustive  # where Gloo runs, and test_launch_local with tasks without TensorFlow
@pytest.mark.parametrize(
    ("name", "code", "last_line"),
    [
        (
            "a worker is killed",
            137,
            "worker:1 exited with code 137 (killed by SIGKILL). Log: logs/worker-1.log",
        ),
        ("the launcher is killed", -9, None),
        ("Ctrl-C", 130, "Interrupted by SIGINT (Ctrl-C): all tasks ended. Logs: logs"),
        ("SIGTERM", 143, "Interrupted by SIGTERM: all tasks ended. Logs: logs"),
    ],
)
def test_nothing_is_left_five_seconds_after(name, code, last_line, tmp_path, environment):
    with processes.started(COMMAND, tmp_path, environment) as launcher:
        kill = {
            "a worker is killed": lambda pids: os.kill(task_pids(pids)[1], signal.SIGKILL),
            "the launcher is killed": lambda pids: launcher.kill(),
            # A terminal sends it to the group of the launcher.
            "Ctrl-C": lambda pids: os.killpg(launcher.pid, signal.SIGINT),
            "SIGTERM": lambda pids: launcher.terminate(),
        }[name]
        assert end(launcher, tmp_path, kill) == []
        _, err = launcher.communicate(timeout=30)
    assert launcher.returncode == code
    if last_line is not None:
        assert err.splitlines()[-1] == last_line


@pytest.mark.parametrize(
    "kills",
    ["a worker", "the launcher", pytest.param("a process of Gloo", marks=exhaustive_unless(False))],
)
def test_nothing_is_left_where_gloo_runs_beside_each_worker(kills, tmp_path, environment):
    environment = {**environment, "IMPLEMENTATION": "gloo"}

    def kill(pids):
        victims = {
            "a worker": task_pids(pids)[1],
            "the launcher": launcher.pid,
            "a process of Gloo": max(p for p, command in pids.items() if "gloo_pro" in command),
        }
        os.kill(victims[kills], signal.SIGKILL)

    with processes.started(COMMAND, tmp_path, environment) as launcher:
        assert end(launcher, tmp_path, kill, processes_each=2) == []
        launcher.communicate(timeout=30)
    assert launcher.returncode not in (0, None)


def test_an_exception_in_a_worker_ends_the_run_with_its_traceback(tmp_path, environment):
    environment = {**environment, "FAILS_AT": "worker:1"}
    with processes.started(COMMAND, tmp_path, environment) as launcher:
        with processes.watched(processes.whole_family(launcher, tasks=2)) as handles:
            _, err = launcher.communicate(timeout=90)
            assert processes.left_after(handles, SECONDS) == []
    assert launcher.returncode == 1
    lines = err.splitlines()
    assert lines[-1] == "worker:1 exited with code 1. Log: logs/worker-1.log"
    head = next(n for n, line in enumerate(lines) if re.match("task +ended +cause", line))
    assert re.match(r"worker:1 +code 1 +exception: RuntimeError: This task was", lines[head + 1])
    assert re.match(r"worker:0 +by tfdp +ended because worker:1 had failed", lines[head + 2])
    lines = lines[:head]
    assert lines[-1] == "[worker:1] RuntimeError: This task was told to fail."
    begin = max(n for n, line in enumerate(lines) if line.endswith("(most recent call last):"))
    assert lines[begin] == "[worker:1] Traceback (most recent call last):"
    assert all(line.startswith("[worker:1] ") for line in lines[begin:])
