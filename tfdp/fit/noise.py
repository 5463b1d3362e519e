"""The gradient noise scale from the gradients of the parts of a batch: what both engines share.

    squared, trace = estimate(small, large, parts, rows)

With b_r of the B rows of a global batch in part r, and g_r the mean gradient there,

    E |g_r|^2 = |G|^2 + tr(S) / b_r         E |g|^2 = |G|^2 + tr(S) / B

where g is the mean over the global batch. Weighted by the shares b_r / B the first gives, for R
parts that have rows, |G|^2 + R tr(S) / B, however unequal the shares are. The two equations give
estimates of |G|^2 and tr(S) without a bias, which are averaged over the steps before they are
divided (McCandlish et al. 2018, "An Empirical Model of Large-Batch Training", appendix A.1).
"""

import dataclasses
from typing import Any

# Steps from one measurement to the next, where nobody says another number: so that measuring costs
# about 1%. The gradients of two halves take as long as a step.
EVERY, EVERY_OF_HALVES = 32, 128


@dataclasses.dataclass(frozen=True)
class Settings:
    """How it is measured.

    Attributes:
        every: Steps from one measurement to the next.
        smoothing: Weight of the past in the moving averages, 0 to 1; 1: the mean over all.
    """

    every: int
    smoothing: float


def estimate(small: Any, large: Any, parts: Any, rows: Any) -> tuple[Any, Any]:
    """Return estimates of |G|^2 and tr(S) from one batch: numbers or scalar tensors.

    Args:
        small: The sum over the parts of (b_r / B) |g_r|^2.
        large: |g|^2.
        parts: How many parts have rows, 2 or more.
        rows: B.
    """
    trace = (small - large) * rows / (parts - 1)
    return large - trace / rows, trace


def own_train_step(model: str) -> str:
    """Say why the gradients of a train_step of the user's own are not measured."""
    return (
        f"GradientNoiseScale: model {model!r} has a train_step of its own, whose gradients tfdp "
        "does not see as a whole. Leave the callback out."
    )
