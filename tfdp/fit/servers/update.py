"""The optimizer's update, made where the variables lie: on the parameter servers.

A gradient travels once; what the optimizer computes with it is placed on the server that holds the
variable and its slots. An optimizer is Keras's own, any of them: it sees stand-ins of its
variables, which are read once and written once.

Of a weight the difference is written, by one atomic addition. `variable.assign(new)` of two workers
at the same time would lose one of the two updates; here both arrive, whatever their order. The
slots of a variable are read and written under a lock beside it, one update after the other: a step
that read the momentum of another and not yet its square would divide by nothing.

A sparse gradient (IndexedSlices) has the rows of a batch. Where an optimizer leaves a row without
gradient as it is (SGD without momentum, Adagrad), it is run on those rows alone. Where it moves
every row at each step (Adam: its moments decay), it is run on the whole partition, as on one
device, unless `lazy_rows` asks for the rows of the batch only.

    apply(optimizer, gradients, variables, lazy_rows=False, alone=False)
"""

import contextlib
import functools
import logging
import math
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from tfdp.compat import attributes, keras_optimizers, keras_variables, parameter_server
from tfdp.fit import gradients as gradients_lib

_log = logging.getLogger("tfdp")

# From here on it is said that an optimizer moves a whole table for the rows of a batch.
_LARGE_BYTES = 16 << 20


class StandIn:
    """A variable during one update: read once at most, at its device, and written once.

    Args:
        variable: What it stands for.
        key: By what the optimizer knows it.
        rows: The rows that it stands for, a vector of int; None for all.
        adds: Whether what two steps make of it at the same time adds up. A product does not
            (Nadam's of its momenta): the later value stays.
    """

    def __init__(self, variable: tf.Variable, key: Any, rows: Any = None, adds: bool = True):
        self._variable = variable
        self._rows = rows
        self._adds = adds
        self._before: Any = None
        self._now: Any = None
        self._added: Any = None  # to what was not read
        self._unique_id = key
        self.dtype = variable.dtype
        self.name = variable.name

    def _value(self) -> tf.Tensor:
        if self._now is None:
            with tf.device(self._variable.device):
                if self._rows is None:
                    self._before = self._variable.read_value()
                else:
                    self._before = self._variable.sparse_read(self._rows)
                added = self._added
                self._now = self._before if added is None else self._before + added
        return self._now

    @property
    def shape(self) -> tf.TensorShape:
        """The shape of what it stands for."""
        shape = self._variable.shape
        return shape if self._rows is None else tf.TensorShape([None, *shape[1:]])

    def __tf_tensor__(self, dtype: Any = None, name: Any = None) -> tf.Tensor:
        value = self._value()
        return value if dtype is None else tf.cast(value, dtype)

    def assign(self, value: Any) -> None:
        """Make it hold a value."""
        self._value()
        self._now = tf.cast(value, self.dtype)

    def assign_add(self, value: Any) -> None:
        """Add a value; what is only added to is never read."""
        value = tf.cast(value, self.dtype)
        if self._now is not None:
            self._now = self._now + value
        else:
            self._added = value if self._added is None else self._added + value

    def assign_sub(self, value: Any) -> None:
        """Subtract a value."""
        self.assign_add(-tf.cast(value, self.dtype))

    def __add__(self, other: Any) -> tf.Tensor:
        return self._value() + other

    def __sub__(self, other: Any) -> tf.Tensor:
        return self._value() - other

    def __mul__(self, other: Any) -> tf.Tensor:
        return self._value() * other

    __radd__ = __add__
    __rmul__ = __mul__

    def write(self, alone: bool) -> list[Any]:
        """Write what has changed; return the operation that does it, if there is one.

        Args:
            alone: Whether nothing else writes at the same time: then the value itself is written,
                which no addition rounds.
        """
        read = self._now is not None
        if self._now is self._before and (read or self._added is None):
            return []
        variable = self._variable
        with tf.device(variable.device):
            if not read:
                value, alone = self._added, False
            else:
                alone = alone or not self._adds
                value = self._now if alone else self._now - self._before
            if self._rows is not None:
                slices = tf.IndexedSlices(value, self._rows)
                written = (variable.scatter_update if alone else variable.scatter_add)(slices)
            elif alone:
                written = variable.assign(value)
            else:
                written = variable.assign_add(value)
        # What is written now is not written again.
        self._before, self._added = self._now, None
        return [written.op if isinstance(written, tf.Tensor) else written]


