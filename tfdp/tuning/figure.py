"""What was tuned, drawn: memory over rows, and the time to a target over the global batch.

paths = write(tuned, "runs/a")      # tune-batch.svg, tune-batch.png, and the same for dark pages

Needs matplotlib: pip install 'tfdp[bench]'.
"""

import os
import pathlib
from typing import Any

from tfdp.bench import figure
from tfdp.tuning import recommend, record

NAME = "tune-batch"
_GB = 1e9


def write(tuned: record.Tuned, folder: str | os.PathLike[str]) -> list[pathlib.Path]:
    """Write the figure for light and for dark pages; return the files.

    Raises:
        Error: If matplotlib is not installed.
    """
    return figure.save(
        NAME, (10.0, 4.2), lambda drawn, style: _draw(drawn, tuned, style), pathlib.Path(folder)
    )


def _draw(drawn: Any, tuned: record.Tuned, style: figure.Style) -> None:
    left = drawn.add_axes((0.07, 0.14, 0.40, 0.74), facecolor=style.paper)
    right = drawn.add_axes((0.56, 0.14, 0.42, 0.74), facecolor=style.paper)
    _memory(left, tuned, style)
    _time(right, tuned, style)
    for axes in (left, right):
        axes.grid(color=style.ink, alpha=0.15)
        figure.legend(axes, style, loc="best")


def _memory(axes: Any, tuned: record.Tuned, style: figure.Style) -> None:
    figure.label(axes, style, "Memory of a task", "Rows on a replica", "GB")
    if not tuned.lines:
        axes.plot([], [], label="not known")
        return
    line = min(tuned.lines, key=lambda one: one.largest)
    points = [
        (one.per_replica, room.used_bytes / _GB)
        for one in tuned.attempts
        for room in one.rooms
        if (room.task, room.source) == (line.task, line.source)
    ]
    rows, used = zip(*points, strict=True)
    axes.scatter(
        rows, used, s=55, marker="o", facecolor=style.fills[0], edgecolor=style.ink, zorder=3,
        label="it ran",
    )  # fmt: skip
    failed = [one.per_replica for one in tuned.attempts if not one.fits]
    limit = line.limit_bytes / _GB
    if failed:
        axes.scatter(
            failed, [limit] * len(failed), s=70, marker="x", color=style.ink, zorder=3,
            label="it did not fit",
        )  # fmt: skip
    far = max([*rows, *failed])
    ends = [0, far]
    axes.plot(
        ends, [(line.base_bytes + line.bytes_per_row * row) / _GB for row in ends],
        color=style.ink, linewidth=1.2, label="the line that predicts",
    )  # fmt: skip
    if tuned.largest_is_held_by == record.BY_MEMORY:
        axes.axhline(limit, color=style.ink, linestyle="--", label="the limit")
    axes.axvline(
        tuned.largest_per_replica, color=style.ink, linestyle=":",
        label=f"{tuned.largest_per_replica:,} rows: the largest",
    )  # fmt: skip
    axes.set_ylim(0, 1.08 * max([*used, limit if tuned.largest_is_held_by == "memory" else 0]))


def _time(axes: Any, tuned: record.Tuned, style: figure.Style) -> None:
    figure.label(axes, style, "What the global batch costs", "Global batch", "Times the least")
    axes.set_xscale("log", base=2)
    choices = recommend.batches(tuned.replicas, tuned.largest_global_batch)
    found, scale = tuned.recommendation, tuned.noise.scale
    rates = [tuned.throughput.fixed_seconds / batch + tuned.throughput.seconds_per_row
             for batch in choices]  # fmt: skip
    axes.plot(
        choices, [rate / min(rates) for rate in rates], color=style.ink, linestyle="--",
        label="seconds for each row",
    )  # fmt: skip
    if scale is not None:
        times = [recommend.seconds_to_target(tuned.throughput, scale, one) for one in choices]
        axes.plot(
            choices, [one / min(times) for one in times], color=style.ink, linewidth=1.8,
            label="time to a target",
        )  # fmt: skip
        axes.axvline(scale, color=style.ink, linestyle=":", label=f"noise scale: {scale:,.0f}")
    axes.axvspan(found.low, found.high, facecolor=style.fills[2], alpha=0.5, zorder=0)
    axes.axvline(
        found.global_batch, color=style.ink, linewidth=3, alpha=0.6,
        label=f"recommended: {found.global_batch:,}",
    )  # fmt: skip
    axes.set_ylim(0.9, 6)
    shown = [2**power for power in range(0, 40, 2) if choices[0] <= 2**power <= choices[-1]]
    axes.set_xticks(shown, [f"{batch:,}" for batch in shown])
