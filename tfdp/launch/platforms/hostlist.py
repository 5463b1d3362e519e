"""Slurm's short forms of lists: hosts, and how many tasks each of them has.

hostlist.expand("tf[1-3,7],b[01-02]x[1-2]")
# ["tf1", "tf2", "tf3", "tf7", "b01x1", "b01x2", "b02x1", "b02x2"], as scontrol show hostnames
hostlist.expand_counts("2(x3),1")       # [2, 2, 2, 1]
hostlist.expand_numbers("61-63,70")     # ["61", "62", "63", "70"]
"""

import itertools
import re

from tfdp.cluster import ClusterError

# Far above any cluster, far below what exhausts the memory.
_MOST = 100_000
_COUNT = re.compile(r"([0-9]{1,9})(?:\(x([0-9]{1,9})\))?")
_RANGE = re.compile(r"([0-9]{1,15})(?:-([0-9]{1,15}))?")


def expand(text: str) -> list[str]:
    """Return the names of a host list, in its order.

    Raises:
        ClusterError: It is no such list.
    """
    found: list[str] = []
    for word in _split(text):
        # Every second part is what stands in brackets.
        parts = re.split(r"\[([^\[\]]*)\]", word)
        if not word or any(char in "".join(parts[::2]) for char in "[] "):
            raise _bad(text)
        choices = [
            expand_numbers(part) if number % 2 else [part] for number, part in enumerate(parts)
        ]
        for one in itertools.product(*choices):
            found.append("".join(one))
            if len(found) > _MOST:
                raise _bad(text)
    return found


def expand_numbers(text: str) -> list[str]:
    """Return the numbers of "1-3,07"; those of "01-12" keep their zeros.

    Raises:
        ClusterError: It is no such list.
    """
    found: list[str] = []
    for part in text.split(","):
        match = _RANGE.fullmatch(part)
        if match is None:
            raise _bad(text)
        first, last = match[1], match[2] or match[1]
        if int(last) < int(first) or int(last) - int(first) >= _MOST:
            raise _bad(text)
        found += [f"{number:0{len(first)}}" for number in range(int(first), int(last) + 1)]
    return found


def expand_counts(text: str) -> list[int]:
    """Return the number of tasks of each host.

    Raises:
        ClusterError: It is no such list.
    """
    found: list[int] = []
    for part in text.split(","):
        match = _COUNT.fullmatch(part)
        if match is None or int(match[2] or 1) > _MOST:
            raise _bad(text)
        found += [int(match[1])] * int(match[2] or 1)
    return found


def _split(text: str) -> list[str]:
    """Split at the commas that stand outside of brackets."""
    words, depth, begun = [], 0, 0
    for at, char in enumerate(text):
        depth += {"[": 1, "]": -1}.get(char, 0)
        if char == "," and depth == 0:
            words.append(text[begun:at])
            begun = at + 1
    return [*words, text[begun:]]


def _bad(text: str) -> ClusterError:
    return ClusterError(
        f"{text[:200]!r} is no list as Slurm writes it, such as tf[1-3,7] or 2(x3),1. "
        f"See SLURM_STEP_NODELIST and SLURM_STEP_TASKS_PER_NODE of this task."
    )
