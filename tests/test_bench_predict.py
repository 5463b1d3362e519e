"""A fit to records whose times are known, and what is predicted from it."""

import dataclasses
import json

import pytest
from test_bench_record import made

from tfdp.bench import fitted, predict, record, what_if
from tfdp.bench.fitted import Source
from tfdp.bench.predict import Wish
from tfdp.error import Error

MBIT = 1e6 / 8
ROUNDS = (1.0, 0.99, 1.01, 1.0, 1.0)
SIZE = 2_000_000


def timing(seconds):
    return record.Timing.of([seconds * ratio for ratio in ROUNDS])


def benched(replicas, rate, rows=16, hosts=True, waits=0.0, compression="none"):
    """A record of replicas that compute 10 ms + 1 ms a row, and hide nothing of a ring.

    The ring has 0.1 ms a hop, and reaches 80% of the rate (bytes/s).
    """
    alone, half = 0.010 + 0.001 * rows, 0.010 + 0.001 * rows / 2
    hops = 2 * (replicas - 1)
    size = SIZE * fitted.WIRE[compression]

    def seconds(size):
        return hops * 1e-4 + hops / replicas * size / (0.8 * rate)

    changes = {
        "replicas": replicas,
        "global_batch_examples": rows * replicas,
        "half_batch_examples": rows * replicas // 2,
        "half_alone_seconds": timing(half),
        "compression": compression,
        "trainable_bytes": SIZE,
        "workers": tuple(
            dataclasses.replace(
                made().workers[0],
                name=f"worker:{i}",
                host=f"host{i * hosts}",
                alone_seconds=timing(alone),
                input_seconds=timing(0.05),
            )
            for i in range(replicas)
        ),
    }
    exchange = seconds(size) if replicas > 1 else 0.0
    kept = alone + exchange
    changes |= {"kept_seconds": timing(kept), "real_seconds": timing(kept + waits)}
    if replicas == 1:
        changes |= {"exchange_seconds": None, "link": None, "pack_bytes": ()}
    else:
        link = record.Link(
            hops * 1e-4, 0.8 * rate / (hops / replicas), 0.8 * rate, (record.Exchange(4, 1e-4),)
        )
        changes |= {"exchange_seconds": timing(exchange), "link": link, "pack_bytes": (int(size),)}
    return made(**changes)


def measured(replicas, rate, **more):
    return Source(benched(replicas, rate, **more), rate)


TWO_RATES = [
    Source(benched(1, 1.0)),
    measured(2, 50 * MBIT),
    measured(2, 200 * MBIT),
]


def test_a_fit_finds_what_the_times_were_made_of():
    model = fitted.fit(TWO_RATES)
    assert model.fixed_seconds == pytest.approx(0.010, rel=1e-3)
    assert model.row_seconds == pytest.approx(0.001, rel=1e-3)
    assert model.latency_seconds == pytest.approx(1e-4)
    assert model.link_efficiency == pytest.approx(0.8)
    assert model.packs == pytest.approx(1.0)
    assert model.overlap == 1.0
    assert model.gradient_bytes == SIZE
    assert model.waiting_seconds == 0.0
    assert model.residuals == pytest.approx((0.0, 0.0), abs=1e-6)


@pytest.mark.parametrize(("replicas", "rate"), [(3, 50), (4, 200), (4, 100), (3, 100)])
def test_more_replicas_and_another_rate_are_predicted(replicas, rate):
    found = predict.predict(TWO_RATES, Wish(hosts=replicas, link=rate * MBIT))
    expected = benched(replicas, rate * MBIT)
    assert found.step_seconds == pytest.approx(expected.real_seconds.median_seconds, rel=0.01)
    assert found.examples_per_second == pytest.approx(expected.examples_per_second, rel=0.01)
    assert found.efficiency == pytest.approx(0.026 / found.step_seconds, rel=1e-3)
    assert found.speed_up == pytest.approx(replicas * found.efficiency)
    assert 0.12 <= found.band <= 0.25
    assert found.low_examples_per_second < expected.examples_per_second
    assert expected.examples_per_second < found.high_examples_per_second
    assert found.assumed == ()
    assert found.algorithm == "ring"


def test_a_batch_and_a_type_on_the_wire_are_predicted():
    rate = 200 * MBIT
    larger = predict.predict(TWO_RATES, Wish(hosts=2, link=rate, batch=128))
    assert larger.step_seconds == pytest.approx(
        benched(2, rate, rows=64).real_seconds.median_seconds, rel=0.01
    )
    short = predict.predict(TWO_RATES, Wish(hosts=2, link=rate, compression="float16"))
    half = benched(2, rate, compression="float16")
    assert short.step_seconds == pytest.approx(half.real_seconds.median_seconds, rel=0.01)
    # Fitted to float16, asked for float32.
    sources = [Source(half, rate)]
    back = predict.predict(sources, Wish(hosts=2, link=rate, compression="none"))
    assert back.step_seconds == pytest.approx(
        benched(2, rate).real_seconds.median_seconds, rel=0.01
    )


def test_one_replica_is_enough_where_the_link_is_named():
    found = predict.predict(
        [Source(benched(1, 1.0, waits=0.004))],
        Wish(hosts=4, link=1e9, latency=1e-4, examples=6400, epochs=90),
    )
    # 26 ms + 4 ms of input + 6 * 0.1 ms + 1.5 * 2 MB / 0.9 GB/s = 3.33 ms.
    assert found.step_seconds == pytest.approx(0.03393, rel=1e-3)
    assert found.waiting_seconds == pytest.approx(0.004)
    assert found.epoch_seconds == pytest.approx(100 * 0.03393, rel=1e-3)
    assert found.days == pytest.approx(90 * found.epoch_seconds / 86400)
    assert len(found.assumed) == 2  # the share of the rate, and that nothing is hidden
    # Two doublings beyond the one replica, and one for what is assumed.
    assert found.band == pytest.approx(0.12 * 1.75, rel=0.01)


