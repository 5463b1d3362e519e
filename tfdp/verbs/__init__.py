"""The verbs of the command line that are more than a few lines: one module each."""


class UsageError(ValueError):
    """A command line that cannot be carried out."""
