"""Text that tasks share, by way of TensorFlow's coordination service."""

from collections.abc import Callable
from typing import Any

import tensorflow as tf

# What CollectiveBcastSend has no kernel for, and a type with one that holds all its values.
_WIDE = {
    tf.int8: tf.int32,
    tf.uint8: tf.int32,
    tf.int16: tf.int32,
    tf.uint16: tf.int32,
    tf.uint32: tf.int64,
    tf.bfloat16: tf.float32,
}


def has_shared_text() -> bool:
    """Say whether this process belongs to a cluster with a coordination service.

    MultiWorkerMirroredStrategy starts one (distribute/collective_all_reduce_strategy.py); there is
    no public way to use its store of keys and values.
    """
    from tensorflow.python.eager import context

    config = context.context().coordination_service
    return config is not None and bool(config.service_type)


def share_text(key: str, text: str, *, replace: bool = False) -> None:
    """Write a text under a key for all tasks; a key can be written once, unless replaced."""
    from tensorflow.python.eager import context

    if replace:
        context.context().delete_config_key_value(key)
    try:
        context.context().set_config_key_value(key, text)
    except tf.errors.AlreadyExistsError:
        if not replace:  # else another task was as fast, and has said the same
            raise


def forget_text(key: str) -> None:
    """Delete a key, and all keys that begin with it and a slash."""
    from tensorflow.python.eager import context

    context.context().delete_config_key_value(key)


def shared_text(key: str, seconds: float) -> str | None:
    """Return the text under a key, waiting for it; None when it does not come.

    Raises:
        tf.errors.OpError: If the service is gone, or has found another task dead.
    """
    from tensorflow.python.eager import context

    try:
        return context.context().get_config_key_value(key, max(1, int(seconds * 1000)))
    except (tf.errors.DeadlineExceededError, tf.errors.NotFoundError):
        return None


def abort_collectives(reason: str) -> None:
    """Let the collectives that wait in this process fail, and all that follow."""
    from tensorflow.python.eager import context

    context.context().abort_collective_ops(tf.errors.INTERNAL, reason)


def watch_initial_values(
    strategy: tf.distribute.MultiWorkerMirroredStrategy,
    begins: Callable[[str, str], None],
    ends: Callable[[BaseException | None], None],
) -> None:
    """Call `begins(name, "float32[4,8]")` and `ends(error)` around a new variable's exchange.

    The chief sends the initial value to the others, inside the strategy's private
    `_get_variable_creator_initial_value`; a public hook would see the variable too late. Types that
    collectives do not broadcast (int8 of a quantized model, bfloat16) travel in a wider one.
    """
    extended = strategy.extended
    make = extended._get_variable_creator_initial_value

    def watched(*args: Any, **kwargs: Any) -> Any:
        initial_value: Any = kwargs.get("initial_value")
        name = str(kwargs.get("name"))
        dtype: list[tf.DType] = []  # of the value, once it is made
        wide = _WIDE.get(tf.as_dtype(kwargs["dtype"])) if kwargs.get("dtype") else None

        def value() -> Any:
            tensor = initial_value() if callable(initial_value) else initial_value
            if hasattr(tensor, "wrapped_value"):  # restored from a checkpoint
                tensor = tensor.wrapped_value
            tensor = tf.convert_to_tensor(tensor, dtype=kwargs.get("dtype"))
            shape = ",".join("?" if size is None else str(size) for size in tensor.shape)
            begins(name, f"{tensor.dtype.name}[{shape}]")
            dtype.append(tensor.dtype)
            return tf.cast(tensor, _WIDE.get(tensor.dtype, tensor.dtype))

        # Positional: replica_id, device, primary_var.
        given = {**kwargs, "initial_value": value, "dtype": wide or kwargs.get("dtype")}
        exchange = make(*args, **given)

        def watched_exchange() -> Any:
            try:
                result = exchange()
            except BaseException as error:
                ends(error)
                raise
            ends(None)
            return tf.cast(result, dtype[0]) if dtype and result.dtype != dtype[0] else result

        return watched_exchange

    extended._get_variable_creator_initial_value = watched
