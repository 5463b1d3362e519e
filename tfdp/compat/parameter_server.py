"""Parameter servers: partitioned variables, results of scheduled functions, addresses.

Keras 3 knows no variable that is partitioned, and TensorFlow's coordinator keeps to itself which
of its results are there.
"""

import logging
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras.src.backend.common.stateless_scope import get_stateless_scope, in_stateless_scope
from tensorflow.python.distribute.coordinator import coordinator_context, remote_value
from tensorflow.python.distribute.sharded_variable import ShardedVariable


class _Partition(keras.Variable):
    """A Keras variable that is one partition of another's value.

    Keras has no constructor that takes a tf.Variable without reading it.
    """

    def _initialize_with_initializer(self, initializer: Callable[[], tf.Variable]) -> None:
        self._initialize(initializer())


def partitions(variable: keras.Variable) -> list[keras.Variable]:
    """Return the partitions of a Keras variable, each a Keras variable; itself if it has none."""
    value = variable._value
    if not isinstance(value, ShardedVariable):
        return [variable]
    parts = getattr(value, "tfdp_partitions", None)
    if parts is None:
        parts = []
        for number, part in enumerate(value.variables):
            made = _Partition(
                lambda part=part: part,
                shape=part.shape.as_list(),
                dtype=variable._dtype,
                name=f"{variable.name}_part_{number}",
                trainable=variable.trainable,
                autocast=variable._autocast,
            )
            made.constraint = variable.constraint
            made.tfdp_whole = variable
            parts.append(made)
        value.tfdp_partitions = parts
        _let_numpy_read(value)
    return parts


def _let_numpy_read(value: ShardedVariable) -> None:
    """Let Keras save a partitioned variable: it asks for `value.__array__(dtype)`."""

    def whole(dtype: Any = None) -> np.ndarray:
        array = np.empty(value.shape.as_list(), dtype or value.dtype.as_numpy_dtype)
        start = 0
        for part in value.variables:
            array[start : start + part.shape[0]] = part.numpy()
            start += part.shape[0]
        return array

    value.__array__ = value.numpy = whole


def whole_of(variable: keras.Variable) -> keras.Variable:
    """Return what a variable is a partition of; itself if it is none."""
    return getattr(variable, "tfdp_whole", variable)


def is_partitioned(variable: keras.Variable) -> bool:
    """Say whether a Keras variable's value lies in several partitions."""
    return isinstance(variable._value, ShardedVariable)


def stored_value(variable: keras.Variable) -> Any:
    """Return the tf.Variable, or partitioned one, that holds a Keras variable.

    `value` gives what a `keras.StatelessScope` maps it to, or casts it for mixed precision.
    """
    return variable._value


def current_value(variable: keras.Variable) -> Any:
    """Return a Keras variable's tf.Variable, or the tensor that stands for it in a scope."""
    scope = get_stateless_scope() if in_stateless_scope() else None
    value = scope.get_current_value(variable) if scope is not None else None
    return variable._value if value is None else value


def initialize_by_partition(
    strategy: tf.distribute.Strategy, make: Callable[[keras.Variable, Any], Any]
) -> None:
    """Let partitioned Keras variables be initialised partition by partition.

    Keras hands tf.Variable a function of no arguments that makes the whole value, without its
    shape, so that TensorFlow calls it on the coordinator (backend/tensorflow/core.py,
    `_initialize_with_initializer`; distribute/parameter_server_strategy_v2.py, `_create_variable`).

    Args:
        strategy: A ParameterServerStrategy.
        make: Gets a Keras variable and its initializer; returns a function of
            (partition_shape, partition_offset), or None to leave the variable to TensorFlow.
    """
    extended = strategy.extended
    if hasattr(extended, "tfdp_create_variable"):
        return
    create = extended.tfdp_create_variable = extended._create_variable

    def create_variable(next_creator: Any, **kwargs: Any) -> Any:
        initial = kwargs.get("initial_value")
        names = getattr(getattr(initial, "__code__", None), "co_freevars", ())
        if callable(initial) and names == ("initializer", "self"):
            initializer, variable = [cell.cell_contents for cell in initial.__closure__ or ()]
            by_partition = make(variable, initializer)
            if by_partition is not None:
                kwargs["initial_value"] = by_partition
                kwargs["shape"] = tuple(variable._shape)
                kwargs["dtype"] = tf.as_dtype(variable._dtype)
        made = create(next_creator, **kwargs)
        if isinstance(made, ShardedVariable):
            _let_numpy_read(made)
        return made

    extended._create_variable = create_variable


def lock(variable: tf.Variable) -> tf.Tensor:
    """Take the lock of a variable, in a graph and on the device that is current: the variable's.

    Who waits for it waits asynchronously. It is free again when it is unlocked, or when the step
    that has it is over, for whatever reason.
    """
    mutex = tf.raw_ops.MutexV2(container="", shared_name=f"tfdp_{variable._unique_id}")
    return tf.raw_ops.MutexLock(mutex=mutex)


