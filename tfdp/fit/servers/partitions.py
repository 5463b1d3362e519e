"""Variables in partitions over parameter servers: initialised, updated, saved and loaded as one.

A Keras variable whose value is partitioned stays one variable of its layer. An optimizer is built
on the partitions, so that its slots lie beside them. What is saved are logical tensors: written
with two servers they load with three, or on one device.

    initialize_by_partition(strategy)       # before variables are made
    build(optimizer, model, strategy)       # before the first step
    variables = expand(model.trainable_variables)
"""

import contextlib
import functools
import logging
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfdp.compat import distribute, keras_variables, parameter_server
from tfdp.error import Error
from tfdp.fit.servers import update

_log = logging.getLogger("tfdp")

# A smaller variable starts with the values that one device gives it.
_WHOLE_BYTES = 16 << 20
_BY_VARIABLE = (keras.optimizers.Lamb, keras.optimizers.Muon)
_BY_ELEMENT = (
    keras.initializers.Zeros,
    keras.initializers.Ones,
    keras.initializers.Constant,
    keras.initializers.RandomNormal,
    keras.initializers.RandomUniform,
    keras.initializers.TruncatedNormal,
)


def initialize_by_partition(strategy: tf.distribute.Strategy) -> None:
    """Let the initializers of large variables make one partition at a time, on its server."""
    parameter_server.initialize_by_partition(strategy, _by_partition)


def expand(variables: Sequence[keras.Variable]) -> list[keras.Variable]:
    """Return the variables with each partitioned one replaced by its partitions."""
    return [part for variable in variables for part in parameter_server.partitions(variable)]


@contextlib.contextmanager
def expanded(model: keras.Model) -> Iterator[None]:
    """Let `trainable_variables` of a model and its layers be the partitions.

    Of a whole partitioned variable tape.gradient makes no gradient.
    """
    changed = []
    for layer in keras_variables.layers(model):
        if any(parameter_server.is_partitioned(v) for v in layer.trainable_variables):
            changed.append((layer, type(layer)))
            object.__setattr__(layer, "__class__", _expanded(type(layer)))
    try:
        yield
    finally:
        for layer, own in changed:
            object.__setattr__(layer, "__class__", own)


def _expanded(own: type) -> type:
    class Expanded(own):
        @property
        def trainable_variables(self) -> list[keras.Variable]:
            return _unique(expand(super().trainable_variables))

        @property
        def trainable_weights(self) -> list[keras.Variable]:
            return _unique(expand(super().trainable_weights))

    return Expanded


def _unique(variables: Sequence[keras.Variable]) -> list[keras.Variable]:
    # A model asks its layers, which have expanded theirs.
    return list({id(v): v for v in variables}.values())


def read(variable: keras.Variable) -> tf.Tensor:
    """Return the whole value of a variable."""
    parts = [
        parameter_server.stored_value(part).read_value()
        for part in parameter_server.partitions(variable)
    ]
    return parts[0] if len(parts) == 1 else tf.concat(parts, 0)


def add(variable: keras.Variable, change: tf.Tensor) -> None:
    """Add to a variable, each part where it lies."""
    start = 0
    for part in parameter_server.partitions(variable):
        stored = parameter_server.stored_value(part)
        rows = stored.shape[0] if parameter_server.is_partitioned(variable) else None
        mine = change if rows is None else change[start : start + rows]
        start += rows or 0
        stored.assign_add(tf.cast(mine, stored.dtype))


def build(optimizer: keras.optimizers.Optimizer, model: keras.Model, strategy: Any) -> None:
    """Build an optimizer on the partitions of a model's variables.

    One that was built with whole variables (a model that was loaded) is built again; its slots keep
    their values.

    Raises:
        ValueError: If it keeps something that cannot be cut into partitions.
        Error: If it needs the norm of a whole variable.
    """
    variables = expand(model.trainable_variables)
    for variable in model.trainable_variables:
        _check_constraint(variable)
    cut = [v for v in model.trainable_variables if parameter_server.is_partitioned(v)]
    values: dict[str, Any] = {}
    if not variables:
        return  # nothing to train: Keras leaves the optimizer as it is
    if optimizer.built:
        if [id(v) for v in parameter_server.built_with(optimizer)] == [id(v) for v in variables]:
            return
        if not cut:
            return  # Keras itself says what is wrong with other variables
        optimizer.save_own_variables(values)
        parameter_server.forget_build(optimizer)
    with strategy.scope():
        optimizer.build(variables)
    inner = update.innermost(optimizer)
    if cut:
        _check_whole(inner, cut)
        _check_slots(inner, variables)
        if isinstance(inner, _BY_VARIABLE):
            _log.warning(
                "%s looks at the norm of each variable: of %s it takes that of each partition.",
                type(inner).__name__,
                ", ".join(v.path for v in cut),
            )
        for one in {id(o): o for o in (optimizer, inner)}.values():  # Keras saves both
            object.__setattr__(one, "save_own_variables", functools.partial(_save, one))
            object.__setattr__(one, "load_own_variables", functools.partial(_load, one))
    if values:
        optimizer.load_own_variables(values)


