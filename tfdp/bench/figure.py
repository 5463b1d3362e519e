"""The bandwidths of a training as arrows: input -> training -> synchronisation -> what comes out.

    paths = write(record, folder)       # bandwidth.svg, bandwidth.png, and the same for dark pages

The width of an arrow is its bandwidth in examples/s, to scale: the narrowest one is what holds the
others up. Patterns and outlines tell the arrows apart in black and white. Needs matplotlib:
pip install 'tfdp[bench]'.
"""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

from tfdp.bench.record import Record
from tfdp.error import Error

NAME = "bandwidth"
# A wider arrow is drawn as one that is cut off: the narrowest would be a hair.
_WIDEST = 12.0
_INSTALL = "The figures need matplotlib: pip install 'tfdp[bench]'. Everything else was written."


@dataclasses.dataclass(frozen=True)
class Arrow:
    """One arrow.

    Attributes:
        title: Above it.
        examples_per_second: Its bandwidth.
        width: 1 for the widest that is drawn.
        is_cut: Whether it is wider than it is drawn.
    """

    title: str
    examples_per_second: float
    width: float
    is_cut: bool


@dataclasses.dataclass(frozen=True)
class Style:
    """Colours: of the page, of lines and text, of areas."""

    paper: str
    ink: str
    fills: tuple[str, ...]


# Fills of different brightness, in both: they stay apart without colour.
STYLES = {
    "": Style("white", "#1a1a1a", ("#9ecae1", "#fdd0a2", "#c7c7c7", "#6a6a6a")),
    "-dark": Style("#14171c", "#ececec", ("#2b6a94", "#96611f", "#565b63", "#c8c8c8")),
}
_HATCHES = ("//", "..", "\\\\", "")


def arrows(record: Record) -> list[Arrow]:
    """Return the arrows of a record, from the input to what comes out."""
    rows = record.global_batch_examples
    rates = {
        "Data loading\nalone": rows / max(w.input_seconds.median_seconds for w in record.workers),
        "Training\nwithout exchange": rows
        / max(w.alone_seconds.median_seconds for w in record.workers),
    }
    if record.exchange_seconds is not None:
        rates["Synchronisation\nalone"] = rows / record.exchange_seconds.median_seconds
    rates["All together"] = record.examples_per_second
    widest = min(max(rates.values()), _WIDEST * min(rates.values()))
    return [
        Arrow(title, rate, min(1.0, rate / widest), rate > 1.001 * widest)
        for title, rate in rates.items()
    ]


def write(record: Record, folder: str | pathlib.Path) -> list[pathlib.Path]:
    """Write the figure for light and for dark pages; return the files, for light ones first.

    Raises:
        Error: If matplotlib is not installed.
    """
    return save(NAME, (9.6, 4.0), lambda figure, style: _draw(figure, record, style), folder)


def save(
    name: str,
    inches: tuple[float, float],
    draw: Callable[[Any, Style], None],
    folder: str | pathlib.Path,
) -> list[pathlib.Path]:
    """Write NAME.svg and .png, and NAME-dark.svg and .png; return them in this order.

    Args:
        name: Of the files.
        inches: Width and height.
        draw: Draws on matplotlib's Figure in a style.
        folder: Made if it is not there.

    Raises:
        Error: If matplotlib is not installed.
    """
    figure_module = _matplotlib()
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for suffix, style in STYLES.items():
        figure = figure_module.Figure(figsize=inches, facecolor=style.paper)
        draw(figure, style)
        for kind in ("svg", "png"):
            path = folder / f"{name}{suffix}.{kind}"
            more = {"metadata": {"Date": None}} if kind == "svg" else {"dpi": 150}
            figure.savefig(path, facecolor=style.paper, **more)
            paths.append(path)
    return paths


def label(axes: Any, style: Style, title: str, x: str, y: str) -> None:
    """Write what axes show, and draw them in the style's ink."""
    axes.set_title(title, color=style.ink, fontsize=12)
    axes.set_xlabel(x, color=style.ink, fontsize=11)
    axes.set_ylabel(y, color=style.ink, fontsize=11)
    axes.tick_params(colors=style.ink, labelsize=10)
    for side in axes.spines.values():
        side.set_color(style.ink)


def legend(axes: Any, style: Style, **places: Any) -> None:
    """Draw the legend on the style's paper."""
    axes.legend(
        facecolor=style.paper, edgecolor=style.ink, labelcolor=style.ink, framealpha=1.0,
        fontsize=10, **places,
    )  # fmt: skip


def _matplotlib() -> Any:
    try:
        import matplotlib.figure
    except ImportError:
        raise Error(_INSTALL) from None
    return matplotlib.figure


def _draw(figure: Any, record: Record, style: Style) -> None:
    from matplotlib import patches

    shown = arrows(record)
    axes = figure.add_axes((0.02, 0.0, 0.96, 1.0))
    axes.set_axis_off()
    axes.set_xlim(0, len(shown))
    axes.set_ylim(-1.42, 1.62)
    narrowest = min(arrow.examples_per_second for arrow in shown[:-1])
    for index, arrow in enumerate(shown):
        fill = style.fills[index if arrow is not shown[-1] else -1]
        hatch = _HATCHES[index if arrow is not shown[-1] else -1]
        axes.add_patch(
            patches.Polygon(
                _outline(index, arrow.width),
                closed=True,
                facecolor=fill,
                edgecolor=style.ink,
                linewidth=1.2,
                hatch=hatch,
            )
        )
        if arrow.is_cut:
            _cut(axes, index, style)
        axes.text(
            index + 0.5, 1.18, arrow.title, ha="center", va="center", color=style.ink, fontsize=11.5
        )
        cut = "\n(wider than drawn)" if arrow.is_cut else ""
        least = arrow.examples_per_second == narrowest and arrow is not shown[-1]
        axes.text(
            index + 0.5, -0.96, f"{arrow.examples_per_second:,.0f}\nexamples/s{cut}",
            ha="center", va="top", color=style.ink, fontsize=11,
            fontweight="bold" if least else "normal",
        )  # fmt: skip
    who = f"{record.replicas} replica{'s'[: record.replicas > 1]}"
    kind = record.verdict_text.partition(":")[0]
    axes.text(
        len(shown) / 2, 1.52,
        f"Widths to scale, in examples/s; {who}, {record.global_batch_examples:,} examples a step. "
        f"Verdict: {kind}",
        ha="center", va="center", color=style.ink, fontsize=10,
    )  # fmt: skip


def _outline(index: int, width: float) -> list[tuple[float, float]]:
    """Return the corners of an arrow of a width; its head reaches a little beyond its shaft."""
    left, neck, right = index + 0.06, index + 0.70, index + 0.95
    half, wing = 0.62 * width, 0.62 * width + 0.16
    return [
        (left, half), (neck, half), (neck, wing), (right, 0.0), (neck, -wing), (neck, -half),
        (left, -half),
    ]  # fmt: skip


def _cut(axes: Any, index: int, style: Style) -> None:
    """Draw the two strokes that say: it goes on beyond."""
    for at in (0.28, 0.34):
        x, y = [], []
        for step in range(9):
            x.append(index + at + (0.012 if step % 2 else -0.012))
            y.append(-0.68 + 1.36 * step / 8)
        axes.plot(x, y, color=style.paper, linewidth=3.4)
        axes.plot(x, y, color=style.ink, linewidth=1.0)