def unlock(lock: tf.Tensor) -> None:
    """Let the next one have a lock."""
    tf.raw_ops.ConsumeMutexLock(mutex_lock=lock)


class _EachItsOwn:
    """Stands for one function of all workers: each calls its own."""

    def __init__(self, functions: Sequence[Any]):
        self._functions = functions
        self.structured_outputs = functions[0].structured_outputs

    def __call__(self) -> Any:
        worker = coordinator_context.get_current_dispatch_context()
        return self._functions[worker.worker_index]()


def per_worker_iterator(
    coordinator: Any, functions: Sequence[Callable[[], tf.data.Dataset]]
) -> Any:
    """Return the iterator of a dataset that each worker makes by a function of its own.

    The coordinator takes one function for all workers. Chosen inside it by `tf.switch_case`, a
    dataset cannot look up in a table that lies on the workers: captures of a table are filled in
    when a function is called, and the branches of a condition are not
    (distribute/coordinator/values.py, PerWorkerDatasetFromDatasetFunction).
    """
    traced = [tf.function(one, autograph=False).get_concrete_function() for one in functions]
    dataset = coordinator.create_per_worker_dataset(traced[0])
    dataset._dataset_fn = _EachItsOwn(traced)
    return iter(dataset)


def is_ready(remote: Any, seconds: float) -> bool:
    """Wait for a RemoteValue, or its error, for so long at most; say whether it is there."""
    return bool(remote._status_available_event.wait(seconds))


def call_succeeded(remote: Any) -> bool:
    """Say whether the call behind a RemoteValue that is ready has raised nothing.

    Its result then lies on the worker that computed it, until it is fetched.
    """
    ready = remote._status is remote_value.RemoteValueStatus.READY
    return bool(ready and remote._error is None)


def remote_spec(values: Any) -> Any:
    """Return the type spec of what each worker holds of a PerWorkerValues."""
    return values._values[0]._type_spec


def addresses(strategy: tf.distribute.Strategy) -> dict[str, list[str]]:
    """Return the addresses of the cluster of a ParameterServerStrategy, by job."""
    return dict(strategy._cluster_resolver.cluster_spec().as_dict())


def worker_count(strategy: tf.distribute.Strategy) -> int:
    """Return the number of workers of a ParameterServerStrategy."""
    return int(strategy._num_workers)


def variable_key(optimizer: keras.optimizers.Optimizer, variable: keras.Variable) -> Any:
    """Return by what an optimizer knows a variable: Keras asks the variable for `_unique_id`."""
    return optimizer._var_key(variable)


def slots(optimizer: keras.optimizers.Optimizer) -> list[list[keras.Variable]]:
    """Return an optimizer's slots, one list for each variable that it was built with.

    Keras's optimizers keep them in lists that are parallel to the variables.
    """
    variables = optimizer._trainable_variables
    own = {id(v) for v in optimizer.variables}
    columns = [
        column
        for name, column in vars(optimizer).items()
        if name not in ("_trainable_variables", "_variables")
        and isinstance(column, list)
        and len(column) == len(variables)
        and any(id(slot) in own for slot in column)
    ]
    return [
        [column[i] for column in columns if column[i] is not None] for i in range(len(variables))
    ]


def moving_averages(optimizer: keras.optimizers.Optimizer) -> list[keras.Variable]:
    """Return the averages that an optimizer with use_ema keeps, one for each of its variables."""
    return list(optimizer._model_variables_moving_average)


def built_with(optimizer: keras.optimizers.Optimizer) -> list[keras.Variable]:
    """Return the variables that an optimizer was built with."""
    return list(optimizer._trainable_variables)


def forget_build(optimizer: keras.optimizers.Optimizer) -> None:
    """Make an optimizer as if it had not been built: without slots."""
    dropped = {id(slot) for row in slots(optimizer) for slot in row}
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        forget_build(optimizer.inner_optimizer)
        dropped = {id(optimizer.step_counter), id(optimizer.dynamic_scale)}
    dropped.add(id(getattr(optimizer, "_u_product", None)))  # Nadam's, which its build makes anew
    kept = [v for v in optimizer._variables if id(v) not in dropped]
    # Where a slice is set TensorFlow's list asks variables whether they are equal.
    optimizer._variables.clear()
    optimizer._variables.extend(kept)
    optimizer._trainable_variables = []
    optimizer._trainable_variables_indices = {}
    optimizer.built = False


def quieten_coordinator() -> None:
    """Keep what TensorFlow's coordinator logs of each failure out of the log.

    It logs every error once for each worker, with TensorFlow's traceback, before it raises it.
    """

    class _Filter(logging.Filter):
        def filter(self, record: logging.LogRecord) -> bool:
            return "processing closure" not in record.msg and (
                "Remote function on worker" not in record.msg
            )

    log = logging.getLogger("tensorflow")
    if not any(type(f).__name__ == "_Filter" for f in log.filters):
        log.addFilter(_Filter())
