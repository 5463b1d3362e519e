"""Memory that processes of one machine share, and how arrays lie in it.

    regions = Regions(made=lambda region, file: ..., forgotten=lambda region: ...)
    region = regions.take(key, lambda: Layout(arrays, workers=2))
    region.views                       # arrays like the given ones, in that memory

Gloo's process and the other workers of a machine read and write what lies there (see gloo and
shared_memory).
"""

import mmap
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

DTYPES = ("float32", "float64", "int32", "int64", "float16", "bfloat16")
# Smaller sums are copied out: they may be kept for long, and would keep shared memory with them.
SMALL = 1 << 16
# How often one who waits looks whether the others live.
LOOK_SECONDS = 1.0
# What TensorFlow takes without a copy is aligned so (EIGEN_MAX_ALIGN_BYTES).
_ALIGNMENT = 64
# Memory that so many collectives have not used belongs to a model that is trained no more.
_FORGOTTEN_AFTER = 1000


class Failed(Exception):
    """A collective has failed, for good: another worker is lost, or took too long.

    Args:
        problem: What happened.
        worker: The number of the worker that was lost, None if that is not known.
    """

    def __init__(self, problem: str, worker: int | None = None):
        super().__init__(problem)
        self.worker = worker


class Late(Failed):
    """A collective has taken longer than it may."""


def key_of(arrays: Sequence[np.ndarray]) -> Any:
    """Return what arrays have in common that lie alike in memory."""
    return tuple([(array.dtype, array.shape) for array in arrays])


class Layout:
    """Where arrays lie in a region: those of a type together, as one collective takes them.

    Args:
        arrays: The arrays.
        workers: How many there are: each part has a multiple of it elements.
        gathered: Further bytes at the end, once for each worker and once more.

    Attributes:
        parts: (type, first byte, elements) of each type.
        places: (first byte, type, shape) of each array.
        size: In bytes.

    Raises:
        TypeError: For an array whose type cannot be summed.
    """

    def __init__(self, arrays: Sequence[np.ndarray], workers: int, gathered: int = 0):
        self.places: list[tuple[int, np.dtype, tuple[int, ...]]] = [(0, np.dtype("i1"), ())] * len(
            arrays
        )
        self.parts: list[tuple[str, int, int]] = []
        end = 0
        for name in sorted({array.dtype.name for array in arrays}):
            if name not in DTYPES:
                raise TypeError(f"{name} cannot be summed: use one of {DTYPES}")
            begin, width = end, 1
            for index, array in enumerate(arrays):
                if array.dtype.name == name:
                    width = array.dtype.itemsize
                    self.places[index] = (end, array.dtype, array.shape)
                    end = _aligned(end + array.nbytes)
            # Workers add up equal parts.
            count = -(-(end - begin) // width // workers) * workers
            self.parts.append((name, begin, count))
            end = _aligned(begin + count * width)
        self.size = max(_ALIGNMENT, end + gathered * (workers + 1))

    def views(self, memory: np.ndarray) -> list[np.ndarray]:
        """Return arrays like those of the layout that lie in `memory`, of `size` bytes."""
        return [
            memory[start : start + int(np.prod(shape, dtype=np.int64)) * dtype.itemsize]
            .view(dtype)
            .reshape(shape)
            for start, dtype, shape in self.places
        ]


class Region:
    """A piece of shared memory, and the arrays in it.

    Args:
        number: Of this one, among those that one process has made.
        layout: How arrays lie in it.
        memory: Its bytes.

    Attributes:
        views: The arrays, to be written.
        results: The same, to be handed out: they cannot be written. TensorFlow does not write into
            what a function of Python has returned either (OwnsMemory is false for such a buffer:
            python/lib/core/py_func.cc).
    """

    def __init__(self, number: int, layout: Layout, memory: np.ndarray):
        self.number, self.layout, self.size = number, layout, layout.size
        self.used_at = 0
        self.bytes = memory
        readable = memory.view()
        readable.flags.writeable = False
        self.views, self.results = layout.views(memory), layout.views(readable)
        self._held = self._holders()

    def is_free(self) -> bool:
        """Say whether nobody else holds one of the results (TensorFlow does while it uses it)."""
        return self._holders() == self._held

    def _holders(self) -> list[int]:
        return [sys.getrefcount(result) for result in self.results]


class Regions:
    """The regions that a worker has made.

    Args:
        made: Called with a new region and the descriptor of its file, which is closed afterwards.
        forgotten: Called with a region that is given back.
        lent: Says whether another process holds a part of a region.
    """

    def __init__(
        self,
        made: Callable[[Region, int], None],
        forgotten: Callable[[Region], None],
        lent: Callable[[Region], bool] = lambda region: False,
    ) -> None:
        self._made, self._forgotten, self._lent = made, forgotten, lent
        self._regions: dict[Any, list[Region]] = {}
        self._count = 0  # those that are gone too
        self._taken = 0

    def take(self, key: Any, make: Callable[[], Layout]) -> Region:
        """Return memory of a layout that nobody holds a part of."""
        self._taken += 1
        for region in self._regions.get(key, ()):
            if region.is_free() and not self._lent(region):
                region.used_at = self._taken
                return region
        self._forget()
        layout, file = make(), _memory_file()
        try:
            os.ftruncate(file, layout.size)
            region = Region(self._count, layout, mapped(file, layout.size))
            region.used_at = self._taken
            self._made(region, file)
        finally:
            os.close(file)
        self._count += 1
        self._regions.setdefault(key, []).append(region)
        return region

    def held(self) -> dict[Any, int]:
        """Return how many regions there are of each key."""
        return {key: len(made) for key, made in self._regions.items()}

    def _forget(self) -> None:
        """Give memory back that was not used for long."""
        for key, made in list(self._regions.items()):
            for region in list(made):
                late = self._taken - region.used_at > _FORGOTTEN_AFTER
                if late and region.is_free() and not self._lent(region):
                    made.remove(region)
                    self._forgotten(region)
            if not made:
                del self._regions[key]


def mapped(file: int, size: int) -> np.ndarray:
    """Return the bytes of a file in memory, to be read and written."""
    return np.frombuffer(mmap.mmap(file, size), np.uint8)


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def _memory_file() -> int:
    """Return a file without a name that lies in memory."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("tfdp")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())
