"""The five runs, in rounds that take turns: what the record of a bench holds.

    with rehearsal.running() as runs:
        record, times, tried = measure(rehearsal, runs)

    E5 real     the real loop                                        the truth
    E1 input    batches read and nothing else, on all tasks at once  data loading bandwidth
    E3 kept     steps on one batch that is kept, with the exchange
    E2 alone    the same without the exchange, and on half the rows  training bandwidth
    E4 exchange the model's own packs summed alone                   synchronisation, nothing hidden

A round runs each of them once; the medians of the rounds are compared, so that what disturbs a
machine for a while disturbs all runs alike. Each run has a lead that is not timed: a pipeline that
has filled its buffers gives the first batches for nothing.
"""

import contextlib
import dataclasses
import functools
import socket
import statistics
import time
from collections.abc import Callable, Iterator

import keras
import tensorflow as tf

from tfdp import version
from tfdp.bench import flops, hardware, model_facts, record, stages, verdict
from tfdp.compat import dataset_graphs
from tfdp.fit import Communication, Rehearsal, Runs

# The sizes whose sums are timed, in bytes; those above one that takes _LONG_EXCHANGE are left out.
_SIZES = tuple(4096 << (2 * i) for i in range(8))  # 4 KB to 64 MB
_LONG_EXCHANGE = 0.25
# Of a cache that is tried: batches, and the time that it may take to fill it.
_MOST_KEPT, _KEEP_SECONDS = 32, 3.0
# The longest that it may take to fill a cache of the script's own.
_FILL_SECONDS = 20.0
# The stages of an input that takes less than this share of a step are of no interest.
_WORTH_A_LOOK = 0.2
# Of one call that reads batches, at least.
_CHUNK_SECONDS = 0.01


@dataclasses.dataclass(frozen=True)
class Effort:
    """How long is measured.

    Attributes:
        rounds: How often each run is measured.
        seconds: Of one timed run, about; a step that takes longer is taken twice all the same.
    """

    rounds: int = 5
    seconds: float = 0.4

    @property
    def warm_up_seconds(self) -> float:
        """Of the real loop, before the first round: tf.data tunes itself meanwhile."""
        return min(2.0, 4 * self.seconds)


