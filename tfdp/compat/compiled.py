"""What compile() left in a model: losses, metrics, and what builds them."""

import contextlib
import inspect
from collections.abc import Iterator
from typing import Any

import keras
import tensorflow as tf
from keras.src.backend.common import masking
from keras.src.backend.common.symbolic_scope import SymbolicScope
from keras.src.losses import loss as loss_module
from keras.src.trainers import trainer as keras_trainer
from keras.src.trainers.compile_utils import CompileMetrics

from tfdp.compat import attributes

KERAS = tuple(int(part) for part in keras.__version__.split(".")[:2])
# Before 3.14 an activity regularizer summed over the batch; since then it is divided by its rows.
ACTIVITY_LOSSES_ARE_MEANS = KERAS >= (3, 14)
# Before 3.15 train_on_batch and test_on_batch went on counting where they had stopped.
BATCH_METHODS_RESET_METRICS = KERAS >= (3, 15)


def compile_loss(model: keras.Model) -> Any:
    """Return the object that holds the compiled losses (keras compile_utils.CompileLoss)."""
    return model._compile_loss


# The method with which compile(jit_compile="auto") asks a model whether to use XLA. What it was
# asked is not kept: "auto" and False look alike afterwards. Under a strategy Keras answers False,
# since its own step cannot be compiled there (trainers/trainer.py).
RESOLVE_AUTO_JIT = "_resolve_auto_jit_compile"


def supports_jit(model: keras.Model) -> bool:
    """Say whether all layers of a model can be compiled by XLA, and the settings allow it."""
    return bool(keras_trainer.model_supports_jit(model))


def loss_tracker(model: keras.Model) -> Any:
    """Return the metric "loss" that compile() made, or None."""
    return model._loss_tracker


def compiled_state(model: keras.Model) -> tuple[Any, ...]:
    """Return what changes when a model is compiled again, to compare by identity."""
    optimizer = getattr(model, "optimizer", None)
    return (optimizer, model._compile_loss, model._compile_metrics, model._loss_tracker)


def replace_losses(compile_loss: Any, wrap: Any) -> contextlib.AbstractContextManager[None]:
    """Put `wrap(loss)` in the place of each loss of a CompileLoss.

    They are made at the first call, from strings and functions.
    """
    # Not built by now: the model has a compute_loss of its own, which does not use them.
    saved = None if compile_loss is None else compile_loss._flat_losses
    if saved is None:
        return contextlib.nullcontext()
    losses = [entry._replace(loss=wrap(entry.loss)) for entry in saved]
    return attributes.replaced((compile_loss, "_flat_losses", losses))


def activity_regularized_layers(model: keras.Model) -> list[Any]:
    """Return the layers that regularize what they put out."""
    return [layer for layer in model._flatten_layers() if layer.activity_regularizer is not None]


def keras_mask(tensor: Any) -> Any:
    """Return the mask that a layer or a loss attached to its output, or None."""
    return masking.get_keras_mask(tensor)


def merge_weights(sample_weight: Any, mask: Any, dtype: str) -> Any:
    """Return sample weights times mask (0 or 1), as a loss merges them; None for neither."""
    return loss_module.apply_mask(sample_weight, mask, dtype=dtype, reduction="sum")


def align_ranks(values: Any, weights: Any) -> tuple[Any, Any]:
    """Squeeze or expand the last axis of one of two tensors, as a loss does before it weighs."""
    return loss_module.squeeze_or_expand_to_same_rank(values, weights)


def leaf_metrics(model: keras.Model) -> list[Any]:
    """Return the model's metrics with those given to compile() unfolded."""
    leaves: list[Any] = []
    for metric in model.metrics:
        leaves += metric.metrics if isinstance(metric, CompileMetrics) else [metric]
    return leaves


def is_built(model: keras.Model, compiled: bool = True) -> bool:
    """Say whether the model has its variables.

    Args:
        model: The model.
        compiled: Whether its compiled losses and metrics and its optimizer need theirs too.
    """
    # A model that was never compiled has no optimizer attribute.
    parts = [model._compile_loss, model._compile_metrics]
    # Keras builds no optimizer for a model that has nothing to train.
    if model.trainable_variables:
        parts.append(getattr(model, "optimizer", None))
    # One without a call(), whose own train_step runs its layers, has no state beside theirs.
    layers = [layer for layer in model._flatten_layers() if layer is not model or has_call(model)]
    return all(layer.built for layer in layers) and (
        not compiled or all(part is None or part.built for part in parts)
    )


def has_call(model: keras.Model) -> bool:
    """Say whether a model can be called: the steps of its own may use its layers alone."""
    return type(model).call is not keras.Model.call


def build(model: keras.Model, spec: Any, compiled: bool = True, optimizer: bool = True) -> None:
    """Build the model, its losses, metrics and optimizer from the spec of a batch.

    Keras builds from a batch of data, which it then throws away, and reduces it over replicas
    first, which not every type allows (backend/tensorflow/trainer.py, _maybe_symbolic_build;
    keras#20585).

    Args:
        model: The model; call inside `strategy.scope()`.
        spec: `tf.TypeSpec`s of (x, y, sample_weight) as fit takes them, of any kind.
        compiled: Whether to build more than the layers: losses and metrics need y.
        optimizer: Whether to build a compiled model's optimizer.

    Raises:
        ValueError: If the model has no call(), and a layer is not built.
    """

    def trace(batch: Any) -> None:
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(batch)
        accepts = inspect.signature(model.call).parameters
        y_pred = model(x, training=False) if "training" in accepts else model(x)
        if not (compiled and model.compiled):
            return
        if model._compile_metrics is not None and not model._compile_metrics.built:
            model.compute_metrics(x, y, y_pred, sample_weight)
        if model._compile_loss is not None and not model._compile_loss.built:
            model._compute_loss(x, y, y_pred, sample_weight, training=False)

    if has_call(model):
        with keras.StatelessScope(), SymbolicScope():
            tf.function(trace, autograph=False).get_concrete_function(spec)
    else:
        for layer in model._flatten_layers(include_self=False):
            if not layer.built:
                raise ValueError(
                    f"Model {model.name!r} has no call(), which would build its layers, and "
                    f"{layer.name!r} is not built: give it a keras.Input, or call its build()."
                )
    own = getattr(model, "optimizer", None)
    if compiled and optimizer and own is not None and not own.built and model.trainable_variables:
        own.build(model.trainable_variables)
    model._post_build()


def initial_epoch(model: keras.Model) -> int | None:
    """Return the epoch that BackupAndRestore set in on_train_begin, or None."""
    return model._initial_epoch


def flatten_metrics_in_order(model: keras.Model, logs: dict[str, Any]) -> Any:
    """Return logs as evaluate's list: the order of `model.metrics`, then the rest by name."""
    return model._flatten_metrics_in_order(logs)


def metric_function(metric: Any) -> Any:
    """Return the function that a MeanMetricWrapper averages, or None for another metric."""
    return getattr(metric, "_fn", None)


@contextlib.contextmanager
def watch_metric_function(metric: Any) -> Iterator[list[Any]]:
    """Yield a list that fills with what the function of a MeanMetricWrapper returns."""
    results: list[Any] = []
    function = metric_function(metric)
    if function is None:
        yield results
        return

    def watched(*args: Any, **kwargs: Any) -> Any:
        results.append(function(*args, **kwargs))
        return results[-1]

    with attributes.replaced((metric, "_fn", watched)):
        yield results
