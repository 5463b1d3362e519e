"""The private names of TensorFlow and Keras that we cannot avoid, as functions named by purpose.

Everything else in tfdp uses public names. Each function says what it stands for and why there
is no public way; tried with TensorFlow 2.20 and 2.21, Keras 3.13.2 to 3.15.1.
"""

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf
from keras.src.backend.common import global_state, masking
from keras.src.backend.common.symbolic_scope import SymbolicScope
from keras.src.losses import loss as loss_module
from keras.src.trainers import data_adapters
from keras.src.trainers import trainer as keras_trainer
from keras.src.trainers.compile_utils import CompileMetrics
from keras.src.trainers.data_adapters import array_slicing
from keras.src.trainers.data_adapters.generator_data_adapter import GeneratorDataAdapter
from tensorflow.python.distribute import distribute_lib

KERAS = tuple(int(part) for part in keras.__version__.split(".")[:2])
# Before 3.14 an activity regularizer summed over the batch; since then it is divided by its rows.
ACTIVITY_LOSSES_ARE_MEANS = KERAS >= (3, 14)
# Before 3.15 train_on_batch and test_on_batch went on counting where they had stopped.
BATCH_METHODS_RESET_METRICS = KERAS >= (3, 15)

# ---------------------------------------------------------------------------------------------
# tf.distribute: what code inside a replica sees


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


def global_seed() -> int | None:
    """Return the seed given to `tf.random.set_seed`, or None."""
    from tensorflow.python.eager import context

    return context.global_seed()


