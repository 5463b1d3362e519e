"""TFRecord files, read from front to back by tf.data.

    reader = Reader(["a.tfrecord"], [Extent(stop=1000, total=1000)])
    reader.open(file)                   # (id, serialized record) of one file

A file whose damaged records are skipped is read in Python, record by record; all others by
tf.data.TFRecordDataset, which checks every record's checksum and ends with an error at the first
that is wrong.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfdp.data import tfrecord
from tfdp.data.errors import REPAIR, DataError
from tfdp.data.records import PER_FILE

_BUFFER_BYTES = 1 << 20


@dataclasses.dataclass(frozen=True)
class Extent:
    """Which records of a file are read.

    Attributes:
        first: Number of the first.
        stop: Number behind the last; None for all there are.
        total: Records of the whole file; None if unknown.
        damaged: Numbers of those that are skipped.
    """

    first: int = 0
    stop: int | None = None
    total: int | None = None
    damaged: tuple[int, ...] = ()

    @property
    def records(self) -> int | None:
        """How many are read."""
        if self.stop is None:
            return None
        skipped = sum(self.first <= number < self.stop for number in self.damaged)
        return self.stop - self.first - skipped

    @property
    def is_part(self) -> bool:
        """Whether the file goes on behind them."""
        return self.stop is not None and self.stop != self.total


class Reader:
    """Reads TFRecord files (see records.FromFront).

    Args:
        names: The paths.
        extents: What is read of each.
    """

    def __init__(self, names: Sequence[str], extents: Sequence[Extent]) -> None:
        self._names, self._extents = names, extents
        self._packed = [tfrecord.compression(name) for name in names]

    def open(self, file: Any) -> tf.data.Dataset:
        """Return (id, serialized record) of one file."""
        extents = self._extents
        sound = [not extent.damaged for extent in extents]
        first = tf.constant([extent.first for extent in extents], tf.int64)[file]
        # No name for a file that is read in Python.
        name = tf.boolean_mask([tf.constant(self._names)[file]], [tf.constant(sound)[file]])
        packed = tf.constant(self._packed)[file]
        dataset = tf.data.TFRecordDataset(name, packed, _BUFFER_BYTES)
        if any(extent.first for extent in extents):
            dataset = dataset.skip(first)
        if all(extent.stop is not None for extent in extents):
            counts = [
                (extent.records or 0) * good for extent, good in zip(extents, sound, strict=True)
            ]
            count = tf.constant(counts, tf.int64)[file]
            if any(extent.is_part for extent in extents):
                limits = [n if e.is_part else -1 for e, n in zip(extents, counts, strict=True)]
                dataset = dataset.take(tf.constant(limits, tf.int64)[file])
            # More or fewer records than were counted are an error, which explain() names.
            dataset = dataset.apply(tf.data.experimental.assert_cardinality(count))
        ids = tf.data.Dataset.range((file * PER_FILE) + first, tf.int64.max)
        dataset = tf.data.Dataset.zip((ids, dataset))
        if not all(sound):
            dataset = dataset.concatenate(self._open_damaged(file))
        return dataset

    def _open_damaged(self, file: Any) -> tf.data.Dataset:
        def good(file: np.int64) -> Iterator[tuple[int, bytes]]:
            at = int(file)
            extent = self._extents[at]
            if extent.damaged:
                for number, record in enumerate(tfrecord.read(self._names[at])):
                    if number == extent.stop:
                        return
                    if number >= extent.first and isinstance(record, bytes):
                        yield at * PER_FILE + number, record

        spec = (tf.TensorSpec((), tf.int64), tf.TensorSpec((), tf.string))
        return tf.data.Dataset.from_generator(good, output_signature=spec, args=(file,))

    def explain(self, at: int, reason: Callable[[bytes], str] | None = None) -> DataError | None:
        """Say what cannot be read of a file: a damaged record, a wrong count, a bad content.

        Args:
            at: The file.
            reason: Says why a record cannot be decoded, "" if it can.
        """
        name, extent = self._names[at], self._extents[at]
        number = -1
        for number, record in enumerate(tfrecord.read(name)):
            if number in extent.damaged:
                continue
            if isinstance(record, tfrecord.Damage):
                return DataError(f"{record} {REPAIR}")
            if number >= extent.first and (extent.stop is None or number < extent.stop):
                why = reason(record) if reason else ""
                if why:
                    return DataError(f"{name}: record {number}: {why}.")
        found, stop = number + 1, extent.stop
        if stop is not None and (found < stop or (found > stop and not extent.is_part)):
            return DataError(
                f"{name} holds {found:,} records where {stop:,} were counted: it has been cut, or "
                "written anew."
            )
        return None
