"""The cost of a sum and of a step, against hand counts, the textbook and published results."""

import math

import pytest

from tfdp.bench import cost
from tfdp.bench.cost import Link, Network, Shape

GBIT = 1e9 / 8


def network(between=1e9, latency=0.0, inside=1e15, host=0.0):
    return Network(Link(between, latency), Link(inside, latency), host)


# Bytes, packs, shape, network, algorithm -> seconds, by hand.
COSTS = [
    (8e6, 1, Shape(1), network(), "best", 0.0),
    # 2 * 3/4 * 8 MB at 1 GB/s.
    (8e6, 1, Shape(4), network(), "ring", 0.012),
    # ... and 2 packs x 6 hops x 1 ms.
    (8e6, 2, Shape(4), network(latency=1e-3), "ring", 0.024),
    # 2 packs x 2 log2(4) x 1 ms + 2 * 8 MB at 1 GB/s.
    (8e6, 2, Shape(4), network(latency=1e-3), "tree", 0.024),
    (8e6, 1, Shape(5), network(latency=1e-3), "tree", 0.022),
    # Inside 2 * 7/8 * 8 MB at 14 GB/s, then 2 * 1/2 * 8 MB at 1 GB/s.
    (8e6, 1, Shape(2, 8), network(inside=14e9), "hierarchical", 0.001 + 0.008),
    # A ring over all 16 replicas runs over the same link: 2 * 15/16 * 8 MB.
    (8e6, 1, Shape(2, 8), network(inside=14e9), "ring", 0.015),
    (8e6, 1, Shape(2, 8), network(inside=14e9), "best", 0.009),
    # Few bytes over many replicas: 2 log2(64) hops in place of 2 * 63.
    (4, 1, Shape(64), network(latency=1e-3), "best", 0.012),
    # The hosts themselves take 2 ns for a byte: a faster link is of no use.
    (8e6, 1, Shape(2), network(between=1e12, host=2e-9), "ring", 0.016),
]


@pytest.mark.parametrize(("size", "packs", "shape", "links", "algorithm", "seconds"), COSTS)
def test_a_sum_costs_what_its_formula_says(size, packs, shape, links, algorithm, seconds):
    found = cost.exchange(size, packs, shape, links, algorithm)
    assert found == pytest.approx(seconds, rel=1e-4)


def test_a_step_hides_more_of_its_exchange_the_larger_the_overlap():
    assert cost.step(0.3, 0.4, 1) == pytest.approx(0.7)
    assert cost.step(0.3, 0.4, 2) == pytest.approx(0.5)
    assert cost.step(0.3, 0.4, 100) == pytest.approx(0.4)
    assert cost.step(1e-9, 0.0, 10) == pytest.approx(1e-9)
    assert cost.step(0.0, 0.0) == 0.0


def test_the_slowest_of_several_workers():
    assert cost.expected_slowest((1.0,), 100) == 1.0
    # Of two coins with sides 1 and 2 the larger one is 2 in three of four cases.
    assert cost.expected_slowest((2.0, 1.0), 2) == pytest.approx(1.75)
    assert cost.expected_slowest((1.0, 2.0), 1) == pytest.approx(1.5)
    assert cost.expected_slowest((1.0, 1.1, 2.0), 200) == pytest.approx(2.0)


def speed_up(replicas, computing, size, rate, overlap=1.0, per_host=1, inside=1e15):
    shape = Shape(replicas // per_host, per_host)
    exchange = cost.exchange(size, 1, shape, network(rate, inside=inside))
    return replicas * computing / cost.step(computing, exchange, overlap)


def test_the_textbooks_figure_of_scaling():
    # ResNet-50: 8 GPUs are more than 6 times as fast as one, 16 near 12 times. 2S/B is a third of
    # a step: 102 MB, and 0.2 s for a batch, over 24.5 Gbit/s.
    rate = 2 * 102e6 / (0.2 / 3)
    assert 6.0 < speed_up(8, 0.2, 102e6, rate) < 6.5
    assert speed_up(16, 0.2, 102e6, rate) == pytest.approx(12.19, abs=0.01)
    assert speed_up(1, 0.2, 102e6, rate) == 1.0


def test_what_goyal_and_others_need_of_their_network():
    # "Accurate, large minibatch SGD" (2017), section 4: 100 MB of gradients in the 120 ms of a
    # backward pass need 12.8 Gbit/s, as an estimate, on 32 servers.
    at_their_rate = cost.exchange(100e6, 1, Shape(32, 8), network(12.8e9 / 8), "hierarchical")
    assert at_their_rate == pytest.approx(0.120, rel=0.02)
    # With their 50 Gbit/s 256 GPUs were about 90% as efficient as 8.
    one = cost.step(0.25, cost.exchange(100e6, 1, Shape(1, 8), network(inside=12e9)), 1)
    for overlap, holds in ((1.0, lambda share: share < 0.95), (10.0, lambda share: share > 0.9)):
        exchange = cost.exchange(100e6, 1, Shape(32, 8), network(50 * GBIT, inside=12e9))
        assert holds(one / cost.step(0.25, exchange, overlap))


@pytest.mark.parametrize(
    ("name", "images_per_second", "batch", "weights", "published"),
    [
        # Horovod (Sergeev and Del Balso, 2018): 512 Pascal GPUs, 4 a host, 25 Gbit/s. The images/s
        # of one P100 are those of TensorFlow's benchmarks of 2017.
        ("Inception V3", 142, 64, 23.9e6, 0.90),
        ("VGG-16", 154, 64, 138.4e6, 0.68),
    ],
)
def test_published_efficiencies_lie_between_no_and_full_overlap(
    name, images_per_second, batch, weights, published
):
    computing = batch / images_per_second
    least, most = (
        speed_up(512, computing, 4 * weights, 25 * GBIT, overlap, per_host=4, inside=12e9) / 512
        for overlap in (1.0, 50.0)
    )
    assert least - 0.03 < published < most + 0.03, (name, least, most)


@pytest.mark.parametrize(("gbit", "measured"), [(1.0, 0.24), (0.2, 1.1)])
def test_steps_over_slow_links_as_they_were_measured(gbit, measured):
    # 24 MB of gradients between two network namespaces, limited by tc tbf; 0.07 s without.
    exchange = cost.exchange(24e6, 1, Shape(2), network(gbit * GBIT))
    assert exchange == pytest.approx(0.192 / gbit)
    assert cost.step(0.07, exchange, 1) == pytest.approx(measured, rel=0.12)
    assert math.isfinite(exchange)
