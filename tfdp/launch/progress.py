"""How far a task has come: a small file that it writes and its launcher reads.

    report_progress(step=30, epoch=2)     # in the task, for a launcher that asks for it
    read(pathlib.Path("worker-0.step"))   # (2, 30)
    describe((2, 30))                     # "epoch 2, step 30"

The launcher names the file in TFDP_PROGRESS. A program that is not Python writes it as well: one or
two whole numbers, as in "2 30", the larger the further. It is what tells a failure after progress
from one without (see restarts).
"""

import contextlib
import functools
import os
import pathlib

FILE_VARIABLE = "TFDP_PROGRESS"

# Compared from the left: (epoch, step), or (step,).
Progress = tuple[int, ...]


def report_progress(step: int, epoch: int = 0) -> None:
    """Says how far this task is: every step or every epoch, as often as is convenient.

    Counts must go on where they stopped when a run resumes. Costs a few microseconds; without a
    launcher that asks, nothing. A full disk is no reason to end a training: errors are kept quiet.
    """
    path = os.environ.get(FILE_VARIABLE)
    if path:
        with contextlib.suppress(OSError):
            # A fixed width: a shorter number leaves nothing behind of a longer one.
            os.pwrite(_open(path), b"%12d %12d\n" % (epoch, step), 0)


def read(path: pathlib.Path) -> Progress | None:
    """What a task reported last; None when that is nothing, or makes no sense."""
    try:
        words = path.read_bytes()[:200].split()
        return tuple(int(word) for word in words[:2]) or None
    except (OSError, ValueError):
        return None


def describe(progress: Progress | None) -> str:
    """A progress in words."""
    if progress is None:
        return "before any reported step"
    return f"step {progress[0]}" if len(progress) == 1 else "epoch {}, step {}".format(*progress)


@functools.lru_cache(maxsize=1)
def _open(path: str) -> int:
    # Once in a process: opening costs ten times what writing does.
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o666)
