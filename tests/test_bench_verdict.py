"""Five measured times, and what they mean. All of it can be checked by hand."""

import pytest

from tfdp.bench import verdict
from tfdp.bench.verdict import Times, Tried


def times(real, kept, alone, reads=0.001, exchange=0.0, **more):
    alone = alone if isinstance(alone, tuple) else (alone,)
    reads = reads if isinstance(reads, tuple) else (reads,) * len(alone)
    workers = tuple(f"worker:{i}" for i in range(len(alone)))
    return Times(real, kept, alone, reads, 32, exchange, workers=workers, **more)


# real E5, kept E3, alone E2 (each worker's), input E1, exchange E4 -> verdict and its share.
VERDICTS = [
    # The real loop waits 60 of 80 ms for its batches.
    (times(0.080, 0.020, 0.020, reads=0.080), "input", 0.75),
    (times(0.020, 0.020, 0.020), "training", 1.0),
    # 1 ms of 21 is less than 5%.
    (times(0.021, 0.020, 0.020), "training", 20 / 21),
    # 10% of input beside 90% of training: the largest share.
    (times(0.020, 0.018, 0.018, reads=0.020), "training", 0.9),
    # On two cores 1 ms of wall time is 2 ms of work.
    (times(0.026, 0.020, 0.020, cores=2), "training", 20 / 22),
    (times(0.100, 0.100, (0.020, 0.020), exchange=0.090), "synchronisation", 0.8),
    (times(0.060, 0.060, (0.020, 0.060), exchange=0.005), "straggler", 40 / 60),
    # Half as slow again: the share of training is larger, and yet the worker is what is wrong.
    (times(0.030, 0.030, (0.020, 0.030), exchange=0.005), "straggler", 1 / 3),
    # A slow worker, and an input that is slower still.
    (times(0.100, 0.030, (0.020, 0.030), reads=0.1, exchange=0.005), "input", 0.7),
    # 10% slower than the others is no straggler.
    (times(0.022, 0.022, (0.020, 0.022), exchange=0.001), "training", 20 / 22),
    # Of three the one in the middle is typical.
    (times(0.060, 0.060, (0.020, 0.021, 0.060), exchange=0.001), "straggler", 39 / 60),
    # Reading a batch takes 1 ms: 6 ms more in the real loop are not the input's.
    (times(0.026, 0.020, 0.020), "training", 20 / 21),
    # Noise: the real loop was a little faster than its parts.
    (times(0.0195, 0.0199, (0.020, 0.020), exchange=0.001), "training", 1.0),
]


@pytest.mark.parametrize(("given", "expected", "share"), VERDICTS)
def test_the_largest_share_is_the_verdict(given, expected, share):
    found = verdict.judge(given)
    assert found.verdict == expected
    assert found.shares[expected] == pytest.approx(share)
    assert sum(found.shares.values()) == pytest.approx(1)


@pytest.mark.parametrize(
    ("share", "word"),
    [(0.0, "not"), (0.049, "not"), (0.05, "moderately"), (0.2, "moderately"), (0.21, "highly")],
)
def test_the_words_are_those_of_tensorflows_profiler(share, word):
    assert verdict.degree(share) == word


def test_the_texts_say_what_holds_up():
    assert verdict.judge(times(0.080, 0.020, 0.020, reads=0.080)).text == (
        "input-bound: the input gives 400 of the 1,600 examples/s that training could take "
        "(highly input-bound: 75% of a step is a wait for its batch)."
    )
    two = times(0.080, 0.020, (0.020, 0.020), reads=(0.02, 0.08), exchange=0.001)
    assert verdict.judge(two).text.endswith("; worker:1 reads slowest.")
    slow = verdict.judge(times(0.060, 0.060, (0.020, 0.060), exchange=0.005)).text
    assert slow.startswith("straggler: worker:1 takes 60 ms for its part of a step, 3.0 times the")
    bound = times(0.100, 0.100, (0.020, 0.020), exchange=0.1, gradient_bytes=4_300_000)
    assert verdict.judge(bound).text.startswith(
        "synchronisation-bound: 80 ms of a step's 100 ms pass in the exchange of 4.3 MB of "
        "gradients (80%; 20% of the exchange is hidden behind computing). Without it training "
        "would take 1,600 in place of 320 examples/s."
    )
    # Noise: the real loop was faster than steps on a batch that is kept.
    bound = times(0.096, 0.100, (0.020, 0.020), exchange=0.1, gradient_bytes=4_300_000)
    text = verdict.judge(bound).text
    assert text.startswith("synchronisation-bound: 76 ms of a step's 96 ms pass in the exchange")
    assert text.endswith("Without it training would take 1,600 in place of 333 examples/s.")


def test_cores_that_input_and_training_share_are_named():
    apart = times(0.080, 0.020, 0.020, reads=0.080)
    shared = times(0.090, 0.050, 0.050, reads=0.040)
    assert verdict.judge(apart).notes == ()
    assert "1.80 times" in verdict.judge(shared).notes[0]


def gains(given, tried):
    found = verdict.judge(given)
    return {one.name: one.gain for one in verdict.remedies(found, given, tried)}


def test_gains_of_remedies_by_hand():
    # The input may become as fast as training, and no faster.
    apart = times(0.080, 0.020, 0.020, reads=0.080)
    assert gains(apart, Tried(cached_input=0.001, parallel_input=0.040)) == pytest.approx(
        {"cache": 4.0, "parallel_input": 2.0}
    )
    # On shared cores half of the input costs half of what it adds: 50 + 40 / 2.
    shared = times(0.090, 0.050, 0.050, reads=0.040)
    assert gains(shared, Tried(cached_input=0.020)) == pytest.approx({"cache": 90 / 70})
    # Half of the exchange costs half of what is exposed of it: 100 - 80 / 2.
    bound = times(0.100, 0.100, (0.020, 0.020), exchange=0.100)
    assert gains(bound, Tried(float16_exchange=0.050)) == pytest.approx({"float16_wire": 100 / 60})
    # One slow worker less.
    slow = times(0.060, 0.060, (0.020, 0.060), exchange=0.005)
    assert gains(slow, Tried()) == pytest.approx({"replace_worker": 3.0})
    # A step is 10 ms beside its rows and 10 ms for 32 of them: 64 rows take 30 ms.
    fixed = times(0.020, 0.020, 0.020, half_alone=0.015, half_batch=16)
    assert gains(fixed, Tried(jit_alone=0.010, many_kept=0.0199)) == pytest.approx(
        {"jit_compile": 2.0, "larger_batch": 40 / 30}
    )


def test_remedies_for_the_verdict_come_first():
    bound = times(0.1, 0.08, (0.02, 0.02), reads=0.1, exchange=0.07, half_alone=0.01, half_batch=16)
    found = verdict.judge(bound)
    assert found.verdict == "synchronisation"
    first = verdict.remedies(found, bound, Tried(cached_input=0.001, float16_exchange=0.025))
    assert [one.name for one in first] == ["float16_wire", "larger_batch", "cache"]
