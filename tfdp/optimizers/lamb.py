"""LAMB: Adam's step with the norm of the variable."""

import math
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from tfdp.optimizers import base


@keras.saving.register_keras_serializable(package="tfdp")
class LAMB(base.Layerwise):
    """Layer-wise adaptive moments: Adam whose step has the norm of the variable.

    With Adam's moments m and v, corrected for their start:

        u = m / (sqrt(v) + epsilon) + weight_decay * w
        w <- w - learning_rate * |w| / |u| * u

    The ratio is 1 where |w| or |u| is 0. This is algorithm 2 of You et al. 2019
    (https://arxiv.org/abs/1904.00962) with phi(|w|) = |w|. keras.optimizers.Lamb has the decay
    outside the ratio. The BERT reference of MLPerf training first divides all gradients by their
    common norm where it is above 1: that is global_clipnorm=1.0.

    Args:
        learning_rate: A number or a schedule.
        beta_1: Decay of the mean of gradients.
        beta_2: Decay of the mean of their squares.
        epsilon: Added to the divisor.
        weight_decay: Factor of the weights in the update (lambda).
        bias_correction: False leaves the moments as they are at the start.
        exclude_from_weight_decay: Regular expressions, searched in a variable's path
            ("encoder/norm/gamma"); None leaves out what has fewer than two dimensions, as biases
            and normalisation; () leaves out nothing.
        exclude_from_layer_adaptation: The same for the ratio, which is 1 then.
        **kwargs: As keras.optimizers.Optimizer (clipnorm, use_ema, name, ...).

    Raises:
        Error: For a number that cannot be.
    """

    def __init__(
        self,
        learning_rate: Any = 0.001,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-6,
        weight_decay: float = 0.0,
        bias_correction: bool = True,
        exclude_from_weight_decay: Sequence[str] | None = None,
        exclude_from_layer_adaptation: Sequence[str] | None = None,
        name: str = "lamb",
        **kwargs: Any,
    ) -> None:
        base.check_momentum(self, beta_1, "beta_1")
        base.check_momentum(self, beta_2, "beta_2")
        base.check_at_least_0(self, "epsilon", epsilon)
        super().__init__(
            learning_rate,
            weight_decay,
            exclude_from_weight_decay,
            exclude_from_layer_adaptation,
            name=name,
            **kwargs,
        )
        self.beta_1, self.beta_2 = float(beta_1), float(beta_2)
        self.epsilon = float(epsilon)
        self.bias_correction = bias_correction

    def build(self, variables: Any) -> None:
        """Make the two moments of each variable."""
        if self.built:
            return
        variables = list(variables)
        super().build(variables)
        self._means, self._squares = self.add_optimizer_variables(variables, ["mean", "square"])

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """Change one variable by its gradient."""
        index = self._get_variable_index(variable)
        w, g, rate = base.tensors(variable, gradient, learning_rate)
        mean, square = self._means[index], self._squares[index]
        m = self.beta_1 * ops.convert_to_tensor(mean) + (1.0 - self.beta_1) * g
        v = self.beta_2 * ops.convert_to_tensor(square) + (1.0 - self.beta_2) * ops.square(g)
        self.assign(mean, m)
        self.assign(square, v)
        if self.bias_correction:
            step = ops.cast(self.iterations + 1, w.dtype)
            m = m / _one_less_power(self.beta_1, step)
            v = v / _one_less_power(self.beta_2, step)
        u = m / (ops.sqrt(v) + self.epsilon) + self.decay_of(index) * w
        if self._adapts[index]:
            norm, length = base.norm(w), base.norm(u)
            rate = rate * base.ratio(norm, length, norm, length)
        self.assign_sub(variable, rate * u)

    def get_config(self) -> dict[str, Any]:
        """Return what makes an optimizer like this one."""
        return {
            **super().get_config(),
            "beta_1": self.beta_1,
            "beta_2": self.beta_2,
            "epsilon": self.epsilon,
            "bias_correction": self.bias_correction,
        }


def _one_less_power(beta: float, step: Any) -> Any:
    """Return 1 - beta ** step; the difference to 1 itself has four digits at the first steps."""
    if beta == 0.0:
        return ops.ones_like(step)
    return -ops.expm1(step * math.log(beta))