def moves_only_rows(optimizer: keras.optimizers.Optimizer) -> bool:
    """Say whether a row without gradient stays what it is, and its slots too."""
    plain = optimizer.weight_decay is None and not optimizer.use_ema
    if type(optimizer) is keras.optimizers.SGD:
        return plain and optimizer.momentum == 0
    return plain and type(optimizer) is keras.optimizers.Adagrad


def innermost(optimizer: keras.optimizers.Optimizer) -> keras.optimizers.Optimizer:
    """Return the optimizer that updates: the one inside a LossScaleOptimizer."""
    return getattr(optimizer, "inner_optimizer", optimizer)


def apply(
    optimizer: keras.optimizers.Optimizer,
    gradients: Sequence[Any],
    variables: Sequence[keras.Variable],
    *,
    lazy_rows: bool,
    alone: bool,
) -> tf.Tensor:
    """Run `optimizer.apply` on the servers, inside a tf.function.

    Args:
        optimizer: Built with `variables`.
        gradients: A tensor, IndexedSlices or None for each variable.
        variables: Keras variables, partitions where there are some.
        lazy_rows: Whether a sparse gradient changes the rows it has and no others.
        alone: Whether nothing else updates at the same time.

    Returns:
        The number of steps applied before this one.
    """
    known = parameter_server.built_with(optimizer)
    slots = dict(zip(map(id, known), parameter_server.slots(optimizer), strict=True))
    # What is gathered from several steps has the rows of all of them.
    gathers = bool(optimizer.gradient_accumulation_steps)
    only_rows = (lazy_rows or moves_only_rows(optimizer)) and not gathers
    kept: list[Any] = []
    rows_of: dict[int, Any] = {}
    for gradient, variable in zip(gradients, variables, strict=True):
        if isinstance(gradient, tf.IndexedSlices):
            gradient = gradients_lib.merged(gradient)
            same_shape = all(slot.shape == variable.shape for slot in slots[id(variable)])
            # LARS and LAMB follow the norm of all rows.
            needs_whole = getattr(innermost(optimizer), "needs_whole", None)
            by_rows = only_rows and not (needs_whole and needs_whole(variable))
            if by_rows and same_shape and variable.constraint is None:
                rows = gradient.indices
                for one in [variable, *slots[id(variable)]]:
                    rows_of[id(one)] = rows
                gradient = gradient.values
            elif gathers:
                gradient = _dense(gradient, parameter_server.stored_value(variable))
            else:
                moved = [variable, *slots[id(variable)]]
                sizes = [math.prod(v.shape) * tf.as_dtype(v.dtype).size for v in moved]
                if sum(sizes) >= _LARGE_BYTES:
                    _say_what_moves(type(optimizer).__name__, variable.path, sum(sizes) >> 20)
        kept.append(gradient)

    touched = list({id(v): v for v in [*known, *optimizer.variables]}.values())
    adding = {id(v) for v in [*known, *(slot for row in slots.values() for slot in row)]}
    adding.add(id(keras_optimizers.step_count(optimizer)))
    present = [t for g in kept if g is not None for t in _tensors(g)]
    # Not before: a schedule shall see the step at which this gradient arrives.
    with tf.control_dependencies(present):
        iterations = tf.identity(
            parameter_server.stored_value(keras_optimizers.step_count(optimizer))
        )
    stand_ins = []
    for variable in touched:
        with keras_variables.leave_stateless_scope():
            key = parameter_server.variable_key(optimizer, variable)
        stored = parameter_server.stored_value(variable)
        adds = id(variable) in adding
        stand_ins.append(StandIn(stored, key, rows_of.get(id(variable)), adds))
        if variable is keras_optimizers.step_count(optimizer):
            stand_ins[-1]._before = stand_ins[-1]._now = iterations
    by_variable = dict(zip(map(id, touched), stand_ins, strict=True))
    slots_of = {
        id(by_variable[id(v)]): [by_variable[id(slot)] for slot in slots[id(v)]] for v in known
    }
    with (
        keras_variables.leave_stateless_scope(),
        keras_optimizers.optimizer_on_one_device(optimizer),
        keras_variables.bind(touched, stand_ins),
        _at_the_variable(optimizer, {} if alone else slots_of, iterations),
        _clip(optimizer, kept, variables),
        tf.control_dependencies([iterations]),
    ):
        optimizer.apply(kept, list(variables))
    for stand_in in stand_ins:
        stand_in.write(alone)
    return iterations


