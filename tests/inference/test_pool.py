"""Workers started, heard and replaced: real processes, with a program that needs no TensorFlow."""

import os
import signal
import stat
import sys

import pytest

from tfdp.inference import pool as pool_lib
from tfdp.inference.errors import JobFailed

# Called as the worker is: PROGRAM -m tfdp.inference.worker FD
PROGRAM = f"""#!{sys.executable}
import json, os, socket, sys, threading
connection = socket.socket(fileno=int(sys.argv[-1]))
lines = connection.makefile("r")
mode = json.loads(next(lines))["job"]["mode"]
def send(**message):
    connection.sendall(json.dumps(message).encode() + b"\\n")
if mode == "fails":
    sys.exit("no model here")
if mode == "crashes":
    os.abort()
send(ready={{}}, gpu=os.environ.get("CUDA_VISIBLE_DEVICES"), tf_config=os.environ.get("TF_CONFIG"))
for line in lines:
    message = json.loads(line)
    if message.get("exit"):
        os._exit(7)
    if not message.get("silent"):
        send(echo=message)
"""


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Starts a pool whose workers run PROGRAM."""
    program = tmp_path / "program"
    program.write_text(PROGRAM)
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(pool_lib.sys, "executable", str(program))
    monkeypatch.setenv("TF_CONFIG", "{}")
    pools = []

    def make(count, mode="works", timeout_seconds=30.0, gpus=()):
        pools.append(pool_lib.Pool(count, {"mode": mode}, tmp_path, timeout_seconds, gpus))
        return pools[-1]

    yield make
    for pool in pools:
        pool.close()


def until(pool, wanted, count=1):
    """Reads messages until there were so many of a kind; returns all of them."""
    heard = []
    while sum(wanted in message for _, message in heard) < count:
        heard += pool.events(5.0)
    return [(worker, message) for worker, message in heard if wanted in message]


def test_each_worker_has_its_gpu(start):
    heard = until(start(3, gpus=("4", "GPU-7")), "ready", 3)
    told = {worker.slot: (message["gpu"], message["tf_config"]) for worker, message in heard}
    assert told == {0: ("4", None), 1: ("GPU-7", None), 2: ("4", None)}


def test_messages_of_any_size_come_back(start):
    pool = start(1)
    until(pool, "ready")
    # More than a socket holds: it is sent piece by piece.
    names = [f"{number:08}.png" for number in range(100_000)]
    pool.send(pool.workers[0], shard=names)
    ((_, message),) = until(pool, "echo")
    assert message["echo"]["shard"] == names


@pytest.mark.parametrize(
    ("end", "how"),
    [
        (lambda pool, worker: os.kill(worker.process.pid, signal.SIGKILL), "was killed by SIGKILL"),
        (lambda pool, worker: pool.send(worker, exit=True), "exited with code 7"),
    ],
)
def test_a_worker_that_ends_is_replaced(end, how, start):
    pool = start(2)
    until(pool, "ready", 2)
    first, second = pool.workers
    end(pool, first)
    ((died, message),) = until(pool, "died")
    assert (died, message["died"]) == (first, how)
    ((new, _),) = until(pool, "ready")
    assert (new.slot, set(pool.workers)) == (first.slot, {second, new})


def test_a_worker_that_is_stopped_is_killed_and_replaced(start):
    pool = start(2, timeout_seconds=1.0)
    until(pool, "ready", 2)
    first, second = pool.workers
    os.kill(first.process.pid, signal.SIGSTOP)
    died = []
    while not died:
        pool.send(second, beat=True)
        died = [(w, m) for w, m in pool.events(0.1) if "died" in m]
    assert died == [(first, {"died": "was silent for 1 s"})]
    assert first.process.returncode == -signal.SIGKILL


@pytest.mark.parametrize(
    ("mode", "how"),
    [
        ("fails", "exited with code 1. It said: no model here"),
        ("crashes", "was killed by SIGABRT."),
    ],
)
def test_workers_that_never_become_ready_end_the_job(mode, how, start, tmp_path):
    with pytest.raises(JobFailed) as raised:
        until(start(1, mode=mode), "ready")
    assert str(raised.value) == (
        f"Workers end before they have loaded the model: the last one {how} "
        f"Log: {tmp_path}/worker-0.log"
    )


def test_no_process_is_left(start):
    pool = start(3)
    until(pool, "ready", 3)
    os.kill(pool.workers[0].process.pid, signal.SIGSTOP)
    processes = [worker.process for worker in pool.workers]
    pool.close()
    assert [process.returncode for process in processes] == [-signal.SIGKILL] * 3
