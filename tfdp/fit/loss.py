"""Exact losses: every term is a numerator and a divisor, summed over the replicas, divided once.

A replica computes, on its own samples, what one device would compute. Its loss is then
multiplied by its share of the global batch (its rows / all rows), and the shares add up:

    loss = sum over replicas of (rows_r / rows) * loss_r

That is exact for every term whose divisor is proportional to the rows: a mean over samples, a
scalar mean, a regularizer (equal on all replicas). A term with another divisor (masks, weighted
means, sums) is put in relation to the rows here, so that the one multiplication is right for it
too, and the empty replica is no special case:

    with loss.installed(model):                     # once, around all replicas
        with loss.exact(totals, replicas) as terms:     # on each replica
            value, outputs = loss.forward(model, batch, training=True)
        objective = value * loss.share(totals)
"""

import contextlib
import functools
import inspect
import logging
import threading
from collections.abc import Iterator
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from tfdp.compat import compiled
from tfdp.fit import retrace

_log = logging.getLogger("tfdp")


class Totals(NamedTuple):
    """Sums over all replicas of one step, where they are known before the gradients.

    Attributes:
        mine: Rows of this replica (int or scalar tensor); 0 where it got a stand-in.
        rows: Rows of the global batch (int, or scalar float32 tensor); None when only the
            replicas together know it.
        divisors: float32 tensor with the divisor of each term that needs its own; None when
            they were not reduced.
        nominal_rows: With `rows=None`: what the local gradients are divided by instead, the
            same on every replica; the reduced ones are multiplied by nominal_rows / rows.
        ask: Lets the next trace of the step know `rows` and `divisors`; see retrace.
    """

    mine: Any
    rows: Any
    divisors: Any = None
    nominal_rows: Any = None
    ask: Any = None

    @property
    def numbers(self) -> tuple[Any, ...]:
        """The numbers and tensors: what a function that XLA compiles can be given."""
        return self[:4]


def share(totals: Totals) -> Any:
    """Return this replica's share of the global batch, a scalar that multiplies its loss."""
    whole = totals.nominal_rows if totals.rows is None else totals.rows
    return tf.math.divide_no_nan(tf.cast(totals.mine, tf.float32), tf.cast(whole, tf.float32))


def inverse_share(totals: Totals) -> Any:
    """Return global rows / this replica's rows (0 for an empty replica)."""
    if totals.rows is None:
        raise retrace.Retrace(totals.ask)
    mine = tf.cast(totals.mine, tf.float32)
    return tf.math.divide_no_nan(tf.cast(totals.rows, tf.float32), mine)


class Terms:
    """What the losses of one traced step need and gave.

    Attributes:
        divisors: This replica's divisor of each term that needs its own, in order of the calls.
    """

    def __init__(self, totals: Totals, replicas: int, collect: bool, own_divisors: bool):
        self.totals = totals
        self.replicas = replicas
        self.collect = collect
        self.own_divisors = own_divisors
        self.divisors: list[Any] = []

    def value(self, loss: Any, y_true: Any, y_pred: Any, sample_weight: Any) -> Any:
        """Return one loss relative to this replica's rows."""
        if not _has_stock_call(loss):
            return loss(y_true, y_pred, sample_weight)
        values, divisor, proportional = _weighted_values(
            loss, y_true, y_pred, sample_weight, self.totals.mine
        )
        if self.replicas > 1 and not self.collect:
            _say_if_whole(loss, scalar=divisor is None and proportional)
        if divisor is None:  # nothing to divide by: a scalar, a sum, or values left unreduced
            if proportional or self.replicas == 1:
                return values
            return values * tf.cast(inverse_share(self.totals), values.dtype)
        total = tf.reduce_sum(values)
        if proportional or self.replicas == 1 or not self.own_divisors:
            return tf.math.divide_no_nan(total, divisor)
        self.divisors.append(tf.cast(divisor, tf.float32))
        if self.collect:
            return total
        if self.totals.divisors is None:
            raise retrace.Retrace(self.totals.ask)
        whole = self.totals.divisors[len(self.divisors) - 1]
        scale = tf.math.divide_no_nan(inverse_share(self.totals), whole)
        return total * tf.cast(scale, total.dtype)


# The terms of the replica that this thread traces: replicas take turns where they communicate.
_active = threading.local()


