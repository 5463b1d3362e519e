"""Gloo's collectives between workers that are threads here, each with its own process beside it."""

import concurrent.futures
import os
import re
import signal
import threading

import ml_dtypes
import numpy as np
import pytest

from tfdp.fit.replicas import gloo, transport

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


class Store:
    """What the coordination service is for a cluster."""

    def __init__(self):
        self._texts = {}
        self._changed = threading.Condition()

    def share(self, key, text):
        with self._changed:
            self._texts[key] = text
            self._changed.notify_all()

    def shared(self, key, seconds):
        with self._changed:
            self._changed.wait_for(lambda: key in self._texts, seconds)
            return self._texts.get(key)


class Workers:
    """Connected workers, which do the same at the same time."""

    def __init__(self, size):
        self.store, self.size = Store(), size
        self.pool = concurrent.futures.ThreadPoolExecutor(size)
        self.all = self.each(
            lambda rank: gloo.Gloo(rank, size, "127.0.0.1", self.store.share, self.store.shared)
        )

    def each(self, call):
        return [f.result(60) for f in [self.pool.submit(call, n) for n in range(self.size)]]

    def sum(self, arrays_of):
        return self.each(lambda rank: self.all[rank].sum(arrays_of[rank]))

    def close(self):
        for one in self.all:
            one.close()
        self.pool.shutdown()


@pytest.fixture
def workers():
    made = []

    def make(size):
        made.append(Workers(size))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.mark.parametrize("size", [2, 3])
def test_sums_are_numpys_in_every_type_and_the_same_bits_everywhere(size, workers):
    def arrays(rank):
        draw = np.random.default_rng(rank).normal
        return [
            draw(size=(7, 3)).astype(np.float32),
            draw(size=5),
            np.arange(3) * (rank + 1),
            np.float32(rank + 1) * np.ones((), np.float32),
            np.full(2, rank, np.int32),
            draw(size=(1001, 201)).astype(np.float32),
            np.zeros((0, 4), np.float32),
        ]

    given = [arrays(rank) for rank in range(size)]
    summed = workers(size).sum(given)
    for position, column in enumerate(zip(*given, strict=True)):
        wanted = np.sum(column, axis=0, dtype=np.float64)
        got = summed[0][position]
        assert (got.dtype, got.shape) == (column[0].dtype, column[0].shape)
        np.testing.assert_allclose(got, wanted, rtol=1e-6, atol=1e-6)
        assert all(one[position].tobytes() == got.tobytes() for one in summed)


@pytest.mark.parametrize(
    ("dtype", "terms", "total"),
    [
        # Half of the last place of 1, twice: lost if each sum were rounded (ties go to even).
        (np.float16, (1.0, 2**-11, 2**-11), 1 + 2**-10),
        (BFLOAT16, (1.0, 2**-8, 2**-8), 1 + 2**-7),
        # Below the smallest normal number, and above the largest.
        (np.float16, (2**-24, 2**-24, 2**-24), 3 * 2**-24),
        (np.float16, (65504, 65504, 0), np.inf),
        (BFLOAT16, (65504, 65504, 0), 131072),
        (np.float16, (np.nan, 1, 1), np.nan),
    ],
)
def test_halves_are_added_in_float32_and_rounded_once(dtype, terms, total, workers):
    given = [[np.full(7, term, dtype)] for term in terms]
    for (got,) in workers(3).sum(given):
        assert got.dtype == dtype
        np.testing.assert_array_equal(got.astype(np.float64), np.full(7, total))


def test_a_sum_stays_as_it_is_while_somebody_holds_it(workers):
    two = workers(2)
    size = 1 << 16  # elements: large enough to be handed out where it lies
    first = two.sum([[np.full(size, 1.0)], [np.full(size, 2.0)]])
    second = two.sum([[np.full(size, 10.0)], [np.full(size, 20.0)]])
    assert [float(one[0][-1]) for one in first + second] == [3.0, 3.0, 30.0, 30.0]
    regions = [list(one._regions.values()) for one in two.all]
    assert [len(made) for (made,) in regions] == [2, 2]
    del first, second
    two.sum([[np.full(size, 1.0)], [np.full(size, 2.0)]])
    assert [len(made) for (made,) in regions] == [2, 2]


