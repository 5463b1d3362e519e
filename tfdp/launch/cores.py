"""Which cores of a machine each task runs on. Pure: nothing is looked up.

    divide([(0, 4), (1, 5), (2, 6), (3, 7)], 2)  # [(0, 4, 1, 5), (2, 6, 3, 7)]

Two workers that each start as many threads as the machine has cores fight for them. TensorFlow,
tf.data and OpenMP count the cores that a process may run on, so that a share of the cores is a
share of the threads as well.
"""

import itertools
from collections.abc import Sequence

from tfdp import batching


def divide(cores: Sequence[Sequence[int]], tasks: int) -> list[tuple[int, ...]]:
    """Contiguous shares, as even as can be.

    Args:
      cores: The CPUs of each physical core that may be used (more than one with hyper-threading),
        neighbours in the machine beside each other.
      tasks: How many tasks compute.

    Returns:
      The CPUs of each task, those of one core together where there are enough; [] where there is
      nothing to divide: one task, or fewer CPUs than tasks.
    """
    units = [tuple(core) for core in cores]
    if len(units) < tasks:
        units = [(cpu,) for core in units for cpu in core]
    if tasks < 2 or len(units) < tasks:
        return []
    ends = list(itertools.accumulate(batching.split(len(units), tasks), initial=0))
    return [
        tuple(itertools.chain.from_iterable(units[start:stop]))
        for start, stop in itertools.pairwise(ends)
    ]


def in_words(cpus: Sequence[int]) -> str:
    """CPUs as Linux and taskset write them: "0-3,8"."""
    runs: list[list[int]] = []
    for cpu in sorted(cpus):
        if runs and runs[-1][1] == cpu - 1:
            runs[-1][1] = cpu
        else:
            runs.append([cpu, cpu])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)
