"""What was tuned, as text for a terminal.

print(text(tuned))
"""

import textwrap

from tfdp.bench import words
from tfdp.tuning import record

_WIDTH = 100


def text(tuned: record.Tuned) -> str:
    """Return the report."""
    found, noise = tuned.recommendation, tuned.noise
    each = f" x {tuned.replicas} replicas" if tuned.replicas > 1 else ""
    lines = [
        "",
        *_wrapped(
            f"Recommended: a global batch of {found.global_batch:,} (range {found.low:,} to "
            f"{found.high:,}). {found.reason}"
        ),
        "",
        f"Largest that fits: {tuned.largest_per_replica:,} rows{each}; {_held_by(tuned)}",
    ]
    lines += [_memory(line) for line in tuned.lines if _is_told(line, tuned)]
    lines += [
        "",
        f"  {'per replica':>11} {'global batch':>13} {'a step':>10} {'examples/s':>12}   memory",
        *[_attempt(one) for one in tuned.attempts],
        "",
        f"Throughput: a step takes {words.time(tuned.throughput.fixed_seconds)} and "
        f"{words.time(tuned.throughput.seconds_per_row)} for each row; doubling gains less than 5% "
        f"from {tuned.throughput.saturates_at:,} on.",
    ]
    if noise.scale is None:
        lines += _wrapped(f"Noise scale: none. {noise.reason}")
    else:
        lines += _wrapped(_noise(noise))
    return "\n".join(lines) + "\n"


def _wrapped(line: str) -> list[str]:
    return textwrap.wrap(line, _WIDTH, break_on_hyphens=False)


def _held_by(tuned: record.Tuned) -> str:
    return {
        record.BY_MEMORY: "memory ends there.",
        record.BY_RECORDS: f"an epoch of {tuned.records or 0:,} records then has two steps.",
        record.BY_WISH: "no more was asked for.",
        record.BY_TRIALS: "more may fit: the trials ended there.",
    }[tuned.largest_is_held_by]


def _is_told(line: record.Line, tuned: record.Tuned) -> bool:
    """Say whether it is the narrowest limit of its task: the others hold nothing up."""
    mine = [one for one in tuned.lines if one.task == line.task]
    return line is min(mine, key=lambda one: one.largest)


def _memory(line: record.Line) -> str:
    who = f"{line.task}: " if line.task else ""
    return (
        f"  {who}{words.size(line.base_bytes)} and {words.size(line.bytes_per_row)} for each row, "
        f"of {words.size(line.limit_bytes)} ({line.source})"
    )


def _attempt(one: record.Attempt) -> str:
    start = f"  {one.per_replica:>11,} {one.global_batch:>13,}"
    if not one.fits:
        return f"{start} {'-':>10} {'-':>12}   does not fit: {one.reason}"
    rate = one.global_batch / one.step_seconds if one.step_seconds else 0.0
    fullest = max(one.rooms, key=lambda room: room.used_bytes / room.limit_bytes, default=None)
    memory = ""
    if fullest is not None:
        memory = f"{words.size(fullest.used_bytes)} of {words.size(fullest.limit_bytes)}"
    return f"{start} {words.time(one.step_seconds):>10} {rate:>12,.0f}   {memory}"


def _noise(noise: record.Noise) -> str:
    line = (
        f"Noise scale: {noise.scale:,.0f} examples over {noise.steps:,} steps with a batch of "
        f"{noise.global_batch:,}"
    )
    if noise.over_time:
        line += f" ({noise.over_time[0]:,.0f} in its first part)"
    if noise.planned_steps > noise.steps:
        line += (
            f". The whole training has {noise.planned_steps:,}, and the scale grows while the loss "
            "falls: take this as a lower bound, or give it more time (--noise-seconds)"
        )
    return line + "."
