"""Benches of the same training on several numbers of replicas: speed-up and efficiency.

    found = of([Record.read("runs/a/workers-1/bench.json"), Record.read("...-2/bench.json")])
    print(text(found))
    found.points[1].speed_up, found.points[1].efficiency

Weak scaling keeps the rows of each replica, so that the global batch grows; strong scaling keeps
the global batch. Both compare examples/s with those of the smallest number of replicas.
"""

import dataclasses
from collections.abc import Sequence

from tfdp import plain
from tfdp.bench import fitted, predict, words
from tfdp.bench.record import Record
from tfdp.error import Error

FILE = "scaling.json"
SCHEMA_VERSION = 1
WEAK, STRONG = "weak", "strong"


@dataclasses.dataclass(frozen=True)
class Point:
    """One number of replicas.

    Attributes:
        replicas: How many.
        global_batch_examples: Rows of a step.
        step_seconds: The median of the real loop.
        examples_per_second: Over all replicas.
        low_examples_per_second, high_examples_per_second: Of the quartiles of the rounds.
        speed_up: Against the replicas of the first point; that has as many as it has replicas.
        efficiency: The speed-up divided by the replicas.
        verdict: Of its bench.
        shares: Of a step, by verdict.
    """

    replicas: int
    global_batch_examples: int
    step_seconds: float
    examples_per_second: float
    low_examples_per_second: float
    high_examples_per_second: float
    speed_up: float
    efficiency: float
    verdict: str
    shares: dict[str, float]


@dataclasses.dataclass(frozen=True)
class Expected:
    """What the model that is fitted to all points expects.

    Attributes:
        replicas: How many.
        speed_up, low_speed_up, high_speed_up: With the band.
    """

    replicas: int
    speed_up: float
    low_speed_up: float
    high_speed_up: float


@dataclasses.dataclass(frozen=True)
class Scaling(plain.Facts):
    """All points.

    Attributes:
        mode: "weak" or "strong".
        points: The fewest replicas first.
        expected: From one replica to twice the most that were measured.
        notes: What else is to be known.
        schema_version: Of scaling.json.
    """

    mode: str
    points: tuple[Point, ...]
    expected: tuple[Expected, ...]
    notes: tuple[str, ...]
    schema_version: int = SCHEMA_VERSION


def of(sources: Sequence[fitted.Source]) -> Scaling:
    """Return the scaling of benches of one training.

    Raises:
        Error: For fewer than two numbers of replicas, or neither weak nor strong scaling.
    """
    ordered = sorted(sources, key=lambda source: source.record.replicas)
    records = [source.record for source in ordered]
    counts = [record.replicas for record in records]
    if len(counts) < 2 or len(set(counts)) < len(counts):
        raise Error(
            f"Scaling compares benches of different numbers of replicas; these have {counts}. "
            "Measure them: tfdp bench --config=FILE.py --workers=1,2,4"
        )
    batches = [record.global_batch_examples for record in records]
    if len(set(batches)) == 1:
        mode = STRONG
    elif len({batch / count for batch, count in zip(batches, counts, strict=True)}) == 1:
        mode = WEAK
    else:
        raise Error(
            f"Global batches of {batches} on {counts} replicas: neither the global batch (strong "
            "scaling) nor the rows of each replica (weak scaling) stay the same."
        )
    base = records[0]
    unit = base.examples_per_second / base.replicas
    points = tuple(_point(record, unit) for record in records)
    expected = _expected(ordered, mode, max(counts) * 2)
    return Scaling(mode, points, expected, (*_notes(ordered), *_outside(points, expected)))


def _outside(points: Sequence[Point], expected: Sequence[Expected]) -> list[str]:
    bands = {one.replicas: one for one in expected}
    odd = [
        str(point.replicas)
        for point in points
        if (one := bands.get(point.replicas))
        and not one.low_speed_up <= point.speed_up <= one.high_speed_up
    ]
    if not odd:
        return []
    return [
        f"With {', '.join(odd)} replicas the speed-up lies outside of what one model of computing "
        "and exchange explains: look at the reports of these benches, and at what else the "
        "machines were busy with."
    ]


