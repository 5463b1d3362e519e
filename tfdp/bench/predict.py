"""How fast a training would be elsewhere: predicted from a fitted model, with a band. Pure numbers.

    found = predict(sources, Wish(hosts=16, gpus=8, link=25e9 / 8, latency=20e-6))
    found.examples_per_second, found.low_examples_per_second, found.efficiency

The band holds what the rounds of the bench leave open (they are drawn anew, fitted and predicted
again: 9 of 10 draws lie inside) and what the fit leaves over. It is never narrower than 12%, and
wider the further a prediction is from what was measured.
"""

import dataclasses
import math
import random
import statistics
from collections.abc import Sequence

from tfdp import plain
from tfdp.bench import cost, fitted
from tfdp.bench.record import Record, Timing
from tfdp.error import Error

LEAST_BAND = 0.12
# The band grows by so much of itself with each doubling of the replicas beyond those measured, and
# of the link's rate beyond the fastest measured.
_GROWTH = 0.25
_DRAWS = 100
# Where nobody has measured or named them: PCI Express 4 with 16 lanes, half used; TCP.
INSIDE_BYTES_PER_SECOND = 12e9
INSIDE_LATENCY_SECONDS = 10e-6
LATENCY_SECONDS = 100e-6
# What is looked for: this share of N times the throughput of one replica.
GOAL = 0.9


@dataclasses.dataclass(frozen=True)
class Wish:
    """Where, and with what, the training would run. 0 (or "") is: as it was measured.

    Attributes:
        hosts: Machines.
        gpus: Replicas on each of them; on CPUs, workers.
        link: Between hosts, bytes/s in each direction.
        latency: Of a message between hosts, seconds.
        inside: Between the replicas of a host, bytes/s.
        batch: The global batch, in rows. 0 keeps the rows of each replica (weak scaling).
        compression: In which type gradients travel: "none", "float16", "bfloat16".
        algorithm: "best", or one of cost.ALGORITHMS.
        overlap: g of cost.step.
        gradients: Bytes of the gradients in float32.
        examples: Rows of an epoch.
        epochs: Of the whole training.
    """

    hosts: int = 1
    gpus: int = 1
    link: float = 0.0
    latency: float = 0.0
    inside: float = 0.0
    batch: int = 0
    compression: str = ""
    algorithm: str = "best"
    overlap: float = 0.0
    gradients: float = 0.0
    examples: int = 0
    epochs: int = 0

    @property
    def shape(self) -> cost.Shape:
        """Where the replicas are."""
        return cost.Shape(self.hosts, self.gpus)


@dataclasses.dataclass(frozen=True)
class Prediction(plain.Facts):
    """What is expected. Speed-up and efficiency compare with one replica on as many rows.

    Attributes:
        wish: What was asked.
        replicas: All of them.
        global_batch_examples: Rows of a step.
        algorithm: The sum that is the fastest, or was asked for.
        step_seconds: Of the real loop.
        computing_seconds: Without exchange and input, of the slowest replica.
        exchange_seconds: The exchange alone.
        exposed_seconds: What a step waits for it.
        waiting_seconds: What a step waits for its input.
        examples_per_second: Over all replicas.
        low_examples_per_second, high_examples_per_second: The band.
        band: Its half width, as a share: 0.12 is +-12%.
        speed_up: Against one replica.
        efficiency: The speed-up divided by the replicas.
        epoch_seconds: Of wish.examples rows; 0 where they are not known.
        days: Of wish.epochs epochs; 0 where they are not known.
        goal_link: The slowest link that reaches 90% efficiency, bytes/s; 0 if none does, or one
            host has no need of one.
        goal_batch: The smallest global batch that does; 0 if none does.
        assumed: What nobody has measured or named, in sentences.
    """

    wish: Wish
    replicas: int
    global_batch_examples: float
    algorithm: str
    step_seconds: float
    computing_seconds: float
    exchange_seconds: float
    exposed_seconds: float
    waiting_seconds: float
    examples_per_second: float
    low_examples_per_second: float
    high_examples_per_second: float
    band: float
    speed_up: float
    efficiency: float
    epoch_seconds: float
    days: float
    goal_link: float
    goal_batch: int
    assumed: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class _Step:
    algorithm: str
    computing: float
    exchange: float
    synchronised: float
    waiting: float

    @property
    def seconds(self) -> float:
        return self.synchronised + self.waiting


