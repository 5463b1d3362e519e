"""Gloo between workers that are threads here, each with its own process beside it."""

import os
import re
import signal

import numpy as np
import pytest

from fit.carriers import Store
from tfdp.fit.replicas import gloo, memory


@pytest.fixture
def kind():
    return "gloo"


def test_a_worker_whose_process_is_killed_fails_all(workers):
    two = workers(2)
    waiting = two.pool.submit(lambda: two.all[0].sum([np.ones(3)]))
    os.kill(two.all[1]._process.pid, signal.SIGKILL)
    with pytest.raises(memory.Failed, match="Connection"):
        waiting.result(30)
    with pytest.raises(memory.Failed, match="has ended"):
        two.all[1].sum([np.ones(3)])


def test_workers_that_do_not_tell_their_address_are_named():
    store = Store()
    with pytest.raises(memory.Failed, match=r"worker 1 did not tell its address within 3(\.0)? s"):
        gloo.Gloo(0, 2, "127.0.0.1", store.share, store.shared, connect_seconds=3)


def test_an_address_that_is_not_of_this_machine_is_refused():
    store = Store()
    with pytest.raises(memory.Failed, match=r"198\.51\.100\.1"):
        gloo.Gloo(0, 2, "198.51.100.1", store.share, store.shared, connect_seconds=5)


def test_what_gloo_says_is_told_plainly(workers):
    two = workers(2)
    waiting = two.pool.submit(lambda: two.all[0].sum([np.ones(3)]))
    two.all[1].close()
    with pytest.raises(memory.Failed) as raised:
        waiting.result(30)
    says = r"(Connection closed by peer|Read error) \[127\.0\.0\.1\]:\d+[:.].*"
    assert re.fullmatch(says, str(raised.value))
    assert "typically" not in str(raised.value)