def move(variable: keras.Variable, kept: tf.Tensor, added: tf.Tensor) -> None:
    """Make a variable `kept` times itself plus `added`, each part where it lies; in a graph.

    The difference to a value that was read k steps ago would swing more and more where a moving
    average forgets soon: its gain times the delay is more than a feedback takes.
    """
    start = 0
    for part in parameter_server.partitions(variable):
        stored = parameter_server.stored_value(part)
        rows = slice(None)
        if parameter_server.is_partitioned(variable):
            rows = slice(start, start + stored.shape[0])
            start = rows.stop
        with tf.device(stored.device):
            factor = tf.identity(kept[rows] if kept.shape.rank else kept)
            put = tf.identity(added[rows] if added.shape.rank else added)
            with tf.control_dependencies([factor, put]):
                lock = parameter_server.lock(stored)
            with tf.control_dependencies([lock]):
                written = stored.assign(tf.cast(factor * stored.read_value() + put, stored.dtype))
            with tf.control_dependencies([written]):
                parameter_server.unlock(lock)


@contextlib.contextmanager
def whole(model: keras.Model) -> Iterator[None]:
    """Let a model's partitioned variables be whole ones of this process, to be exported.

    A SavedModel cannot hold partitions that lie on servers. Meanwhile all of them are in the memory
    of this process.
    """
    cut = [v for v in model.variables if parameter_server.is_partitioned(v)]
    with contextlib.ExitStack() as stack:
        if cut:
            stack.enter_context(distribute.leave_strategy())
            stack.enter_context(tf.device("cpu:0"))
            copies = [tf.Variable(v.numpy(), trainable=v.trainable, name=v.name) for v in cut]
            stack.enter_context(keras_variables.bind(cut, copies))
        yield


# -- initializers ---------------------------------------------------------------------------------


def _by_partition(variable: keras.Variable, initializer: Any) -> Callable[..., Any] | None:
    """Return a function that makes one partition of a variable's initial value."""
    shape, dtype = tuple(variable._shape), variable._dtype
    if not shape:
        return None
    size = math.prod(shape) * tf.as_dtype(dtype).size
    per_element = _per_element(initializer, shape) if size > _WHOLE_BYTES else None
    all_of_it: list[Any] = []

    def make(partition_shape: Any = None, partition_offset: Any = None) -> Any:
        if partition_shape is None:  # not partitioned after all
            return initializer(shape, dtype=dtype)
        rows, start = int(partition_shape[0]), int(partition_offset[0])
        if per_element is not None:
            return per_element(start, (rows, *shape[1:]), dtype)
        if not all_of_it:
            with tf.device("cpu:0"):
                all_of_it.append(initializer(shape, dtype=dtype))
        part = all_of_it[0][start : start + rows]
        if start + rows == shape[0]:
            all_of_it.clear()
        return part

    return make


def _per_element(initializer: Any, shape: tuple[int, ...]) -> Any:
    """Return a function (start, shape, dtype) that makes a part alone; None where that cannot be.

    The draws of a part come from a seed of its own.
    """
    if isinstance(initializer, keras.initializers.VarianceScaling):
        return _scaled(initializer, shape)
    if type(initializer) not in _BY_ELEMENT:
        return None
    value = getattr(initializer, "value", 0.0)
    if not np.isscalar(value):
        return None

    def make(start: int, part: tuple[int, ...], dtype: Any) -> Any:
        return _reseeded(initializer, start)(part, dtype=dtype)

    return make


def _scaled(initializer: Any, shape: tuple[int, ...]) -> Any:
    """Return what VarianceScaling draws, by the fans of the whole variable."""
    receptive = math.prod(shape[:-2]) if len(shape) > 2 else 1
    fan_in = shape[-2] * receptive if len(shape) > 1 else shape[0]
    fan_out = shape[-1] * receptive
    fan = {"fan_in": fan_in, "fan_out": fan_out}.get(initializer.mode, (fan_in + fan_out) / 2)
    scale = initializer.scale / max(1.0, fan)
    kind, seed = initializer.distribution, initializer.seed
    if kind == "uniform":
        limit = math.sqrt(3.0 * scale)
        like = keras.initializers.RandomUniform(-limit, limit, seed=seed)
    elif kind == "untruncated_normal":
        like = keras.initializers.RandomNormal(0.0, math.sqrt(scale), seed=seed)
    else:
        # The standard deviation of a normal distribution that is cut at two of them.
        like = keras.initializers.TruncatedNormal(
            0.0, math.sqrt(scale) / 0.87962566103423978, seed=seed
        )
    return lambda start, part, dtype: _reseeded(like, start)(part, dtype=dtype)


