"""bench.json: what the bench of one training has measured, in plain data.

    record = Record.read("runs/a/bench.json")
    record.verdict, record.examples_per_second
    record.write("runs/a/bench.json")

Every number has its unit in its name. docs/bench.schema.json describes the file; a change that
older readers would misread raises SCHEMA_VERSION.
"""

import dataclasses
import json
import os
import statistics
from collections.abc import Sequence
from typing import Self

from tfdp import plain
from tfdp.error import Error

SCHEMA_VERSION = 1
FILE = "bench.json"
VERDICTS = ("input", "training", "synchronisation", "straggler")


@dataclasses.dataclass(frozen=True)
class Timing:
    """The time of one step, or of one exchange, over several rounds.

    Attributes:
        median_seconds: Of the rounds.
        low_seconds, high_seconds: The quartiles.
        rounds_seconds: Each round's, in the order in which they were measured.
    """

    median_seconds: float
    low_seconds: float
    high_seconds: float
    rounds_seconds: tuple[float, ...]

    @classmethod
    def of(cls, rounds: Sequence[float]) -> "Timing":
        """Return the timing of rounds, in seconds."""
        low, _, high = statistics.quantiles(rounds, n=4) if len(rounds) > 1 else [rounds[0]] * 3
        return cls(statistics.median(rounds), low, high, tuple(rounds))


@dataclasses.dataclass(frozen=True)
class Stage:
    """One stage of the tf.data pipeline.

    Attributes:
        name: What tf.data calls it: "ParallelMapV2".
        seconds_per_step: Its own work for one step's batch, divided by its parallelism.
        parallelism: How many of its elements are made at the same time.
        function: The name of the function that it calls, "" for none.
        made_at: "FILE:LINE" of that function, "" where it is not known.
    """

    name: str
    seconds_per_step: float
    parallelism: int
    function: str = ""
    made_at: str = ""


@dataclasses.dataclass(frozen=True)
class Worker:
    """What one process has measured.

    Attributes:
        name: The task, "worker:0"; "" for a process that trains alone.
        host: Its machine.
        device: The kind of its devices: "Intel(R) Xeon(R) ...", "NVIDIA H200".
        cores: CPUs that it may use.
        input_seconds: A step's batch, read and nothing else (E1).
        alone_seconds: A step on a kept batch, without the exchange (E2).
        memory_bytes: The most that the process has taken so far.
        device_memory_bytes: The most that its GPUs have taken; 0 without GPUs.
    """

    name: str
    host: str
    device: str
    cores: int
    input_seconds: Timing
    alone_seconds: Timing
    memory_bytes: int
    device_memory_bytes: int = 0


@dataclasses.dataclass(frozen=True)
class Exchange:
    """One size of a sum over all replicas, alone.

    Attributes:
        bytes: What each replica gives.
        seconds: The median.
    """

    bytes: int
    seconds: float


@dataclasses.dataclass(frozen=True)
class Link:
    """What lies between the workers, as sums over all of them see it.

    A sum of S bytes over N replicas takes latency + S / algorithm bandwidth. The bus bandwidth is
    the algorithm bandwidth times 2(N-1)/N: what a link carries in a ring (as nccl-tests say it).

    Attributes:
        latency_seconds: Of a sum of few bytes.
        algorithm_bytes_per_second: Of a sum of many.
        bus_bytes_per_second: The same, per link.
        measured: The sums that this was fitted to.
    """

    latency_seconds: float
    algorithm_bytes_per_second: float
    bus_bytes_per_second: float
    measured: tuple[Exchange, ...]


@dataclasses.dataclass(frozen=True)
class Compute:
    """The arithmetic of the model.

    Attributes:
        forward_flops_per_example: Floating-point operations of a forward pass, 2 for a multiply and
            add; 0 where they cannot be counted.
        uncounted_layers: Kinds of layers that were not counted.
        flops_per_second: Of training, which is 3 forward passes, over all replicas.
        peak_flops_per_second: What the devices can do at most, all replicas; 0 if it is not known.
        peak_source: What the peak is of: "NVIDIA H100, bfloat16, dense".
    """

    forward_flops_per_example: float
    uncounted_layers: tuple[str, ...]
    flops_per_second: float
    peak_flops_per_second: float
    peak_source: str

    @property
    def mfu(self) -> float:
        """Model FLOPs utilisation, 0 to 1; 0 where the peak is not known."""
        if not self.peak_flops_per_second:
            return 0.0
        return self.flops_per_second / self.peak_flops_per_second