def predict(sources: Sequence[fitted.Source], wish: Wish) -> Prediction:
    """Return what is expected of a training.

    Raises:
        Error: For what cannot be predicted from these benches, with what to add.
    """
    model = fitted.fit(sources)
    if not model.gradient_bytes and not wish.gradients and wish.shape.replicas > 1:
        raise Error("Nobody has counted the gradients: add gradients=102MB to --what-if.")
    assumed = _assumed(model, wish)
    rows = _rows(model, wish)
    step = _step(model, wish, rows)
    replicas = wish.shape.replicas
    rate = replicas * rows / step.seconds
    efficiency = _efficiency(model, wish, rows)
    band = _band(sources, model, wish, bool(assumed))
    epoch = wish.examples / rate
    return Prediction(
        wish=wish,
        replicas=replicas,
        global_batch_examples=replicas * rows,
        algorithm=step.algorithm,
        step_seconds=step.seconds,
        computing_seconds=step.computing,
        exchange_seconds=step.exchange,
        exposed_seconds=step.synchronised - step.computing,
        waiting_seconds=step.waiting,
        examples_per_second=rate,
        low_examples_per_second=rate * (1 - band),
        high_examples_per_second=rate * (1 + band),
        band=band,
        speed_up=efficiency * replicas,
        efficiency=efficiency,
        epoch_seconds=epoch,
        days=epoch * wish.epochs / 86400,
        goal_link=_goal_link(model, wish, rows),
        goal_batch=_goal_batch(model, wish, rows),
        assumed=assumed,
    )


def _rows(model: fitted.Model, wish: Wish) -> float:
    if not wish.batch:
        return model.rows
    if wish.batch < wish.shape.replicas:
        raise Error(
            f"batch={wish.batch} is less than a row for each of {wish.shape.replicas} replicas."
        )
    return wish.batch / wish.shape.replicas


def _network(model: fitted.Model, wish: Wish) -> cost.Network:
    # Inside one host sums were measured to take so long: no link makes a host faster than that.
    host = model.inside_seconds_per_byte if wish.hosts > 1 and wish.gpus == 1 else 0.0
    inside = wish.inside
    if not inside and model.inside_seconds_per_byte:
        inside = 1 / model.inside_seconds_per_byte
    if wish.link:
        between = wish.link * model.link_efficiency
    else:
        between = 1 / model.between_seconds_per_byte if model.between_seconds_per_byte else math.inf
    measured = model.latency_seconds
    return cost.Network(
        cost.Link(between, wish.latency or measured or LATENCY_SECONDS),
        cost.Link(inside or INSIDE_BYTES_PER_SECOND, measured or INSIDE_LATENCY_SECONDS),
        host,
    )


def _step(model: fitted.Model, wish: Wish, rows: float) -> _Step:
    shape = wish.shape
    wire = fitted.WIRE[wish.compression or model.compression]
    size = (wish.gradients or model.gradient_bytes) * wire
    network = _network(model, wish)
    names = cost.ALGORITHMS if wish.algorithm == "best" else (wish.algorithm,)
    costs = {name: cost.exchange(size, model.packs, shape, network, name) for name in names}
    algorithm = min(costs, key=lambda name: costs[name])  # of equal ones the first, the ring
    exchange = costs[algorithm]
    computing = model.computing(rows, shape.replicas)
    together = computing
    if shape.replicas > 1:
        together = cost.step(computing, exchange, wish.overlap or model.overlap)
        together += model.beside_seconds
    waiting = model.waiting_seconds * rows / model.rows
    return _Step(algorithm, computing, exchange, together, waiting)


def _efficiency(model: fitted.Model, wish: Wish, rows: float) -> float:
    alone = _step(model, dataclasses.replace(wish, hosts=1, gpus=1), rows)
    return alone.seconds / _step(model, wish, rows).seconds


