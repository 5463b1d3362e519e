"""What code inside a replica sees of tf.distribute."""

import contextlib
import itertools
from collections.abc import Callable, Container, Iterator, Sequence
from typing import Any

import tensorflow as tf
from tensorflow.python.distribute import distribute_lib


@contextlib.contextmanager
def hide_replica_count() -> Iterator[None]:
    """Let losses inside a replica believe that it is the only one.

    Keras divides its losses by `tf.distribute.get_strategy().num_replicas_in_sync` (keras
    losses/loss.py, scale_loss_for_distribution); what a user computes beside them is not divided.
    Here both are plain means of the replica's samples. The replica context stays the real one,
    so that layers which communicate (synchronised BatchNormalization) still do.
    """
    mode = distribute_lib._ThreadMode(
        distribute_lib._get_default_strategy(), None, tf.distribute.get_replica_context()
    )
    distribute_lib._push_per_thread_mode(mode)
    try:
        yield
    finally:
        distribute_lib._pop_per_thread_mode()


@contextlib.contextmanager
def all_reduce_by(
    strategy: tf.distribute.Strategy,
    sums: Callable[[Sequence[tf.Tensor]], Sequence[tf.Tensor]],
    dtypes: Container[str],
) -> Iterator[None]:
    """Let what a strategy's replicas reduce by their context travel another way.

    Keras's synchronised BatchNormalization and users' code call
    `tf.distribute.get_replica_context().all_reduce`.

    Args:
        strategy: The strategy.
        sums: Returns the sums of tensors over all replicas.
        dtypes: The names of the types that it adds. Others, and IndexedSlices, stay with
            tf.distribute.
    """
    own = tf.distribute.ReplicaContext.all_reduce

    def all_reduce(context: Any, reduce_op: Any, value: Any, options: Any = None) -> Any:
        flat = tf.nest.flatten(value)
        carried = context.strategy is strategy and not any(
            isinstance(one, tf.IndexedSlices) or tf.convert_to_tensor(one).dtype.name not in dtypes
            for one in flat
        )
        if not carried:
            return own(context, reduce_op, value, options)
        is_mean = str(getattr(reduce_op, "value", reduce_op)).upper() == "MEAN"
        replicas = strategy.num_replicas_in_sync

        @tf.custom_gradient
        def reduced(*values: Any) -> Any:
            found = sums(values)
            if is_mean:
                found = [tf.cast(one / tf.cast(replicas, one.dtype), one.dtype) for one in found]
            # As in tf.distribute: the gradient of a sum over all is the sum over all.
            return tuple(found), lambda *gradients: reduced(*gradients)

        return tf.nest.pack_sequence_as(value, list(reduced(*map(tf.convert_to_tensor, flat))))

    tf.distribute.ReplicaContext.all_reduce = all_reduce
    try:
        yield
    finally:
        tf.distribute.ReplicaContext.all_reduce = own


@contextlib.contextmanager
def leave_strategy() -> Iterator[None]:
    """Run as if no strategy were in scope, inside `strategy.scope()` or `strategy.run()` too.

    tf.distribute refuses to nest the default strategy's scope, so there is no public way out.
    """
    graph = tf.compat.v1.get_default_graph()
    creators = graph._variable_creator_stack
    distribute_lib._push_per_thread_mode(distribute_lib._get_default_replica_mode())
    graph._variable_creator_stack = []
    try:
        yield
    finally:
        graph._variable_creator_stack = creators
        distribute_lib._pop_per_thread_mode()


# Far from 0, where every MirroredStrategy begins to count.
_group_key_bases = itertools.count(1 << 20, 1 << 8)


def use_fresh_collective_keys(strategy: tf.distribute.MirroredStrategy) -> None:
    """Give a MirroredStrategy collectives that no other one of this process has used.

    Every MirroredStrategy counts its keys from the same number, and TensorFlow keeps for ever what
    shape a key had: a second strategy fails with "Shape mismatch in the collective instance", or
    with "joining a group with size 3, but that group has size 2", and breaks the first
    (distribute/mirrored_strategy.py, `_make_collective_ops_with_fallbacks`).
    """
    extended = strategy.extended
    before = extended._collective_ops
    extended._collective_key_base = next(_group_key_bases)
    extended._collective_ops = extended._make_collective_ops_with_fallbacks()
    if extended._cross_device_ops is before:
        extended._cross_device_ops = extended._collective_ops


def global_seed() -> int | None:
    """Return the seed given to `tf.random.set_seed`, or None.

    `tf.random.get_seed` would draw from it, and change what comes after.
    """
    from tensorflow.python.eager import context

    return context.global_seed()


def is_deterministic() -> bool:
    """Say whether operations have to be deterministic: then none may look at the clock.

    There is no public name that tells (framework/config.py; TensorFlow 2.20 and 2.21).
    """
    from tensorflow.python.framework import config

    return bool(config.is_op_determinism_enabled())


def eager_seeds() -> Callable[[], None]:
    """Return what puts back the numbers that operations without a seed of their own draw next.

    With a global seed each of them, also a shuffle, gets the next number of Python's generator in
    the context (eager/context.py, _internal_operation_seed; TensorFlow 2.20 and 2.21).
    """
    from tensorflow.python.eager import context

    # Nothing has drawn yet, and there is no seed: then a context may have no such attribute.
    generator = getattr(context.context(), "_rng", None)
    if generator is None:
        return lambda: None
    state = generator.getstate()
    return lambda: generator.setstate(state)


def function(body: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """Return `tf.function(body)` that does not warn when many models trace the same code."""
    made = tf.function(body, autograph=False, **options)
    made._omit_frequent_tracing_warning = True
    return made


def traced(body: Callable[..., Any], *specs: Any) -> Callable[..., Any]:
    """Return `body` traced for arguments of these specs: the function for these and no others."""
    made: Any = function(body)
    return made.get_concrete_function(*specs)