def _reseeded(initializer: Any, start: int) -> Any:
    config = initializer.get_config()
    if isinstance(config.get("seed"), int):
        config["seed"] = (config["seed"] + start) % 2**31
    return type(initializer).from_config(config)


# -- what is saved --------------------------------------------------------------------------------


def _check_constraint(variable: keras.Variable) -> None:
    constraint = variable.constraint
    if constraint is None or not parameter_server.is_partitioned(variable):
        return
    axis = getattr(constraint, "axis", 0)
    by_row = 0 not in (axis if isinstance(axis, list | tuple) else [axis])
    if not (by_row or isinstance(constraint, keras.constraints.NonNeg)):
        raise ValueError(
            f"{variable.path!r} is cut into partitions by rows, but its constraint "
            f"{type(constraint).__name__} needs whole columns. Use axis=1, or no partitions "
            "(a larger min_partition_bytes)."
        )


def _check_whole(optimizer: Any, cut: Sequence[keras.Variable]) -> None:
    """Refuse an optimizer that says of itself that a part of a variable is not enough for it."""
    needs_whole = getattr(optimizer, "needs_whole", None)
    parted = [v.path for v in cut if needs_whole is not None and needs_whole(v)]
    if parted:
        raise Error(
            f"{type(optimizer).__name__} follows the norm of each whole variable, which no "
            f"partition of {', '.join(parted)} has. Use no partitions (a larger "
            "min_partition_bytes), name what is cut in exclude_from_layer_adaptation, or take "
            "another optimizer (Adagrad, Adam, ...)."
        )


def _check_slots(optimizer: Any, variables: Sequence[keras.Variable]) -> None:
    for variable, slots in zip(variables, parameter_server.slots(optimizer), strict=True):
        for slot in slots:
            if tuple(slot.shape) != tuple(variable.shape):
                raise ValueError(
                    f"{type(optimizer).__name__} keeps {slot.path!r} of shape {tuple(slot.shape)} "
                    f"for a variable of shape {tuple(variable.shape)}: that cannot be cut into "
                    "partitions. Use another optimizer (Adagrad, Adam, ...), or no partitions "
                    "(a larger min_partition_bytes)."
                )


def logical(optimizer: Any, variables: Sequence[keras.Variable]) -> list[list[keras.Variable]]:
    """Return an optimizer's variables as one device orders them, each a list of its partitions.

    Args:
        optimizer: Any, built or not.
        variables: Those of its variables that are wanted, in their order.
    """
    inner = update.innermost(optimizer)
    of_owner: dict[int, list[list[keras.Variable]]] = {}
    for variable, slots in zip(
        parameter_server.built_with(inner), parameter_server.slots(inner), strict=True
    ):
        of_owner.setdefault(id(parameter_server.whole_of(variable)), []).append(slots)
    first_of: dict[int, list[keras.Variable]] = {}
    rest: set[int] = set()
    for slots_of_parts in of_owner.values():
        for column in zip(*slots_of_parts, strict=True):
            first_of[id(column[0])] = list(column)
            rest |= {id(slot) for slot in column[1:]}
    return [first_of.get(id(v), [v]) for v in variables if id(v) not in rest]


def _save(optimizer: Any, store: Any) -> None:
    """Stand for `optimizer.save_own_variables`."""
    for number, parts in enumerate(logical(optimizer, optimizer.variables)):
        values = [part.numpy() for part in parts]
        store[str(number)] = values[0] if len(values) == 1 else np.concatenate(values)


def _load(optimizer: Any, store: Any) -> None:
    """Stand for `optimizer.load_own_variables`."""
    ours = logical(optimizer, optimizer.variables)
    if len(store.keys()) != len(ours):
        warnings.warn(
            f"Skipping variable loading for optimizer {optimizer.name!r}, because it has "
            f"{len(ours)} variables whereas the saved optimizer has {len(store.keys())}.",
            stacklevel=2,
        )
        return
    for number, parts in enumerate(ours):
        value, start = store[str(number)], 0
        if len(parts) == 1:
            parts[0].assign(value)
            continue
        for part in parts:
            part.assign(value[start : start + part.shape[0]])
            start += part.shape[0]
