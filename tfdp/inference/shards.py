"""Cutting the input into shards: which records of which files make which part of the output.

    files = [File("a.tfrecord", records=1000, offsets=(0, 6_528, ...))]
    list(cut(files, shard_rows=400))    # 3 shards of one span each; the last has rows 800 to 999
    part_name(3, 16, "jsonl")       # "part-00003-of-00016.jsonl"

The rows of all files, one after the other, are one sequence; shard k holds the rows from
k * shard_rows on, so that the parts in the order of their numbers are in the order of the input.
The cut depends on nothing but the input and shard_rows: neither on the number of workers nor on
what has failed. Nothing here touches a file.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

# Records from one remembered offset to the next: what a reader has to step over at most.
STRIDE = 64
# A shard is what is lost when a worker dies, and what the last worker may still have when the
# others are idle: small against the whole, and large against the cost of a file.
_PARTS_WANTED = 64
_FEWEST_ROWS = 256
_MOST_ROWS = 16384


@dataclasses.dataclass(frozen=True)
class File:
    """A file of the input whose records have been counted.

    Attributes:
        name: Its path below the input's folder.
        records: How many records of it are in the input.
        first: Number of the first of them in the file.
        offsets: Byte at which the record number n * STRIDE begins; () where that needs no search.
    """

    name: str
    records: int
    first: int = 0
    offsets: Sequence[int] = ()


class Span(NamedTuple):
    """Consecutive records of one file.

    Attributes:
        file: Its number among the files of the input.
        first: Number of the first record in the file.
        records: How many.
        offset: A byte of the file at which a record begins, not after the first.
        skip: Records between `offset` and the first.
    """

    file: int
    first: int
    records: int
    offset: int = 0
    skip: int = 0


def default_shard_rows(rows: int, batch_size: int) -> int:
    """Return the rows of a shard for so many rows of input: 64 shards, between 256 and 16384.

    Rounded up to whole batches, since the last batch of a shard is filled up.
    """
    wanted = max(_FEWEST_ROWS, min(_MOST_ROWS, -(-rows // _PARTS_WANTED)))
    return -(-wanted // batch_size) * batch_size


def count(rows: int, shard_rows: int) -> int:
    """Return the number of shards; an empty input makes one empty part."""
    return max(1, -(-rows // shard_rows))


def cut(files: Iterable[File], shard_rows: int) -> Iterator[list[Span]]:
    """Yield the shards in order."""
    assert shard_rows >= 1
    room, spans, number = shard_rows, [], 0
    for at, file in enumerate(files):
        done = 0
        while done < file.records:
            taken = min(room, file.records - done)
            spans.append(_span(at, file, file.first + done, taken))
            done += taken
            room -= taken
            if room == 0:
                yield spans
                room, spans, number = shard_rows, [], number + 1
    if spans or number == 0:
        yield spans


def part_name(number: int, parts: int, extension: str) -> str:
    """Return the name of a part, "part-00003-of-00016.csv"."""
    return f"part-{number:05}-of-{parts:05}.{extension}"


def _span(at: int, file: File, first: int, count: int) -> Span:
    if not file.offsets:
        return Span(at, first, count)
    step, skip = divmod(first, STRIDE)
    return Span(at, first, count, file.offsets[step], skip)
