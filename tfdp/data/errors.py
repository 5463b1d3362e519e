"""What is wrong with records, found at a step: before a run the class is tfdp's Error.

raise DataError("data/a.tfrecord: record 17: its checksum does not match.")
"""

from tfdp.error import Error


class DataError(Error):
    """Data that turned out to be bad at a step: file, record and reason in one line."""


# What to do about a damaged record.
REPAIR = "Restore the file, or let config.data.bad_records=1 or more be skipped."
