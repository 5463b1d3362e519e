"""A model of a training's time, fitted to one bench.json or to several. Pure numbers.

    model = fit([Source(Record.read("a.json")), Source(Record.read("b.json"), 1e9 / 8)])
    model.computing(rows=32), model.overlap, model.latency_seconds

    computing    Tc = fixed + rows * per row, of the steps without the exchange on all rows and half
    exchange     latency and seconds per byte, of the model's own packs and of sums of several sizes
    overlap      g of cost.step, of the steps with the exchange
    stragglers   how far the workers lie apart
    waiting      what the real input adds to a step

A source may say how fast the link was that its record was measured on: the fit then knows what
share of a link's rate the sums reach, and can speak of other rates.
"""

import dataclasses
import math
import statistics
from collections.abc import Sequence

from tfdp.bench import cost
from tfdp.bench.record import Record
from tfdp.error import Error

# The share of a link's rate that sums reach where it was not measured: headers, acknowledgements.
LINK_EFFICIENCY = 0.9
_OVERLAPS = [1 + 0.1 * tenth for tenth in range(91)]
# The types in which gradients travel: bytes of a number, beside the 4 of float32.
WIRE = {"none": 1.0, "float16": 0.5, "bfloat16": 0.5}


@dataclasses.dataclass(frozen=True)
class Source:
    """One bench.

    Attributes:
        record: What was measured.
        link_bytes_per_second: The rate of the links between its hosts; 0 where nobody says it.
    """

    record: Record
    link_bytes_per_second: float = 0.0


@dataclasses.dataclass(frozen=True)
class Model:
    """What was fitted. Seconds are of one step.

    Attributes:
        replicas: The most that were measured.
        rows: Of each replica, in the last record.
        fixed_seconds, row_seconds: Computing takes fixed + rows * row.
        ratios: Steps of workers without the exchange, divided by the median worker's.
        waiting_seconds: For the input, with `rows` rows.
        gradient_bytes: Of a replica, in float32.
        compression: In which type they travelled: a key of WIRE.
        packs: Sums of a step, one after the other; not whole where they overlap.
        overlap: g of cost.step; 1 where no exchange was measured.
        beside_seconds: What steps with the exchange take beyond cost.step.
        latency_seconds: Of a hop of a sum; 0 where none was measured.
        inside_seconds_per_byte: Between replicas of one host; 0 where none was measured.
        between_seconds_per_byte: Between hosts, as measured; 0 where none was.
        link_efficiency: The share of a link's rate that sums reach.
        fastest_link: The fastest named rate that was measured, bytes/s; 0 for none.
        residuals: log(measured / fitted) of the records' steps.
    """

    replicas: int
    rows: float
    fixed_seconds: float
    row_seconds: float
    ratios: tuple[float, ...]
    waiting_seconds: float
    gradient_bytes: float
    compression: str
    packs: float
    overlap: float
    beside_seconds: float
    latency_seconds: float
    inside_seconds_per_byte: float
    between_seconds_per_byte: float
    link_efficiency: float
    fastest_link: float
    residuals: tuple[float, ...]

    def computing(self, rows: float, workers: int = 1) -> float:
        """Return the seconds without the exchange, of the slowest of so many replicas."""
        typical = self.fixed_seconds + self.row_seconds * rows
        return typical * cost.expected_slowest(self.ratios, workers)


def fit(sources: Sequence[Source]) -> Model:
    """Return the model of benches of the same training.

    Raises:
        Error: If they are of different trainings.
    """
    records = [source.record for source in sources]
    _check(records)
    last = records[-1]
    fixed, per_row = line([point for record in records for point in _computing(record)])
    hops = [_hops(source) for source in sources if source.record.exchange_seconds is not None]
    overlap, beside, residuals = _steps(records)
    inside = [hop.per_byte for hop in hops if not hop.is_between]
    between = [hop for hop in hops if hop.is_between]
    named = [hop for hop in between if hop.rate]
    efficiency = LINK_EFFICIENCY
    if named:
        efficiency = math.exp(statistics.fmean(-math.log(h.per_byte * h.rate) for h in named))
    return Model(
        replicas=max(record.replicas for record in records),
        rows=last.global_batch_examples / last.replicas,
        fixed_seconds=fixed,
        row_seconds=per_row,
        ratios=_ratios(records),
        waiting_seconds=statistics.median(_waiting(record) for record in records),
        gradient_bytes=max(_float32_bytes(record) for record in records),
        compression=last.compression,
        packs=max(1.0, statistics.median(hop.packs for hop in hops)) if hops else 1.0,
        overlap=overlap,
        beside_seconds=beside,
        latency_seconds=statistics.median(hop.latency for hop in hops) if hops else 0.0,
        inside_seconds_per_byte=statistics.median(inside) if inside else 0.0,
        between_seconds_per_byte=between[-1].per_byte if between else 0.0,
        link_efficiency=min(1.2, efficiency),
        fastest_link=max((hop.rate for hop in named), default=0.0),
        residuals=residuals,
    )


def _check(records: Sequence[Record]) -> None:
    if not records:
        raise Error("No bench.json to predict from. Measure first: tfdp bench --config=FILE.py")
    sizes = {round(_float32_bytes(record)) for record in records}
    # Some strategies send a number or two beside the gradients.
    if max(sizes) > 1.02 * min(sizes) + 64:
        raise Error(
            f"The records are of different models: {min(sizes):,} and {max(sizes):,} bytes of "
            "gradients. Predict from benches of one training."
        )


