"""What --profile=steps:10-20 asks for. No TensorFlow.

profile = parse("steps:10-20", "runs/a")
text = profile.to_text()                        # for the environment of each task
profile = Profile.from_variable(os.environ, VARIABLE)
"""

import dataclasses
import re

from tfdp import plain
from tfdp.error import Error

# Where a task finds it.
VARIABLE = "TFDP_PROFILE"
# Traces hold each operation of each step: more fill the disk, and nobody reads them.
MOST_STEPS = 1000


@dataclasses.dataclass(frozen=True)
class Profile(plain.Facts):
    """Steps to be traced.

    Attributes:
        first, last: Of the steps of a run, both traced; the first one of a run is 1.
        folder: Where the traces go.
    """

    first: int
    last: int
    folder: str


def parse(text: str, folder: str) -> Profile:
    """Return what a flag asks for.

    Args:
        text: "steps:10-20".
        folder: Where the traces go.

    Raises:
        Error: For another text, with what to write.
    """
    match = re.fullmatch(r"steps:([0-9]{1,12})(?:-([0-9]{1,12}))?", text)
    if not match:
        raise Error(f"--profile={text}: write --profile=steps:10-20 (or steps:10 for one).")
    first, last = int(match[1]), int(match[2] or match[1])
    if first < 1 or last < first:
        raise Error(f"--profile={text}: the first step is 1, and the last one stands last.")
    if last - first >= MOST_STEPS:
        raise Error(f"--profile={text}: trace at most {MOST_STEPS:,} steps; 10 show enough.")
    return Profile(first, last, folder)