@functools.cache
def _say_what_moves(optimizer: str, path: str, megabytes: int) -> None:
    _log.warning(
        "%s moves every row of %s at each step, as on one device: %d MB with its slots, whatever "
        "rows a batch has. tfdp.strategy(..., lazy_rows=True) changes the rows of a batch only; "
        "Adagrad, and SGD without momentum, do so in any case.",
        optimizer,
        path,
        megabytes,
    )


def _clip(
    optimizer: keras.optimizers.Optimizer,
    gradients: Sequence[Any],
    variables: Sequence[keras.Variable],
) -> contextlib.AbstractContextManager[None]:
    """Let clipnorm see whole variables, not each of their partitions."""
    pairs = zip(gradients, variables, strict=True)
    owners = [parameter_server.whole_of(v) for g, v in pairs if g is not None]
    if not optimizer.clipnorm or len({id(owner) for owner in owners}) == len(owners):
        return contextlib.nullcontext()
    return keras_optimizers.clip_norms_together(optimizer, owners)


def _at_the_variable(
    optimizer: keras.optimizers.Optimizer, slots: dict[int, list[StandIn]], iterations: tf.Tensor
) -> contextlib.AbstractContextManager[None]:
    """Let an optimizer compute its steps on the device of the variable.

    Args:
        optimizer: Which.
        slots: What to read and write under a lock, by the id of the variable's stand-in.
        iterations: The optimizer's counter.
    """
    update_step = optimizer.update_step

    def at_the_variable(gradient: Any, variable: StandIn, learning_rate: Any) -> None:
        stored = variable._variable
        with tf.device(stored.device):
            if isinstance(gradient, tf.IndexedSlices):
                gradient = _dense(gradient, stored)
            guarded = slots.get(id(variable))
            if not guarded:
                update_step(gradient, variable, learning_rate)
                return
            # All that comes from elsewhere is there before the lock is taken.
            gradient = tf.identity(gradient)
            learning_rate = tf.identity(learning_rate)
            with tf.control_dependencies([gradient, learning_rate, tf.identity(iterations)]):
                lock = parameter_server.lock(stored)
            with tf.control_dependencies([lock]):
                update_step(gradient, variable, learning_rate)
            written = [op for slot in guarded for op in slot.write(alone=True)]
            with tf.control_dependencies(written):
                parameter_server.unlock(lock)

    return attributes.replaced((optimizer, "update_step", at_the_variable))


def _dense(gradient: tf.IndexedSlices, variable: tf.Variable) -> tf.Tensor:
    """Return a sparse gradient whose rows differ as a dense one, made where the variable lies."""
    with tf.device(variable.device):
        shape = tf.shape(variable, out_type=gradient.indices.dtype)
        return tf.scatter_nd(gradient.indices[:, None], gradient.values, shape)


def _tensors(gradient: Any) -> list[tf.Tensor]:
    if isinstance(gradient, tf.IndexedSlices):
        return [gradient.values, gradient.indices]
    return [gradient]
