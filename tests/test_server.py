"""A server ends when its coordinator is gone or does not come, and not before."""

import concurrent.futures
import os
import socket
import subprocess
import sys
import threading

import pytest

from tfdp import server
from tfdp.launch import machine


def start(port, stop, **seconds):
    """What becomes of wait_until_gone, in a thread of its own."""
    future = concurrent.futures.Future()
    seconds = {"look_seconds": 0.01, "gone_seconds": 0.05, **seconds}

    def wait():
        try:
            server.wait_until_gone("127.0.0.1", port, stop, **seconds)
            future.set_result("gone")
        except TimeoutError as error:
            future.set_exception(error)

    threading.Thread(target=wait).start()
    return future


# A coordinator that has come is waited for no more, however short the time for that is.
@pytest.mark.parametrize("seconds", [{}, {"start_seconds": 1e-9}])
def test_it_returns_when_nobody_answers_any_more(seconds):
    with socket.create_server(("127.0.0.1", 0)) as listening:
        ended = start(listening.getsockname()[1], threading.Event(), **seconds)
        listening.accept()[0].close()  # it has looked
        assert not ended.done()
    assert ended.result(timeout=10) == "gone"


def test_a_coordinator_that_is_killed_soon_has_come():
    stop = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(60)
        ended = start(listening.getsockname()[1], stop, look_seconds=3600.0)
        try:
            listening.accept()[0].close()  # it has looked, and not after an hour
        finally:
            stop.set()
    ended.result(timeout=60)


# 0 is for ever, as in TFDP_START_TIMEOUT=0.
@pytest.mark.parametrize("seconds", [{}, {"start_seconds": 0.0}, {"start_seconds": 600.0}])
def test_it_waits_for_a_coordinator_that_has_not_come(seconds):
    (port,) = machine.free_ports(1)
    stop = threading.Event()
    ended = start(port, stop, **seconds)
    with pytest.raises(concurrent.futures.TimeoutError):
        ended.result(timeout=0.3)  # many looks
    assert not ended.done()
    stop.set()
    ended.result(timeout=10)


def test_it_gives_up_a_coordinator_that_does_not_come():
    (port,) = machine.free_ports(1)
    ended = start(port, threading.Event(), start_seconds=0.1)
    with pytest.raises(TimeoutError, match=r"^has not answered for 0\.1 s$"):
        ended.result(timeout=10)


def test_the_process_ends_with_a_line_when_the_chief_does_not_come():
    chief, worker, ps = machine.free_ports(3)
    program = (
        "from tfdp import server\n"
        "from tfdp.cluster import Cluster, Task\n"
        f"cluster = Cluster(chief=('127.0.0.1:{chief}',), worker=('127.0.0.1:{worker}',),"
        f" ps=('127.0.0.1:{ps}',))\n"
        "server.serve(cluster, Task('ps', 0), start_seconds=0.5)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "-1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 1
    assert done.stdout == f"ps:0 serves at 127.0.0.1:{ps}.\n"
    assert done.stderr.splitlines()[-1] == (
        f"ps:0: chief:0 (127.0.0.1:{chief}) has not answered for 0.5 s: ending. Start all tasks of "
        "the cluster; TFDP_START_TIMEOUT is the time to wait, in seconds (0: for ever)."
    )