@dataclasses.dataclass(frozen=True)
class Remedy:
    """One thing to do, and what it is expected to gain.

    Attributes:
        name: "cache", "parallel_input", "bfloat16_wire", "larger_batch", ...
        text: What to do, a sentence.
        gain: Expected examples/s divided by those of now.
        seconds_per_step: What a step of the same batch is expected to take; 0 where the batch is
            another.
    """

    name: str
    text: str
    gain: float
    seconds_per_step: float = 0.0


@dataclasses.dataclass(frozen=True)
class Trial:
    """A remedy that was tried: steps before and after it took turns.

    Attributes:
        name: Of the remedy.
        predicted_gain: Expected beforehand.
        measured_gain: Steps/s after, divided by steps/s before.
        before_seconds, after_seconds: A step of the real loop.
        holds: Whether the measured gain is within 15% of the predicted one.
    """

    name: str
    predicted_gain: float
    measured_gain: float
    before_seconds: Timing
    after_seconds: Timing
    holds: bool


@dataclasses.dataclass(frozen=True)
class Record(plain.Facts):
    """One bench.

    Attributes:
        verdict: One of `VERDICTS`.
        verdict_text: The same in a sentence.
        shares: The share of the real step's time, by verdict; they sum up to about 1.
        notes: What else is to be known.
        remedies: The best first.
        trial: The remedy that was tried, if one was.
        strategy: The class of the strategy.
        replicas: Replicas in sync.
        global_batch_examples: Rows of a step.
        half_batch_examples: Rows of the smaller step; 0 where none was measured.
        steps_per_execution: As compiled.
        implementation: What carries the sums: "gloo", "auto", ...
        compression: The type in which gradients travel: "none", "float16", "bfloat16".
        pack_bytes: The bytes of each pack that a replica gives away in a step.
        trainable_bytes: Of the trainable weights in float32: what a replica would give away.
        real_seconds: A step of the real loop (E5).
        kept_seconds: A step on a kept batch, with the exchange (E3).
        half_alone_seconds: A step on half of it, without the exchange (E2), of the slowest worker;
            None where it was not measured.
        exchange_seconds: The exchange of the gradients alone (E4); None with one replica.
        data_wait: The share of the real loop's time that this process waited for batches.
        workers: What each process has measured, the chief first.
        stages: Of the chief's pipeline, the slowest first.
        link: Between the replicas; None with one.
        compute: The model's arithmetic.
        versions: Of tfdp, TensorFlow and Keras.
        schema_version: Of this file.
    """

    verdict: str
    verdict_text: str
    shares: dict[str, float]
    notes: tuple[str, ...]
    remedies: tuple[Remedy, ...]
    trial: Trial | None
    strategy: str
    replicas: int
    global_batch_examples: int
    half_batch_examples: int
    steps_per_execution: int
    implementation: str
    compression: str
    pack_bytes: tuple[int, ...]
    trainable_bytes: int
    real_seconds: Timing
    kept_seconds: Timing
    half_alone_seconds: Timing | None
    exchange_seconds: Timing | None
    data_wait: float
    workers: tuple[Worker, ...]
    stages: tuple[Stage, ...]
    link: Link | None
    compute: Compute
    versions: dict[str, str]
    schema_version: int = SCHEMA_VERSION

    @property
    def examples_per_second(self) -> float:
        """Of the real loop, over all replicas."""
        return self.global_batch_examples / self.real_seconds.median_seconds

    @property
    def gradient_bytes(self) -> int:
        """What each replica gives away in a step."""
        return sum(self.pack_bytes)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Return the record that a text holds.

        Raises:
            ValueError: If it holds none.
        """
        found = json.loads(text)
        version = found.get("schema_version") if isinstance(found, dict) else None
        if version != SCHEMA_VERSION:
            raise ValueError(
                f"its schema_version is {version}, and this tfdp reads {SCHEMA_VERSION}"
            )
        return super().from_json(text)

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Self:
        """Return the record of a file.

        Raises:
            Error: If there is none, with what to do.
        """
        try:
            return super().read(path)
        except OSError as error:
            raise Error(
                f"{path}: {error.strerror}. Measure first: tfdp launch --bench -- SCRIPT.py"
            ) from None
        except ValueError as error:
            raise Error(
                f"{path} is no bench.json: {error}. Measure again: tfdp launch --bench -- SCRIPT.py"
            ) from None
