"""What optimizers for large batches share: weight decay of their own, and variables left out."""

import re
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf
from keras import ops

from tfdp.error import Error


class Excluding(keras.optimizers.Optimizer):
    """An optimizer with a weight decay of its own, which leaves some variables out.

    What a variable gets is decided when the optimizer is built: later it sees copies and stand-ins
    of the variable, which have no path.
    """

    def __init__(
        self,
        learning_rate: Any,
        weight_decay: float,
        exclude_from_weight_decay: Sequence[str] | None,
        exclude_from_layer_adaptation: Sequence[str] | None,
        **kwargs: Any,
    ) -> None:
        check_at_least_0(self, "weight_decay", weight_decay)
        super().__init__(learning_rate, **kwargs)
        self._decay = float(weight_decay)
        self._without_decay = names_to_exclude(exclude_from_weight_decay)
        self._without_adaptation = names_to_exclude(exclude_from_layer_adaptation)
        self._decays: list[bool] = []
        self._adapts: list[bool] = []

    def build(self, variables: Any) -> None:
        """Decide which variables get weight decay, and which a rate of their own."""
        if self.built:
            return
        variables = list(variables)
        super().build(variables)
        self._decays = [not excluded(v, self._without_decay) for v in variables]
        self._adapts = [not excluded(v, self._without_adaptation) for v in variables]

    def decay_of(self, index: int) -> float:
        """Return the weight decay of the variable number `index`."""
        return self._decay if self._decays[index] else 0.0

    def get_config(self) -> dict[str, Any]:
        """Return what makes an optimizer like this one."""
        return {
            **super().get_config(),
            "weight_decay": self._decay,
            "exclude_from_weight_decay": self._without_decay,
        }


class Layerwise(Excluding):
    """One whose step depends on the norm of each whole variable."""

    def needs_whole(self, variable: Any) -> bool:
        """Say whether the step of a variable cannot be computed from a part of it."""
        return not excluded(variable, self._without_adaptation)

    def get_config(self) -> dict[str, Any]:
        """Return what makes an optimizer like this one."""
        config = super().get_config()
        return {**config, "exclude_from_layer_adaptation": self._without_adaptation}


def tensors(variable: Any, gradient: Any, learning_rate: Any) -> tuple[Any, Any, Any]:
    """Return weights, gradient and rate in the variable's dtype; a sparse gradient as dense."""
    dtype = variable.dtype
    w = ops.convert_to_tensor(variable)
    g = tf.convert_to_tensor(gradient)
    return w, ops.cast(g, dtype), ops.cast(learning_rate, dtype)


def norm(value: Any) -> Any:
    """Return the square root of the sum of squares, a scalar."""
    return ops.sqrt(ops.sum(ops.square(value)))


def ratio(part: Any, whole: Any, *norms: Any) -> Any:
    """Return part / whole; 1 where one of the norms is 0."""
    is_positive = ops.all(ops.stack([ops.greater(norm, 0.0) for norm in norms]))
    one = ops.ones_like(whole)
    return ops.where(is_positive, part / ops.where(is_positive, whole, one), one)


def names_to_exclude(names: Sequence[str] | None) -> list[str] | None:
    """Return regular expressions as a list; None stands for all that have less than two axes.

    Raises:
        Error: If one cannot be compiled.
    """
    if names is None:
        return None
    if isinstance(names, str):
        names = [names]
    for name in names:
        try:
            re.compile(name)
        except re.error as error:
            raise Error(f"{name!r} is no regular expression: {error}. Use one, or ().") from error
    return list(names)


def excluded(variable: Any, patterns: Sequence[str] | None) -> bool:
    """Say whether a variable is one of those that `names_to_exclude` has listed."""
    if patterns is None:
        return len(variable.shape) <= 1
    path = getattr(variable, "path", variable.name)
    return any(re.search(pattern, path) for pattern in patterns)


def check_at_least_0(optimizer: Any, name: str, value: Any) -> None:
    """Raise Error for what is no number from 0 up."""
    if not isinstance(value, int | float) or not 0 <= value < float("inf"):
        raise Error(f"{type(optimizer).__name__}: {name}={value!r}. Use a number from 0 up.")


def check_momentum(optimizer: Any, value: Any, name: str = "momentum") -> None:
    """Raise Error for what is no number from 0 up to below 1."""
    if not isinstance(value, int | float) or not 0 <= value < 1:
        kind = type(optimizer).__name__
        raise Error(f"{kind}: {name}={value!r}. Use a number from 0 up to below 1.")
