"""Tasks on hosts of their own, each started from its own TF_CONFIG, as a platform would."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from cluster import digits, hosts, processes
from tfdp.cluster import Cluster

REASON = hosts.missing()
pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(bool(REASON), reason=REASON or "permitted"),
]

ROOT = pathlib.Path(__file__).parents[2]
ENDLESS = str(pathlib.Path(__file__).with_name("scripts") / "endless.py")
# The most that a loss of a task may take to end all: a requirement, not a guess.
SECONDS = 15


def start(network, words, folder, environment):
    """Starts a task on each host; its output goes to 0.log, 1.log, ... in the folder."""
    cluster = Cluster(worker=tuple(f"{address}:2222" for address in network.addresses))
    started = []
    for task in cluster.tasks:
        with open(folder / f"{task.index}.log", "wb") as log:
            started.append(
                network.start(
                    task.index,
                    [sys.executable, "-m", "tfdp.run", *words],
                    cwd=folder,
                    env={**environment, "TF_CONFIG": cluster.tf_config(task)},
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                )
            )
    return cluster, started


@pytest.mark.exhaustive  # test_ssh trains on three hosts, too
def test_three_hosts_train_as_the_launcher_does(tmp_path, environment, digits_here):
    with hosts.network(3) as network:
        _, started = start(network, ["-m", "tfdp.train", *digits.TRAIN], tmp_path, environment)
        for index, process in enumerate(started):
            code = process.wait(timeout=120)
            assert code == 0, (tmp_path / f"{index}.log").read_text()
    digits.check_losses(tmp_path, digits_here)


def epochs(folder):
    return (folder / "0.log").read_text().count(" has ended.")


def wait_for_epochs(folder, count, process):
    processes.wait_for_text(folder / "0.log", f"Epoch {count} has ended.", 90, process)


def test_a_blip_does_no_harm_and_a_cut_ends_all(tmp_path, environment):
    with hosts.network(3) as network:
        cluster, started = start(network, [ENDLESS], tmp_path, environment)
        wait_for_epochs(tmp_path, 3, started[0])

        network.cut(1)
        # Not an event that could be waited for: it is the length of the blip that is tested.
        time.sleep(2)
        network.mend(1)
        wait_for_epochs(tmp_path, epochs(tmp_path) + 5, started[0])
        assert [process.poll() for process in started] == [None, None, None]

        with processes.watched([process.pid for process in started]) as handles:
            network.cut(1)
            assert processes.left_after(handles, SECONDS) == []
        assert [process.wait(timeout=1) for process in started] == [138, 138, 138]
    names = {task.index: f"{task} ({cluster.address(task)})" for task in cluster.tasks}
    for index in (0, 2):
        last = (tmp_path / f"{index}.log").read_text().splitlines()[-1]
        assert last == (
            f"tfdp: {names[1]} was lost: it sends no heartbeats any more. It has crashed, was "
            f"stopped, or its link is cut."
        )
    assert (tmp_path / "1.log").read_text().splitlines()[-1] == (
        f"tfdp: {names[0]} was lost: it does not answer the heartbeats of worker:1. It has "
        f"crashed, was stopped, or a link is cut: its own, or that of worker:1."
    )


@pytest.mark.exhaustive  # to the others it is as one whose link is cut
def test_a_stopped_worker_is_named(tmp_path, environment):
    words = ["launch", "--workers=2", "--log_dir=logs", "--", ENDLESS]
    with processes.started(words, tmp_path, environment) as launcher:
        for worker in range(2):
            log = tmp_path / "logs" / f"worker-{worker}.log"
            processes.wait_for_text(log, "Epoch 3 has ended.", 90, launcher)
        pids = processes.whole_family(launcher, tasks=2)
        victim = max(pid for pid, command in pids.items() if "-m tfdp.run" in command)
        with processes.watched(pids) as handles:
            os.kill(victim, signal.SIGSTOP)
            assert processes.left_after(handles, SECONDS) == []
        _, err = launcher.communicate(timeout=30)
    assert launcher.returncode == 138
    lines = err.splitlines()
    assert lines[-2:] == [
        "worker:1 was stopped (SIGSTOP) when worker:0 failed.",
        "worker:0 exited with code 138. Log: logs/worker-0.log",
    ]
    (row,) = [line for line in lines if line.startswith("worker:0  code 138")]
    assert "lost the connection to worker:1" in row


def test_tasks_know_where_they_are():
    # The three addresses are different hosts: else a test above might have tested one.
    with hosts.network(2) as network:
        listed = network.start(1, ["ip", "-br", "addr"], stdout=subprocess.PIPE)
        out, _ = listed.communicate(timeout=30)
    assert f"{network.addresses[1]}/24".encode() in out
    assert network.addresses[0].encode() + b"/" not in out
