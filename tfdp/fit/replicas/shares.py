"""Which worker adds up what of the numbers that lie in shared memory (a reduce-scatter).

cut = Cut(layout, rank=0, size=2)
add(terms, total)                   # arrays of one type, in their order
"""

import math
from collections.abc import Sequence

import numpy as np

from tfdp.fit.replicas.memory import Layout

# What is smaller is copied with others like it, and added up with them: a step of Python for each
# would cost more than the copy.
_LARGE = 1 << 16
# Elements that are added up at a time: they stay in a core's cache.
_CHUNK = 1 << 15
_HALVES = ("float16", "bfloat16")


class Cut:
    """Who adds up what of a layout, as bytes of a region; the same in all regions like it.

    Args:
        layout: How the arrays lie.
        rank: The number of this worker.
        size: How many there are: each adds up an equal part of the numbers of a type.

    Attributes:
        whole: Numbers of arrays that are copied as they are.
        parts: (number of an array, elements, bytes, type) of what is copied of others.
        direct: The same of large parts that this worker adds up from where they lie.
        runs: (bytes, type) of what it adds up besides, out of the memory of all.
    """

    def __init__(self, layout: Layout, rank: int, size: int):
        self.layout = layout
        self.whole: list[int] = []
        self.parts: list[tuple[int, slice, slice, np.dtype]] = []
        self.direct: list[tuple[int, slice, slice, np.dtype]] = []
        self.runs: list[tuple[slice, np.dtype]] = []
        for name, first, count in layout.parts:
            dtype = np.dtype(name)
            share = count // size * dtype.itemsize
            begin, end = first + rank * share, first + (rank + 1) * share
            at = begin
            for index, (place, kind, shape) in enumerate(layout.places):
                if kind.name != name:
                    continue
                stop = place + math.prod(shape) * dtype.itemsize
                low, high = max(place, begin), min(stop, end)
                if high - low < _LARGE:
                    self.whole.append(index)
                    continue
                for pieces, start, until in (
                    (self.parts, place, low),
                    (self.direct, low, high),
                    (self.parts, high, stop),
                ):
                    if until > start:
                        elements = slice(
                            (start - place) // dtype.itemsize, (until - place) // dtype.itemsize
                        )
                        pieces.append((index, elements, slice(start, until), dtype))
                if low > at:
                    self.runs.append((slice(at, low), dtype))
                at = high
            if end > at:
                self.runs.append((slice(at, end), dtype))


def add(terms: Sequence[np.ndarray], total: np.ndarray) -> None:
    """Add up arrays of one type, in their order, into one that may be one of them.

    16-bit floats are added in float32 and rounded once.
    """
    halves = total.dtype.name in _HALVES
    if len(terms) == 2 and not halves:
        np.add(terms[0], terms[1], out=total)
        return
    scratch = np.empty(min(_CHUNK, total.size), np.float32 if halves else total.dtype)
    with np.errstate(over="ignore", invalid="ignore"):  # infinite, as promised
        for begin in range(0, total.size, _CHUNK):
            chunk = slice(begin, begin + _CHUNK)
            part = scratch[: len(total[chunk])]
            part[:] = terms[0][chunk]
            for term in terms[1:]:
                np.add(part, term[chunk], out=part)
            total[chunk] = part
