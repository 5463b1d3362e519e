"""From the throughput and the gradient noise scale to a global batch. Pure.

    throughput = line_of([(64, 0.011), (256, 0.035)])       # (global batch, seconds of a step)
    recommend(throughput, Noise(86.0), first=64, replicas=2, most=718).global_batch

With a noise scale of B_noise a training takes S(B) = S_min (1 + B_noise / B) steps (McCandlish et
al. 2018, "An Empirical Model of Large-Batch Training", https://arxiv.org/abs/1812.06162, eq. 2.7),
each of them t(B) = fixed + B * per row. The product is the time to a target, and its least is at
the geometric mean of B_noise and of fixed / per row: small where more rows gain no throughput,
large where a step of few rows leaves devices idle. The minimum is flat: the range holds the
batches that are at most a quarter slower. Recommended is the batch nearest to the noise scale, of
these and of the larger ones that take at most twice the time, as one at the noise scale does where
a row costs the same in any batch: it takes fewer steps, which is what more replicas and a slower
network need.
"""

import math
from collections.abc import Sequence

from tfdp.bench import fitted
from tfdp.tuning.record import (
    BY_MEMORY,
    BY_RECORDS,
    BY_TRIALS,
    BY_WISH,
    Noise,
    Recommendation,
    Throughput,
)

# Of the time to a target, what a batch may take more than the fastest one; and a larger batch.
SLOWER, LARGER = 1.25, 2.0
# Doubling a batch that gains less is not worth its rows.
_WORTH = 1.05


def line_of(points: Sequence[tuple[int, float]]) -> Throughput:
    """Fit the time of a step to the global batch, in relative errors.

    Args:
        points: (global batch, seconds of a step), one or more.
    """
    least = min(points)
    if len({rows for rows, _ in points}) < 2:
        # One size says nothing of the two parts: all of it is called the rows'.
        return Throughput(0.0, least[1] / least[0], least[0])
    fixed, slope = fitted.line(points)
    # fixed + slope B doubles its rows for less than 1.05 x examples/s from here on.
    gain = (2 - _WORTH) / (2 * _WORTH - 2)
    saturates = math.ceil(gain * fixed / slope) if slope else max(rows for rows, _ in points)
    return Throughput(fixed, slope, max(1, saturates))


def batches(replicas: int, most: int) -> list[int]:
    """Return the global batches to choose from: 2^k and 3 * 2^k for each replica, and the most.

    Args:
        replicas: How many.
        most: Rows of the largest global batch.
    """
    found, rows = {most // replicas * replicas}, 1
    while rows * replicas <= most:
        found |= {rows * replicas}
        if 3 * rows * replicas <= 2 * most and rows > 1:
            found |= {3 * rows // 2 * replicas}
        rows *= 2
    return sorted(found - {0})


def seconds_to_target(throughput: Throughput, noise_scale: float, batch: int) -> float:
    """Return the time to a target, in units of the fewest steps that it can take.

    Args:
        throughput: The time of a step.
        noise_scale: In examples.
        batch: Global.
    """
    step = throughput.fixed_seconds + throughput.seconds_per_row * batch
    return step * (1 + noise_scale / batch)


def recommend(
    throughput: Throughput,
    noise: Noise,
    first: int,
    replicas: int,
    most: int,
    held_by: str = BY_MEMORY,
) -> Recommendation:
    """Return the batch to train with.

    Args:
        throughput: The time of a step.
        noise: The gradient noise scale.
        first: The global batch that the training has now.
        replicas: How many train in sync.
        most: The largest global batch.
        held_by: What holds that up, as in record.Tuned.
    """
    choices = batches(replicas, most)
    noise_scale = noise.scale
    if noise_scale is None:
        kept = max((batch for batch in choices if batch <= first), default=choices[0])
        high = max([kept, *(batch for batch in choices if batch <= throughput.saturates_at)])
        reason = (
            f"{noise.reason} So nobody knows how many more epochs a larger batch would need: this "
            f"is the batch that the training has. More than {high:,} would gain no examples/s."
        )
        return Recommendation(kept, kept, high, kept, reason)
    times = {batch: seconds_to_target(throughput, noise_scale, batch) for batch in choices}
    fastest = min(choices, key=times.__getitem__)
    good = [batch for batch in choices if times[batch] <= SLOWER * times[fastest]]
    larger = [b for b in choices if b > fastest and times[b] <= LARGER * times[fastest]]
    found = min(good + larger, key=lambda batch: abs(math.log(batch / noise_scale)))
    good = sorted({*good, found})
    return Recommendation(
        found,
        good[0],
        good[-1],
        fastest,
        _reason(found, good, fastest, noise_scale, times, (most, held_by)),
    )


_HOLDS = {
    BY_MEMORY: "what fits into memory",
    BY_RECORDS: "the number of records",
    BY_WISH: "the largest batch that you allow",
    BY_TRIALS: "the largest batch that was tried",
}


def _reason(
    found: int,
    good: Sequence[int],
    fastest: int,
    noise_scale: float,
    times: dict[int, float],
    bound: tuple[int, str],
) -> str:
    most, held_by = bound
    more = noise_scale / found
    text = (
        f"The gradient noise scale is {noise_scale:,.0f} examples: a batch of {found:,} takes "
        f"{1 + more:.1f} times the fewest steps and {1 + 1 / more:.1f} times the fewest examples "
        "that the training can do with."
    )
    if fastest == found:
        text += " It is also the batch with the least time to a target here."
    else:
        text += (
            f" By the clock of these devices {fastest:,} is the fastest; {found:,} takes "
            f"{times[found] / times[fastest] - 1:.0%} longer."
        )
    if times[found] > SLOWER * times[fastest]:
        fewer = (1 + noise_scale / fastest) / (1 + more)
        text += (
            f" That is the price of {fewer:.1f} times fewer steps, which more replicas take in "
            "less time each."
        )
    if found < noise_scale / 1.3 and found > most / 2:
        text += f" More rows would save steps, but {_HOLDS[held_by]} ends there."
    if found == good[0] and found > 1.3 * noise_scale:
        text += (
            " A smaller batch would save examples, but leave the devices idle: fewer replicas "
            "would do."
        )
    return text