class _Term:
    """Stands in a CompileLoss for one loss."""

    def __init__(self, loss: Any):
        self.loss = loss

    def __call__(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        terms = getattr(_active, "terms", None)
        if terms is None:
            return self.loss(y_true, y_pred, sample_weight)
        return terms.value(self.loss, y_true, y_pred, sample_weight)


class _ActivitySum:
    """Stands in a layer for an activity regularizer that is a sum over the batch."""

    def __init__(self, regularizer: Any):
        self.regularizer = regularizer

    def __call__(self, outputs: Any) -> Any:
        terms = getattr(_active, "terms", None)
        value = self.regularizer(outputs)
        if terms is None:
            return value
        return value * tf.cast(inverse_share(terms.totals), value.dtype)


@contextlib.contextmanager
def installed(model: keras.Model) -> Iterator[None]:
    """Let the compiled losses of `model` heed `exact`."""
    layers = []
    if not compiled.ACTIVITY_LOSSES_ARE_MEANS:
        layers = compiled.activity_regularized_layers(model)
    for layer in layers:
        layer.activity_regularizer = _ActivitySum(layer.activity_regularizer)
    try:
        with compiled.replace_losses(compiled.compile_loss(model), _Term):
            yield
    finally:
        for layer in layers:
            layer.activity_regularizer = layer.activity_regularizer.regularizer


@contextlib.contextmanager
def exact(
    totals: Totals, replicas: int, collect: bool = False, own_divisors: bool = True
) -> Iterator[Terms]:
    """Make the installed losses exact while this thread traces a step.

    Args:
        totals: This replica's rows, and sums over the replicas.
        replicas: Number of replicas in sync.
        collect: Only collect `Terms.divisors`; the values returned are then of no use.
        own_divisors: Whether a term that needs its own divisor gets it; otherwise it is a mean
            over this replica's rows, exact on even batches of equal weights.

    Yields:
        The terms.

    Raises:
        Retrace: At a term whose divisor is not in `totals`.
    """
    before = getattr(_active, "terms", None)
    _active.terms = Terms(totals, replicas, collect, own_divisors)
    try:
        yield _active.terms
    finally:
        _active.terms = before


def rows_here() -> Any:
    """Return the rows of the replica that this thread traces; None outside a step."""
    terms = getattr(_active, "terms", None)
    return None if terms is None else terms.totals.mine


def forward(model: keras.Model, batch: Any, training: bool) -> tuple[Any, Any]:
    """Run a model forward; return its loss, and (x, y, y_pred, sample_weight)."""
    x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(batch)
    y_pred = model(x, training=training) if accepts(model.call, "training") else model(x)
    # A compute_loss may have been written before Keras gave it `training`.
    more = {"training": training} if accepts(model.compute_loss, "training") else {}
    loss = model.compute_loss(x=x, y=y, y_pred=y_pred, sample_weight=sample_weight, **more)
    return loss, (x, y, y_pred, sample_weight)


def accepts(function: Any, name: str) -> bool:
    """Say whether a function takes an argument of this name (or any keyword)."""
    parameters = inspect.signature(function).parameters
    return name in parameters or any(p.kind == p.VAR_KEYWORD for p in parameters.values())


def _say_if_whole(loss: Any, scalar: bool) -> None:
    """Say, once for each loss, that it may look at the batch as a whole."""
    kinds = (keras.losses.Dice, keras.losses.Tversky, keras.losses.Circle)
    functions = (keras.losses.dice, keras.losses.tversky, keras.losses.circle)
    if isinstance(loss, kinds) or getattr(loss, "fn", None) in functions:
        _say_once(
            f"Loss {loss.name!r} compares the rows of a batch with one another: each replica "
            "computes it on its own rows, which is not what one device computes on all of them."
        )
    elif scalar:
        _say_once(
            f"Loss {loss.name!r} returns one number for a batch. It counts as a mean over the "
            "rows, which gives the numbers of one device; one that is no mean (an overlap, a "
            "contrast of rows with one another) does not."
        )


@functools.cache
def _say_once(note: str) -> None:
    _log.warning(note)


def _has_stock_call(loss: Any) -> bool:
    """Say whether `loss(...)` is Loss.__call__: `call`, then weights and masks, then reduction."""
    return isinstance(loss, keras.losses.Loss) and type(loss).__call__ is keras.losses.Loss.__call__


def _weighted_values(
    loss: Any, y_true: Any, y_pred: Any, sample_weight: Any, rows: Any
) -> tuple[Any, Any, bool]:
    """Return (values times weights and mask, divisor or None, divisor proportional to rows).

    The same arithmetic as keras.losses.Loss.__call__, before it divides.
    """
    dtype = loss.dtype
    in_mask = compiled.keras_mask(y_pred)
    convert = lambda t: keras.ops.convert_to_tensor(t, dtype=dtype)  # noqa: E731
    y_pred = keras.tree.map_structure(convert, y_pred)
    y_true = keras.tree.map_structure(convert, y_true)
    with tf.name_scope(loss.name or "loss"):
        values = loss.call(y_true, y_pred)
    out_mask = compiled.keras_mask(values)
    mask = in_mask if out_mask is None else out_mask if in_mask is None else in_mask & out_mask
    values = keras.ops.convert_to_tensor(values, dtype=dtype)
    if mask is not None:
        mask = tf.cast(mask, dtype)
    if sample_weight is not None:
        sample_weight = keras.ops.convert_to_tensor(sample_weight, dtype=dtype)
    weights = compiled.merge_weights(sample_weight, mask, dtype)
    if weights is not None:
        weights = tf.cast(weights, values.dtype)
        values, weights = compiled.align_ranks(values, weights)
        values = values * weights

    reduction = loss.reduction
    if values.shape.rank == 0 and weights is None:  # the user's own mean
        return values, None, True
    if reduction in (None, "none", "sum"):
        return (tf.reduce_sum(values) if reduction == "sum" else values), None, False
    if reduction == "mean_with_sample_weight" and weights is not None:
        return values, tf.reduce_sum(weights), False
    if values.shape.rank == 0:  # the same, times the weight of the one row of a replica
        values = values[tf.newaxis]
    size = tf.cast(tf.size(values), values.dtype)
    if mask is not None:
        valid = tf.math.divide_no_nan(tf.reduce_sum(mask), tf.cast(tf.size(mask), mask.dtype))
        return values, size * valid, False
    return values, size, _proportional(loss, values, rows)


def _proportional(loss: Any, values: tf.Tensor, rows: Any) -> bool:
    """Say whether `values` surely has the same number of elements for each row, everywhere."""
    if not values.shape[1:].is_fully_defined():
        return False
    # All replicas have to come to the same: not so by rows where one may be without.
    if isinstance(rows, int) and values.shape[0] == rows:
        return True
    # A user's own function may return another first axis than the batch's (tokens, say).
    function = getattr(loss, "fn", type(loss))
    return (getattr(function, "__module__", "") or "").partition(".")[0] == "keras"
