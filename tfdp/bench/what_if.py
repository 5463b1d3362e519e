"""--what-if of `tfdp bench`: read what is asked, tell what is predicted. No TensorFlow.

wish = parse("hosts=16,gpus=8,link=25gbit,latency=20us")
sources = read(["runs/a/bench.json", "runs/b/bench.json@1gbit"])
print(text(predict.predict(sources, wish)))
"""

import difflib
import re
from collections.abc import Callable, Sequence
from typing import Any

from tfdp.bench import cost, fitted, words
from tfdp.bench.predict import GOAL, Prediction, Wish
from tfdp.bench.record import Record
from tfdp.error import Error

_EXAMPLE = "--what-if=hosts=16,gpus=8,link=25gbit,latency=20us"
_BITS = {"kbit": 1e3, "mbit": 1e6, "gbit": 1e9, "tbit": 1e12}
_BYTES = {"kb": 1e3, "mb": 1e6, "gb": 1e9}
_SECONDS = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0}


def parse(words_given: str) -> Wish:
    """Return what a text asks for.

    Raises:
        Error: For a text that is not understood, with what is.
    """
    found: dict[str, Any] = {}
    for part in filter(None, (part.strip() for part in words_given.split(","))):
        name, equals, value = part.partition("=")
        if not equals or name not in _READERS:
            close = difflib.get_close_matches(name, _READERS, 1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise Error(
                f"--what-if: {part!r} is not understood.{hint} "
                f"Use {', '.join(_READERS)}: {_EXAMPLE}"
            )
        if name in found:
            raise Error(f"--what-if: {name} is given twice.")
        found[name] = _READERS[name](name, value)
    if not found:
        raise Error(f"--what-if is empty. Write: {_EXAMPLE}")
    return Wish(**found)


def rate(name: str, value: str) -> float:
    """Return bytes/s of "25gbit" (bits) or "12GB" (bytes a second).

    Raises:
        Error: If it is neither.
    """
    units = {**{unit: factor / 8 for unit, factor in _BITS.items()}, **_BYTES}
    return _with_unit(name, value, units, "25gbit, or 12GB for bytes a second")


def _with_unit(name: str, value: str, units: dict[str, float], example: str) -> float:
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)([a-z]+)", value.strip().lower())
    number = float(match[1]) if match else 0.0
    if not match or match[2] not in units or number <= 0:
        raise Error(f"--what-if: {name}={value}: write a number and a unit: {example}.")
    return number * units[match[2]]


def _seconds(name: str, value: str) -> float:
    return _with_unit(name, value, _SECONDS, "20us")


def _size(name: str, value: str) -> float:
    return _with_unit(name, value, _BYTES, "102MB")


def _whole(name: str, value: str) -> int:
    if not value.isdecimal() or int(value) < 1:
        raise Error(f"--what-if: {name}={value}: use a whole number of 1 or more.")
    return int(value)


def _overlap(name: str, value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = 0.0
    if not 1 <= number <= 100:
        raise Error(
            f"--what-if: {name}={value}: use a number from 1 (the exchange begins when all "
            "gradients are there) to 100 (all of it is hidden)."
        )
    return number


def _one_of(*values: str) -> Callable[[str, str], str]:
    def read(name: str, value: str) -> str:
        if value not in values:
            raise Error(f"--what-if: {name}={value}: use {', '.join(values)}.")
        return value

    return read


_READERS: dict[str, Callable[[str, str], Any]] = {
    "hosts": _whole,
    "gpus": _whole,
    "link": rate,
    "latency": _seconds,
    "inside": rate,
    "batch": _whole,
    "compression": _one_of(*fitted.WIRE),
    "algorithm": _one_of("best", *cost.ALGORITHMS),
    "overlap": _overlap,
    "gradients": _size,
    "examples": _whole,
    "epochs": _whole,
}


def read(files: Sequence[str]) -> list[fitted.Source]:
    """Return the benches of FILE or FILE@RATE, where RATE is that of the link they ran on.

    Raises:
        Error: If one cannot be read.
    """
    found = []
    for file in files:
        path, at, given = file.rpartition("@")
        if not at:
            path, given = file, ""
        found.append(
            fitted.Source(Record.read(path), rate(f"--from={path}@", given) if given else 0.0)
        )
    return found


def text(found: Prediction) -> str:
    """Return a prediction for a terminal."""
    wish = found.wish
    where = f"{wish.hosts} host{'s'[: wish.hosts > 1]} x {wish.gpus}"
    link = f", link {wish.link * 8 / 1e9:g} Gbit/s" if wish.link else ""
    lines = [
        "",
        f"What if: {where} = {found.replicas} replicas{link}, "
        f"{found.global_batch_examples:,.0f} examples a step",
        f"  {'throughput':24} {found.examples_per_second:>12,.0f} examples/s   "
        f"({found.low_examples_per_second:,.0f} to {found.high_examples_per_second:,.0f}, "
        f"+-{found.band:.0%})",
        f"  {'speed-up':24} {found.speed_up:>12.2f} x",
        f"  {'efficiency':24} {found.efficiency:>12.0%}",
        f"  {'a step':24} {words.time(found.step_seconds):>12}",
        f"  {'  computing':24} {words.time(found.computing_seconds):>12}",
        f"  {'  waits for exchange':24} {words.time(found.exposed_seconds):>12}   "
        f"(it takes {words.time(found.exchange_seconds)}, {found.algorithm})",
        f"  {'  waits for input':24} {words.time(found.waiting_seconds):>12}",
    ]
    if wish.examples:
        lines.append(f"  {'an epoch':24} {_long(found.epoch_seconds):>12}")
        if wish.epochs:
            lines.append(f"  {f'{wish.epochs} epochs':24} {_long(found.days * 86400):>12}")
    elif wish.epochs:
        lines.append("  For the time of epochs say how many rows one has: examples=1281167")
    lines += _goals(found)
    lines += [f"  Assumed: {one}" for one in found.assumed]
    return "\n".join(lines) + "\n"


def _goals(found: Prediction) -> list[str]:
    if found.replicas == 1:
        return []
    if found.efficiency >= GOAL:
        return [f"  {GOAL:.0%} efficiency is reached."]
    ways = []
    if found.wish.hosts > 1:
        ways.append(
            f"a link of {found.goal_link * 8 / 1e9:.3g} Gbit/s"
            if found.goal_link
            else "no link alone"
        )
    ways.append(
        f"a global batch of {found.goal_batch:,} ({found.goal_batch // found.replicas:,} for each "
        "replica)"
        if found.goal_batch
        else "no batch alone"
    )
    return [f"  {GOAL:.0%} efficiency is reached with {', or '.join(ways)}."]


def _long(seconds: float) -> str:
    for unit, name in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * unit:
            return f"{seconds / unit:,.1f} {name}"
    return words.time(seconds)
