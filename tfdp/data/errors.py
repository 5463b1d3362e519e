"""What goes wrong with data: before a run (SourceError), or in the middle of one (DataError).

raise SourceError("data/*.tfrecord matches no file.")
"""


class SourceError(ValueError):
    """Data that cannot be opened, with what to do: one line, before a step runs."""


class DataError(ValueError):
    """Data that turned out to be bad at a step: file, record and reason in one line."""


# What to do about a damaged record.
REPAIR = "Restore the file, or let config.data.bad_records=1 or more be skipped."
