import pytest

from tfdp.inference import shards
from tfdp.inference.shards import File, Span

# Files as (name, records), rows of a shard, and the shards as [(file number, first, count), ...].
CUTS = [
    ([("a", 10)], 4, [[(0, 0, 4)], [(0, 4, 4)], [(0, 8, 2)]]),
    ([("a", 8)], 4, [[(0, 0, 4)], [(0, 4, 4)]]),
    # Files are one sequence: a shard may hold the end of one and the beginning of the next.
    (
        [("a", 3), ("b", 1), ("c", 5)],
        4,
        [[(0, 0, 3), (1, 0, 1)], [(2, 0, 4)], [(2, 4, 1)]],
    ),
    ([("a", 0), ("b", 2), ("c", 0)], 4, [[(1, 0, 2)]]),
    # No rows at all are one empty part, so that a job has an output.
    ([("a", 0)], 4, [[]]),
    ([], 4, [[]]),
]


@pytest.mark.parametrize(("files", "shard_rows", "expected"), CUTS)
def test_cut(files, shard_rows, expected):
    found = list(shards.cut([File(name, records) for name, records in files], shard_rows))
    assert [[(s.file, s.first, s.records) for s in spans] for spans in found] == expected
    assert len(found) == shards.count(sum(records for _, records in files), shard_rows)


def test_a_shard_begins_at_the_last_offset_before_it(monkeypatch):
    monkeypatch.setattr(shards, "STRIDE", 3)
    file = File("a", records=10, offsets=(0, 300, 600, 900))
    assert list(shards.cut([file], 4)) == [
        [Span(0, 0, 4, offset=0, skip=0)],
        [Span(0, 4, 4, offset=300, skip=1)],
        [Span(0, 8, 2, offset=600, skip=2)],
    ]


def test_a_part_of_a_file(monkeypatch):
    monkeypatch.setattr(shards, "STRIDE", 3)
    file = File("a", records=4, first=5, offsets=(0, 300, 600, 900))
    assert list(shards.cut([file], 3)) == [
        [Span(0, 5, 3, offset=300, skip=2)],
        [Span(0, 8, 1, offset=600, skip=2)],
    ]


@pytest.mark.parametrize(
    ("rows", "batch_size", "expected"),
    [
        (0, 64, 256),
        (1000, 64, 256),
        (64 * 256 + 1, 1, 257),
        (64 * 256 + 1, 64, 320),
        (1_000_000, 64, 15680),
        (10**9, 64, 16384),
        (1000, 1000, 1000),
    ],
)
def test_default_shard_rows(rows, batch_size, expected):
    assert shards.default_shard_rows(rows, batch_size) == expected


def test_part_name():
    assert shards.part_name(3, 16, "csv") == "part-00003-of-00016.csv"
