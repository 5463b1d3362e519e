"""How a global batch is split: over workers, over the replicas of each, over rows.

    batch = Batch(global_batch_size=512, workers=2, replicas_per_worker=4)
    print(batch)            # Global batch 512 = 2 workers x 4 replicas x 64 per replica.
    batch.per_worker        # 256
    split(rows=7, parts=2)  # (3, 4)

Sizes count rows (examples), never bytes.
"""

import dataclasses
import itertools
from typing import Any

from tfdp.error import Error


@dataclasses.dataclass(frozen=True)
class Batch:
    """The rows of one step, which every replica holds an equal share of.

    Attributes:
      global_batch_size: Rows per step over all replicas.
      workers: Tasks that train in sync; 1 on a single machine.
      replicas_per_worker: Devices of each; 1 where a worker computes on its CPU.
    """

    global_batch_size: int
    workers: int = 1
    replicas_per_worker: int = 1

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            _check_count(field.name, getattr(self, field.name), lowest=1)
        lower = self.global_batch_size // self.replicas * self.replicas
        if lower != self.global_batch_size:
            use = f"{lower} or {lower + self.replicas}" if lower else f"{self.replicas}"
            raise Error(
                f"global_batch_size={self.global_batch_size} does not divide over "
                f"{self.replicas} replicas. Use {use}, or change the workers."
            )

    @property
    def replicas(self) -> int:
        """Replicas of all workers."""
        return self.workers * self.replicas_per_worker

    @property
    def per_worker(self) -> int:
        """Rows per step of one worker."""
        return self.global_batch_size // self.workers

    @property
    def per_replica(self) -> int:
        """Rows per step of one replica."""
        return self.global_batch_size // self.replicas

    def __str__(self) -> str:
        workers = "1 worker" if self.workers == 1 else f"{self.workers} workers"
        each = self.replicas_per_worker
        replicas = "1 replica" if each == 1 else f"{each} replicas"
        return (
            f"Global batch {self.global_batch_size} = "
            f"{workers} x {replicas} x {self.per_replica} per replica."
        )


def split(rows: int, parts: int) -> tuple[int, ...]:
    """How many rows each part holds, as even as can be, when each is a contiguous run of rows.

    Part r holds the rows from r * rows // parts up to (r + 1) * rows // parts, so that sizes differ
    by at most one, and a part is empty only where there are fewer rows than parts.

    Raises:
      Error: A negative number of rows, no parts, or not whole numbers.
    """
    _check_count("rows", rows, lowest=0)
    _check_count("parts", parts, lowest=1)
    ends = [part * rows // parts for part in range(parts + 1)]
    return tuple(end - start for start, end in itertools.pairwise(ends))


def _check_count(name: str, value: Any, lowest: int) -> None:
    # bool is an int to Python, and a batch of True rows is a mistake to everybody else.
    if not isinstance(value, int) or isinstance(value, bool) or value < lowest:
        raise Error(f"{name}={value!r} is not a whole number from {lowest} up. Use one.")