def _goal_link(model: fitted.Model, wish: Wish, rows: float) -> float:
    def reaches(rate: float) -> bool:
        return _efficiency(model, dataclasses.replace(wish, link=rate), rows) >= GOAL

    fast, slow = 1e13, 1e3
    if wish.hosts == 1 or not reaches(fast):
        return 0.0
    for _ in range(60):
        middle = math.sqrt(fast * slow)
        fast, slow = (middle, slow) if reaches(middle) else (fast, middle)
    return fast


def _goal_batch(model: fitted.Model, wish: Wish, rows: float) -> int:
    replicas = wish.shape.replicas
    most, least = 1 << 24, 0
    if replicas == 1 or _efficiency(model, wish, most) < GOAL:
        return 0
    while most - least > 1:
        middle = (most + least) // 2
        most, least = (
            (middle, least) if _efficiency(model, wish, middle) >= GOAL else (most, middle)
        )
    return most * replicas


def _band(
    sources: Sequence[fitted.Source], model: fitted.Model, wish: Wish, has_assumed: bool
) -> float:
    """Return the half width of the band."""
    generator = random.Random(0)  # noqa: S311 - the same band for the same files
    rows = _rows(model, wish)
    middle = math.log(_step(model, wish, rows).seconds)
    drawn = []
    for _ in range(_DRAWS):
        again = [
            dataclasses.replace(source, record=_drawn(source.record, generator))
            for source in sources
        ]
        seconds = _step(fitted.fit(again), wish, rows).seconds
        left = generator.choice(model.residuals) if model.residuals else 0.0
        drawn.append(abs(math.log(seconds) + left - middle))
    from_rounds = statistics.quantiles(drawn, n=10)[-1]
    doublings = max(0.0, math.log2(wish.shape.replicas / model.replicas))
    if wish.link and model.fastest_link:
        doublings += max(0.0, math.log2(wish.link / model.fastest_link))
    if has_assumed:
        doublings += 1
    return min(0.95, max(LEAST_BAND, from_rounds) * (1 + _GROWTH * doublings))


def _drawn(record: Record, generator: random.Random) -> Record:
    """Return a record whose rounds are drawn with replacement; rounds stay together."""
    picks = [generator.random() for _ in record.real_seconds.rounds_seconds]

    def again(timing: Timing) -> Timing:
        rounds = timing.rounds_seconds
        return Timing.of([rounds[int(pick * len(rounds))] for pick in picks])

    half, exchange = record.half_alone_seconds, record.exchange_seconds
    return dataclasses.replace(
        record,
        real_seconds=again(record.real_seconds),
        kept_seconds=again(record.kept_seconds),
        half_alone_seconds=again(half) if half else None,
        exchange_seconds=again(exchange) if exchange else None,
        workers=tuple(
            dataclasses.replace(one, alone_seconds=again(one.alone_seconds))
            for one in record.workers
        ),
    )


def _assumed(model: fitted.Model, wish: Wish) -> tuple[str, ...]:
    """Return what nobody has measured or named.

    Raises:
        Error: For a link that nobody knows.
    """
    found = []
    if wish.hosts > 1 and not wish.link and not model.between_seconds_per_byte:
        raise Error(
            "Nothing was measured between hosts: say how fast the link is, as in "
            f"--what-if=hosts={wish.hosts},link=25gbit"
        )
    if wish.hosts > 1 and wish.link and not model.fastest_link:
        found.append(
            f"Sums reach {fitted.LINK_EFFICIENCY:.0%} of the link's rate (FILE@RATE names the rate "
            "of a link that was measured)."
        )
    if wish.hosts > 1 and not wish.latency and not model.latency_seconds:
        found.append(f"A message takes {LATENCY_SECONDS * 1e6:.0f} us (latency=).")
    if wish.gpus > 1 and not wish.inside and not model.inside_seconds_per_byte:
        found.append(
            f"Replicas of a host reach each other at {INSIDE_BYTES_PER_SECOND / 1e9:.0f} GB/s "
            "(inside=)."
        )
    if wish.shape.replicas > 1 and model.replicas == 1 and not wish.overlap:
        found.append("Nothing of the exchange is hidden behind computing (overlap=).")
    return tuple(found)