def test_the_link_and_the_batch_of_the_goal_reach_it_and_no_less_does():
    wish = Wish(hosts=4, link=100 * MBIT)
    found = predict.predict(TWO_RATES, wish)
    assert found.efficiency < 0.9

    def efficiency(**changes):
        return predict.predict(TWO_RATES, dataclasses.replace(wish, **changes)).efficiency

    assert efficiency(link=found.goal_link) == pytest.approx(0.9, abs=1e-3)
    assert efficiency(batch=found.goal_batch) >= 0.9 > efficiency(batch=found.goal_batch - 4)
    # A latency that is a third of a step: no link helps, a batch does.
    slow = predict.predict(TWO_RATES, dataclasses.replace(wish, latency=2e-3))
    assert slow.goal_link == 0.0
    assert slow.goal_batch > found.goal_batch
    assert "no link alone" in what_if.text(slow)
    assert predict.predict(TWO_RATES, Wish()).speed_up == pytest.approx(1.0)


def test_a_slow_worker_slows_more_of_many():
    slow = benched(2, 200 * MBIT)
    workers = (slow.workers[0], dataclasses.replace(slow.workers[1], alone_seconds=timing(0.052)))
    slow = dataclasses.replace(slow, workers=workers, half_alone_seconds=timing(0.036))
    model = fitted.fit([Source(slow, 200 * MBIT)])
    assert model.computing(16, 1) < model.computing(16, 2) < model.computing(16, 8)
    assert model.computing(16, 8) == pytest.approx(2 * 0.026, rel=0.06)


@pytest.mark.parametrize(
    ("sources", "wish", "told"),
    [
        ([], Wish(), "No bench.json to predict from."),
        (
            [Source(benched(2, 1e6, hosts=False))],
            Wish(hosts=4),
            "Nothing was measured between hosts: say how fast the link is",
        ),
        (TWO_RATES, Wish(hosts=4, batch=3), "batch=3 is less than a row for each of 4 replicas."),
        (
            [*TWO_RATES, Source(dataclasses.replace(benched(2, 1e6), pack_bytes=(9_000_000,)))],
            Wish(),
            "The records are of different models: 2,000,000 and 9,000,000 bytes of gradients.",
        ),
        (
            [Source(dataclasses.replace(benched(1, 1.0), trainable_bytes=0))],
            Wish(hosts=2, link=1e9),
            "Nobody has counted the gradients: add gradients=102MB",
        ),
    ],
)
def test_what_cannot_be_predicted_is_one_line(sources, wish, told):
    with pytest.raises(Error) as error:
        predict.predict(sources, wish)
    assert told in str(error.value)


def test_a_wish_is_read():
    assert what_if.parse(
        "hosts=16,gpus=8,link=25gbit,latency=20us,batch=4096,compression=float16,inside=300GB,"
        "examples=1281167,epochs=90,algorithm=ring,overlap=2,gradients=102MB"
    ) == Wish(
        16, 8, 3.125e9, pytest.approx(20e-6), 300e9, 4096, "float16", "ring", 2.0, 102e6,
        1281167, 90,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "--what-if is empty. Write: --what-if=hosts=16"),
        ("host=2", "'host=2' is not understood. Did you mean 'hosts'?"),
        ("hosts", "'hosts' is not understood. Did you mean 'hosts'?"),
        ("hosts=0", "hosts=0: use a whole number of 1 or more."),
        ("hosts=2,hosts=3", "hosts is given twice."),
        ("link=25", "link=25: write a number and a unit: 25gbit, or 12GB"),
        ("link=0gbit", "link=0gbit: write a number and a unit"),
        ("latency=20", "latency=20: write a number and a unit: 20us."),
        ("compression=int8", "compression=int8: use none, float16, bfloat16."),
        ("algorithm=star", "algorithm=star: use best, ring, tree, hierarchical."),
        ("overlap=0.5", "overlap=0.5: use a number from 1"),
    ],
)
def test_a_wish_that_is_not_understood_is_one_line(text, told):
    with pytest.raises(Error) as error:
        what_if.parse(text)
    assert told in str(error.value)
    assert "\n" not in str(error.value)


def test_files_are_read_with_the_rate_of_their_link(tmp_path):
    path = tmp_path / "bench.json"
    benched(2, 1e6).write(path)
    assert [s.link_bytes_per_second for s in what_if.read([str(path), f"{path}@1gbit"])] == [
        0.0,
        1.25e8,
    ]
    with pytest.raises(Error, match="write a number and a unit"):
        what_if.read([f"{path}@fast"])


def test_the_text_and_the_json_tell_the_same():
    wish = Wish(hosts=4, link=100 * MBIT, examples=1_000_000, epochs=90)
    found = predict.predict(TWO_RATES, wish)
    text = what_if.text(found)
    for part in (
        "What if: 4 hosts x 1 = 4 replicas, link 0.1 Gbit/s, 64 examples a step",
        f"{found.examples_per_second:,.0f} examples/s",
        f"+-{found.band:.0%}",
        "90% efficiency is reached with a link of",
        f"or a global batch of {found.goal_batch:,}",
        "an epoch",
        "90 epochs",
    ):
        assert part in text, text
    told = json.loads(found.to_json())
    assert told["efficiency"] == found.efficiency
    assert told["wish"]["hosts"] == 4