def _float32_bytes(record: Record) -> float:
    if record.replicas == 1:
        return record.trainable_bytes
    return record.gradient_bytes / WIRE[record.compression]


def _typical(record: Record) -> float:
    return statistics.median_low(w.alone_seconds.median_seconds for w in record.workers)


def _slowest(record: Record) -> float:
    return max(worker.alone_seconds.median_seconds for worker in record.workers)


def _computing(record: Record) -> list[tuple[float, float]]:
    """Return (rows of a replica, seconds) without the exchange."""
    points = [(record.global_batch_examples / record.replicas, _typical(record))]
    if record.half_alone_seconds is not None and record.half_batch_examples:
        # It is the slowest worker's: as if the typical one were faster by the same share.
        share = _typical(record) / _slowest(record)
        half = record.half_alone_seconds.median_seconds * share
        points.append((record.half_batch_examples / record.replicas, half))
    return points


def line(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Return (a, b) of t = a + b * x, neither below 0, with the least relative errors."""
    weights = [1 / t**2 for _, t in points]
    total = sum(weights)
    mean_x = sum(w * x for w, (x, _) in zip(weights, points, strict=True)) / total
    mean_t = sum(w * t for w, (_, t) in zip(weights, points, strict=True)) / total
    spread = sum(w * (x - mean_x) ** 2 for w, (x, _) in zip(weights, points, strict=True))
    if not spread:  # one size of batch: nobody knows what part of it grows
        return 0.0, mean_t / mean_x
    slope = (
        sum(w * (x - mean_x) * (t - mean_t) for w, (x, t) in zip(weights, points, strict=True))
        / spread
    )
    if slope <= 0:
        return mean_t, 0.0
    if mean_t - slope * mean_x < 0:
        squares = sum(w * x * x for w, (x, _) in zip(weights, points, strict=True))
        return 0.0, sum(w * x * t for w, (x, t) in zip(weights, points, strict=True)) / squares
    return mean_t - slope * mean_x, slope


def _ratios(records: Sequence[Record]) -> tuple[float, ...]:
    """Return how far the steps of workers lie apart.

    Rounds beyond a worker's quartiles are left out: what disturbs a machine for one round is no
    property of the worker.
    """
    found = []
    for record in records:
        if len(record.workers) < 2:
            continue
        typical = _typical(record)
        for worker in record.workers:
            timing = worker.alone_seconds
            found += [
                min(max(seconds, timing.low_seconds), timing.high_seconds) / typical
                for seconds in timing.rounds_seconds
            ]
    if not found:
        return (1.0,)
    middle = statistics.median_low(found)
    return tuple(ratio / middle for ratio in found)


def _waiting(record: Record) -> float:
    real, kept = record.real_seconds.median_seconds, record.kept_seconds.median_seconds
    # As verdict.Times.waiting: more than the work of the input is another's doing.
    most = max(w.cores * w.input_seconds.median_seconds for w in record.workers)
    return min(max(0.0, real - kept), most)


@dataclasses.dataclass(frozen=True)
class _Hops:
    """One record's exchange: latency of a hop, seconds per byte, sums one after the other."""

    latency: float
    per_byte: float
    packs: float
    is_between: bool
    rate: float


def _hops(source: Source) -> _Hops:
    """Return what a record's ring is made of.

    The smallest sum gives the latency, and the model's own packs the bandwidth: sums of middle
    sizes fall into buffers of their own.
    """
    record = source.record
    assert record.exchange_seconds is not None
    count, rate = record.replicas, source.link_bytes_per_second
    hops = 2 * (count - 1)
    total, size = record.exchange_seconds.median_seconds / hops, record.gradient_bytes / count
    latency, sums = 0.0, total / size
    if record.link is not None:
        latency = record.link.latency_seconds / hops
        sums = count / (record.link.algorithm_bytes_per_second * hops)
    most, packs = len(record.pack_bytes), 1.0
    if latency:
        packs = min(max(1.0, (total - sums * size) / latency), most)
    per_byte = max((total - latency * packs) / size, 0.25 * sums)
    is_between = bool(rate) or len({worker.host for worker in record.workers}) > 1
    return _Hops(latency, per_byte, packs, is_between, rate)


def _steps(records: Sequence[Record]) -> tuple[float, float, tuple[float, ...]]:
    """Return g of cost.step, what steps take beside it, and what remains: log ratios."""
    points = [
        (_slowest(r), r.exchange_seconds.median_seconds, r.kept_seconds.median_seconds)
        for r in records
        if r.exchange_seconds is not None
    ]
    if not points:
        return 1.0, 0.0, ()

    def errors(overlap: float, beside: float = 0.0) -> tuple[float, ...]:
        return tuple(
            math.log(kept / (cost.step(alone, exchange, overlap) + beside))
            for alone, exchange, kept in points
        )

    overlap = min(_OVERLAPS, key=lambda one: sum(error**2 for error in errors(one)))
    # With the least relative errors, as all that is fitted here.
    weights = [1 / kept**2 for *_, kept in points]
    left = [kept - cost.step(alone, exchange, overlap) for alone, exchange, kept in points]
    beside = max(0.0, sum(w * one for w, one in zip(weights, left, strict=True)) / sum(weights))
    return overlap, beside, errors(overlap, beside)
