"""What was wrong when a step failed: file, record and reason, where TensorFlow names neither.

    try:
        model.fit(...)
    except damage.FAILURES as error:
        raise damage.explained(error, records) or error

tf.data says at most at which byte a record is damaged. Once a run has failed there is time to look:
the files of the pipeline are read again, up to the first that cannot be, for a minute at most.
"""

import logging
import time

import numpy as np
import tensorflow as tf

from tfdp.data import records as records_lib
from tfdp.data.errors import DataError

_log = logging.getLogger("tfdp")
_ROWS = 256
_LOOK_SECONDS = 60.0
# What a step raises over data. TensorFlow puts a bad record into the text of its error, which may
# then be no text.
FAILURES = (tf.errors.OpError, UnicodeDecodeError)
# What an error of an iterator has in its text, and one of the model has not.
_SIGNS = ("IteratorGetNext", "Iterator::", "iterator_get_next", "Input dataset was expected")


def explained(error: BaseException, *splits: records_lib.Records) -> DataError | None:
    """Return what is wrong with the data of these splits, None if nothing can be found.

    Args:
        error: What a step has raised.
        splits: The records that it may have read.
    """
    for records in splits:
        if records.raised:  # Python code of the pipeline knows it already
            return records.raised[0]
    if isinstance(error, DataError):
        return error
    if not isinstance(error, FAILURES):
        return None
    if isinstance(error, tf.errors.OpError) and not any(sign in str(error) for sign in _SIGNS):
        return None
    if not isinstance(error, tf.errors.DataLossError):
        _log.info("Looking for the record that cannot be read.")
    until = time.monotonic() + _LOOK_SECONDS
    for records in splits:
        found = _first(records, until)
        if found is not None:
            return found
    return None


def _in_time(until: float, looked_at: str) -> bool:
    if time.monotonic() < until:
        return True
    _log.warning("Not found within %.0f s, which ended at %s.", _LOOK_SECONDS, looked_at)
    return False


def _first(records: records_lib.Records, until: float) -> DataError | None:
    if not records.by_index:
        for at, one in enumerate(records.files):
            if not _in_time(until, one.name):
                return None
            found = records.reader.explain(at, records.reason)
            if found is not None:
                return found
        return None
    if records.reason is None:
        return None
    total = records.count or 0
    for begin in range(0, total, _ROWS):
        if not _in_time(until, f"record {begin:,} of {total:,}"):
            return None
        places = np.arange(begin, min(total, begin + _ROWS), dtype=np.int64)
        try:
            rows = records.reader.read(places)
        except DataError as error:
            return error
        leaves = tf.nest.flatten(rows)
        for row, place in enumerate(places):
            raw = tf.nest.pack_sequence_as(records.reader.spec, [leaf[row] for leaf in leaves])
            why = records.reason(raw)
            if why:
                name = records.name_of(int(records.ids(np.array([place]))[0]))
                file, _, number = name.rpartition(":")
                return DataError(f"{file}: record {number}: {why}.")
    return None
