"""tune_batch.json: what was measured and recommended, in plain data.

    tuned = Tuned.read("runs/a/tune_batch.json")
    tuned.largest_per_replica, tuned.recommendation.global_batch

Sizes of batches are rows (examples), memory is in bytes, times are in seconds.
"""

import dataclasses

from tfdp import plain

FILE = "tune_batch.json"
SCHEMA_VERSION = 1
# What holds up the largest batch.
BY_MEMORY, BY_RECORDS, BY_WISH, BY_TRIALS = "memory", "records", "max_batch", "trials"


@dataclasses.dataclass(frozen=True)
class Room:
    """What a task took of a kind of memory that is limited.

    Attributes:
        task: Its name: "worker:0"; "" for a process that trains alone.
        source: Who limits it.
        used_bytes: Its peak.
        limit_bytes: The limit.
    """

    task: str
    source: str
    used_bytes: int
    limit_bytes: int


@dataclasses.dataclass(frozen=True)
class Attempt:
    """One trial.

    Attributes:
        per_replica: Rows of a step on each replica.
        global_batch: Rows of a step.
        fits: Whether it ran.
        step_seconds: Of one step of the slowest task; 0 where it did not run.
        steps: How many ran.
        rooms: Of each task and each limit; () where it did not run.
        reason: Why it did not run.
    """

    per_replica: int
    global_batch: int
    fits: bool
    step_seconds: float = 0.0
    steps: int = 0
    rooms: tuple[Room, ...] = ()
    reason: str = ""


@dataclasses.dataclass(frozen=True)
class Line:
    """The memory of one task under one limit, as a line over the rows of a replica.

    Attributes:
        task: Its name.
        source: Who limits it.
        base_bytes: What it takes without rows.
        bytes_per_row: What each row of a replica's batch adds.
        limit_bytes: The limit.
        largest: Rows of a replica that leave a margin; 0 if no row fits.
    """

    task: str
    source: str
    base_bytes: float
    bytes_per_row: float
    limit_bytes: int
    largest: int


@dataclasses.dataclass(frozen=True)
class Throughput:
    """The time of a step, as a line over the global batch.

    Attributes:
        fixed_seconds: What a step takes beside its rows.
        seconds_per_row: What each row of the global batch adds.
        saturates_at: The global batch from which on doubling it gains less than 5% examples/s.
    """

    fixed_seconds: float
    seconds_per_row: float
    saturates_at: int


@dataclasses.dataclass(frozen=True)
class Noise:
    """The gradient noise scale.

    Attributes:
        scale: tr(S) / |G|^2 over the training, in examples; None where it hid in the noise, or was
            not measured.
        global_batch: That it was measured with.
        steps: How many steps the training took.
        planned_steps: How many the whole training takes; 0 if nobody knows.
        over_time: The scale from the start up to so many parts of the training.
        reason: Why there is none.
    """

    scale: float | None
    global_batch: int = 0
    steps: int = 0
    planned_steps: int = 0
    over_time: tuple[float, ...] = ()
    reason: str = ""


@dataclasses.dataclass(frozen=True)
class Recommendation:
    """What to train with.

    Attributes:
        global_batch: Rows of a step, over all replicas.
        low: The smallest global batch that trains nearly as fast.
        high: The largest.
        fastest: The global batch with the least time to a target.
        reason: In words.
    """

    global_batch: int
    low: int
    high: int
    fastest: int
    reason: str


@dataclasses.dataclass(frozen=True)
class Tuned(plain.Facts):
    """All of it.

    Attributes:
        largest_per_replica: The largest batch of a replica that fits, proved by a trial.
        largest_is_held_by: "memory", "records" (there are no more), "max_batch" (no larger one was
            wished for) or "trials" (a larger one may fit).
        replicas: How many train in sync.
        records: To train on; None if nobody has counted them.
        attempts: The trials, in their order.
        lines: The memory of each task.
        throughput: Of steps over the global batch.
        noise: The gradient noise scale.
        recommendation: The batch to train with.
        schema_version: Of tune_batch.json.
    """

    largest_per_replica: int
    largest_is_held_by: str
    replicas: int
    records: int | None
    attempts: tuple[Attempt, ...]
    lines: tuple[Line, ...]
    throughput: Throughput
    noise: Noise
    recommendation: Recommendation
    schema_version: int = SCHEMA_VERSION

    @property
    def largest_global_batch(self) -> int:
        """The largest global batch that fits."""
        return self.largest_per_replica * self.replicas
