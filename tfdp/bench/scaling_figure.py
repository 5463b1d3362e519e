"""Scaling as a figure: speed-up over replicas, the ideal line, and the band that is expected.

paths = write(scaling.of(sources), "runs/a")     # scaling.svg, scaling.png, and for dark pages

Bars are what was measured, with their quartiles. Patterns and dashes tell all apart in black and
white. Needs matplotlib: pip install 'tfdp[bench]'.
"""

import pathlib
from typing import Any

from tfdp.bench import figure
from tfdp.bench.scaling import Scaling

NAME = "scaling"


def write(found: Scaling, folder: str | pathlib.Path) -> list[pathlib.Path]:
    """Write the figure for light and for dark pages; return the files.

    Raises:
        Error: If matplotlib is not installed.
    """
    return figure.save(NAME, (8.0, 5.0), lambda drawn, style: _draw(drawn, found, style), folder)


def _draw(drawn: Any, found: Scaling, style: figure.Style) -> None:
    axes = drawn.add_axes((0.09, 0.20, 0.88, 0.72), facecolor=style.paper)
    points = found.points
    # Bars of the same width beside one another, as powers of two are: a place for each number.
    shown = sorted({p.replicas for p in points} | _further(found))
    place = {replicas: i for i, replicas in enumerate(shown)}
    places = list(place.values())
    axes.plot(
        places, shown, color=style.ink, linestyle="--", linewidth=1.4, marker="_", markersize=14,
        label="ideal", zorder=4,
    )  # fmt: skip
    band = [one for one in found.expected if one.replicas in place]
    if band:
        xs = [place[one.replicas] for one in band]
        lows = [one.low_speed_up for one in band]
        highs = [one.high_speed_up for one in band]
        axes.fill_between(
            xs, lows, highs, facecolor=style.fills[2], alpha=0.55, edgecolor=style.ink,
            linewidth=0.8, linestyle=":", label="expected, with its band", zorder=1,
        )  # fmt: skip
        axes.plot(xs, [one.speed_up for one in band], color=style.ink, linewidth=1.0, zorder=4)
    unit = points[0].examples_per_second / points[0].speed_up
    spread = [
        [max(0.0, p.speed_up - p.low_examples_per_second / unit) for p in points],
        [max(0.0, p.high_examples_per_second / unit - p.speed_up) for p in points],
    ]
    axes.bar(
        [place[p.replicas] for p in points], [p.speed_up for p in points], width=0.45,
        yerr=spread, capsize=5, facecolor=style.fills[0], edgecolor=style.ink, hatch="//",
        ecolor=style.ink, label="measured", zorder=3,
    )  # fmt: skip
    rows = points[0].global_batch_examples
    kept = f"global batch {rows:,}" if found.mode == "strong" else (
        f"{rows / points[0].replicas:,.0f} examples a step for each replica")  # fmt: skip
    title = f"{found.mode.capitalize()} scaling: {kept}"
    figure.label(axes, style, title, "Replicas", "Speed-up (times one replica)")
    told = {p.replicas: f"\n{p.speed_up:.2f} x\n{p.efficiency:.0%} efficient" for p in points}
    axes.set_xticks(places, [f"{count:,}{told.get(count, '')}" for count in shown])
    axes.set_ylim(0, 1.08 * max([shown[-1], *[one.high_speed_up for one in band]]))
    axes.set_xlim(-0.5, len(shown) - 0.5)
    axes.grid(axis="y", color=style.ink, alpha=0.15)
    figure.legend(axes, style, loc="upper left", handlelength=3.2)


def _further(found: Scaling) -> set[int]:
    """Return the replicas beyond those measured that are shown: twice the most."""
    twice = 2 * found.points[-1].replicas
    return {one.replicas for one in found.expected if one.replicas == twice}
