"""Iterators of one process: over its own part of distributed data, and how they end."""

import atexit
import ctypes
import sys
import threading
import time
from typing import Any

import tensorflow as tf

_POLL_SECONDS = 0.05
# Elements that references to an iterator come from: the list of the thread, and getrefcount itself.
_ALONE = 2


def own_dataset(distributed: Any) -> tf.data.Dataset | None:
    """Return what this process reads of distributed data, for a process with one device.

    Iterating over distributed data goes through MultiDeviceIterator, which has pipelines, threads
    and buffers of its own, also where there is one device; MultiWorkerMirroredStrategy refuses the
    InputOptions that would spare it (distribute/input_lib.py, _should_use_multi_device_iterator;
    TensorFlow 2.20 and 2.21).

    Returns:
        The dataset, already sharded and rebatched; None where there are several.
    """
    for name in ("_cloned_datasets", "_datasets"):
        datasets = getattr(distributed, name, None)
        if datasets:
            return datasets[0] if len(datasets) == 1 else None
    return None


def let_go(iterator: Any) -> None:
    """Destroy an iterator without waiting for it, once nobody else holds it.

    The destructor of a tf.data iterator waits for the thread of its autotuner, which may sleep out
    its period; that doubles up to 60 s. Cancellation wakes the thread, but by a callback that may
    run before IsCancelled() tells the thread so: then it goes to sleep again
    (core/framework/model.cc, Model::OptimizeLoop; TensorFlow 2.20 and 2.21). Shown by

        import os, time
        import tensorflow as tf
        os.sched_setaffinity(0, {0})
        for trial in range(10):
            data = tf.data.Dataset.range(1 << 40).map(lambda i: i, tf.data.AUTOTUNE).prefetch(8)
            iterator, begin = iter(data), time.time()
            while time.time() - begin < 4:
                next(iterator)
            begin = time.time()
            del iterator
            print(f"destroyed in {time.time() - begin:.2f} s")

    TensorFlow does so without Python's lock: a thread may wait while the others go on.
    """
    _held.append(held := [iterator])
    try:
        threading.Thread(target=_drop, args=(held,), name="tfdp-iterator", daemon=True).start()
    except RuntimeError:  # the interpreter is about to end
        _keep()


# What the threads still hold when the process ends is not destroyed at all.
_held: list[list[Any]] = []


def _drop(held: list[Any]) -> None:
    while held and sys.getrefcount(held[0]) > _ALONE:
        time.sleep(_POLL_SECONDS)
    _held.remove(held)
    held.clear()


def _keep() -> None:
    for held in _held:
        for iterator in held:
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(iterator))


atexit.register(_keep)
