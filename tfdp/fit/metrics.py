"""Metrics that average scalars, made exact.

A metric's state adds up over replicas when it counts samples. `Mean.update_state(scalar)` counts
calls: on one device a step is one call, whatever the batch. A replica's call therefore counts by
the replica's share of the batch, so that all replicas together count one.

    with metrics.installed(model):                  # once, around all replicas
        with metrics.exact(view, totals):           # on each replica
            logs = model.compute_metrics(x, y, y_pred, sample_weight)
"""

import contextlib
import functools
import threading
from collections.abc import Iterator
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from tfdp.compat import attributes, compiled
from tfdp.fit import loss as loss_lib
from tfdp.fit import retrace
from tfdp.fit import view as view_lib


class _Replica(NamedTuple):
    view: view_lib.View
    totals: loss_lib.Totals


# The replica that this thread traces: replicas take turns where they communicate.
_active = threading.local()


def installed(model: keras.Model) -> contextlib.AbstractContextManager[None]:
    """Let the `keras.metrics.Mean`s of a model heed `exact`."""
    means = [m for m in compiled.leaf_metrics(model) if isinstance(m, keras.metrics.Mean)]
    return attributes.replaced(
        *[(mean, "update_state", functools.partial(_update, mean)) for mean in means]
    )


@contextlib.contextmanager
def exact(view: view_lib.View, totals: loss_lib.Totals) -> Iterator[None]:
    """Make the installed metrics exact while this thread traces a step.

    Args:
        view: What the replica sees of the variables.
        totals: This replica's rows, and sums over the replicas.

    Raises:
        Retrace: At a scalar, when the rows of the global batch are not known.
    """
    before = getattr(_active, "replica", None)
    _active.replica = _Replica(view, totals)
    try:
        yield
    finally:
        _active.replica = before


def _update(mean: keras.metrics.Mean, *args: Any, **kwargs: Any) -> None:
    update = functools.partial(type(mean).update_state, mean, *args, **kwargs)
    replica = getattr(_active, "replica", None)
    values_given = 1 if compiled.metric_function(mean) is None else 2
    weighted = len(args) > values_given or kwargs.get("sample_weight") is not None
    if replica is None or weighted:
        update()
        return
    view, totals = replica
    before = [tf.identity(view.get(v)) for v in (mean.total, mean.count)]
    for variable in (mean.total, mean.count):
        view.set(variable, tf.zeros(variable.shape, variable.dtype))
    with compiled.watch_metric_function(mean) as results:
        update()
    values = results or list(args) or list(kwargs.values())
    scale = 1.0
    if keras.ops.convert_to_tensor(values[0]).shape.rank == 0:
        if totals.rows is None:
            raise retrace.Retrace(totals.ask)
        scale = loss_lib.share(totals)
    for variable, start in zip((mean.total, mean.count), before, strict=True):
        added = tf.identity(view.get(variable))
        view.set(variable, start + added * tf.cast(scale, added.dtype))
