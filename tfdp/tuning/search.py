"""Which batch is tried next, and which is the largest that fits. Pure.

    while (rows := following(attempts, first=64, most=1437)) is not None:
        attempts.append(...)    # whether it ran, and what memory each task took
    found = largest(attempts)

The memory of a step grows with the rows of a replica along a line, once there are enough of them.
So two trials say where the limit lies, and a third one proves it by running there. A margin is
left for what a few steps do not show: operations that happen to run at the same time, batches that
are read ahead, holes between blocks.
"""

import itertools
import math
from collections.abc import Sequence

from tfdp.tuning.record import Attempt, Line

MOST_TRIALS = 6
# Of the memory that is left beside the model, rows may take so much.
_MARGIN = 0.88
# A proven batch is as good as the predicted one from here on.
_NEAR = 0.95
# What a trial may have taken of the memory for rows and still count as within the margin.
_FULL = 0.94
# Beyond what ran, at most: a line through small batches says little of large ones.
_FARTHEST = 16
# Rows, where no limit is in sight.
_ENDLESS = 1 << 40


def lines(attempts: Sequence[Attempt]) -> tuple[Line, ...]:
    """Return the line of each task and each limit: through the largest batch that ran and another.

    That is the largest of at most half its rows: closer together the noise would make the slope.
    """
    ran = sorted((one for one in attempts if one.fits), key=lambda one: one.per_replica)
    if len(ran) < 2:
        return ()
    high = ran[-1]
    low = ([one for one in ran if 2 * one.per_replica <= high.per_replica] or ran[-2:-1])[-1]
    before = {(room.task, room.source): room for room in low.rooms}
    found = []
    for room in high.rooms:
        smaller = before.get((room.task, room.source))
        if smaller is None:
            continue
        rows = high.per_replica - low.per_replica
        slope = max(0.0, (room.used_bytes - smaller.used_bytes) / rows)
        base = max(0.0, room.used_bytes - slope * high.per_replica)
        left = _MARGIN * (room.limit_bytes - base)
        # Without a slope in sight nothing is said of where the limit lies.
        largest = math.floor(left / slope) if slope else _ENDLESS
        found.append(Line(room.task, room.source, base, slope, room.limit_bytes, max(0, largest)))
    return tuple(found)


def following(attempts: Sequence[Attempt], first: int, most: int) -> int | None:
    """Return the rows of a replica to try next; None where the largest is found.

    Args:
        attempts: The trials so far.
        first: Where to begin.
        most: Rows of a replica that are wished for at most.
    """
    if not attempts:
        return min(first, most)
    if len(attempts) >= MOST_TRIALS:
        return None
    fitting = [one.per_replica for one in attempts if one.fits]
    failed = min((one.per_replica for one in attempts if not one.fits), default=0)
    if not fitting:
        return max(1, failed // 8) if failed > 1 else None
    best = max(fitting)
    if len(fitting) == 1:
        wanted = min(4 * best, most)
        if failed:
            wanted = min(wanted, _between(best, failed))
        # Two sizes are needed, and a smaller one where a larger one is not wished for.
        return wanted if wanted > best else (max(1, best // 2) if best > 1 and not failed else None)
    known = lines(attempts)
    target = min((line.largest for line in known), default=4 * best)
    wanted = min(rounded(target), best * _FARTHEST, most)
    if failed:
        if wanted >= failed:
            # A line that was nearly right says where to look; one that was wrong twice does not.
            wanted = _between(best, failed)
            again = any(not a.fits and not b.fits for a, b in itertools.pairwise(attempts))
            if target < 1.25 * failed and not again:
                wanted = max(wanted, rounded(_MARGIN * failed))
        elif failed <= 1.05 * best:
            return None
    if wanted >= best:
        is_near = wanted <= best or (wanted < most and best >= _NEAR * wanted)
        return None if is_near else wanted
    # The largest that ran leaves too little: a smaller one with the margin.
    within = [one for one in attempts if one.fits and _is_within(one, known)]
    if any(one.per_replica >= _NEAR * wanted for one in within):
        return None
    return max(1, wanted)


def largest(attempts: Sequence[Attempt]) -> int:
    """Return the rows of the largest batch that ran and left its margin; 0 if none ran."""
    known = lines(attempts)
    fitting = [one for one in attempts if one.fits]
    within = [one for one in fitting if _is_within(one, known)] or fitting[:1]
    return max((one.per_replica for one in within), default=0)


def _is_within(attempt: Attempt, known: Sequence[Line]) -> bool:
    bases = {(line.task, line.source): line.base_bytes for line in known}
    for room in attempt.rooms:
        base = bases.get((room.task, room.source), 0.0)
        if room.used_bytes > base + _FULL * (room.limit_bytes - base):
            return False
    return True


def _between(low: int, high: int) -> int:
    return max(low + 1 if high > low + 1 else low, rounded(math.sqrt(low * high)))


def rounded(rows: float) -> int:
    """Return a number of rows at or below one, with six binary digits that count."""
    whole = max(0, math.floor(rows))
    step = 1 << max(0, whole.bit_length() - 6)
    return whole // step * step
