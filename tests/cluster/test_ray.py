"""Runs on a real cluster of Ray: two raylets on this machine."""

import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest

from cluster import digits, kills, processes

pytestmark = pytest.mark.cluster

ROOT = pathlib.Path(__file__).parents[2]
RAY = str(pathlib.Path(sys.executable).with_name("ray"))
PORT, DASHBOARD = 6391, 8291
# Each task has a child, which is to end with it; their numbers are written down.
ENDLESS = """
import os, pathlib, subprocess, sys, time
child = subprocess.Popen(["sleep", "600"])
pathlib.Path(f"pids-{os.getpid()}").write_text(f"{os.getpid()} {child.pid} {os.getppid()}")
print("here", flush=True)
time.sleep(600)
"""
AGAIN = """
import json, os, sys
index = json.loads(os.environ["TF_CONFIG"])["task"]["index"]
print("restart", os.environ.get("TFDP_RESTART", "0"), len(os.environ["TOKEN"]), flush=True)
if index == 1 and "TFDP_RESTART" not in os.environ:
    sys.exit(138)
"""


@pytest.fixture(scope="module")
def ray(tmp_path_factory, environment):
    """The environment of a user of a cluster of two nodes."""
    folder = tmp_path_factory.mktemp("ray")
    # Sockets have short names.
    place = pathlib.Path(f"/tmp/tfdp-ray-{os.getpid()}")
    variables = {
        **environment,
        "RAY_ADDRESS": f"127.0.0.1:{PORT}",
        "RAY_AUTH_MODE": "disabled",
        "RAY_DISABLE_IMPORT_WARNING": "1",
        "TOKEN": "s3cret-value",
    }
    common = ["--num-cpus=3", "--object-store-memory=80000000", "--disable-usage-stats"]

    def start(*words):
        done = subprocess.run(
            [RAY, "start", *words, *common],
            env={name: value for name, value in variables.items() if name != "RAY_ADDRESS"},
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stdout + done.stderr

    try:
        head = [f"--port={PORT}", f"--temp-dir={place}", "--include-dashboard=true"]
        start("--head", *head, f"--dashboard-port={DASHBOARD}")
        start(f"--address=127.0.0.1:{PORT}")
        yield variables
    finally:
        # Only those of this cluster: their command lines name its port.
        for pid, command in _commands().items():
            if f":{PORT}" in command or str(place) in command:
                _kill(pid)
        shutil.rmtree(place, ignore_errors=True)


def _commands():
    found = {}
    for entry in filter(str.isdecimal, os.listdir("/proc")):
        try:
            raw = pathlib.Path("/proc", entry, "cmdline").read_bytes()
        except OSError:  # it has ended
            continue
        found[int(entry)] = raw.replace(b"\0", b" ").decode(errors="replace")
    return found


def _kill(pid):
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def words(verb, *given):
    return [verb, "--platform=ray", "--ray_cpus=0.5", "--log_dir=logs", *given]


def gone(pids, seconds):
    """Waits for processes to end; returns those that have not."""
    until = time.monotonic() + seconds
    while time.monotonic() < until and (left := [p for p in pids if _lives(p)]):
        time.sleep(0.1)
    return left if time.monotonic() >= until else []


def _lives(pid):
    try:
        stat = pathlib.Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


def begun(folder, tasks, launcher):
    """Waits until all tasks run; returns the processes of each: its own, its child's, its actor."""
    until = time.monotonic() + 60
    while len(found := list(folder.glob("pids-*"))) < tasks or any(
        len(path.read_text().split()) < 3 for path in found
    ):
        assert launcher.poll() is None, launcher.communicate()
        assert time.monotonic() < until
        time.sleep(0.1)
    return [[int(pid) for pid in path.read_text().split()] for path in sorted(found)]


def test_the_digits_are_trained_as_here(ray, tmp_path, digits_here):
    there = [*digits.TRAIN, f"--config.run_dir={tmp_path}/run"]
    done = processes.run(words("train", "--workers=2", *there), tmp_path, ray, seconds=240)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^worker=2 on Ray \(.*\), seed 0\. Logs: ", done.stdout, re.MULTILINE)
    digits.check_losses(tmp_path, digits_here)


@pytest.mark.exhaustive  # as on other platforms
def test_parameter_servers(ray, tmp_path):
    variables = ray
    cluster = ["--chief", "--workers=2", "--ps=2"]
    there = [*digits.TRAIN, f"--config.run_dir={tmp_path}/run"]
    done = processes.run(words("train", *cluster, *there), tmp_path, variables, seconds=240)
    assert done.returncode == 0, done.stderr
    assert "Test accuracy" in done.stdout
    assert len(digits.losses(tmp_path)) == 2


def test_it_starts_again_and_secrets_stay_secret(ray, tmp_path):
    variables = ray
    (tmp_path / "again.py").write_text(AGAIN)
    flags = ["--workers=2", "--max_restarts=1", "--env=TOKEN"]
    done = processes.run(words("launch", *flags, "--", "again.py"), tmp_path, variables)
    assert done.returncode == 0, done.stderr
    assert "restart 1 12" in done.stdout
    assert done.stderr.splitlines()[-1] == "All went well after 1 restart."
    logs = "".join(path.read_text() for path in (tmp_path / "logs").iterdir())
    assert "s3cret" not in logs + done.stdout + done.stderr


@pytest.mark.parametrize("which", ["agent", pytest.param("actor", marks=pytest.mark.exhaustive)])
def test_a_killed_agent_or_actor_is_named_and_nothing_is_left(which, ray, tmp_path):
    variables = ray
    (tmp_path / "endless.py").write_text(ENDLESS)
    run = words("launch", "--workers=2", "--", "endless.py")
    with processes.started(run, tmp_path, variables) as launcher:
        tasks = begun(tmp_path, 2, launcher)
        agent = tasks[1][2]
        stat = pathlib.Path(f"/proc/{agent}/stat").read_text()
        actor = int(stat.rpartition(")")[2].split()[1])
        _kill(agent if which == "agent" else actor)
        _, err = launcher.communicate(timeout=15)
    assert launcher.returncode == 138
    why = "connection has ended" + (
        r" \(Actor(Died|Unavailable)Error of Ray\)" * (which == "actor")
    )
    assert re.search(rf"worker:\d .* was lost: its {why}", err), err
    assert gone([pid for task in tasks for pid in task], 5) == []


@pytest.mark.exhaustive  # it ends its agents as with ssh
def test_a_killed_launcher_leaves_nothing(ray, tmp_path):
    variables = ray
    (tmp_path / "endless.py").write_text(ENDLESS)
    run = words("launch", "--workers=2", "--", "endless.py")
    with processes.started(run, tmp_path, variables) as launcher:
        tasks = begun(tmp_path, 2, launcher)
        launcher.kill()
    assert gone([pid for task in tasks for pid in task], 15) == []


@pytest.mark.exhaustive  # test_ssh has them
def test_the_doctor_and_predict(ray, tmp_path, predicted):
    doctor = ["doctor", "--platform=ray", "--ray_cpus=0.5", "--workers=2", "--json"]
    processes.check_doctor(processes.run(doctor, tmp_path, ray, seconds=120), hosts=None)
    assert list(tmp_path.iterdir()) == []
    kills.give(predicted, tmp_path)
    verb, *words = kills.words("there")
    done = processes.run([verb, "--platform=ray", *words], tmp_path, ray, seconds=120)
    assert done.returncode == 0, done.stderr
    assert kills.content(tmp_path / "there") == kills.content(predicted / "quiet")


def test_what_cannot_be_placed_is_one_line(ray, tmp_path):
    variables = ray
    (tmp_path / "endless.py").write_text(ENDLESS)
    run = ["launch", "--platform=ray", "--workers=2", "--ray_cpus=4", "--", "endless.py"]
    done = processes.run(run, tmp_path, variables)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "tfdp: worker=2 asks Ray for 8 CPUs (2 tasks with up to 4 each), and the cluster has 6 on "
        "2 nodes. Ask for less (--workers, --ray_cpus, --gpus_per_task), or add nodes.\n"
    )


