"""What goes wrong in sharded inference: in the command (InferenceError), or in one row (RowError).

raise InferenceError("--input=data/*.csv matches no file.")
"""

from tfdp.error import Error


class InferenceError(Error):
    """A command that cannot be carried out: one line, said before rows are read."""


class JobFailed(RuntimeError):
    """A job that has stopped: one line; what is complete stays, and a rerun goes on from there."""


class RowError(Exception):
    """A row that cannot be read, with the reason in words."""
