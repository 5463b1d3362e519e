"""LARS: a learning rate for each variable, by its norm."""

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from tfdp.optimizers import base


@keras.saving.register_keras_serializable(package="tfdp")
class LARS(base.Layerwise):
    """Layer-wise adaptive rate scaling: SGD whose rate follows the norm of each variable.

    With g' = g + weight_decay * w:

        ratio = trust_coefficient * |w| / (|g| + weight_decay * |w| + epsilon)
        m <- momentum * m + learning_rate * ratio * g';   w <- w - m

    The ratio is 1 where |w| or |g| is 0. This is the algorithm of You, Gitman and Ginsburg 2017
    (https://arxiv.org/abs/1708.03888), and of the ResNet-50 reference of MLPerf training.

    Args:
        learning_rate: A number or a schedule; of the order of 10, not of 0.1.
        momentum: From 0 up to below 1.
        weight_decay: Factor of the weights in the gradient.
        trust_coefficient: Eta of the paper.
        nesterov: Whether w moves by momentum * m + learning_rate * ratio * g' instead.
        epsilon: Added to the divisor; the paper has none.
        scale_momentum: False keeps rate and ratio outside m: m <- momentum * m + g', w moves by
            learning_rate * ratio * m. Kumar et al. 2019 (https://arxiv.org/abs/1909.09756) call it
            unscaled momentum, and used it for MLPerf 0.6.
        exclude_from_weight_decay: Regular expressions, searched in a variable's path
            ("stage1/bn/gamma"); None leaves out what has fewer than two dimensions, as biases and
            normalisation; () leaves out nothing.
        exclude_from_layer_adaptation: The same for the ratio, which is 1 then.
        **kwargs: As keras.optimizers.Optimizer (clipnorm, use_ema, name, ...).

    Raises:
        Error: For a number that cannot be.
    """

    def __init__(
        self,
        learning_rate: Any = 1.0,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust_coefficient: float = 0.001,
        nesterov: bool = False,
        epsilon: float = 0.0,
        scale_momentum: bool = True,
        exclude_from_weight_decay: Sequence[str] | None = None,
        exclude_from_layer_adaptation: Sequence[str] | None = None,
        name: str = "lars",
        **kwargs: Any,
    ) -> None:
        base.check_momentum(self, momentum)
        base.check_at_least_0(self, "trust_coefficient", trust_coefficient)
        base.check_at_least_0(self, "epsilon", epsilon)
        super().__init__(
            learning_rate,
            weight_decay,
            exclude_from_weight_decay,
            exclude_from_layer_adaptation,
            name=name,
            **kwargs,
        )
        self.momentum = float(momentum)
        self.trust_coefficient = float(trust_coefficient)
        self.nesterov = nesterov
        self.epsilon = float(epsilon)
        self.scale_momentum = scale_momentum

    def build(self, variables: Any) -> None:
        """Make the momentum of each variable."""
        if self.built:
            return
        variables = list(variables)
        super().build(variables)
        self._momentums = self.add_optimizer_variables(variables, "momentum")

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """Change one variable by its gradient."""
        index = self._get_variable_index(variable)
        w, g, rate = base.tensors(variable, gradient, learning_rate)
        decay = self.decay_of(index)
        if self._adapts[index]:
            norm, slope = base.norm(w), base.norm(g)
            divisor = slope + decay * norm + self.epsilon
            rate = rate * base.ratio(self.trust_coefficient * norm, divisor, norm, slope)
        g = g + decay * w
        inside, outside = (rate, 1.0) if self.scale_momentum else (1.0, rate)
        m = self.momentum * ops.convert_to_tensor(self._momentums[index]) + inside * g
        self.assign(self._momentums[index], m)
        step = inside * g + self.momentum * m if self.nesterov else m
        self.assign_sub(variable, outside * step)

    def get_config(self) -> dict[str, Any]:
        """Return what makes an optimizer like this one."""
        return {
            **super().get_config(),
            "momentum": self.momentum,
            "trust_coefficient": self.trust_coefficient,
            "nesterov": self.nesterov,
            "epsilon": self.epsilon,
            "scale_momentum": self.scale_momentum,
        }
