"""The optimizers that a step of the user's own applies, and what it hands to them.

for optimizer in of(model): ...                     # its own, and those of its layers
gradients, variables = arguments(optimizer, own, gradients, variables)
"""

from typing import Any

import keras
import tensorflow as tf

from tfdp.compat import keras_optimizers, keras_variables, parameter_server


def of(model: keras.Model) -> list[keras.optimizers.Optimizer]:
    """Return the optimizers that a model and its layers have, in lists, tuples and dicts too."""
    found: list[Any] = [getattr(model, "optimizer", None)]
    todo = [value for layer in keras_variables.layers(model) for value in vars(layer).values()]
    seen: set[int] = set()
    while todo:
        value = todo.pop(0)
        if isinstance(value, keras.optimizers.Optimizer):
            found.append(value)
        elif isinstance(value, list | tuple | dict) and id(value) not in seen:
            seen.add(id(value))
            todo += value.values() if isinstance(value, dict) else value
    return keras_variables.unique(o for o in found if o is not None)


def kept(model: keras.Model) -> tuple[list[Any], list[Any]]:
    """Return what the optimizers keep for weights (momenta), and what they count by.

    The latter are the numbers of steps, the learning rates and the loss scales.
    """
    own = {id(variable) for variable in model.variables}
    found: list[Any] = []
    numbers: set[int] = set()
    for optimizer in of(model):
        found += keras_optimizers.optimizer_variables(optimizer)
        scale = getattr(optimizer, "dynamic_scale", None)
        numbers |= {id(v) for v in (scale, keras_optimizers.learning_rate(optimizer))}
    found = [v for v in keras_variables.unique(found) if id(v) not in own]
    numbers |= {id(v) for v in found if not tf.as_dtype(v.dtype).is_floating}
    return [v for v in found if id(v) not in numbers], [v for v in found if id(v) in numbers]


def built_on(model: keras.Model) -> list[list[int]]:
    """Return, for each of `of`, what it was built with: positions in `model.variables`."""
    place = {id(variable): number for number, variable in enumerate(model.variables)}
    built = [
        [parameter_server.whole_of(v) for v in parameter_server.built_with(optimizer)]
        for optimizer in of(model)
    ]
    # Of partitions, which come one after the other, their owner once.
    return [list(dict.fromkeys(place[id(v)] for v in own if id(v) in place)) for own in built]


def build_on(model: keras.Model, places: list[list[int]]) -> None:
    """Build the optimizers that are not built yet with what `built_on` returned.

    A step of the user's own builds those that it applies itself, which would be too late for what
    a checkpoint holds of them. Call it under the strategy's scope.
    """
    for optimizer, numbers in zip(of(model), places, strict=False):
        if numbers and not optimizer.built:
            whole = [model.variables[number] for number in numbers]
            optimizer.build([part for v in whole for part in parameter_server.partitions(v)])


def arguments(
    optimizer: keras.optimizers.Optimizer, own: Any, gradients: Any, variables: Any
) -> tuple[list[Any], list[Any]]:
    """Return what `optimizer.apply(gradients, variables)` is given, as two lists of one length.

    Without variables they are those that the optimizer was built with; without gradients there is
    nothing to do, whatever the variables.

    Args:
        optimizer: Of any state.
        own: Its own `apply`.
        gradients: A sequence, or an iterator.
        variables: A sequence, or None.

    Raises:
        ValueError: If there are more of the one than of the other; Keras's own if there are no
            variables and the optimizer is not built.
    """
    gradients = list(gradients)
    if not gradients:
        return [], []
    if variables is None and not optimizer.built:
        own(gradients)
    given = parameter_server.built_with(optimizer) if variables is None else list(variables)
    if len(gradients) != len(given):
        raise ValueError(f"{len(gradients)} gradients are given for {len(given)} variables.")
    return gradients, given
