"""What a sum over all replicas costs, and a step with it: formulas. Pure numbers.

    network = Network(between=Link(25e9 / 8, 20e-6), inside=Link(100e9, 5e-6))
    seconds = exchange(102e6, 1, Shape(hosts=16, per_host=8), network)
    step(0.100, seconds, overlap=1.0)       # 1: nothing of the exchange is hidden

N replicas sum S bytes in K packs over links of B bytes/s and a latency of alpha seconds:

    ring            K * 2(N-1) * alpha + 2(N-1)/N * S/B
    tree            K * 2 ceil(log2 N) * alpha + 2 * S/B
    hierarchical    2(g-1)/g * S/B inside each host of g replicas, then a ring over the hosts

S/B is never below what the hosts need to add and to copy S bytes. Thakur, Rabenseifner, Gropp:
"Optimization of collective communication operations in MPICH" (2005) derives the first two.
"""

import dataclasses
import math

ALGORITHMS = ("ring", "tree", "hierarchical")


@dataclasses.dataclass(frozen=True)
class Link:
    """One direction of a link.

    Attributes:
        bytes_per_second: What it carries.
        latency_seconds: Of a message of few bytes.
    """

    bytes_per_second: float
    latency_seconds: float = 0.0


@dataclasses.dataclass(frozen=True)
class Shape:
    """Where the replicas are.

    Attributes:
        hosts: Machines.
        per_host: Replicas on each of them.
    """

    hosts: int
    per_host: int = 1

    @property
    def replicas(self) -> int:
        """All of them."""
        return self.hosts * self.per_host


@dataclasses.dataclass(frozen=True)
class Network:
    """The links.

    Attributes:
        between: Of each host to the others.
        inside: Of each replica to the others of its host.
        host_seconds_per_byte: What a host needs at least for each byte, however fast the link.
    """

    between: Link
    inside: Link
    host_seconds_per_byte: float = 0.0


def exchange(
    size: float, packs: float, shape: Shape, network: Network, algorithm: str = "best"
) -> float:
    """Return the seconds of a sum over all replicas.

    Args:
        size: Bytes that each replica gives.
        packs: In so many sums, one after the other; not whole where they overlap.
        shape: Where the replicas are.
        network: The links.
        algorithm: One of ALGORITHMS; "best" is the fastest of them.
    """
    if shape.replicas == 1:
        return 0.0
    if algorithm == "best":
        return min(exchange(size, packs, shape, network, one) for one in ALGORITHMS)
    host = network.host_seconds_per_byte
    if algorithm == "hierarchical":
        within = _ring(size, packs, shape.per_host, network.inside, host)
        return within + _ring(size, packs, shape.hosts, network.between, host)
    # Each message waits for the slowest link on its way.
    link = network.inside if shape.hosts == 1 else network.between
    if shape.hosts > 1 and shape.per_host > 1:
        link = Link(
            min(link.bytes_per_second, network.inside.bytes_per_second),
            max(link.latency_seconds, network.inside.latency_seconds),
        )
    if algorithm == "tree":
        hops = 2 * math.ceil(math.log2(shape.replicas))
        return packs * hops * link.latency_seconds + 2 * size * _per_byte(link, host)
    return _ring(size, packs, shape.replicas, link, host)


def _ring(size: float, packs: float, count: int, link: Link, host: float) -> float:
    if count == 1:
        return 0.0
    latency = packs * 2 * (count - 1) * link.latency_seconds
    return latency + 2 * (count - 1) / count * size * _per_byte(link, host)


def _per_byte(link: Link, host: float) -> float:
    return max(1 / link.bytes_per_second, host)


def step(computing: float, exchanging: float, overlap: float = 1.0) -> float:
    """Return the seconds of a step, without the wait for its input.

    (Tc^g + Tn^g)^(1/g): with g = 1 the exchange begins when all gradients are there; the larger g,
    the more of it is hidden behind computing. Pollux (Qiao et al., OSDI 2021), equation 11.

    Args:
        computing: Seconds without the exchange, Tc.
        exchanging: Seconds of the exchange alone, Tn.
        overlap: g, 1 or more.
    """
    longer = max(computing, exchanging)
    if not longer:
        return 0.0
    # Of ratios: powers of small numbers would vanish.
    parts = (computing / longer) ** overlap + (exchanging / longer) ** overlap
    return longer * parts ** (1 / overlap)


def expected_slowest(ratios: tuple[float, ...], count: int) -> float:
    """Return the mean of the largest of `count` draws with replacement.

    Args:
        ratios: What is drawn from, each as likely: step times of workers, divided by the median.
        count: Draws: workers that wait for one another.
    """
    ordered, size = sorted(ratios), len(ratios)
    return sum(
        ratio * (((place + 1) / size) ** count - (place / size) ** count)
        for place, ratio in enumerate(ordered)
    )
