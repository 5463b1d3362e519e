"""The error that says what a user has to change.

raise Error("global_batch_size=100 does not divide over 8 replicas. Use 96 or 104.")
"""


class Error(ValueError):
    """Something that cannot be done as it was asked for; the message says what to do.

    What tfdp raises for a mistake of its user is this class, or one that is made from it where
    somebody has to tell it from others. The command line prints it on one line.
    """
