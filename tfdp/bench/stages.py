"""The slowest stage of a tf.data pipeline, by name, with the line of its function.

slowest = timed(dataset)[0]
slowest.name, slowest.made_at       # "ParallelMap", "train.py:31"

Each dataset of the chain is read alone, with all that is before it: what it takes longer than the
one before is its own. tf.data keeps a model of its own (see `of_model`), which sees inside of
flat_map and interleave, but gives no time to maps that are not parallel.
"""

import inspect
import os
import time
from typing import Any

import tensorflow as tf

from tfdp.bench.record import Stage
from tfdp.compat import dataset_graphs, distribute

# They hand on what others make.
_HANDS_ON = ("Repeat", "ForeverRepeat", "Prefetch", "Options", "ModelDataset", "Root", "MaxIntraOp")
_OWN = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "")


def timed(dataset: Any, seconds: float = 0.3) -> tuple[Stage, ...]:
    """Return the stages of a dataset, the slowest first, by reading each of its parts.

    Args:
        dataset: What a script gives to fit. It stays where it is: copies are read.
        seconds: How long each part is read.
    """
    before = 0.0
    found = []
    for link in reversed(dataset_graphs.chain(dataset)):
        took = link.elements * _seconds_per_element(link.dataset, seconds)
        own = max(0.0, took - before)
        before = max(before, took)
        found.append(Stage(link.name, own, link.parallelism, *place(link.function)))
    return tuple(sorted(found, key=lambda stage: -stage.seconds_per_step))


def _seconds_per_element(dataset: Any, seconds: float) -> float:
    copy, _ = dataset_graphs.independent(dataset)
    iterator = iter(copy.repeat())
    read = distribute.function(
        lambda iterator, count: tf.while_loop(
            lambda i: i < count,
            lambda i: (_after(iterator.get_next(), i + 1),),
            (tf.constant(0),),
            parallel_iterations=1,
        )
    )
    read(iterator, tf.constant(1))  # it traces
    # One call of a function costs as much as some elements.
    chunk = 1
    for timed in (False, True):  # what it has made ahead is used up at first
        begin, count, passed = time.perf_counter(), 0, 0.0
        while passed < seconds or count < 2:
            start = time.perf_counter()
            read(iterator, tf.constant(chunk))
            count, passed = count + chunk, time.perf_counter() - begin
            if not timed and time.perf_counter() - start < 0.01:
                chunk *= 2
    return passed / count


def _after(element: Any, value: tf.Tensor) -> tf.Tensor:
    leaves = [x for x in tf.nest.flatten(element, expand_composites=True) if tf.is_tensor(x)]
    with tf.control_dependencies(leaves):
        return tf.identity(value)


def of_model(iterator: Any) -> tuple[Stage, ...]:
    """Return the stages of a pipeline that runs, the slowest first, as tf.data sees them itself.

    Args:
        iterator: Its iterator.

    Returns:
        () where tf.data keeps no model of it.
    """
    made = [
        Stage(name, seconds / max(1, parallel), parallel)
        for name, seconds, parallel in dataset_graphs.stages(iterator)
        if not name.startswith(_HANDS_ON)
    ]
    return tuple(sorted(made, key=lambda stage: -stage.seconds_per_step))


def place(function: Any) -> tuple[str, str]:
    """Return the name of a Python function, and "FILE:LINE" where it stands; "" for none.

    One of tfdp's own, which reads what a config names, is said to be of config.data.
    """
    function = inspect.unwrap(getattr(function, "func", function))
    code = getattr(function, "__code__", None)
    if code is None:
        return "", ""
    name = getattr(function, "__name__", "")
    if code.co_filename.startswith(_OWN):
        return name, "config.data"
    if not os.path.isfile(code.co_filename):  # typed in by hand, or of a notebook
        return name, ""
    return name, f"{os.path.relpath(code.co_filename)}:{code.co_firstlineno}"
