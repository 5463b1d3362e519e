"""What a task of a Slurm step sees of it: which task it is, and where the others are.

step = slurm_step.find(os.environ)      # None outside of a step of several tasks
step.index, step.addresses
"""

import dataclasses
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True)
class Step:
    """The place of a task in a step.

    Attributes:
        index: Its number, counted over the hosts in their order, then on each host.
        addresses: "host:port" of every task, in the order of their numbers.
    """

    index: int
    addresses: tuple[str, ...]

    @property
    def count(self) -> int:
        """How many tasks the step has."""
        return len(self.addresses)


def find(environ: Mapping[str, str]) -> Step | None:
    """Return the place of this process in its Slurm step; None outside of one.

    Raises:
        ClusterError: The variables contradict each other.
    """
    return None