def function(body: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """Return `tf.function(body)` that does not warn when many models trace the same code."""
    made = tf.function(body, autograph=False, **options)
    made._omit_frequent_tracing_warning = True
    return made


# ---------------------------------------------------------------------------------------------
# Keras variables and optimizers


@contextlib.contextmanager
def bind(variables: Sequence[Any], values: Sequence[tf.Variable]) -> Iterator[None]:
    """Let each Keras variable stand for one plain tf.Variable: its copy on one device."""
    saved = [variable._value for variable in variables]
    for variable, value in zip(variables, values, strict=True):
        variable._value = value
    try:
        yield
    finally:
        for variable, value in zip(variables, saved, strict=True):
            variable._value = value


def replace_value(variable: Any, value: tf.Variable) -> None:
    """Make a Keras variable hold another tf.Variable of the same shape and dtype for good."""
    variable._value = value


@contextlib.contextmanager
def optimizer_on_one_device(optimizer: keras.optimizers.Optimizer) -> Iterator[None]:
    """Let an optimizer that was created under a strategy update plain variables.

    Keras keeps the strategy of the time of creation and hands variables to its
    `extended.update`, which takes only variables of that strategy (keras
    backend/tensorflow/optimizer.py; in tf.cond it crashes, see facts on gradient accumulation).
    """
    optimizers = [optimizer]
    inner = getattr(optimizer, "inner_optimizer", None)
    optimizers += [inner] if inner is not None else []
    optimizers += getattr(optimizer, "_inner_optimizers", [])
    saved = [one._distribution_strategy for one in optimizers]
    with leave_strategy():
        default = tf.distribute.get_strategy()
        for one in optimizers:
            one._distribution_strategy = default
        try:
            yield
        finally:
            for one, strategy in zip(optimizers, saved, strict=True):
                one._distribution_strategy = strategy


@contextlib.contextmanager
def replace_apply(
    optimizers: Sequence[keras.optimizers.Optimizer], apply: Callable[..., Any]
) -> Iterator[None]:
    """Let `optimizer.apply(...)` call `apply(optimizer, its own apply, ...)`.

    `apply_gradients` ends in `apply` too. Past `__setattr__`, which tracks what it is given.
    """
    for optimizer in optimizers:
        replacement = functools.partial(apply, optimizer, optimizer.apply)
        object.__setattr__(optimizer, "apply", replacement)
    try:
        yield
    finally:
        for optimizer in optimizers:
            object.__delattr__(optimizer, "apply")


def seed_states(model: keras.Model) -> list[Any]:
    """Return the states of the model's seed generators (Keras variables of shape (2,))."""
    generators: dict[int, Any] = {}
    for layer in model._flatten_layers():
        for generator in getattr(layer, "_seed_generators", []):
            generators.setdefault(id(generator.state), generator.state)
    return list(generators.values())


def synchronized_state(model: keras.Model) -> list[Any]:
    """Return the variables of layers that communicate with their copies on other replicas."""
    return [
        variable
        for layer in model._flatten_layers()
        if getattr(layer, "synchronized", False)
        for variable in layer.variables
    ]


# ---------------------------------------------------------------------------------------------
# What compile() left in the model


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


@contextlib.contextmanager
def replace_losses(compile_loss: Any, wrap: Any) -> Iterator[None]:
    """Put `wrap(loss)` in the place of each loss of a CompileLoss.

    They are made at the first call, from strings and functions, so an unbuilt object builds
    them wrapped as well.
    """
    if compile_loss is None:
        yield
        return
    saved = compile_loss._flat_losses
    if saved is None:
        raise AssertionError("The losses are built before a step is traced.")
    compile_loss._flat_losses = [entry._replace(loss=wrap(entry.loss)) for entry in saved]
    try:
        yield
    finally:
        compile_loss._flat_losses = saved


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
    parts = (model._compile_loss, model._compile_metrics, getattr(model, "optimizer", None))
    return all(layer.built for layer in model._flatten_layers()) and (
        not compiled or all(part is None or part.built for part in parts)
    )


def build(model: keras.Model, spec: Any, compiled: bool = True) -> None:
    """Build the model, its losses, metrics and optimizer from the spec of a batch.

    Keras builds from a batch of data, which it then throws away, and reduces it over replicas
    first, which not every type allows (backend/tensorflow/trainer.py, _maybe_symbolic_build;
    keras#20585).

    Args:
        model: The model; call inside `strategy.scope()`.
        spec: `tf.TypeSpec`s of (x, y, sample_weight) as fit takes them, of any kind.
        compiled: Whether to build more than the layers: losses and metrics need y.
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

    with keras.StatelessScope(), SymbolicScope():
        tf.function(trace, autograph=False).get_concrete_function(spec)
    optimizer = getattr(model, "optimizer", None)
    if compiled and optimizer is not None and not optimizer.built:
        model.optimizer.build(model.trainable_variables)
    model._post_build()


def initial_epoch(model: keras.Model) -> int | None:
    """Return the epoch that BackupAndRestore set in on_train_begin, or None."""
    return model._initial_epoch


def flatten_metrics_in_order(model: keras.Model, logs: dict[str, Any]) -> Any:
    """Return logs as evaluate's list: the order of `model.metrics`, then the rest by name."""
    return model._flatten_metrics_in_order(logs)


def metrics_result_or_logs(model: keras.Model, logs: dict[str, Any]) -> dict[str, Any]:
    """Return the results of `model.metrics`, or `logs` when a step returned other names."""
    return model._get_metrics_result_or_logs(logs)


# ---------------------------------------------------------------------------------------------
# Input


def data_adapter(
    x: Any,
    y: Any = None,
    *,
    sample_weight: Any = None,
    batch_size: int | None = None,
    steps_per_epoch: int | None = None,
    shuffle: Any = False,
    class_weight: dict[int, float] | None = None,
) -> Any:
    """Return Keras's adapter from arrays, generators, PyDataset, ... to a tf.data.Dataset."""
    return data_adapters.get_data_adapter(
        x,
        y,
        sample_weight=sample_weight,
        batch_size=batch_size,
        steps_per_epoch=steps_per_epoch,
        shuffle=shuffle,
        class_weight=class_weight,
    )


def is_generator_adapter(adapter: Any) -> bool:
    """Say whether an adapter reads a Python generator, which cannot start again."""
    return isinstance(adapter, GeneratorDataAdapter)


def dataset(adapter: Any) -> tf.data.Dataset:
    """Return the adapter's dataset; of a generator, one that takes no batch before it is needed."""
    made = adapter.get_tf_dataset()
    # Keras ends a generator's dataset with prefetch: batches that nobody trains are lost.
    return made._input_dataset if is_generator_adapter(adapter) else made


def train_validation_split(arrays: Any, validation_split: float) -> tuple[Any, Any]:
    """Split arrays as fit(validation_split=) does: the last part is for validation."""
    return array_slicing.train_validation_split(arrays, validation_split=validation_split)


def local_spec(spec: Any) -> Any:
    """Return the spec of one replica's batch out of a distributed dataset's element_spec."""

    def first(leaf: Any) -> Any:
        return leaf._value_specs[0] if hasattr(leaf, "_value_specs") else leaf

    return keras.tree.map_structure(first, spec)


@contextlib.contextmanager
def leave_stateless_scope() -> Iterator[None]:
    """Let assignments inside a `keras.StatelessScope` reach the variables."""
    name = "stateless_scope"
    saved = global_state.get_global_attribute(name)
    global_state.set_global_attribute(name, None)
    try:
        yield
    finally:
        global_state.set_global_attribute(name, saved)


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

    metric._fn = watched
    try:
        yield results
    finally:
        metric._fn = function


# ---------------------------------------------------------------------------------------------
# Text that tasks share, by way of TensorFlow's coordination service


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
    `_get_variable_creator_initial_value`; a public hook would see the variable too late.
    """
    extended = strategy.extended
    make = extended._get_variable_creator_initial_value

    def watched(*args: Any, **kwargs: Any) -> Any:
        initial_value: Any = kwargs.get("initial_value")
        name = str(kwargs.get("name"))

        def value() -> Any:
            tensor = initial_value() if callable(initial_value) else initial_value
            if hasattr(tensor, "wrapped_value"):  # restored from a checkpoint
                tensor = tensor.wrapped_value
            tensor = tf.convert_to_tensor(tensor, dtype=kwargs.get("dtype"))
            shape = ",".join("?" if size is None else str(size) for size in tensor.shape)
            begins(name, f"{tensor.dtype.name}[{shape}]")
            return tensor

        # Positional: replica_id, device, primary_var.
        exchange = make(*args, **{**kwargs, "initial_value": value})

        def watched_exchange() -> Any:
            try:
                result = exchange()
            except BaseException as error:
                ends(error)
                raise
            ends(None)
            return result

        return watched_exchange

    extended._get_variable_creator_initial_value = watched


# ---------------------------------------------------------------------------------------------
# Export


def add_asset(archive: keras.export.ExportArchive, name: str, path: str) -> None:
    """Put a file into an export, as one of the SavedModel's assets.

    `ExportArchive.track` takes layers only, and finds assets in lookup tables alone; what it saves
    is the trackable object that it keeps.
    """
    setattr(archive._tf_trackable, name, tf.saved_model.Asset(path))
