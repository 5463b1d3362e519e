"""A server ends when its coordinator is gone, and not before it has come."""

import socket
import threading

from tfdp import server


def start(port, stop):
    thread = threading.Thread(
        target=server.wait_until_gone,
        args=("127.0.0.1", port, stop),
        kwargs={"look_seconds": 0.01, "gone_seconds": 0.05},
    )
    thread.start()
    return thread


def test_it_returns_when_nobody_answers_any_more():
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = start(listening.getsockname()[1], threading.Event())
        listening.accept()[0].close()  # it has looked
        assert thread.is_alive()
    thread.join(timeout=10)
    assert not thread.is_alive()


def test_it_waits_for_a_coordinator_that_has_not_come():
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    stop = threading.Event()
    thread = start(port, stop)
    thread.join(timeout=0.3)  # many looks
    assert thread.is_alive()
    stop.set()
    thread.join(timeout=10)
    assert not thread.is_alive()
