"""What code inside a replica sees of tf.distribute."""

import contextlib
import itertools
from collections.abc import Callable, Iterator
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
    """Return the seed given to `tf.random.set_seed`, or None."""
    from tensorflow.python.eager import context

    return context.global_seed()


def function(body: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """Return `tf.function(body)` that does not warn when many models trace the same code."""
    made = tf.function(body, autograph=False, **options)
    made._omit_frequent_tracing_warning = True
    return made


def traced(body: Callable[..., Any], *specs: Any) -> Callable[..., Any]:
    """Return `body` traced for arguments of these specs: the function for these and no others."""
    made: Any = function(body)
    return made.get_concrete_function(*specs)
