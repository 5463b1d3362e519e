"""CSV files with names in their first line, read from front to back by tf.data.

    reader = Reader(["a.csv"], counts=[1000])
    columns = header(["a.csv"])
    decode, count = decoder(columns, inputs=["x0", "x1"], label="y")

A row is one line: a line break within quotes is not read. Empty lines are no rows.
"""

import csv
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import tensorflow as tf

from tfdp.data.errors import DataError
from tfdp.data.records import PER_FILE
from tfdp.error import Error

_BUFFER_BYTES = 1 << 20


class Reader:
    """Reads CSV files (see records.FromFront).

    Args:
        names: The paths.
        counts: Rows of each; None where nobody has counted.
    """

    def __init__(self, names: Sequence[str], counts: Sequence[int | None]) -> None:
        self._names, self._counts = names, counts

    def open(self, file: Any) -> tf.data.Dataset:
        """Return (id, line) of one file."""
        lines = tf.data.TextLineDataset(tf.constant(self._names)[file], None, _BUFFER_BYTES)
        lines = lines.skip(1).filter(lambda line: tf.strings.length(tf.strings.strip(line)) > 0)
        if None not in self._counts:
            count = tf.constant(self._counts, tf.int64)[file]
            lines = lines.apply(tf.data.experimental.assert_cardinality(count))
        return tf.data.Dataset.zip((tf.data.Dataset.range(file * PER_FILE, tf.int64.max), lines))

    def explain(self, at: int, reason: Callable[[bytes], str] | None) -> DataError | None:
        """Say which row cannot be read, or that there are more or fewer than were counted."""
        name, counted, number = self._names[at], self._counts[at], -1
        for number, line in enumerate(_rows(name)):
            why = reason(line) if reason else ""
            if why:
                return DataError(f"{name}: row {number}: {why}.")
        if counted is not None and number + 1 != counted:
            return DataError(
                f"{name} holds {number + 1:,} rows where {counted:,} were counted: it has been "
                "cut, or written anew."
            )
        return None


def count(path: str) -> int:
    """Return the number of rows of a file."""
    return sum(1 for _ in _rows(path))


def header(paths: Sequence[str]) -> list[str]:
    """Return the names of the columns, which must be the same in all files.

    Raises:
        Error: If they are not.
    """
    first: list[str] = []
    for path in paths:
        try:
            with open(path, newline="", encoding="utf-8-sig") as file:
                names = [name.strip() for name in next(csv.reader(file), [])]
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise Error(f"{path}: its first line cannot be read: {error}.") from error
        if len(set(names)) != len(names) or "" in names:
            raise Error(f"{path}: its first line has to name each column, once.")
        if first and names != first:
            raise Error(
                f"{path} has the columns {', '.join(names)}, but {paths[0]} has {', '.join(first)}."
            )
        first = names
    return first


def decoder(
    columns: Sequence[str], inputs: Sequence[str], label: str
) -> tuple[Callable[[Any], tuple[Any, Any]], int]:
    """Return what makes (float32 vectors, int64 labels) of a batch of lines, and their length.

    Raises:
        Error: If a name is no column.
    """
    inputs = list(inputs) or [name for name in columns if name != label]
    for name in (*inputs, label):
        if name not in columns:
            raise Error(
                f"There is no column {name!r}: the files have {', '.join(columns)}. Name what the "
                "model takes with config.data.input, and what it learns with config.data.label."
            )
    types = [
        tf.constant([], tf.int64 if name == label else tf.float32)
        if name in inputs or name == label
        else tf.constant([""])
        for name in columns
    ]

    def decode(lines: Any) -> tuple[Any, Any]:
        values = dict(zip(columns, tf.io.decode_csv(lines, types), strict=True))
        return tf.stack([values[name] for name in inputs], axis=-1), values[label]

    return decode, len(inputs)


def reason(columns: Sequence[str], inputs: Sequence[str], label: str) -> Callable[[bytes], str]:
    """Return what says why a line cannot be decoded, "" if it can."""

    def why(line: bytes) -> str:
        row = next(csv.reader([line.decode("utf-8", "replace")]), [])
        if len(row) != len(columns):
            return f"it has {len(row)} values for {len(columns)} columns"
        for name, value in zip(columns, row, strict=True):
            if name != label and inputs and name not in inputs:
                continue
            try:
                (int if name == label else float)(value)
            except ValueError:
                kind = "whole number" if name == label else "number"
                return f"the column {name!r} has {value!r}, which is no {kind}"
        return ""

    return why


def _rows(path: str) -> Iterator[bytes]:
    with open(path, "rb") as file:
        next(file, None)
        for line in file:
            if line.strip():
                yield line.rstrip(b"\r\n")
