"""How long an all-reduce takes: for every pair of tasks, and for all. Every task calls it.

rows = measure(names, me)           # [Row(("worker:0", "worker:1"), 32, 0.041), ...] of this task's
rows += measure_carrier(names, "Gloo", carrier)     # over all tasks, by Gloo
"""

import dataclasses
import itertools
import statistics
import time
from collections.abc import Callable
from typing import Any

import tensorflow as tf

MEGABYTES = (1, 32)
_REPEATS = 3
# Above, all pairs would take too long, and each is measured with the next alone.
_MOST_TASKS_FOR_ALL_PAIRS = 8


@dataclasses.dataclass(frozen=True)
class Row:
    """One measurement.

    Attributes:
        tasks: Who took part.
        megabytes: What each put in, in float32.
        seconds: The median of a few.
        by: "TensorFlow": what its collectives choose, NCCL or RING; or "Gloo".
    """

    tasks: tuple[str, ...]
    megabytes: int
    seconds: float
    by: str = "TensorFlow"


def measure(names: list[str], me: str) -> list[Row]:
    """Measure, one after the other, so that no two disturb each other.

    Args:
        names: All tasks, the chief first; the same on every task.
        me: This task.

    Returns:
        The rows that this task took part in.

    Raises:
        tf.errors.OpError: A task was lost.
    """
    everybody = tuple(names)
    if len(names) <= _MOST_TASKS_FOR_ALL_PAIRS:
        pairs = list(itertools.combinations(names, 2))
    else:
        pairs = list(itertools.pairwise(names))
    groups = [*([] if len(names) == 2 else pairs), everybody]
    rows = []
    for number, group in enumerate(groups):
        for megabytes in MEGABYTES:
            if me in group:
                seconds = _seconds(group, number, megabytes)
                rows.append(Row(group, megabytes, seconds))
            # All wait for this group.
            _sum(tf.zeros([1]), len(names), key=1000 + len(groups))
    return rows


def measure_carrier(names: list[str], by: str, carrier: Any) -> list[Row]:
    """Measure what carries the sums of all tasks in place of TensorFlow.

    Args:
        names: As for `measure`.
        by: What it is called.
        carrier: One of what `fit.carriers` returns.

    Returns:
        A row for each size.

    Raises:
        tf.errors.OpError: A task was lost.
    """
    return [
        Row(tuple(names), megabytes, _median(megabytes, lambda value: carrier.sum([value])), by)
        for megabytes in MEGABYTES
    ]


def _seconds(group: tuple[str, ...], number: int, megabytes: int) -> float:
    return _median(megabytes, lambda value: _sum(value, len(group), key=1000 + number))


def _median(megabytes: int, reduce: Callable[[tf.Tensor], Any]) -> float:
    value = tf.ones([megabytes * (1 << 18)])
    times = []
    for _ in range(_REPEATS + 1):
        begin = time.perf_counter()
        reduce(value)
        times.append(time.perf_counter() - begin)
    return statistics.median(times[1:])  # the first one makes connections


_instances: dict[int, itertools.count] = {}


def _sum(value: tf.Tensor, size: int, key: int) -> None:
    instance = next(_instances.setdefault(key, itertools.count(key * 10000)))
    device = "GPU:0" if tf.config.list_logical_devices("GPU") else "CPU:0"
    with tf.device(device):
        result = tf.raw_ops.CollectiveReduceV2(
            input=value,
            group_size=size,
            group_key=key,
            instance_key=instance,
            ordering_token=[],
            merge_op="Add",
            final_op="Id",
            timeout_seconds=30.0,
        )
    result[0].numpy()  # it is there only now
