"""Raw rows of TFRecord and CSV files: counting them, and reading some from the middle.

    file = scan_tfrecord("data/a.tfrecord", "a.tfrecord")   # File: 1000 records, and where they are
    for record in read_tfrecord("data/a.tfrecord", span):   # bytes, or RowError for a damaged one
        ...

Counting and reading go through the same loop, so that record 17 is the same one in both. What
cannot be read is a record too: it is counted, and named when it is read.
"""

import array
import csv
import itertools
from collections.abc import Callable, Iterator
from typing import IO, Any

from tfdp.data import tfrecord
from tfdp.inference import shards
from tfdp.inference.failures import InferenceError, RowError
from tfdp.inference.shards import File, Span

_BUFFER_BYTES = 1 << 18


def scan_tfrecord(path: str, name: str) -> File:
    """Count the records of a file by their headers.

    Raises:
        InferenceError: If it does not begin with a TFRecord, or is packed.
    """
    return _scan(path, name, _tfrecord_offsets)


def read_tfrecord(path: str, span: Span) -> Iterator[bytes | RowError]:
    """Yield the records of a span."""
    records = tfrecord.read(path, span.offset)
    for record in itertools.islice(records, span.skip, span.skip + span.records):
        yield RowError(record.reason) if isinstance(record, tfrecord.Damage) else record


def csv_header(path: str) -> list[str]:
    """Return the names in the first line.

    Raises:
        InferenceError: If there are none, or one stands there twice.
    """
    with open(path, "rb") as file:
        try:
            names = next(csv.reader(_lines(file, _Position(0))), [])
        except csv.Error as error:
            raise InferenceError(f"{path}: its first line cannot be read: {error}.") from error
    # What spreadsheet programs put before the first name.
    names = [name.removeprefix("\ufeff").strip() for name in names]
    twice = sorted({name for name in names if names.count(name) > 1})
    if not names or twice:
        why = f"names {twice[0]!r} twice" if twice else "is empty"
        raise InferenceError(f"{path}: its first line has to name the columns, but {why}.")
    return names


def scan_csv(path: str, name: str) -> File:
    """Count the rows of a file below its first line; empty lines are none."""
    return _scan(path, name, _csv_offsets)


def read_csv(path: str, span: Span) -> Iterator[list[str] | RowError]:
    """Yield the rows of a span."""
    with open(path, "rb", buffering=_BUFFER_BYTES) as file:
        file.seek(span.offset)
        rows = _csv_rows(file, _Position(span.offset))
        yield from itertools.islice(rows, span.skip, span.skip + span.records)


def _scan(path: str, name: str, offsets_of: Callable[[str], Iterator[int]]) -> File:
    offsets = array.array("Q")
    number = 0
    try:
        for number, offset in enumerate(offsets_of(path), 1):
            if number % shards.STRIDE == 1:
                offsets.append(offset)
    except OSError as error:
        raise InferenceError(f"{path} cannot be read: {error.strerror or error}.") from error
    return File(name, number, 0, offsets)


def _tfrecord_offsets(path: str) -> Iterator[int]:
    if packed := tfrecord.compression(path):
        raise InferenceError(f"{path} is packed with {packed}. Unpack it first.")
    for offset in tfrecord.offsets(path):
        if isinstance(offset, tfrecord.Damage):
            if offset.offset == 0:
                raise InferenceError(f"{path} does not begin with a TFRecord.")
            yield offset.offset
        else:
            yield offset


class _Position:
    """The byte up to which lines have been given out."""

    def __init__(self, at: int) -> None:
        self.at = at


def _csv_offsets(path: str) -> Iterator[int]:
    with open(path, "rb", buffering=_BUFFER_BYTES) as file:
        # Where the next row begins is known before it is read; the first is behind the header.
        before = 0
        position = _Position(0)
        for _ in _csv_rows(file, position):
            yield before
            before = position.at


def _csv_rows(file: IO[bytes], position: _Position) -> Iterator[Any]:
    """Yield rows from a position; the header is none."""
    has_header = position.at == 0
    rows = csv.reader(_lines(file, position))
    try:
        if has_header:
            next(rows, None)
        for row in rows:
            if row:
                yield row
    except csv.Error as error:
        yield RowError(f"{error}: the rest of the file cannot be read")


def _lines(file: IO[bytes], position: _Position) -> Iterator[str]:
    for line in file:
        position.at += len(line)
        # Kept as they are until it is known which columns are used.
        yield line.decode("utf-8", "surrogateescape")