def test_memory_that_is_used_no_more_is_given_back(workers, monkeypatch):
    monkeypatch.setattr(gloo, "_FORGOTTEN_AFTER", 3)
    two = workers(2)
    sizes = [1 << 16, 5, 5, 5, 5, 6]
    totals = [two.sum([[np.ones(n)], [np.ones(n)]])[0][0].sum() for n in sizes]
    assert totals == [2.0 * n for n in sizes]
    kept = [[key[0][1] for key in one._regions] for one in two.all]
    assert kept == [[(5,), (6,)]] * 2
    assert float(two.sum([[np.ones(1 << 16)]] * 2)[1][0].sum()) == 2.0 * (1 << 16)


def test_gather_keeps_the_order_of_workers_and_their_lengths(workers):
    two = workers(2)
    rows = [np.arange(6, dtype=np.int64).reshape(3, 2), np.full((1, 2), 9)]
    for parts in two.each(lambda rank: two.all[rank].gather(rows[rank])):
        assert [part.tolist() for part in parts] == [rows[0].tolist(), rows[1].tolist()]
    for parts in two.each(lambda rank: two.all[rank].gather(rows[0][: 2 * rank])):
        assert [part.tolist() for part in parts] == [[], rows[0][:2].tolist()]
    for parts in two.each(lambda rank: two.all[rank].gather(rows[0][:0])):
        assert [part.shape for part in parts] == [(0, 2), (0, 2)]


def test_a_worker_that_does_not_come_ends_the_wait(workers):
    two = workers(2)
    with pytest.raises(gloo.Late, match="took longer than its timeout_seconds"):
        two.all[0].sum([np.ones(3)], timeout_seconds=0.3)
    # The other one would add its next sum to what it has missed.
    with pytest.raises(gloo.Failed, match="Connection"):
        two.all[1].sum([np.ones(3)])
    with pytest.raises(gloo.Failed):
        two.all[0].sum([np.ones(3)])


def test_a_worker_whose_process_is_killed_fails_all(workers):
    two = workers(2)
    waiting = two.pool.submit(lambda: two.all[0].sum([np.ones(3)]))
    os.kill(two.all[1]._process.pid, signal.SIGKILL)
    with pytest.raises(gloo.Failed, match="Connection"):
        waiting.result(30)
    with pytest.raises(gloo.Failed, match="has ended"):
        two.all[1].sum([np.ones(3)])


def test_python_runs_while_a_collective_waits_and_asks_whether_others_live(workers, monkeypatch):
    monkeypatch.setattr(gloo, "_LOOK_SECONDS", 0.05)
    two = workers(2)
    asked = threading.Event()

    class Lost(Exception):
        pass

    def check():
        asked.set()
        raise Lost

    two.all[0]._check = check
    waiting = two.pool.submit(lambda: two.all[0].sum([np.ones(3)]))
    assert asked.wait(30)
    with pytest.raises(Lost):
        waiting.result(30)


def test_workers_that_do_not_tell_their_address_are_named():
    store = Store()
    with pytest.raises(gloo.Failed, match=r"worker 1 did not tell its address within 3(\.0)? s"):
        gloo.Gloo(0, 2, "127.0.0.1", store.share, store.shared, connect_seconds=3)


def test_an_address_that_is_not_of_this_machine_is_refused():
    store = Store()
    with pytest.raises(gloo.Failed, match=r"198\.51\.100\.1"):
        gloo.Gloo(0, 2, "198.51.100.1", store.share, store.shared, connect_seconds=5)


def test_what_gloo_says_is_told_plainly(workers):
    two = workers(2)
    waiting = two.pool.submit(lambda: two.all[0].sum([np.ones(3)]))
    two.all[1].close()
    with pytest.raises(gloo.Failed) as raised:
        waiting.result(30)
    says = r"(Connection closed by peer|Read error) \[127\.0\.0\.1\]:\d+[:.].*"
    assert re.fullmatch(says, str(raised.value))
    assert "typically" not in str(raised.value)


@pytest.mark.parametrize(
    ("problem", "text"),
    [
        ("Connection closed by peer [10.0.0.2]:123.", "Gloo lost worker:1: "),
        ("Read error [::7]:9: Connection reset by peer.", "Gloo lost worker:2: "),
        ("Connection closed by peer [10.0.0.9]:1.", "Gloo lost another worker: "),
    ],
)
def test_who_was_lost(problem, text):
    addresses = {"worker:0": "10.0.0.1:1", "worker:1": "10.0.0.2:1", "worker:2": "[::7]:1"}
    carrier = transport.Carrier(None, addresses, "worker:0")
    assert carrier._who(problem) == text + problem


def test_nothing_to_sum_is_no_exchange():
    assert transport.Carrier(None, {}, "worker:0").sum([]) == []
