"""ArrayRecord files, read by index with the `array_record` package.

    reader = Reader(["a.array_record", "b.array_record"], records=[1000, 990], first=[0, 0])
    reader.read(np.array([3, 1500]))        # the serialized records, in this order

Files are opened when a record of theirs is asked for first. The index of an open file takes 8 bytes
of memory for each group of records that it was written with (group_size; TFDS writes groups of 1).
"""

import threading
from collections.abc import Callable, Sequence
from concurrent import futures
from typing import Any

import numpy as np
import tensorflow as tf

from tfdp.data import array_files
from tfdp.data.errors import DataError


class Reader:
    """Reads ArrayRecord files (see records.ByIndex).

    Args:
        names: The paths.
        records: How many records of each file are read.
        first: Number of the first of them in the file.
        check: Called with the number of a file before it is opened.
    """

    spec = tf.TensorSpec((), tf.string)

    def __init__(
        self,
        names: Sequence[str],
        records: Sequence[int],
        first: Sequence[int],
        check: Callable[[int], None] = lambda at: None,
    ) -> None:
        self._names, self._check = names, check
        self._begins = np.cumsum([0, *records[:-1]], dtype=np.int64)
        self._first = np.asarray(first, np.int64)
        self._stop = self._first + np.asarray(records, np.int64)
        self._readers: dict[int, Any] = {}
        self._locks = [threading.Lock() for _ in names]
        self._threads = futures.ThreadPoolExecutor(16, "array_record")

    def read(self, places: np.ndarray) -> np.ndarray:
        """Return the records at places in the sequence of all files."""
        files = np.searchsorted(self._begins, places, side="right") - 1
        numbers = places - self._begins[files] + self._first[files]
        out = np.empty(len(places), object)
        groups = [np.flatnonzero(files == at) for at in np.unique(files)]
        parts = self._threads.map(
            lambda group: self._read_file(int(files[group[0]]), numbers[group]), groups
        )
        for group, part in zip(groups, parts, strict=True):
            out[group] = part
        return out

    def _read_file(self, at: int, numbers: np.ndarray) -> list[bytes]:
        try:
            return self._open(at).read(numbers.tolist())
        except (RuntimeError, ValueError, IndexError) as error:
            if isinstance(error, DataError):
                raise
            raise self._named(at, numbers, error) from error

    def _named(self, at: int, numbers: np.ndarray, error: Exception) -> DataError:
        """Return an error with the record that cannot be read."""
        why = array_files.first_line(error)
        for number in numbers.tolist():
            try:
                self._open(at).read([number])
            except (RuntimeError, ValueError, IndexError) as one:
                why = array_files.first_line(one)
                return DataError(f"{self._names[at]}: record {number} cannot be read: {why}.")
        return DataError(f"{self._names[at]} cannot be read: {why}.")

    def _open(self, at: int) -> Any:
        reader = self._readers.get(at)
        if reader is None:
            with self._locks[at]:
                reader = self._readers.get(at)
                if reader is None:
                    self._check(at)
                    reader = array_files.open_file(self._names[at])
                    if reader.num_records() < self._stop[at]:
                        raise DataError(
                            f"{self._names[at]} holds {reader.num_records():,} records where "
                            f"{self._stop[at]:,} were counted: it has been cut, or written anew."
                        )
                    self._readers[at] = reader
        return reader
