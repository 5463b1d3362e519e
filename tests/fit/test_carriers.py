"""What carries sums between workers, which are threads here."""

import threading

import ml_dtypes
import numpy as np
import pytest

from tfdp.fit.replicas import gloo, memory, shared_memory, transport

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


@pytest.fixture(params=["gloo", "shared_memory"])
def kind(request):
    return request.param


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
    assert list(two.all[0]._regions.held().values()) == [2]
    del first, second
    for _ in range(6):
        two.sum([[np.full(size, 1.0)], [np.full(size, 2.0)]])
    assert max(two.all[0]._regions.held().values()) <= 3


def test_memory_that_is_used_no_more_is_given_back(workers, monkeypatch):
    monkeypatch.setattr(memory, "_FORGOTTEN_AFTER", 3)
    two = workers(2)
    small = 1 << 12  # as large as what still lies in a region
    sizes = [1 << 16, small, small, small, small, small + 1]
    totals = [two.sum([[np.ones(n)], [np.ones(n)]])[0][0].sum() for n in sizes]
    assert totals == [2.0 * n for n in sizes]
    kept = [[key[0][1] for key in one._regions.held()] for one in two.all]
    assert kept == [[(small,), (small + 1,)]] * 2
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
    with pytest.raises(memory.Late, match="took longer than its timeout_seconds"):
        two.all[0].sum([np.ones(3)], timeout_seconds=0.3)
    # The other one would add its next sum to what it has missed.
    with pytest.raises(memory.Failed, match=r"(?i)connection"):
        two.all[1].sum([np.ones(3)])
    with pytest.raises(memory.Failed):
        two.all[0].sum([np.ones(3)])


def test_small_numbers_and_large_ones_of_all_types_of_many_workers_and_many_times(workers):
    four = workers(4)
    random = np.random.default_rng(0)
    for size in (1, 7, 4000, 4097, 70001):
        for dtype in (np.float32, np.float64, np.int64, np.float16):
            given = [
                [random.integers(0, 9, size).astype(dtype), np.ones(3, dtype)] for _ in range(4)
            ]
            summed = four.sum(given)
            for one in summed:
                np.testing.assert_array_equal(one[0], sum(term[0] for term in given))
                np.testing.assert_array_equal(one[1], 4 * np.ones(3))


@pytest.mark.parametrize("size", [2, 3])
def test_large_and_small_arrays_are_cut_anywhere(size, workers):
    made = workers(size)
    shapes = [(3,), (40000,), (5, 7), (0,), (300, 333), (2,), (70000,)]
    for dtype in (np.float32, np.int64, BFLOAT16):
        given = [
            [np.full(shape, rank + i, dtype) for i, shape in enumerate(shapes)]
            for rank in range(size)
        ]
        for summed in made.sum(given):
            for i, one in enumerate(summed):
                assert one.shape == shapes[i]
                assert set(one.astype(int).reshape(-1)) <= {sum(rank + i for rank in range(size))}


def test_what_cannot_be_summed_is_named(workers):
    with pytest.raises(TypeError, match="complex64 cannot be summed"):
        workers(2).all[0].sum([np.ones(3, np.complex64)])


def test_gather_of_rows_of_which_some_are_many(workers):
    two = workers(2)
    many = np.arange(30000, dtype=np.float32).reshape(-1, 3)
    for rows in ([many, many[:2]], [many[:1], many], [many, many[:0]], [many[5:], many]):
        for parts in two.each(lambda rank, rows=rows: two.all[rank].gather(rows[rank])):
            for part, wanted in zip(parts, rows, strict=True):
                np.testing.assert_array_equal(part, wanted)


def test_a_sum_that_a_slow_worker_reads_is_not_written_by_a_fast_one(workers):
    two = workers(2)

    def work(rank):
        totals = []
        for step in range(30):
            (got,) = two.all[rank].sum([np.full(1 << 18, float(step))])
            for _ in range(5 * rank):
                totals.append((got.min(), got.max(), 2.0 * step))
            del got  # as TensorFlow does at the end of a step
        return totals

    for lowest, highest, wanted in two.each(work)[1]:
        assert lowest == highest == wanted


def test_python_runs_while_a_collective_waits_and_asks_whether_others_live(workers, monkeypatch):
    for module in (gloo, shared_memory):
        monkeypatch.setattr(module, "LOOK_SECONDS", 0.05)
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


@pytest.mark.parametrize(
    ("problem", "text"),
    [
        (memory.Failed("Connection closed by peer [10.0.0.2]:123."), "Gloo lost worker:1: "),
        (memory.Failed("Read error [::7]:9: Connection reset by peer."), "Gloo lost worker:2: "),
        (memory.Failed("Connection closed by peer [10.0.0.9]:1."), "Gloo lost another worker: "),
        (memory.Failed("worker 2 has closed its connection", 2), "Gloo lost worker:2: "),
    ],
)
def test_who_was_lost(problem, text):
    addresses = {"worker:0": "10.0.0.1:1", "worker:1": "10.0.0.2:1", "worker:2": "[::7]:1"}
    carrier = transport.Carrier("gloo", None, addresses, "worker:0")
    assert carrier._who(problem) == text + str(problem)


def test_nothing_to_sum_is_no_exchange():
    assert transport.Carrier("gloo", None, {}, "worker:0").sum([]) == []
