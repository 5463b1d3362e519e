"""Raw records of TFRecord and CSV files: counting them, and reading some from the middle.

    file = scan_tfrecord("a.tfrecord")              # shards.File: 1000 records, and where they are
    for record in read_tfrecord(span):              # bytes, or RowError for one that is damaged
        ...

Counting and reading go through the same loop, so that record 17 is the same one in both. What
cannot be read is a record too: it is counted, and named when it is read.
"""

import csv
from collections.abc import Callable, Iterator
from typing import IO, Any

from tfdp.data.tfrecord import FOOTER_BYTES, HEADER, length_of, masked_crc
from tfdp.inference.errors import InferenceError, RowError
from tfdp.inference.shards import File, Span

_FRAME_BYTES = HEADER.size + FOOTER_BYTES
_BUFFER_BYTES = 1 << 18
# Records from one remembered offset to the next: what a reader has to step over at most.
_STRIDE = 256


def scan_tfrecord(path: str) -> File:
    """Count the records of a TFRecord file by their headers.

    Raises:
        InferenceError: If it does not begin with a TFRecord.
    """
    return _scan(path, _skip_tfrecords)


def read_tfrecord(span: Span) -> Iterator[bytes | RowError]:
    """Yield the records of a span."""
    with open(span.file, "rb", buffering=_BUFFER_BYTES) as file:
        file.seek(span.offset)
        for _ in zip(range(span.skip), _skip_tfrecords(file, span.file), strict=False):
            pass
        for _ in range(span.count):
            record = _read_record(file)
            yield record
            if isinstance(record, RowError) and record.args[-1] == "end":
                return


def csv_header(path: str) -> list[str]:
    """Return the names in the first line.

    Raises:
        InferenceError: If there are none, or one stands there twice.
    """
    with open(path, "rb") as file:
        try:
            names = next(csv.reader(_lines(file, _Position())), [])
        except csv.Error as error:
            raise InferenceError(f"{path}: its first line cannot be read: {error}.") from error
    # What spreadsheet programs put before the first name.
    names = [name.removeprefix("\ufeff").strip() for name in names]
    twice = sorted({name for name in names if names.count(name) > 1})
    if not names or twice:
        why = f"names {twice[0]!r} twice" if twice else "is empty"
        raise InferenceError(f"{path}: its first line has to name the columns, but {why}.")
    return names


def scan_csv(path: str) -> File:
    """Count the rows of a CSV file below its first line; empty lines are none."""
    return _scan(path, _skip_csv_rows)


def read_csv(span: Span) -> Iterator[list[str] | RowError]:
    """Yield the rows of a span."""
    with open(span.file, "rb", buffering=_BUFFER_BYTES) as file:
        file.seek(span.offset)
        rows = _csv_rows(file, _Position(span.offset), header=span.offset == 0)
        for number, row in enumerate(rows):
            if number >= span.skip + span.count:
                return
            if number >= span.skip:
                yield row


class _Position:
    """The byte up to which lines have been given out."""

    def __init__(self, at: int = 0) -> None:
        self.at = at


def _scan(path: str, skip: Callable[[IO[bytes], str], Iterator[int]]) -> File:
    offsets: list[int] = []
    records = 0
    try:
        with open(path, "rb", buffering=_BUFFER_BYTES) as file:
            for offset in skip(file, path):
                if records % _STRIDE == 0:
                    offsets.append(offset)
                records += 1
    except OSError as error:
        raise InferenceError(f"{path} cannot be read: {error.strerror or error}.") from error
    return File(path, records, 0, tuple(offsets), _STRIDE)


def _skip_tfrecords(file: IO[bytes], path: str) -> Iterator[int]:
    """Yield where each record begins; the file is behind it when the next one is asked for."""
    offset = file.tell()
    size = file.seek(0, 2)
    file.seek(offset)
    while offset < size:
        header = file.read(HEADER.size)
        length = _length(header, size - offset)
        if length is None:
            if offset == 0:
                raise InferenceError(
                    f"{path} does not begin with a TFRecord. Compressed files have to be "
                    "unpacked first."
                )
            yield offset  # damaged: it is counted, and nothing after it can be found
            return
        file.seek(length + FOOTER_BYTES, 1)
        yield offset
        offset += HEADER.size + length + FOOTER_BYTES


def _length(header: bytes, room: int) -> int | None:
    """Return the length of a record, None where the header or the end of the file denies it."""
    length = length_of(header)
    return length if length is not None and length + _FRAME_BYTES <= room else None


def _read_record(file: IO[bytes]) -> bytes | RowError:
    header = file.read(HEADER.size)
    length = _length(header, 1 << 62)
    if length is None:
        return RowError("its header is damaged: the rest of the file cannot be read", "end")
    record, footer = file.read(length), file.read(FOOTER_BYTES)
    if len(footer) < FOOTER_BYTES:
        return RowError("the file ends in the middle of it", "end")
    if masked_crc(record) != int.from_bytes(footer, "little"):
        return RowError("its checksum is wrong", "")
    return record


def _lines(file: IO[bytes], position: _Position) -> Iterator[str]:
    for line in file:
        position.at += len(line)
        # Kept as they are until it is known which columns are used.
        yield line.decode("utf-8", "surrogateescape")


def _csv_rows(file: IO[bytes], position: _Position, header: bool) -> Iterator[Any]:
    rows = csv.reader(_lines(file, position))
    try:
        if header:
            next(rows, None)
        for row in rows:
            if row:
                yield row
    except csv.Error as error:
        yield RowError(f"{error}: the rest of the file cannot be read", "end")


def _skip_csv_rows(file: IO[bytes], path: str) -> Iterator[int]:
    del path
    position = _Position()
    rows = _csv_rows(file, position, header=True)
    # Where the next row begins is known before it is read; the first begins behind the header.
    before = 0
    for _ in rows:
        yield before
        before = position.at
