"""Do all tasks train the same? Compared before the first collective, which would hang or break.

    check(strategy, "fit", settings)         # at the beginning of fit, evaluate and predict
    check_rows(strategy, "data", 123, 456)   # when the first batches have been read

Every task raises the same AgreementError, with the setting, both values and both tasks.
"""

import dataclasses
import functools
import logging
import os
import socket
from collections.abc import Mapping
from typing import Any

import keras
import tensorflow as tf

from tfdp.compat import distribute
from tfdp.fit.replicas import differences
from tfdp.fit.replicas.exchange import NOTE, exchange, pairwise

_log = logging.getLogger("tfdp")


def check(strategy: tf.distribute.Strategy, call: str, settings: Mapping[str, Any]) -> None:
    """Compares this call of fit, evaluate or predict with that of every other task.

    Waits for tasks that have not come to their call yet, and says so: the heartbeats of the
    service end the wait when one of them has died.

    Args:
        strategy: The strategy; nothing is compared unless it spans several processes.
        call: "fit", "evaluate", ...: compared as well.
        settings: What must be the same, by name; values are compared as text, lists item by item.

    Raises:
        AgreementError: On every task, when one differs or has ended.
    """
    facts = {"call": call, **{name: differences.plain(value) for name, value in settings.items()}}
    exchange(strategy, call, facts, pairwise(differences.between))


def check_rows(strategy: tf.distribute.Strategy, of: str, labels: int, inputs: int) -> None:
    """Compares what every worker has read of an input that all of them read whole.

    Args:
        strategy: The strategy.
        of: What the input is called: "data", "validation data".
        labels: A digest of the labels so far (of the inputs, where there are no labels).
        inputs: One of the inputs.

    Raises:
        AgreementError: On every task, when labels differ.
    """
    call = f"rows of {of}"
    facts = {"call": call, "labels": labels, "inputs": inputs}
    note = exchange(strategy, call, facts, pairwise(functools.partial(_rows_differ, of)))
    if note:
        _say_once(note)


def settings(model: Any, strategy: Any, communication: Any, feed: Any) -> dict[str, Any]:
    """Returns what must be the same on every task that trains or tests, by name."""
    variables = [f"{v.path} {v.dtype}[{','.join(map(str, v.shape))}]" for v in model.variables]
    same = {
        "model: number of variables": len(variables),
        "model": variables,
        "optimizer": type(model.optimizer).__name__ if model.compiled else None,
        "steps_per_execution": model.steps_per_execution,
        "run_eagerly": model.run_eagerly,
        "communication": dataclasses.replace(communication, timeout_seconds=None, outer=None),
        "communication: outer": _plain_optimizer(communication.outer),
        "replicas": strategy.num_replicas_in_sync,
        **data_plan(feed),
    }
    if feed.split.by_rows:  # else each task shuffles its own data as it likes
        same["seed"] = distribute.global_seed()
    return same


def _plain_optimizer(optimizer: keras.optimizers.Optimizer | None) -> str:
    return "none" if optimizer is None else f"{type(optimizer).__name__} {optimizer.get_config()}"


def data_plan(feed: Any, of: str = "data") -> dict[str, Any]:
    """Returns what must be the same of a feed.Feed on every task, by name."""
    plan = {f"{of}: split": feed.description, f"{of}: steps of an epoch": feed.steps_per_epoch}
    if feed.split.by_rows:  # else each task reads what it was given
        leaves = [leaf for leaf in tf.nest.flatten(feed.spec) if isinstance(leaf, tf.TensorSpec)]
        plan[f"{of}: global batch size"] = getattr(feed._adapter, "batch_size", None)
        # Before the number of batches, which differs where shards are uneven.
        plan[f"{of}: shard()"] = ", ".join(f"{n}, {i}" for n, i in feed.shards) or "none"
        plan[f"{of}: batches in a pass"] = feed.batches
        plan[f"{of}: elements"] = ", ".join(f"{leaf.dtype.name}{leaf.shape}" for leaf in leaves)
    host = socket.gethostname()
    plan[f"{of}: {differences.CACHE}"] = [
        f"{host}:{os.path.abspath(name)}" for name in feed.cache_files
    ]
    return plan


def callbacks_plan(callbacks: Any) -> str:
    """Names the callbacks that every task needs: they change the training, or save inside it.

    Those that only write, and a user's own, may be the chief's alone.
    """
    kinds = (
        keras.callbacks.EarlyStopping,
        keras.callbacks.LearningRateScheduler,
        keras.callbacks.ReduceLROnPlateau,
        keras.callbacks.BackupAndRestore,
        keras.callbacks.SwapEMAWeights,
    )
    names = []
    for callback in callbacks:
        frequency = getattr(callback, "save_freq", None)
        if isinstance(frequency, int):
            names.append(f"a callback with save_freq={frequency}")
        elif isinstance(callback, kinds):
            names.append(type(callback).__name__)
    return ", ".join(names) or "none"


def _rows_differ(of: str, first: str, ours: Any, second: str, theirs: Any) -> str:
    if ours["labels"] != theirs["labels"]:
        return (
            f"{of}: {second} reads other rows than {first}. Every worker has to read the same "
            "batches in the same order, and trains on its rows of each. Give shuffles a seed "
            "(keras.utils.set_random_seed(1) at the beginning of the script), and leave out what "
            "shards by hand; a dataset that each worker shards for itself asks for tf.data's "
            "auto_shard_policy OFF."
        )
    if ours["inputs"] != theirs["inputs"]:
        return (
            f"{NOTE}{of}: {second} and {first} read the same labels beside different inputs, as "
            "random augmentation without a seed makes them. Every row is trained once; one device "
            "would draw others."
        )
    return ""


@functools.cache
def _say_once(note: str) -> None:
    _log.warning(note)