class Bench:
    """Measures one fit. In a cluster every task makes the same calls.

    Args:
        rehearsal: The fit.
        runs: Its runs.
        effort: How long is measured.

    Attributes:
        limit: Steps in one execution.
    """

    def __init__(self, rehearsal: Rehearsal, runs: Runs, effort: Effort | None = None):
        self.rehearsal, self.runs = rehearsal, runs
        self.effort = effort or Effort()
        self.limit = max(1, int(rehearsal.model.steps_per_execution))
        self._batches_kept = 2
        self._stages: tuple[record.Stage, ...] = ()

    # -- one run ----------------------------------------------------------------------------

    def seconds(self, run: Callable[[int], float], steps: int, lead: int) -> float:
        """Return the seconds of one step; all tasks begin together."""
        self.rehearsal.of_all("the bench")
        run(self._whole(lead))
        steps = self._whole(steps)
        return run(steps) / steps

    def steps_for(self, run: Callable[[int], float], seconds: float | None = None) -> int:
        """Return how many steps a run of about so many seconds has; the same on all tasks.

        The first call of a run traces it.
        """
        run(self._whole(1))
        took, steps = 0.0, 1
        # Few steps of a fast run say little.
        while took < min(0.2, self.effort.seconds / 2) and steps < 1 << 12:
            steps = self._whole(steps * 2)
            took = max(self.rehearsal.of_all("the bench", run(steps)))
        wanted = self.effort.seconds if seconds is None else seconds
        return max(2, round(wanted * steps / took))

    def _whole(self, steps: int) -> int:
        """Return at least so many steps, in whole executions."""
        return -(-steps // self.limit) * self.limit

    @contextlib.contextmanager
    def opened(self, runs: Runs, first: bool = False) -> Iterator[None]:
        """Let the real pipeline run in here; what it has made ahead is used up at the beginning.

        Outside it is closed: while nobody reads it would go on to fill its buffers, and take the
        cores from what is measured.

        Args:
            runs: Whose pipeline.
            first: Whether tf.data has not tuned it yet, and caches are empty.
        """
        runs.open()
        try:
            seconds = self.effort.warm_up_seconds if first else self.effort.seconds / 2
            fills = runs.batches_to_cache if first else 0
            self._read(runs, seconds, fills)
            yield
        finally:
            runs.pause()

    def _read(self, runs: Runs, seconds: float, fills: int = 0) -> tuple[int, float]:
        """Read batches for so many seconds; return how many, and the seconds.

        Each task reads by its own clock.

        Args:
            runs: Whose batches.
            seconds: How long; at least two batches are read.
            fills: So many batches fill a cache: they are read too, unless it takes long.
        """
        self.rehearsal.of_all("the bench")
        begin, count, chunk, passed = time.perf_counter(), 0, 1, 0.0
        while passed < seconds or count < 2 or (count < fills and passed < _FILL_SECONDS):
            took = runs.input(chunk)
            count, passed = count + chunk, time.perf_counter() - begin
            if took < _CHUNK_SECONDS:  # a call costs as much as a batch that is ready
                chunk *= 2
        return count, passed

    def reading(self, runs: Runs) -> float:
        """Return the seconds in which a batch is read, of an opened pipeline (E1)."""
        count, seconds = self._read(runs, self.effort.seconds)
        return seconds / count

    def real(self, runs: Runs, steps: int) -> float:
        """Return the seconds of a step of the real loop, of an opened pipeline (E5)."""
        return self.seconds(runs.real, steps, lead=steps // 2 + 1)

    def of_all(self, timing: record.Timing) -> list[record.Timing]:
        """Return the timings of all tasks, the chief's first."""
        every = self.rehearsal.of_all("the bench", timing.rounds_seconds)
        return [record.Timing.of(one) for one in every]

    # -- all of them ------------------------------------------------------------------------

    def measure(self) -> tuple[record.Record, verdict.Times]:
        """Return the record, still without a verdict, and what the verdict is found from."""
        rehearsal, runs = self.rehearsal, self.runs
        with self.opened(runs, first=True):
            timed = self.steps_for(runs.real)
        plan: dict[str, tuple[Callable[[int], float], int]] = {
            "kept": (runs.kept, self.steps_for(runs.kept))
        }
        if rehearsal.replicas > 1:
            plan["alone"] = (runs.alone, self.steps_for(runs.alone))
            plan["exchange"] = (runs.exchange, self.steps_for(runs.exchange))
        if runs.half_rows:
            plan["half"] = (self._half, self.steps_for(self._half))
        rounds: dict[str, list[float]] = {name: [] for name in ("input", "real", *plan)}
        for _ in range(self.effort.rounds):
            with self.opened(runs):
                rounds["input"].append(self.reading(runs))
                rounds["real"].append(self.real(runs, timed))
                if rehearsal.dataset is None:
                    self._stages = stages.of_model(runs.feed.iterator)
            for name, (run, steps) in plan.items():
                rounds[name].append(self.seconds(run, steps, lead=1))
        measured = {name: record.Timing.of(times) for name, times in rounds.items()}
        measured.setdefault("alone", measured["kept"])
        everybody = {
            name: self.of_all(measured[name]) for name in ("real", "input", "kept", "alone")
        }
        halves = self.of_all(measured["half"]) if "half" in measured else None
        exchanges = self.of_all(measured["exchange"]) if "exchange" in measured else None
        slowest = _slowest(everybody["input"]).median_seconds
        if (
            rehearsal.dataset is not None
            and slowest > _WORTH_A_LOOK * measured["kept"].median_seconds
        ):
            self._stages = stages.timed(rehearsal.dataset, self.effort.seconds / 2)
        rehearsal.of_all("the bench")
        self._batches_kept = max(2, min(_MOST_KEPT, int(_KEEP_SECONDS / slowest)))
        workers = self._workers(everybody)
        return self._record(everybody, halves, exchanges, workers)

    def _half(self, steps: int) -> float:
        return self.runs.alone(steps, half=True)

    def _workers(self, everybody: dict[str, list[record.Timing]]) -> tuple[record.Worker, ...]:
        kind, device_memory = model_facts.device()
        mine = [socket.gethostname(), kind, hardware.cores(), hardware.memory_bytes()]
        facts = self.rehearsal.of_all("the bench", [*mine, device_memory])
        return tuple(
            record.Worker(name, host, kind, cores, reads, alone, memory, on_device)
            for name, (host, kind, cores, memory, on_device), reads, alone in zip(
                self.rehearsal.names, facts, everybody["input"], everybody["alone"], strict=True
            )
        )

    def _record(
        self,
        everybody: dict[str, list[record.Timing]],
        halves: list[record.Timing] | None,
        exchanges: list[record.Timing] | None,
        workers: tuple[record.Worker, ...],
    ) -> tuple[record.Record, verdict.Times]:
        rehearsal, runs = self.rehearsal, self.runs
        # Steps of all tasks end together: the slowest one's clock counts.
        real, kept = _slowest(everybody["real"]), _slowest(everybody["kept"])
        half = _slowest(halves) if halves else None
        exchange = _slowest(exchanges) if exchanges else None
        link = self._link() if exchange else None
        packs = tuple(runs.packs_in_bytes())
        waited = rehearsal.of_all("the bench", runs.data_wait)
        times = verdict.Times(
            real.median_seconds,
            kept.median_seconds,
            tuple(one.median_seconds for one in everybody["alone"]),
            tuple(one.median_seconds for one in everybody["input"]),
            runs.rows,
            exchange.median_seconds if exchange else 0.0,
            half.median_seconds if half else 0.0,
            runs.half_rows if half else 0,
            tuple(rehearsal.names),
            sum(packs),
            max(waited),
            max(worker.cores for worker in workers),
        )
        found = record.Record(
            verdict="training",
            verdict_text="",
            shares={},
            notes=(),
            remedies=(),
            trial=None,
            strategy=type(rehearsal.strategy).__name__,
            replicas=rehearsal.replicas,
            global_batch_examples=runs.rows,
            half_batch_examples=runs.half_rows if half else 0,
            steps_per_execution=self.limit,
            implementation=runs.carried_by,
            compression=rehearsal.communication.compression or "none",
            pack_bytes=packs,
            trainable_bytes=model_facts.trainable_bytes(rehearsal.model),
            real_seconds=real,
            kept_seconds=kept,
            half_alone_seconds=half,
            exchange_seconds=exchange,
            data_wait=max(waited),
            workers=workers,
            stages=self._stages,
            link=link,
            compute=self._compute(real),
            versions={
                "tfdp": version.VERSION,
                "tensorflow": tf.__version__,
                "keras": keras.__version__,
            },
        )
        return found, times

    def _link(self) -> record.Link:
        """Time sums of several sizes, and fit latency and bandwidth to them."""
        measured = []
        for size in _SIZES:
            self.runs.exchange(1, size)  # it traces, and connects
            exchange = functools.partial(self.runs.exchange, size=size)
            times = [self.seconds(exchange, 1, lead=1) for _ in range(5)]
            seconds = statistics.median(times)
            # Of all tasks, so that all leave at the same size.
            seconds = max(self.rehearsal.of_all("the bench", seconds))
            measured.append(record.Exchange(size, seconds))
            if seconds > _LONG_EXCHANGE:
                break
        latency, bandwidth = fitted([(one.bytes, one.seconds) for one in measured])
        replicas = self.rehearsal.replicas
        bus = bandwidth * 2 * (replicas - 1) / replicas
        return record.Link(latency, bandwidth, bus, tuple(measured))

    def _compute(self, real: record.Timing) -> record.Compute:
        rehearsal, runs = self.rehearsal, self.runs
        count = model_facts.count_flops(rehearsal.model, runs.feed.spec)
        rate = count.flops * flops.TRAINING * runs.rows / real.median_seconds
        kind, _ = model_facts.device()
        peak, source = hardware.peak_flops_per_second(kind, rehearsal.model.dtype_policy.name)
        return record.Compute(count.flops, count.uncounted, rate, peak * rehearsal.replicas, source)

    # -- remedies ---------------------------------------------------------------------------

    def tried(self, found: str) -> verdict.Tried:
        """Measure parts of a step with remedies for a verdict; all tasks take part."""
        measured: dict[str, float] = {}
        if found == "input":
            measured |= self._inputs()
        if found == "synchronisation" and not self.rehearsal.communication.compression:
            for kind in ("float16", "bfloat16"):
                other = self.runs.changed(communication=compressed(self.rehearsal, kind))
                other.trace()
                measured[f"{kind}_exchange"] = self._median(other.exchange)
        if found == "training":
            measured |= self._computing()
        return verdict.Tried(**measured)

    def _median(self, run: Callable[[int], float]) -> float:
        """Return the median of three, of the slowest task."""
        steps = self.steps_for(run, self.effort.seconds / 2)
        times = [self.seconds(run, steps, steps // 2 + 1) for _ in range(3)]
        return max(self.rehearsal.of_all("the bench", statistics.median(times)))

    def _inputs(self) -> dict[str, float]:
        measured = {}
        for name, change in (("parallel_input", in_parallel), ("cached_input", self.cached)):
            if (other := self.on(change)) is None:
                continue
            with self.opened(other, first=True):
                times = [self.reading(other) for _ in range(3)]
            measured[name] = max(self.rehearsal.of_all("the bench", statistics.median(times)))
        return measured

    def on(self, change: Callable[[tf.data.Dataset], tf.data.Dataset]) -> Runs | None:
        """Return runs on the data after a change; None where it is not one dataset."""
        feed = self.rehearsal.feed_of(change)
        return None if feed is None else self.runs.changed(feed=feed)

    def cached(self, dataset: tf.data.Dataset) -> tf.data.Dataset:
        """Return a few batches of a dataset, from memory: the most that a cache can gain."""
        kept = dataset.take(self._batches_kept)
        return kept.cache().prefetch(tf.data.AUTOTUNE)

    def _computing(self) -> dict[str, float]:
        rehearsal, measured = self.rehearsal, {}
        if not rehearsal.model.run_eagerly and not rehearsal.model.jit_compile:
            try:
                other = self.runs.changed(jit=True)
                measured["jit_alone"] = self._median(other.alone)
            except (tf.errors.OpError, ValueError):
                pass  # XLA has no such operation: no remedy
        if self.limit == 1 and not rehearsal.model.run_eagerly:
            other = self.runs.changed(limit=20)
            self.limit = 20
            try:
                measured["many_kept"] = self._median(other.kept)
            finally:
                self.limit = 1
        return measured


def compressed(rehearsal: Rehearsal, kind: str) -> Communication:
    """Return the communication of a fit with gradients that travel in another type."""
    return dataclasses.replace(rehearsal.communication, compression=kind)


def in_parallel(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """Return a dataset with parallel maps, ahead of the steps."""
    return dataset_graphs.in_parallel(dataset)[0]


def fitted(points: list[tuple[int, float]]) -> tuple[float, float]:
    """Return (latency in seconds, bytes per second) of sums of several sizes.

    Latency is what the smallest take, and the bandwidth is that of the largest beside it: between
    them packs and buffers make steps of their own.
    """
    latency = min(seconds for _, seconds in points)
    size, seconds = points[-1]
    return latency, size / max(seconds - latency, 1e-9)


def _slowest(timings: list[record.Timing]) -> record.Timing:
    return max(timings, key=lambda timing: timing.median_seconds)
