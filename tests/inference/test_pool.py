"""Workers started, heard and replaced: real processes, with a program that needs no TensorFlow."""

import os
import signal
import stat
import sys

import pytest

from tfdp.inference import pool as pool_lib
from tfdp.inference.failures import InferenceError, JobFailed
from tfdp.inference.settings import Order, Settings

# Called as the worker is: PROGRAM -m tfdp.inference.worker FD ORDER
PROGRAM = f"""#!{sys.executable}
import json, os, sys, time
mode = json.loads(sys.argv[-1])["settings"]["model"]
if mode == "fails":
    sys.exit("no model here")
if mode == "crashes":
    os.abort()
told = {{"ready": True, "beat": 0}}
if mode == "mistaken":
    told |= {{"failure": "No such signature.", "mistake": True}}
if mode == "gpu":
    told["failure"] = " ".join(map(str, map(os.environ.get, ("CUDA_VISIBLE_DEVICES", "TF_CONFIG"))))
while True:
    told["beat"] += 1
    os.pwrite(int(sys.argv[-2]), json.dumps(told).encode(), 0)
    if mode == "ends" and told["beat"] == 3:
        os._exit(7)
    time.sleep(0.1)
"""


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Starts a pool whose workers run PROGRAM."""
    program = tmp_path / "program"
    program.write_text(PROGRAM)
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    (tmp_path / ".tfdp").mkdir()
    monkeypatch.setattr(pool_lib.sys, "executable", str(program))
    monkeypatch.setenv("TF_CONFIG", "{}")
    pools = []

    def make(workers, mode="works", timeout_seconds=30.0, gpus=()):
        settings = Settings(
            mode, "", str(tmp_path), workers=workers, timeout_seconds=timeout_seconds
        )
        order = Order(settings, launcher=0, job={})
        pools.append(pool_lib.Pool(order, gpus))
        return pools[-1]

    yield make
    for pool in pools:
        pool.close()


def until_ready(pool, count):
    while sum(worker.state.ready for worker in pool.workers) < count:
        assert pool.wait(0.1) == []
    return list(pool.workers)


def until_one_ends(pool):
    while not (ended := pool.wait(0.1)):
        pass
    ((worker, how),) = ended
    return worker, how


@pytest.mark.parametrize(("slot", "gpu"), [(0, "4"), (1, "GPU-7"), (2, "4")])
def test_each_worker_has_its_gpu(slot, gpu, start):
    pool = start(0, mode="gpu", gpus=("4", "GPU-7"))
    pool.start(slot)
    with pytest.raises(JobFailed, match=f"^{gpu} None$"):
        until_ready(pool, 2)


def test_what_a_worker_says_has_failed_is_raised(start):
    with pytest.raises(InferenceError, match=r"^No such signature.$"):
        until_ready(start(1, mode="mistaken"), 2)


@pytest.mark.parametrize(
    ("mode", "how"),
    [
        ("ends", "exited with code 7"),
        ("fails", "exited with code 1"),
        ("crashes", "was killed by SIGABRT"),
    ],
)
def test_a_worker_that_ends(mode, how, start):
    pool = start(1, mode=mode)
    worker, found = until_one_ends(pool)
    assert (found, worker.state.ready) == (how, mode == "ends")
    assert pool.workers == []
    said = " It said: no model here" if mode == "fails" else ""
    assert pool_lib.last_words(worker.log) == said


def test_a_killed_worker_is_replaced(start):
    pool = start(2)
    first, second = until_ready(pool, 2)
    os.kill(first.process.pid, signal.SIGKILL)
    assert until_one_ends(pool) == (first, "was killed by SIGKILL")
    pool.start(first.slot)
    assert until_ready(pool, 2)[0] is second
    assert [worker.slot for worker in pool.workers] == [1, 0]


def test_a_worker_that_is_stopped_is_killed(start):
    pool = start(2, timeout_seconds=1.0)
    first, second = until_ready(pool, 2)
    os.kill(first.process.pid, signal.SIGSTOP)
    assert until_one_ends(pool) == (first, "was silent for 1 s")
    assert first.process.returncode == -signal.SIGKILL
    assert pool.workers == [second]


def test_no_process_is_left(start):
    pool = start(3)
    until_ready(pool, 3)
    os.kill(pool.workers[0].process.pid, signal.SIGSTOP)
    processes = [worker.process for worker in pool.workers]
    pool.close()
    assert [process.returncode for process in processes] == [-signal.SIGKILL] * 3
