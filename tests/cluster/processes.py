"""Real runs of tfdp in processes, seen from outside: what they print, and what is left of them.

done = processes.run(["launch", "--workers=2", "--", "script.py"], folder, environment)
with processes.started([...], folder, environment) as launcher:
    with processes.watched(processes.whole_family(launcher, tasks=2)) as handles:
        launcher.kill()
        assert processes.left_after(handles, seconds=5) == []
"""

import contextlib
import json
import os
import pathlib
import select
import subprocess
import sys
import time

TFDP = str(pathlib.Path(sys.executable).with_name("tfdp"))


def run(words, folder, environment, seconds=120):
    """Runs tfdp to its end; a run that takes longer is killed, and its tasks with it."""
    with started(words, folder, environment) as launcher:
        out, err = launcher.communicate(timeout=seconds)
    return subprocess.CompletedProcess(words, launcher.returncode, out, err)


@contextlib.contextmanager
def started(words, folder, environment):
    """A running tfdp with a process group of its own, as a shell gives it one."""
    launcher = subprocess.Popen(
        [TFDP, *words],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield launcher
    finally:
        launcher.kill()
        launcher.wait()
        launcher.stdout.close()
        launcher.stderr.close()


def family(pid):
    """The process and all that descends from it: {pid: command line}."""
    parents, commands = {}, {}
    for entry in filter(str.isdecimal, os.listdir("/proc")):
        try:
            stat = pathlib.Path("/proc", entry, "stat").read_text()
            command = pathlib.Path("/proc", entry, "cmdline").read_bytes()
        except OSError:  # it has ended
            continue
        parents[int(entry)] = int(stat.rpartition(")")[2].split()[1])
        commands[int(entry)] = command.replace(b"\0", b" ").decode()
    found: dict[int, str] = {}
    waiting = [pid]
    while waiting:
        member = waiting.pop()
        found[member] = commands[member]
        waiting += [child for child, parent in parents.items() if parent == member]
    return found


def whole_family(launcher, tasks, seconds=30):
    """The launcher and its tasks, as soon as so many have started."""
    until = time.monotonic() + seconds
    while sum("-m tfdp.run" in command for command in family(launcher.pid).values()) < tasks:
        assert launcher.poll() is None, launcher.communicate()
        assert time.monotonic() < until, f"{tasks} tasks do not start"
        time.sleep(0.05)
    return family(launcher.pid)


@contextlib.contextmanager
def watched(pids):
    """Handles of processes that stay theirs when the numbers are given to others."""
    handles = {pid: os.pidfd_open(pid) for pid in pids}
    try:
        yield handles
    finally:
        for handle in handles.values():
            os.close(handle)


def left_after(handles, seconds):
    """Waits for processes to end; returns those that still run after so many seconds."""
    until = time.monotonic() + seconds
    running = dict(handles)
    while running and (left := until - time.monotonic()) > 0:
        ended = select.select(list(running.values()), [], [], left)[0]
        running = {pid: handle for pid, handle in running.items() if handle not in ended}
    return sorted(running)


def wait_for_text(path, text, seconds, launcher):
    """Waits until a file holds a text."""
    until = time.monotonic() + seconds
    while not (path.exists() and text in path.read_text()):
        assert launcher.poll() is None, launcher.communicate()
        assert time.monotonic() < until, f"{text!r} does not come in {path}"
        time.sleep(0.05)


def check_doctor(done, hosts, ways=("TensorFlow",)):
    """Checks that a doctor has found two workers ready, on `hosts` (None: on any)."""
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout)
    levels = {check["name"]: check["level"] for check in report["checks"]}
    # How much disk is left is this machine's affair.
    assert {**levels, "disk": "ok"} == dict.fromkeys(
        ("ways", "versions", "clocks", "gpus", "disk"), "ok"
    )
    assert list(report["tasks"]) == ["worker:0", "worker:1"]
    if hosts is not None:
        assert [facts["host"] for facts in report["tasks"].values()] == hosts
    assert set(ways) <= {row["by"] for row in report["all_reduce"]}
