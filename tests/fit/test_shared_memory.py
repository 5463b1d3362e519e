"""Workers of one machine that share memory, which are threads here."""

import json
import socket

import numpy as np
import pytest
import tensorflow as tf

from fit.carriers import Store, connect
from tfdp.fit.replicas import memory, shared_memory


@pytest.fixture
def kind():
    return "shared_memory"


def test_a_worker_that_ends_is_named_at_once(workers):
    three = workers(3)
    waiting = three.pool.submit(lambda: three.all[0].sum([np.ones(3)]))
    three.all[2].close()
    with pytest.raises(memory.Failed, match="worker 2 has closed its connection") as raised:
        waiting.result(30)
    assert raised.value.worker == 2


def test_workers_that_do_not_tell_where_they_run_are_named():
    store = Store()
    with pytest.raises(memory.Failed, match="worker 1 did not tell where it runs"):
        connect("shared_memory", 0, 2, store, connect_seconds=0.5)


def test_workers_of_two_machines_share_no_memory():
    store = Store()
    store.share("1", json.dumps(["another boot, another network, 1000", "token"]))
    with pytest.raises(memory.Failed, match="worker 1 runs on another machine than worker 0"):
        connect("shared_memory", 0, 2, store)


def test_where_there_is_no_such_memory_it_is_said(monkeypatch):
    store = Store()
    store.share("1", json.dumps(["here", "token"]))
    monkeypatch.setattr(shared_memory.sys, "platform", "darwin")
    with pytest.raises(memory.Failed, match="it needs Linux"):
        connect("shared_memory", 0, 2, store)


def test_a_stranger_is_sent_away(monkeypatch):
    told = []
    store = Store()
    store.share("1", json.dumps([shared_memory._machine(), "token"]))

    def share(key, text):
        told.append(json.loads(text)[1])
        for token in ("guess", told[0]):
            one = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            one.connect(f"\0tfdp-{told[0]}")
            one.send(f"{token} 1".encode())
            told.append(one)

    connected = shared_memory.SharedMemory(0, 2, share, store.shared, connect_seconds=5)
    _, stranger, worker = told
    assert stranger.recv(1) == b""
    worker.settimeout(0.2)
    with pytest.raises(TimeoutError):
        worker.recv(1)
    connected.close()
    assert worker.recv(1) == b""


def test_workers_that_sum_different_numbers_are_told_so(workers):
    for size in (3, 1 << 16):
        two = workers(2)
        other = two.pool.submit(two.all[1].sum, [np.ones(size + 40)])
        with pytest.raises(memory.Failed, match="the workers sum different numbers"):
            two.all[0].sum([np.ones(size)])
        with pytest.raises(memory.Failed):
            other.result(30)


def test_sums_lie_in_one_memory_that_nobody_writes(workers):
    two = workers(2)
    (first,), (second,) = two.sum([[np.ones(1 << 16, np.float32)]] * 2)
    for one in (first, second):
        with pytest.raises(ValueError, match="read-only"):
            one *= 2

    @tf.function
    def used(tensor):
        return tf.nn.relu(tensor * 2.0), -tensor

    def body():
        return first

    # TensorFlow neither copies it nor takes it for an operation's result.
    twice, minus = used(tf.numpy_function(body, [], tf.float32))
    assert (float(twice[0]), float(minus[0])) == (4.0, -2.0)
    assert set(first.tolist()) == set(second.tolist()) == {2.0}


def test_few_regions_serve_many_steps(workers):
    two = workers(2)
    kept = None
    for step in range(10):
        kept = two.sum([[np.full(1 << 16, step)]] * 2)
    assert kept[0][0][0] == 18
    assert [list(one._regions.held().values()) for one in two.all] == [[3], [1]]
