"""Schedules of the learning rate, where Keras has none: a warm-up around any schedule.

    schedule = keras.optimizers.schedules.PiecewiseConstantDecay([9_000], [0.4, 0.04])
    optimizer = keras.optimizers.SGD(tfdp.schedules.Warmup(schedule, steps=1_500), momentum=0.9)

To load a model that was saved with one, import this module first.
"""

import math
from typing import Any

import keras
from keras import ops
from keras.optimizers.schedules import LearningRateSchedule

from tfdp.error import Error


@keras.saving.register_keras_serializable(package="tfdp")
class Warmup(LearningRateSchedule):
    """A straight line from `start` up to what another schedule gives at the step `steps`.

    From there on it is the other schedule, whose steps are counted from the start of training (not
    from the end of the warm-up), as in Goyal et al. 2017 (https://arxiv.org/abs/1706.02677).

    Args:
        schedule: A Keras schedule, or a number.
        steps: Optimizer steps of the warm-up; 0 is none.
        start: The learning rate of the first step.
        name: Of the schedule.

    Raises:
        Error: For a number that cannot be.
    """

    def __init__(self, schedule: Any, steps: int, start: float = 0.0, name: str = "warmup") -> None:
        super().__init__()
        if isinstance(steps, bool) or not isinstance(steps, int) or steps < 0:
            raise Error(f"Warmup: steps={steps!r} is not a whole number from 0 up. Use one.")
        for argument, value in (("schedule", schedule), ("start", start)):
            if argument == "schedule" and isinstance(schedule, LearningRateSchedule):
                continue
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if not is_number or not 0 <= value < math.inf:
                kind = "a schedule or a number" if argument == "schedule" else "a number"
                raise Error(f"Warmup: {argument}={value!r}. Use {kind} from 0 up.")
        self.schedule, self.steps, self.start, self.name = schedule, steps, start, name

    def __call__(self, step: Any) -> Any:
        """Return the learning rate of an optimizer step, counted from 0."""
        if not self.steps:
            return self._target(step)
        step = ops.cast(step, "float32")
        share = ops.minimum(step / float(self.steps), 1.0)
        peak = self._target(ops.maximum(step, float(self.steps)))
        # Not start + share * (peak - start), which is not exactly the peak at the end.
        return (1.0 - share) * self.start + share * peak

    def _target(self, step: Any) -> Any:
        if isinstance(self.schedule, LearningRateSchedule):
            return self.schedule(step)
        return ops.convert_to_tensor(self.schedule, dtype="float32")

    def get_config(self) -> dict[str, Any]:
        """Return what makes a schedule like this one."""
        schedule = self.schedule
        if isinstance(schedule, LearningRateSchedule):
            schedule = keras.saving.serialize_keras_object(schedule)
        return {
            "schedule": schedule,
            "steps": self.steps,
            "start": self.start,
            "name": self.name,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "Warmup":
        """Make a schedule of what `get_config` returned."""
        config = dict(config)
        if isinstance(config["schedule"], dict):
            config["schedule"] = keras.saving.deserialize_keras_object(config["schedule"])
        return cls(**config)


def pieces(rate: float, factors: list[tuple[int, float]]) -> Any:
    """Return a rate that is multiplied by another factor from each of some steps on.

    Keras's PiecewiseConstantDecay gives its next value one step after a boundary; here a factor
    holds from its step on, that step included.

    Args:
        rate: The learning rate.
        factors: (first step, factor) in order; before the first of them the factor is 1.
    """
    if factors and factors[0][0] <= 0:
        first, factors = factors[0][1], factors[1:]
    else:
        first = 1.0
    if not factors:
        return rate * first
    boundaries = [step - 1 for step, _ in factors]
    values = [rate * first, *[rate * factor for _, factor in factors]]
    return keras.optimizers.schedules.PiecewiseConstantDecay(boundaries, values)
