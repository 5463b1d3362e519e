"""Which batch is tried next: made machines, whose memory is known."""

import itertools

import pytest

from tfdp.tuning import record, search

GB = 10**9


def room(used, limit=2 * GB, task="", source="limit"):
    return record.Room(task, source, int(used), limit)


def ran(rows, *rooms):
    return record.Attempt(rows, rows, True, 0.01, 10, rooms)


def failed(rows):
    return record.Attempt(rows, rows, False, reason="no memory")


def found_on(memory, first, most=1 << 40, limit=2 * GB):
    """The trials on a machine where a batch of b rows takes memory(b) bytes."""
    attempts = []
    while (rows := search.following(attempts, first, most)) is not None:
        fits = memory(rows) <= limit
        attempts.append(ran(rows, room(memory(rows), limit)) if fits else failed(rows))
    return attempts, search.largest(attempts)


@pytest.mark.parametrize("limit", [1 * GB, 2 * GB, 80 * GB])
@pytest.mark.parametrize("per_row", [1e4, 1e5, 1e6, 2e7])
@pytest.mark.parametrize("base", [0.1, 0.5, 0.8])
@pytest.mark.parametrize("first", [4, 32, 256])
def test_what_is_found_runs_and_a_quarter_more_does_not(limit, per_row, base, first):
    base *= limit
    true = int((limit - base) / per_row)  # rows that just fit
    attempts, largest = found_on(lambda rows: base + per_row * rows, first, limit=limit)
    assert len(attempts) <= search.MOST_TRIALS
    reached = first * 4 * 16**4  # by six trials, from far below
    if 16 <= true <= reached:
        assert true / 1.25 < largest <= true
        assert largest in [one.per_replica for one in attempts if one.fits]


@pytest.mark.parametrize(
    "memory",
    [
        lambda rows: 0.5 * GB + 1e6 * rows + 2e3 * rows**1.5,  # bends upwards
        lambda rows: 0.5 * GB + 1e6 * (rows // 64 * 64 + 64),  # in blocks
        lambda rows: 0.5 * GB + 1e6 * max(rows, 200),  # nothing is seen of small batches
    ],
    ids=["bends", "blocks", "flat"],
)
def test_memory_that_is_no_line(memory):
    attempts, largest = found_on(memory, first=32)
    assert len(attempts) <= search.MOST_TRIALS
    assert memory(largest) <= 2 * GB < memory(largest * 1.25)


def test_the_trials_of_a_line_by_hand():
    attempts, largest = found_on(lambda rows: 0.5 * GB + 1e6 * rows, first=64)
    # 64, four times as many, then 0.88 of the 1,500 rows that fit, with six binary digits.
    assert [one.per_replica for one in attempts] == [64, 256, 1312]
    assert largest == 1312
    (line,) = search.lines(attempts)
    assert line.bytes_per_row == pytest.approx(1e6)
    assert line.base_bytes == pytest.approx(0.5 * GB)


@pytest.mark.parametrize(
    ("attempts", "rows"),
    [
        ([], 64),
        ([failed(64)], 8),
        ([failed(64), failed(8)], 1),
        ([failed(64), failed(8), failed(1)], None),
        # Where the line is wrong: between what ran and what did not.
        ([ran(64, room(0.6 * GB)), failed(256)], 128),
        # As many as are wished for.
        ([ran(64, room(0.6 * GB)), ran(256, room(0.7 * GB)), ran(1000, room(1.1 * GB))], None),
        # Nothing is known of the memory: four times as many each time.
        ([ran(64), ran(256)], 1000),
        ([ran(16), ran(64)], 256),
    ],
)
def test_following(attempts, rows):
    assert search.following(attempts, 64, 1000) == rows


def test_the_task_with_the_least_room_decides():
    def both(rows):
        return ran(rows, room(1e6 * rows, 4 * GB, "worker:0"), room(1e6 * rows, GB, "worker:1"))

    attempts = [both(64), both(256)]
    assert [line.largest for line in search.lines(attempts)] == [3520, 880]
    assert search.following(attempts, 64, 1 << 40) == 880


def test_a_batch_without_its_margin_is_not_taken():
    bends = [ran(64, room(0.5 * GB)), ran(256, room(0.6 * GB)), ran(1000, room(1.99 * GB))]
    assert search.largest(bends) == 256
    assert 256 < search.following(bends, 64, 1 << 40) < 1000


def test_numbers_have_six_binary_digits():
    assert [search.rounded(n) for n in (0.5, 7, 63, 64, 65, 127, 1320.5)] == [
        *(0, 7, 63, 64, 64, 126, 1312),
    ]
    for low, high in itertools.pairwise(sorted({search.rounded(n) for n in range(64, 5000)})):
        assert high / low <= 1.04
