"""The learning rate of another batch: rules, and what a run says of them. Plain numbers.

scale_learning_rate(0.1, 256, 1024, "sgd")       # 0.4
scale_learning_rate(1e-3, 256, 1024, "adam")     # 0.002
"""

import math
import re
from typing import Any

from tfdp.error import Error

# By the lower-case names of classes. The mean of k gradients has a k-th of the variance. SGD's step
# grows with the gradient: k times the rate makes up for a k-th of the steps (Krizhevsky 2014, Goyal
# et al. 2017, https://arxiv.org/abs/1706.02677). Adam and its kin divide by the gradient's size, so
# that the noise of their step falls by sqrt(k) alone (You et al. 2019,
# https://arxiv.org/abs/1904.00962; Malladi et al. 2022, https://arxiv.org/abs/2205.10287).
RULES = {
    **dict.fromkeys(("sgd", "lars"), "linear"),
    **dict.fromkeys(("adam", "adamw", "nadam", "adamax", "rmsprop", "adagrad", "lamb"), "sqrt"),
}


def scale_learning_rate(
    rate: float, from_batch: int, to_batch: int, optimizer: Any, rule: str | None = None
) -> float:
    """Return the learning rate for another global batch.

    A rate for a large batch needs a warm-up (tfdp.schedules.Warmup), and momentum that follows a
    rate which changes: tfdp.optimizers.SGD corrects it, keras.optimizers.SGD does not. Weight decay
    is not scaled. Malladi et al. 2022 also change Adam's betas, 1 - beta by the factor of the
    batch, and its epsilon: that is left to you.

    Args:
        rate: What was found with `from_batch`.
        from_batch: Rows of one step over all replicas there.
        to_batch: Rows of one step over all replicas here.
        optimizer: A name ("sgd"), a class or an optimizer: linear for SGD and LARS, the square root
            for Adam, AdamW, Nadam, Adamax, RMSprop, Adagrad and LAMB.
        rule: "linear" or "sqrt" for another optimizer, or against the table.

    Raises:
        Error: For a number that cannot be, or an optimizer without a rule.
    """
    for name, value in (("from_batch", from_batch), ("to_batch", to_batch)):
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise Error(f"{name}={value!r} is not a whole number from 1 up. Use one.")
    is_number = isinstance(rate, int | float) and not isinstance(rate, bool)
    if not is_number or not 0 < rate < math.inf:
        raise Error(
            f"rate={rate!r} is no number above 0. Use one; scale a schedule by the rate that it "
            "is made with."
        )
    rule = rule_of(optimizer) if rule is None else rule
    if rule not in ("linear", "sqrt"):
        raise Error(f"rule={rule!r}: use 'linear' or 'sqrt'.")
    factor = to_batch / from_batch
    return float(rate) * (factor if rule == "linear" else math.sqrt(factor))


def rule_of(optimizer: Any) -> str:
    """Return "linear" or "sqrt" for an optimizer, its class, or the name of its class.

    Raises:
        Error: If nothing is known of it.
    """
    # A LossScaleOptimizer is what it holds.
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)
    if isinstance(optimizer, str):
        names = [optimizer]
    else:
        kind = optimizer if isinstance(optimizer, type) else type(optimizer)
        names = [one.__name__ for one in kind.__mro__]
    for name in names:
        if name.lower() in RULES:
            return RULES[name.lower()]
    raise Error(
        f"Nothing is known of how the learning rate of {names[0]!r} follows the batch. Give "
        "rule='linear' or rule='sqrt'."
    )


def described(
    optimizer: str,
    base: float,
    base_batch: int,
    rate: float,
    batch: int,
    warmup_epochs: float,
    schedule: str,
) -> str:
    """Return what a run made of its settings, in one line.

    Args:
        optimizer: As in the settings.
        base: The learning rate of the settings.
        base_batch: Rows of one step for which it was found; 0 if the settings do not say.
        rate: The rate that is reached.
        batch: Rows of one step of this run.
        warmup_epochs: How long it takes to get there.
        schedule: As in the settings.
    """
    line = f"Optimizer {optimizer}, learning rate {_short(rate)}"
    if base_batch:
        line = f"Optimizer {optimizer}, learning rate {_short(base)} for {base_batch:,}"
        line += f" -> {_short(rate)} for {batch:,}"
    if warmup_epochs:
        epochs = "epoch" if warmup_epochs == 1 else "epochs"
        line += f" after {warmup_epochs:g} {epochs} of warm-up"
    if schedule == "cosine":
        line += ", then along a cosine to 0"
    elif schedule != "constant":
        line += f", then by the schedule {schedule}"
    return f"{line}."


def _short(rate: float) -> str:
    return f"{rate:.4g}"


def milestones(text: str) -> list[tuple[float, float]] | None:
    """Return (epoch, factor) of each part of a schedule like "30:0.1, 60:0.01".

    Returns:
        None for anything else: a text without a colon, or "package.module:function".

    Raises:
        Error: If the epochs do not rise, or a number cannot be.
    """
    parts = [part.strip() for part in text.split(",")]
    number = r"\d+(\.\d*)?([eE][-+]?\d+)?"
    if not all(re.fullmatch(rf"{number}\s*:\s*{number}", part) for part in parts):
        return None
    found = [tuple(map(float, part.split(":"))) for part in parts]
    epochs = [epoch for epoch, _ in found]
    if sorted(set(epochs)) != epochs:
        raise Error(f"the epochs of {text!r} do not rise. Write them in their order, each once.")
    return [(epoch, factor) for epoch, factor in found]
