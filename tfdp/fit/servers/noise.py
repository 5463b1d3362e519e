"""The gradient noise scale where the coordinator sums the gradients of the parts of a batch.

    noise = Noise(noise.Settings(every=32, smoothing=0.99))
    if noise.is_due():
        noise.add(parts, rows, whole, scale)
    number, squared, trace = noise.read()       # averages of |G|^2 and tr(S)

What is estimated: see tfdp/fit/noise.py.
"""

from collections.abc import Sequence

import numpy as np

from tfdp.fit import noise as noise_lib


class Noise:
    """The moving averages of one model's training.

    Args:
        settings: How it is measured.
    """

    def __init__(self, settings: noise_lib.Settings):
        self._settings = settings
        self._steps = self._number = 0
        self._averages = np.zeros(2)

    def is_due(self) -> bool:
        """Say whether this step is measured, and count it."""
        self._steps += 1
        return (self._steps - 1) % self._settings.every == 0

    def add(
        self, parts: Sequence[float], rows: Sequence[int], whole: float, scale: float = 1.0
    ) -> None:
        """Add a step to the averages, unless its gradients overflowed.

        Args:
            parts: The squared length of what each part adds to the gradient of the batch: the mean
                gradient of its rows times its share of them.
            rows: Of each part.
            whole: The squared length of the gradient of the batch.
            scale: Of the loss.
        """
        batch = sum(rows)
        small = sum(part * batch / own for part, own in zip(parts, rows, strict=True))
        if len(parts) < 2 or not np.isfinite(small + whole):
            return
        found = noise_lib.estimate(small / scale**2, whole / scale**2, len(parts), batch)
        self._number += 1
        weight = max(1 - self._settings.smoothing, 1 / self._number)
        self._averages += weight * (np.array(found) - self._averages)

    def read(self) -> tuple[int, float, float]:
        """Return how many steps were measured, and the averages of |G|^2 and tr(S)."""
        return self._number, float(self._averages[0]), float(self._averages[1])


def squared(arrays: Sequence[np.ndarray]) -> float:
    """Return the squared length of arrays together."""
    return float(sum(np.sum(np.square(np.asarray(array).astype(np.float64))) for array in arrays))


def by_row(indices: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return the rows of a sparse gradient, each once: the sum of those that were equal."""
    names, where = np.unique(indices, return_inverse=True)
    summed = np.zeros((len(names), *values.shape[1:]), np.float64)
    np.add.at(summed, where.reshape(-1), values)
    return summed
