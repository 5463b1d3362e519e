"""The records of a split, and how they are read: what the pipeline knows of a source.

    records = Records("train", files, reader, decode)
    records.reader                          # FromFront, or ByIndex
    records.name_of(id)                     # "data/a.tfrecord:17"

An id is a record's place: the number of its file in `files` times PER_FILE, plus its number there.
"""

import dataclasses
import functools
import os
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from tfdp.data import counts, sharding
from tfdp.data.errors import DataError
from tfdp.error import Error

# More records than any file holds.
PER_FILE = 1 << 40


class FromFront(Protocol):
    """Reads files from front to back."""

    def open(self, file: Any) -> Any:
        """Return a tf.data.Dataset of (id, raw record) of the file number `file` (a tensor)."""

    def explain(self, at: int, reason: Any) -> DataError | None:
        """Look through the file number `at` for what cannot be read; None if all can.

        Args:
            at: The file.
            reason: Records.reason.
        """


class ByIndex(Protocol):
    """Reads single records."""

    def read(self, places: np.ndarray) -> Any:
        """Return records as arrays with a row for each.

        Args:
            places: int64, each a record's place in the sequence of all files.

        Raises:
            DataError: If one cannot be read.
        """

    spec: Any
    """A tf.TensorSpec of one record, in the structure that `read` returns."""


@dataclasses.dataclass(frozen=True)
class Records:
    """A split.

    Attributes:
        name: Of the split, in words.
        files: Its files.
        reader: Either kind.
        by_index: Whether the reader is a ByIndex.
        decode: Makes (x, y) of a raw record, in a graph.
        decodes_batches: Whether `decode` takes a batch of raw records at once.
        reason: Says why a raw record cannot be decoded, "" if it can; None if nobody knows.
        unchanging: Whether the files are to be the same when they are opened again.
    """

    name: str
    files: tuple[sharding.File, ...]
    reader: Any
    by_index: bool
    decode: Callable[[Any], tuple[Any, Any]]
    decodes_batches: bool = False
    reason: Callable[[Any], str] | None = None
    unchanging: bool = True
    # Size and time of change of each file when it was opened.
    states: list[tuple[int, int]] = dataclasses.field(default_factory=list)
    # What Python code of the pipeline has raised: tf.data passes on but its text.
    raised: list[DataError] = dataclasses.field(default_factory=list)

    def __post_init__(self) -> None:
        if self.unchanging and not self.states:
            self.states.extend(counts.state(file.name) for file in self.files)

    @property
    def count(self) -> int | None:
        """Number of records; None if unknown."""
        numbers = [file.records for file in self.files]
        return None if None in numbers else sum(number or 0 for number in numbers)

    def name_of(self, identity: int) -> str:
        """Return "FILE:RECORD" of an id."""
        file, record = divmod(int(identity), PER_FILE)
        return f"{self.files[file].name}:{record}"

    def ids(self, places: np.ndarray) -> np.ndarray:
        """Return the ids of places in the sequence of all files."""
        files = np.searchsorted(self.begins, places, side="right") - 1
        return files * PER_FILE + places - self.begins[files] + self._first[files]

    # Once: there may be a file for each of a million images.
    @functools.cached_property
    def _first(self) -> np.ndarray:
        return np.array([file.first for file in self.files], np.int64)

    @functools.cached_property
    def begins(self) -> np.ndarray:
        """The place of each file's first record in the sequence of all."""
        return np.cumsum([0] + [file.records or 0 for file in self.files[:-1]], dtype=np.int64)

    def check_unchanged(self, at: int) -> None:
        """Raise DataError if a file has changed since it was opened first."""
        if not self.unchanging:
            return
        name = self.files[at].name
        try:
            same = counts.state(name) == self.states[at]
        except Error as error:
            raise self.failed(DataError(str(error))) from error
        if not same:
            raise self.failed(
                DataError(
                    f"{name} has changed during the run ({self.states[at][0]:,} bytes before, "
                    f"{os.path.getsize(name):,} now): start again."
                )
            )

    def failed(self, error: DataError) -> DataError:
        """Keep an error that is raised inside tf.data, and return it."""
        self.raised.append(error)
        return error
