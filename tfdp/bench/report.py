"""The report of a bench as text, for a terminal of 100 columns.

print(report.text(record))
"""

import statistics

from tfdp.bench import words
from tfdp.bench.record import Exchange, Record, Timing
from tfdp.bench.verdict import STRAGGLES

_NAMES = {
    "input": "waits for input",
    "training": "training",
    "synchronisation": "synchronisation",
    "straggler": "waits for the slowest worker",
}


def text(record: Record) -> str:
    """Return the report."""
    return "\n".join(_lines(record)) + "\n"


def _lines(record: Record) -> list[str]:
    rows = record.global_batch_examples
    lines = [
        "",
        "Where the time goes",
        f"  {record.verdict_text}",
        "",
        f"  {'A step':34} {words.time(record.real_seconds.median_seconds):>10}"
        f"   {record.examples_per_second:>12,.0f} examples/s   {spread(record.real_seconds)}",
    ]
    for name, share in record.shares.items():
        if share >= 0.005 or name == "training":
            seconds = share * sum_of_parts(record)
            lines.append(f"    {_NAMES[name]:32} {words.time(seconds):>10}   {share:>12.1%}")
    input_seconds = max(w.input_seconds.median_seconds for w in record.workers)
    alone = max(w.alone_seconds.median_seconds for w in record.workers)
    lines += [
        "",
        "  Bandwidths",
        _rate("data loading (input alone)", input_seconds, rows),
        _rate("training (no exchange)", alone, rows),
        _rate("training and synchronisation", record.kept_seconds.median_seconds, rows),
    ]
    if record.exchange_seconds is not None:
        lines += _exchange(record, alone)
    lines += _workers(record)
    lines += _compute(record)
    lines += _stages(record)
    for note in record.notes:
        lines += ["", f"  Note: {note}"]
    lines += _remedies(record)
    return lines


def sum_of_parts(record: Record) -> float:
    """Return the seconds of a step that the shares are of."""
    return max(record.real_seconds.median_seconds, record.kept_seconds.median_seconds)


def _rate(name: str, seconds: float, rows: int) -> str:
    return f"    {name:32} {words.time(seconds):>10}   {rows / seconds:>12,.0f} examples/s"


def _exchange(record: Record, alone: float) -> list[str]:
    assert record.exchange_seconds is not None
    total = record.exchange_seconds.median_seconds
    exposed = max(0.0, record.kept_seconds.median_seconds - alone)
    hidden = max(0.0, 1 - exposed / total)
    lines = [
        "",
        f"  Synchronisation ({words.size(record.gradient_bytes)} of gradients in "
        f"{len(record.pack_bytes)} packs, {record.implementation}"
        + (f", as {record.compression}" if record.compression != "none" else "")
        + ")",
        f"    {'the exchange alone':32} {words.time(total):>10}",
        f"    {'of it exposed in a step':32} {words.time(exposed):>10}   {hidden:>12.0%} hidden",
    ]
    if record.link is not None:
        link = record.link
        lines.append(
            f"    {'latency; bandwidth':32} {words.time(link.latency_seconds):>10}   "
            f"{words.size(link.algorithm_bytes_per_second)}/s of sums, "
            f"{words.size(link.bus_bytes_per_second)}/s on the bus"
        )
        lines.append(f"    {'sums':32} {', '.join(_sum(one) for one in link.measured)}")
    return lines


def _sum(one: Exchange) -> str:
    return f"{words.size(one.bytes)} {words.time(one.seconds)}"


def _workers(record: Record) -> list[str]:
    times = [worker.alone_seconds.median_seconds for worker in record.workers]
    lines = ["", "  Workers" if len(times) > 1 else "  Memory"]
    median = statistics.median_low(times)
    for worker, seconds in zip(record.workers, times, strict=True):
        memory = f"memory {words.size(worker.memory_bytes)}"
        if worker.device_memory_bytes:
            memory += f", GPU {words.size(worker.device_memory_bytes)}"
        if len(times) == 1:
            lines.append(f"    {memory} ({worker.device}, {worker.cores} cores)")
            continue
        slow = f"   {seconds / median:.1f} x the median" if seconds >= STRAGGLES * median else ""
        name = f"{worker.name} on {worker.host}"
        lines.append(
            f"    {name:32} {words.time(seconds):>10}   "
            f"input {words.time(worker.input_seconds.median_seconds)}, {memory}{slow}"
        )
    return lines


def _compute(record: Record) -> list[str]:
    compute = record.compute
    if not compute.forward_flops_per_example:
        return []
    line = (
        f"  Arithmetic: {compute.forward_flops_per_example / 1e9:,.3g} GFLOP forward per example, "
        f"{compute.flops_per_second / 1e9:,.3g} GFLOP/s of training"
    )
    if compute.mfu:
        line += f", {compute.mfu:.1%} of {compute.peak_source} (MFU)"
    if compute.uncounted_layers:
        line += f"; not counted: {', '.join(compute.uncounted_layers)}"
    return ["", line + "."]


def _stages(record: Record) -> list[str]:
    if not record.stages:
        return []
    slowest = record.stages[0]
    if slowest.seconds_per_step < 0.05 * record.real_seconds.median_seconds:
        return []
    where = f" ({slowest.function}, {slowest.made_at})" if slowest.made_at else ""
    return [
        "",
        f"  Slowest stage of the input: {slowest.name}{where}, "
        f"{words.time(slowest.seconds_per_step)} a batch, "
        f"{slowest.parallelism or 'some'} at a time.",
    ]


def _remedies(record: Record) -> list[str]:
    lines = [
        "",
        "  What to do" if record.remedies else "  Nothing that was tried gains 2% or more.",
    ]
    for remedy in record.remedies:
        lines.append(f"    {remedy.gain:.2f} x   {remedy.text}")
    if record.trial is not None:
        trial = record.trial
        lines += [
            "",
            f"  Tried: {trial.name}: predicted {trial.predicted_gain:.2f} x, measured "
            f"{trial.measured_gain:.2f} x ("
            f"{words.time(trial.before_seconds.median_seconds)} before, "
            f"{words.time(trial.after_seconds.median_seconds)} after).",
        ]
        if not trial.holds:
            lines.append(
                "  The prediction was off by more than 15%: the verdict does not explain this "
                "training, and is withdrawn."
            )
    return lines


def spread(timing: Timing) -> str:
    """Return how far the rounds lie apart: the quartiles."""
    return f"({words.time(timing.low_seconds)} to {words.time(timing.high_seconds)})"
