"""Stochastic gradient descent whose momentum does not hold the learning rate."""

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from tfdp.optimizers import base


@keras.saving.register_keras_serializable(package="tfdp")
class SGD(base.Excluding):
    """Stochastic gradient descent with momentum as the papers write it.

    With g' = g + weight_decay * w:

        m <- momentum * m + g';   w <- w - learning_rate * m

    Keras's SGD keeps the learning rate inside m. After a change of the rate, as in each step of a
    warm-up, its old gradients still move the weights with the old rate. Keeping the rate outside is
    the momentum correction of Goyal et al. 2017 (https://arxiv.org/abs/1706.02677, section 3).

    Args:
        learning_rate: A number or a schedule.
        momentum: From 0 up to below 1.
        weight_decay: Factor of the weights in the gradient (L2), which goes through the momentum.
        nesterov: Whether the step is g' + momentum * m instead of m.
        momentum_correction: False keeps the rate inside m, as keras.optimizers.SGD does.
        exclude_from_weight_decay: Regular expressions, searched in a variable's path
            ("stage1/bn/gamma"); None leaves out what has fewer than two dimensions, as biases and
            normalisation; () leaves out nothing.
        **kwargs: As keras.optimizers.Optimizer (clipnorm, use_ema, name, ...).

    Raises:
        Error: For a number that cannot be.
    """

    def __init__(
        self,
        learning_rate: Any = 0.01,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        momentum_correction: bool = True,
        exclude_from_weight_decay: Sequence[str] | None = None,
        name: str = "sgd",
        **kwargs: Any,
    ) -> None:
        base.check_momentum(self, momentum)
        super().__init__(
            learning_rate, weight_decay, exclude_from_weight_decay, None, name=name, **kwargs
        )
        self.momentum = float(momentum)
        self.nesterov = nesterov
        self.momentum_correction = momentum_correction

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
        g = g + self.decay_of(index) * w
        inside, outside = (1.0, rate) if self.momentum_correction else (rate, 1.0)
        m = self.momentum * ops.convert_to_tensor(self._momentums[index]) + inside * g
        self.assign(self._momentums[index], m)
        step = inside * g + self.momentum * m if self.nesterov else m
        self.assign_sub(variable, outside * step)

    def get_config(self) -> dict[str, Any]:
        """Return what makes an optimizer like this one."""
        return {
            **super().get_config(),
            "momentum": self.momentum,
            "nesterov": self.nesterov,
            "momentum_correction": self.momentum_correction,
        }