@pytest.mark.exhaustive  # the launcher runs the same
def test_the_program_runs_without_the_launcher(ray, tmp_path):
    variables = ray
    (tmp_path / "again.py").write_text(AGAIN.replace("sys.exit(138)", "sys.exit(3)"))
    output = ["--output=run.py", "--workers=2", "--env=TOKEN"]
    done = processes.run(words("launch", *output, "--", "again.py"), tmp_path, variables)
    assert done.returncode == 0, done.stderr
    run = subprocess.run(
        [sys.executable, "run.py"],
        cwd=tmp_path,
        env=variables,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 3, run.stderr
    assert "restart 0 12" in run.stdout


@pytest.mark.exhaustive  # Ray takes it
def test_a_job_that_was_submitted_takes_its_folder_along(ray, tmp_path):
    variables = ray
    (tmp_path / "again.py").write_text(AGAIN)
    launch = ["launch", "--platform=ray", "--ray_cpus=0.5", "--workers=2", "--max_restarts=1"]
    done = subprocess.run(
        [
            *(RAY, "job", "submit", f"--address=http://127.0.0.1:{DASHBOARD}"),
            *(f"--working-dir={tmp_path}", "--", processes.TFDP, *launch),
            *("--log_dir=logs", "--", "again.py"),
        ],
        cwd="/",
        env=variables,
        capture_output=True,
        text=True,
        timeout=150,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    assert "restart 1 12" in done.stdout
    assert not (tmp_path / "logs").exists()


# The last one: the cluster has one node less after it.
def test_a_killed_node_is_named_and_nothing_is_left(ray, tmp_path):
    variables = ray
    (tmp_path / "endless.py").write_text(ENDLESS)
    run = words("launch", "--workers=2", "--", "endless.py")
    with processes.started(run, tmp_path, variables) as launcher:
        tasks = begun(tmp_path, 2, launcher)
        # The raylet that is not the head's.
        (raylet,) = [
            pid
            for pid, command in _commands().items()
            if "/raylet " in command and f":{PORT}" in command and "--head" not in command
        ]
        _kill(raylet)
        _, err = launcher.communicate(timeout=15)
    assert launcher.returncode == 138
    assert re.search(r"worker:\d .*Actor(Died|Unavailable)Error of Ray", err)
    assert gone([pid for task in tasks for pid in task[:2]], 10) == []
