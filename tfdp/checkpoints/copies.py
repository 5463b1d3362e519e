"""Copies of values that go on changing, in memory that is used again and again.

    copies = Copies()
    copies.reserve(arrays=2, size=4_000_000)   # made ready while training goes on
    copies("kernel", np.asarray(variable))      # of the next checkpoint too, in the same place

Training stands still while they are made. Memory that a process has never touched costs more than
the copy itself, page by page: on a virtual machine that takes its memory from the host the first
copy of 1 GB took 2.3 s, the next ones 0.1 s.
"""

import concurrent.futures
import os
import threading

import numpy as np

_ALIGNMENT = 64
# From here on a second thread copies half of it: one core alone does not use all of the memory's
# bandwidth, and training stands still.
_LARGE_BYTES = 4 << 20
_SLICE_BYTES = 16 << 20


class Copies:
    """Keeps one copy of each value, by its name."""

    def __init__(self) -> None:
        self._kept: dict[str, np.ndarray] = {}
        self._reserve = np.empty(0, np.uint8)
        self._used = 0
        self._touching: threading.Thread | None = None
        self._helper: concurrent.futures.Executor | None = None
        if len(os.sched_getaffinity(0)) > 1:
            self._helper = concurrent.futures.ThreadPoolExecutor(1, "tfdp-copies")

    def reserve(self, arrays: int, size: int) -> None:
        """Make memory ready for the first copies, in a thread; called once.

        Args:
            arrays: How many there will be.
            size: Their bytes. For what does not fit memory is found when it is copied.
        """
        self._reserve = np.empty(size + arrays * _ALIGNMENT, np.uint8)
        self._touching = threading.Thread(
            target=_touch, args=(self._reserve,), name="tfdp-copies", daemon=True
        )
        self._touching.start()

    def __call__(self, name: str, value: np.ndarray) -> np.ndarray:
        """Return a copy, good until the next one of that name."""
        kept = self._kept.get(name)
        if kept is None or kept.shape != value.shape or kept.dtype != value.dtype:
            kept = self._kept[name] = self._memory(value)
        half = len(value) // 2 if value.ndim and value.nbytes >= _LARGE_BYTES else 0
        if half and self._helper is not None:
            other = self._helper.submit(np.copyto, kept[half:], value[half:])
            np.copyto(kept[:half], value[:half])
            other.result()
        else:
            np.copyto(kept, value)
        return kept

    def _memory(self, like: np.ndarray) -> np.ndarray:
        if self._touching is not None:
            self._touching.join()
            self._touching = None
        begin = -(-self._used // _ALIGNMENT) * _ALIGNMENT
        end = begin + like.nbytes
        if end > len(self._reserve):
            return np.empty_like(like)
        self._used = end
        return self._reserve[begin:end].view(like.dtype).reshape(like.shape)


def _touch(memory: np.ndarray) -> None:
    """Write into memory, in parts between which others run."""
    for begin in range(0, len(memory), _SLICE_BYTES):
        memory[begin : begin + _SLICE_BYTES] = 0