def _point(record: Record, unit: float) -> Point:
    rows, real = record.global_batch_examples, record.real_seconds
    speed_up = record.examples_per_second / unit
    return Point(
        record.replicas,
        rows,
        real.median_seconds,
        record.examples_per_second,
        rows / real.high_seconds,
        rows / real.low_seconds,
        speed_up,
        speed_up / record.replicas,
        record.verdict,
        record.shares,
    )


def _expected(sources: Sequence[fitted.Source], mode: str, most: int) -> tuple[Expected, ...]:
    last = sources[-1]
    several = last.link_bytes_per_second or len({w.host for w in last.record.workers}) > 1
    found = []
    for count in range(1, most + 1) if most <= 64 else _doubling(most):
        hosts, gpus = (count, 1) if several else (1, count)
        wish = predict.Wish(
            hosts=hosts,
            gpus=gpus,
            link=last.link_bytes_per_second,
            batch=last.record.global_batch_examples if mode == STRONG else 0,
        )
        try:
            one = predict.predict(sources, wish)
        except Error:  # nobody has measured an exchange, or fewer rows than replicas
            break
        # In strong scaling one replica would train on all rows.
        alone = one if mode == WEAK else predict.predict(sources, dataclasses.replace(
            wish, hosts=1, gpus=1))  # fmt: skip
        speed_up = one.speed_up
        if mode == STRONG:
            speed_up = one.examples_per_second / alone.examples_per_second
        found.append(
            Expected(count, speed_up, speed_up * (1 - one.band), speed_up * (1 + one.band))
        )
    return tuple(found)


def _doubling(most: int) -> list[int]:
    counts = [1]
    while counts[-1] * 2 <= most:
        counts.append(counts[-1] * 2)
    return counts


def _notes(sources: Sequence[fitted.Source]) -> list[str]:
    records, notes = [source.record for source in sources], []
    is_linked = any(source.link_bytes_per_second for source in sources)
    cores = [max(worker.cores for worker in record.workers) for record in records]
    hosts = {worker.host for record in records for worker in record.workers}
    gpus = any(worker.device_memory_bytes for record in records for worker in record.workers)
    if gpus or is_linked:
        pass
    elif len(set(cores)) > 1:
        notes.append(
            f"A worker has {', '.join(map(str, cores))} cores: the more workers share a machine, "
            "the fewer each has, so that this is not the scaling of more machines."
        )
    elif len(hosts) == 1:
        notes.append(
            f"All workers are on one machine, with {cores[0]} "
            f"core{'s'[: cores[0] > 1]} each, and share its memory and its caches."
        )
    if records[0].replicas > 1:
        notes.append(
            f"{records[0].replicas} replicas count as {records[0].replicas} times one: nobody has "
            "measured one alone."
        )
    return notes


def text(found: Scaling) -> str:
    """Return the report for a terminal."""
    kept = "the global batch is kept" if found.mode == STRONG else "each replica keeps its rows"
    lines = [
        "",
        f"Scaling ({found.mode}: {kept})",
        f"  {'replicas':>8} {'global batch':>13} {'a step':>10} {'examples/s':>12}"
        f" {'speed-up':>9} {'efficiency':>11} {'expected':>18}   verdict",
    ]
    expected = {one.replicas: one for one in found.expected}
    for point in found.points:
        one = expected.get(point.replicas)
        band = f"{one.low_speed_up:.2f} to {one.high_speed_up:.2f} x" if one else ""
        lines.append(
            f"  {point.replicas:>8} {point.global_batch_examples:>13,} "
            f"{words.time(point.step_seconds):>10} {point.examples_per_second:>12,.0f}"
            f" {point.speed_up:>7.2f} x {point.efficiency:>11.0%} {band:>18}   {point.verdict}"
        )
    further = [one for one in found.expected if one.replicas == 2 * found.points[-1].replicas]
    for one in further:
        lines.append(
            f"  {one.replicas:>8} replicas would be {one.speed_up:.2f} x as fast as one "
            f"({one.low_speed_up:.2f} to {one.high_speed_up:.2f}), as a fit to these expects."
        )
    lines += [f"  Note: {note}" for note in found.notes]
    return "\n".join(lines) + "\n"
