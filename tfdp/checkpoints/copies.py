"""Copies of values that go on changing, in memory that is used again and again.

    copies = Copies()
    copies("kernel", np.asarray(variable))      # of the next checkpoint too, in the same place

Training stands still while they are made. Memory that a process has never touched costs as much as
the copy itself, page by page.
"""

import numpy as np


class Copies:
    """Keeps one copy of each value, by its name."""

    def __init__(self) -> None:
        self._kept: dict[str, np.ndarray] = {}

    def __call__(self, name: str, value: np.ndarray) -> np.ndarray:
        """Return a copy, good until the next one of that name."""
        kept = self._kept.get(name)
        if kept is None or kept.shape != value.shape or kept.dtype != value.dtype:
            kept = self._kept[name] = np.empty_like(value)
        np.copyto(kept, value)
        return kept
