"""How many tasks of each kind a cluster has, before anybody knows where they run.

shape = Shape(workers=2, chief=True, ps=1)
shape.tasks                         # chief:0, worker:0, worker:1, ps:0
shape.cluster(["a:1", "b:1", "c:1", "d:1"])
"""

import dataclasses
from collections.abc import Sequence

from tfdp.cluster import JOBS, Cluster, ClusterError, Task

# Far above what anybody trains with, far below what exhausts ports and processes.
_MOST_TASKS = 1000


@dataclasses.dataclass(frozen=True)
class Shape:
    """How many tasks of each kind a cluster has; str(Shape(2, chief=True)) is "chief=1,worker=2".

    Attributes:
      workers: How many train, a chief not counted.
      chief: Whether there is one.
      ps: How many parameter servers.
      evaluator: Whether there is one.

    Raises:
      ClusterError: The combination cannot train; one line that names the flag.
    """

    workers: int
    chief: bool = False
    ps: int = 0
    evaluator: bool = False

    def __post_init__(self) -> None:
        for flag, value, lowest in (("workers", self.workers, 1), ("ps", self.ps, 0)):
            if not isinstance(value, int) or isinstance(value, bool) or value < lowest:
                why = " (the chief and the evaluator come on top)" if flag == "workers" else ""
                raise ClusterError(
                    f"--{flag}={value!r} is not a whole number from {lowest} up{why}. "
                    f"Use --{flag}={lowest} or more."
                )
        if self.ps and not self.chief:
            raise ClusterError(
                f"--ps={self.ps} needs --chief: the chief coordinates the workers of parameter "
                f"servers. Add --chief, or leave out --ps."
            )
        if (count := sum(self.counts.values())) > _MOST_TASKS:
            raise ClusterError(
                f"--workers={self.workers} --ps={self.ps} makes {count} tasks. "
                f"Use at most {_MOST_TASKS}."
            )

    @property
    def counts(self) -> dict[str, int]:
        """How many tasks each job has, in the order of their numbers."""
        counts = (int(self.chief), self.workers, self.ps, int(self.evaluator))
        return dict(zip(JOBS, counts, strict=True))

    @property
    def tasks(self) -> tuple[Task, ...]:
        """All tasks in the order of their numbers: chief, workers, parameter servers, evaluator."""
        return tuple(Task(job, n) for job, count in self.counts.items() for n in range(count))

    def __len__(self) -> int:
        return sum(self.counts.values())

    def __str__(self) -> str:
        return ",".join(f"{job}={count}" for job, count in self.counts.items() if count)

    def without(self, workers: int) -> "Shape":
        """The shape with so many workers less."""
        return dataclasses.replace(self, workers=self.workers - workers)

    @classmethod
    def parse(cls, text: str) -> "Shape":
        """Reads what str() writes.

        Raises:
          ClusterError: It is no such text.
        """
        pairs = [part.partition("=") for part in text.split(",")]
        counts = {job: number for job, _, number in pairs}
        if len(counts) < len(pairs) or not all(
            job in JOBS and number.isdecimal() for job, number in counts.items()
        ):
            raise ClusterError(
                f"{text[:300]!r} does not say how many tasks a cluster has. Write it like "
                f"chief=1,worker=2,ps=1,evaluator=1."
            )
        numbers = [int(counts.get(job, 0)) for job in JOBS]
        for job, number in zip(JOBS, numbers, strict=True):
            if job in ("chief", "evaluator") and number > 1:
                raise ClusterError(f"{text[:300]!r}: a cluster has one {job} at most.")
        return cls(numbers[1], bool(numbers[0]), numbers[2], bool(numbers[3]))

    def cluster(self, addresses: Sequence[str]) -> Cluster:
        """The cluster of this shape, of one address for each task in their order.

        Raises:
          ClusterError: Too few or too many, or the addresses are bad.
        """
        if len(addresses) != len(self):
            raise ClusterError(
                f"{len(self)} tasks need {len(self)} addresses, but {len(addresses)} were given."
            )
        left = iter(addresses)
        return Cluster(
            **{job: tuple(next(left) for _ in range(n)) for job, n in self.counts.items()}
        )
