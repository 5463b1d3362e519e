"""All that parameter servers hold of a model, as arrays, and back again.

    arrays = take(steps, copy)  # while no step is under way
    put(steps, arrays)

A variable in partitions is one array, whatever the number of servers: it is read and written one
partition at a time, so that no table is ever whole in this process.

    variable/00012/dense/kernel         a variable of the model or of an optimizer
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import keras
import numpy as np

from tfdp.compat import keras_optimizers, keras_variables, parameter_server
from tfdp.error import Error
from tfdp.fit.servers import partitions, worker_step


class Partitioned:
    """The value of a variable in partitions, read one after the other.

    Args:
        parts: The partitions.

    Attributes:
        dtype: The type of the whole.
        shape: Its shape.
    """

    def __init__(self, parts: list[keras.Variable]):
        self.dtype = np.dtype(parameter_server.stored_value(parts[0]).dtype.as_numpy_dtype)
        self.shape = (sum(int(part.shape[0]) for part in parts), *parts[0].shape[1:])
        self._left = iter(parts)

    def __iter__(self) -> Iterator[np.ndarray]:
        return self

    def __next__(self) -> np.ndarray:
        return parameter_server.stored_value(next(self._left)).numpy()


def variables(steps: worker_step.RemoteSteps) -> list[list[keras.Variable]]:
    """Return all variables of a model and of its optimizers, each a list of its partitions."""
    model = steps.model
    of_model = [*model.variables, *keras_variables.seed_states(model)]
    found = [parameter_server.partitions(v) for v in keras_variables.unique(of_model)]
    for optimizer in steps.optimizers:
        own = keras_optimizers.optimizer_variables(optimizer)
        found += partitions.logical(optimizer, own)
    measured = {id(v) for v in steps.metrics}
    first = {id(parts[0]): parts for parts in found}
    return [parts for number, parts in first.items() if number not in measured]


def take(
    steps: worker_step.RemoteSteps, copy: Callable[[str, np.ndarray], np.ndarray]
) -> dict[str, Any]:
    """Return copies of all values; of a variable in partitions a `Partitioned`.

    Args:
        steps: The step functions of a model.
        copy: Copies an array, given its name.
    """
    arrays: dict[str, Any] = {}
    for index, parts in enumerate(variables(steps)):
        owner = parameter_server.whole_of(parts[0])
        name = f"variable/{index:05d}/{owner.path}"
        if len(parts) > 1:
            arrays[name] = Partitioned(parts)
        else:
            arrays[name] = copy(name, np.asarray(parameter_server.stored_value(parts[0]).value()))
    return arrays


def put(steps: worker_step.RemoteSteps, arrays: Mapping[str, np.ndarray]) -> None:
    """Give the variables what `take` returned, on any number of servers.

    Raises:
        Error: If the arrays are those of another model.
    """
    saved = [name for name in arrays if name.startswith("variable/")]
    ours = variables(steps)
    if len(saved) != len(ours):
        raise Error(
            f"The checkpoint is of another model: it holds {len(saved)} variables where this one "
            f"and its optimizers have {len(ours)}. Choose another folder."
        )
    for name, parts in zip(sorted(saved), ours, strict=True):
        value = arrays[name]
        stored = [parameter_server.stored_value(part) for part in parts]
        shape = tuple(stored[0].shape)
        if len(parts) > 1:
            shape = (sum(int(one.shape[0]) for one in stored), *shape[1:])
        if shape != value.shape:
            raise Error(
                f"The checkpoint is of another model: it holds {name.split('/', 2)[2]} of shape "
                f"{value.shape} where this one has {parts[0].path} of shape {shape}. Choose "
                "another folder."
            )
        start = 0
        for one in stored:
            rows = int(one.shape[0]) if len(parts) > 1 else 0
            one.assign(value[start : start + rows] if rows else value)
            start += rows
