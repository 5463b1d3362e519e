"""Programs that nobody thought of: drawn at random, run on one device and on replicas, compared.

A program is a frozen dataclass of plain values. Its repr shows what is not the default, and can be
pasted:

    from fit.programs import *
    program = Program(layers=("batch_norm",), data=Data("batches", sizes=(3, 1)))
    differences = compare(run(program), run(program, strategy), program)

`programs()` is the hypothesis strategy that draws them, `drawn(100, seed=1)` a list of them. What
may differ by design is the table `BY_DESIGN`; what is known and not mended yet, `PENDING`.

A difference must mean a fault, so chaos is left out by construction: rates are small, steps few,
optimizers that divide by the size of a gradient add 1e-3 to it first (the gradient of a bias before
a normalization is rounding noise), and nothing has ties (no max-pooling, no sign of a gradient).
"""

import contextlib
import dataclasses
import itertools
import random
from collections.abc import Callable, Iterator
from typing import Any

import hypothesis
import keras
import numpy as np
import tensorflow as tf
from hypothesis import strategies as st

FEATURES, CLASSES, WORDS, LENGTH, WIDTH = 5, 3, 7, 4, 4
L = keras.layers
ops = keras.ops


class _Short:
    """A repr without the fields that have their default."""

    def __repr__(self) -> str:
        said = [
            f"{field.name}={getattr(self, field.name)!r}"
            for field in dataclasses.fields(self)  # type: ignore[arg-type]
            if getattr(self, field.name) != field.default
        ]
        return f"{type(self).__name__}({', '.join(said)})"


@dataclasses.dataclass(frozen=True, repr=False)
class Data(_Short):
    """What fit reads.

    Attributes:
        source: "arrays", "dataset", "batches" (a dataset of batches of given sizes), "unknown" (the
            same, its length unknown), "generator", or "py_dataset".
        rows: Of arrays and of a dataset.
        batch: Rows of a batch, of arrays and of a dataset.
        sizes: Rows of each batch, of the other sources.
        drop: Whether a dataset drops a last batch that is not full.
        steps: steps_per_epoch, of a dataset that repeats for ever; 0 for a pass over the data.
        shuffle: Whether the order is drawn anew for each epoch.
    """

    source: str = "arrays"
    rows: int = 8
    batch: int = 4
    sizes: tuple[int, ...] = (4, 4)
    drop: bool = False
    steps: int = 0
    shuffle: bool = False

    @property
    def of_sizes(self) -> bool:
        return self.source in ("batches", "unknown", "generator", "py_dataset")

    @property
    def batches(self) -> tuple[int, ...]:
        """The rows of each batch of a pass."""
        if self.of_sizes:
            return self.sizes
        full, rest = divmod(self.rows, self.batch)
        return (self.batch,) * full + ((rest,) if rest and not self.drop else ())

    @property
    def total(self) -> int:
        return sum(self.sizes) if self.of_sizes else self.rows

    def even(self, replicas: int) -> bool:
        """Say whether all replicas hold equally many rows at every step."""
        return all(size % replicas == 0 for size in self.batches)


@dataclasses.dataclass(frozen=True, repr=False)
class Output(_Short):
    """One output of a model, its loss and its metrics.

    Attributes:
        task: "value" (two numbers), "class" (one of three) or "binary".
        loss: One of LOSSES[task]; "" for none.
        reduction: Of a loss of Keras's.
        loss_weight: Its factor in the sum of all losses.
        metrics: Of METRICS[task].
        weighted: The same, of compile's weighted_metrics.
    """

    task: str = "value"
    loss: str = "mse"
    reduction: str | None = "sum_over_batch_size"
    loss_weight: float = 1.0
    metrics: tuple[str, ...] = ()
    weighted: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, repr=False)
class Program(_Short):
    """A model, how it is compiled, and what is done with it.

    Attributes:
        inputs: Of "dense", "image", "words" and "masked_words" (the id 0 is padding).
        words: What becomes of embedded words: "mean" and "gru" (one vector for each row) or "each"
            (the outputs are sequences).
        layers: Behind the inputs: names of LAYERS.
        outputs: One for each output.
        named: Whether several inputs and outputs are dicts; otherwise they are lists.
        wrapped: Whether a subclass of keras.Model calls the model, and fit builds it.
        own: Which methods are overridden, of OWN.
        policy: Keras's dtype policy.
        optimizer: The class.
        options: Its arguments.
        schedule: Whether the learning rate is a schedule.
        loss_scale: Whether a LossScaleOptimizer is around it.
        executions: steps_per_execution.
        jit: jit_compile.
        eager: run_eagerly.
        data: What fit reads.
        weights: "" for none, "rows" (of sequences one for each item), "zeros" (many of them 0),
            "each" (others for each output) or "class" (class_weight).
        epochs: Epochs.
        validation: "" for none, "split", "arrays", "dataset", or "unknown".
        validation_freq: Epochs from one to the next.
        callbacks: Names of CALLBACKS.
        after: What is done with the model when it is trained, of AFTER.
    """

    inputs: tuple[str, ...] = ("dense",)
    words: str = "mean"
    layers: tuple[str, ...] = ()
    outputs: tuple[Output, ...] = (Output(),)
    named: bool = True
    wrapped: bool = False
    own: tuple[str, ...] = ()
    policy: str = "float32"
    optimizer: str = "SGD"
    options: tuple[tuple[str, Any], ...] = ()
    schedule: bool = False
    loss_scale: bool = False
    executions: int = 1
    jit: bool = False
    eager: bool = False
    data: Data = Data()
    weights: str = ""
    epochs: int = 1
    validation: str = ""
    validation_freq: int = 1
    callbacks: tuple[str, ...] = ()
    after: tuple[str, ...] = ()

    @property
    def sequences(self) -> bool:
        """Whether the outputs are sequences."""
        return self.words == "each" and any("words" in name for name in self.inputs)

    @property
    def masked(self) -> bool:
        """Whether a mask reaches the losses."""
        return self.sequences and "masked_words" in self.inputs

    @property
    def reference(self) -> str:
        """Which one device counts: "keras", or "one_device" where stock Keras goes wrong.

        It takes a step beside the data where it does not know their end, and more steps than asked
        for where steps_per_execution does not divide them; it drops batches of generators, and
        draws one more order of shuffled data when it builds a model.
        """
        unknown = self.data.source in ("unknown", "generator") or self.validation == "unknown"
        beyond = bool(self.data.steps % self.executions)
        return "one_device" if unknown or beyond or self.data.shuffle else "keras"

    @property
    def tolerance(self) -> float:
        return {"float32": 1e-5, "mixed_float16": 5e-3, "mixed_bfloat16": 3e-2}[self.policy]


# -- losses and metrics -----------------------------------------------------------------------


def own_per_row(y_true: Any, y_pred: Any) -> Any:
    return ops.mean(ops.square(y_true - y_pred) * 1.5, axis=-1)


def own_scalar(y_true: Any, y_pred: Any) -> Any:
    return ops.mean(ops.square(y_true - y_pred))


def own_keras(y_true: Any, y_pred: Any) -> Any:
    return keras.losses.mean_squared_error(y_true, y_pred) + ops.mean(ops.abs(y_pred), axis=-1)


class OwnLoss(keras.losses.Loss):
    def call(self, y_true: Any, y_pred: Any) -> Any:
        return ops.sum(ops.square(y_true - y_pred), axis=-1)


class OwnScalarLoss(keras.losses.Loss):
    def call(self, y_true: Any, y_pred: Any) -> Any:
        return ops.mean(ops.square(y_true - y_pred))


_l = keras.losses
# Each takes the reduction. Functions of one's own have none.
LOSSES: dict[str, dict[str, Callable[..., Any]]] = {
    "value": {
        "mse": _l.MeanSquaredError,
        "mae": _l.MeanAbsoluteError,
        "huber": _l.Huber,
        "log_cosh": _l.LogCosh,
        "cosine": _l.CosineSimilarity,
        "own_class": OwnLoss,
        "own_scalar_class": OwnScalarLoss,
        "own_per_row": lambda reduction: own_per_row,
        "own_scalar": lambda reduction: own_scalar,
        "own_keras": lambda reduction: own_keras,
    },
    "class": {
        "sparse": _l.SparseCategoricalCrossentropy,
        "sparse_ignore": lambda reduction: _l.SparseCategoricalCrossentropy(
            ignore_class=1, reduction=reduction
        ),
        "categorical": lambda reduction: _l.CategoricalCrossentropy(
            label_smoothing=0.1, reduction=reduction
        ),
        "focal": _l.CategoricalFocalCrossentropy,
        "dice": _l.Dice,
    },
    "binary": {
        "crossentropy": _l.BinaryCrossentropy,
        "focal": _l.BinaryFocalCrossentropy,
        "poisson": _l.Poisson,
        "squared_hinge": _l.SquaredHinge,
        "tversky": _l.Tversky,
    },
}
_WHOLE_BATCH = ("dice", "tversky")
_SCALAR = ("own_scalar", "own_scalar_class")
_ONE_HOT = ("categorical", "focal", "dice")


class Sizes(keras.metrics.Metric):
    """A metric of one's own whose result is a dict."""

    def __init__(self, name: str = "sizes", **options: Any):
        super().__init__(name=name, **options)
        self.rows = self.add_weight(shape=(), initializer="zeros", name="rows")
        self.size = self.add_weight(shape=(), initializer="zeros", name="size")

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        self.rows.assign_add(ops.cast(ops.shape(y_pred)[0], "float32"))
        self.size.assign_add(ops.sum(ops.abs(ops.cast(y_pred, "float32"))))

    def result(self) -> dict[str, Any]:
        # Not a variable itself: it would say something else after the validation.
        return {f"{self.name}_rows": self.rows + 0.0, f"{self.name}_mean": self.size / self.rows}


class Sum(keras.metrics.Metric):
    """A metric of one's own with a sum that a calculation ends."""

    def __init__(self, name: str = "norm", **options: Any):
        super().__init__(name=name, **options)
        self.squares = self.add_weight(shape=(), initializer="zeros", name="squares")

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        self.squares.assign_add(ops.sum(ops.square(ops.cast(y_pred, "float32"))))

    def result(self) -> Any:
        return ops.sqrt(self.squares)


_m = keras.metrics
METRICS: dict[str, dict[str, Callable[[], Any]]] = {
    "value": {
        "mae": lambda: "mae",
        "mse": _m.MeanSquaredError,
        "rmse": _m.RootMeanSquaredError,
        "cosine": _m.CosineSimilarity,
        "r2": _m.R2Score,
        "scalar": lambda: _m.MeanMetricWrapper(own_scalar, name="scalar"),
        "function": lambda: own_per_row,
        "norm": Sum,
        "sizes": Sizes,
    },
    "class": {
        "accuracy": lambda: "accuracy",
        "norm": Sum,
        "sizes": Sizes,
    },
    "binary": {
        "accuracy": lambda: "accuracy",
        "auc": _m.AUC,
        "precision": _m.Precision,
        "recall": _m.Recall,
        "f1": lambda: _m.F1Score(threshold=0.5, average="micro"),
        "sensitivity": lambda: _m.SensitivityAtSpecificity(0.5),
        "true": _m.TruePositives,
        "iou": lambda: _m.BinaryIoU(),
        "norm": Sum,
    },
}
# These want one vector for each row.
_NO_SEQUENCES = ("r2", "f1", "iou", "auc", "sensitivity", "precision", "recall", "true")


# -- layers -----------------------------------------------------------------------------------


class State(L.Layer):
    """Keeps something about the calls of training, and changes nothing.

    Attributes:
        kind: "calls" (a whole number), "float_calls", "running" (a moving average of the mean),
            "rows" (a sum) or "largest".
    """

    def __init__(self, kind: str, **options: Any):
        super().__init__(**options)
        self.kind = kind
        self.supports_masking = True

    def build(self, shape: Any) -> None:
        kinds = {"calls": ("int32", "none"), "rows": ("float32", "sum")}
        dtype, aggregation = kinds.get(self.kind, ("float32", "none"))
        self.state = self.add_weight(
            shape=(),
            initializer="zeros",
            dtype=dtype,
            trainable=False,
            aggregation=aggregation,
            autocast=False,
            name="state",
        )

    def call(self, inputs: Any, training: bool = False) -> Any:
        if training:
            if self.kind in ("calls", "float_calls"):
                self.state.assign(self.state + 1)
            elif self.kind == "rows":
                self.state.assign(self.state + ops.cast(ops.shape(inputs)[0], "float32"))
            elif self.kind == "running":
                mean = ops.cast(ops.mean(inputs), "float32")
                self.state.assign(self.state * 0.9 + mean * 0.1)
            else:
                largest = ops.cast(ops.max(inputs), "float32")
                self.state.assign(ops.maximum(self.state, largest))
        return inputs


class AddLoss(L.Layer):
    """Adds the mean of the squares of what it sees to the losses."""

    def __init__(self, **options: Any):
        super().__init__(**options)
        self.supports_masking = True

    def call(self, inputs: Any) -> Any:
        self.add_loss(0.1 * ops.mean(ops.square(inputs)))
        return inputs


class Measure(L.Layer):
    """Holds a metric, the mean size of what it sees."""

    def __init__(self, **options: Any):
        super().__init__(**options)
        self.supports_masking = True
        self.size = keras.metrics.Mean(name="size")

    def call(self, inputs: Any) -> Any:
        self.size.update_state(ops.mean(ops.abs(inputs)))
        return inputs


def _dense(**options: Any) -> Any:
    return L.Dense(WIDTH, activation="tanh", **options)


def _normalization() -> Any:
    return L.Normalization(mean=0.1, variance=0.5)


# Each makes a layer; the vectors that come in and go out have WIDTH numbers.
LAYERS: dict[str, Callable[[], Any]] = {
    "dense": _dense,
    "gelu": lambda: L.Dense(WIDTH, activation="gelu"),
    "no_bias": lambda: L.Dense(WIDTH, use_bias=False),
    "layer_norm": L.LayerNormalization,
    "rms_norm": L.RMSNormalization,
    "group_norm": lambda: L.GroupNormalization(2),
    "unit_norm": L.UnitNormalization,
    "batch_norm": lambda: L.BatchNormalization(synchronized=True, momentum=0.7),
    "local_batch_norm": lambda: L.BatchNormalization(momentum=0.7),
    "frozen_batch_norm": lambda: L.BatchNormalization(trainable=False),
    "normalization": _normalization,
    "prelu": L.PReLU,
    "l2": lambda: _dense(kernel_regularizer="l2", bias_regularizer="l2"),
    "activity": lambda: _dense(activity_regularizer=keras.regularizers.L2(0.1)),
    "add_loss": AddLoss,
    "measure": Measure,
    "constraint": lambda: _dense(kernel_constraint="max_norm"),
    "frozen": lambda: _dense(trainable=False),
    "nested": lambda: keras.Sequential([keras.Input((WIDTH,)), _dense(), _dense()]),
    "calls": lambda: State("calls"),
    "float_calls": lambda: State("float_calls"),
    "running": lambda: State("running"),
    "rows": lambda: State("rows"),
    "largest": lambda: State("largest"),
    "spectral": lambda: L.SpectralNormalization(L.Dense(WIDTH)),
    "dropout": lambda: L.Dropout(0.3),
    "noise": lambda: L.GaussianNoise(0.3),
    # "shared" and "residual" are in _through.
}
_NAMES = (*LAYERS, "shared", "residual")
# The nested model's Input and PReLU's weights are for vectors.
_VECTORS_ONLY = ("nested", "prelu", "group_norm")


def _through(names: tuple[str, ...], h: Any) -> Any:
    shared = None
    for name in names:
        if name == "shared":
            shared = shared or _dense(name="shared")
            h = shared(shared(h))
        elif name == "residual":
            h = L.Add()([h, _dense()(h)])
        else:
            h = LAYERS[name]()(h)
    return h


# -- methods of one's own ---------------------------------------------------------------------


class _TrainStep:
    """As the Keras guide writes it."""

    def train_step(self, data: Any) -> Any:
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        with tf.GradientTape() as tape:
            y_pred = self(x, training=True)
            loss = self.compute_loss(x=x, y=y, y_pred=y_pred, sample_weight=sample_weight)
            scaled = self.optimizer.scale_loss(loss)
        gradients = tape.gradient(scaled, self.trainable_variables)
        self.optimizer.apply(gradients, self.trainable_variables)
        self._loss_tracker.update_state(loss, sample_weight=tf.shape(keras.tree.flatten(x)[0])[0])
        return self.compute_metrics(x, y, y_pred, sample_weight=sample_weight)


class _TrainStepLoops(_TrainStep):
    """As the Keras guide writes it too, with a log of its own."""

    def train_step(self, data: Any) -> Any:
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        with tf.GradientTape() as tape:
            y_pred = self(x, training=True)
            loss = self.compute_loss(y=y, y_pred=y_pred, sample_weight=sample_weight)
        gradients = tape.gradient(loss, self.trainable_variables)
        pairs = zip(gradients, self.trainable_variables, strict=True)
        self.optimizer.apply_gradients(pairs)
        for metric in self.metrics:
            if metric.name == "loss":
                metric.update_state(loss)
            elif hasattr(metric, "weighted_metrics") or metric.name == "compile_metrics":
                metric.update_state(y, y_pred, sample_weight=sample_weight)
        return {m.name: m.result() for m in self.metrics} | {"seen": loss}


class _TestStep:
    def test_step(self, data: Any) -> Any:
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        y_pred = self(x, training=False)
        loss = self.compute_loss(y=y, y_pred=y_pred, sample_weight=sample_weight)
        for metric in self.metrics:
            if metric.name == "loss":
                metric.update_state(loss)
            elif metric.name == "compile_metrics":
                metric.update_state(y, y_pred, sample_weight=sample_weight)
        return self.get_metrics_result()


class _PredictStep:
    def predict_step(self, data: Any) -> Any:
        x, _, _ = keras.utils.unpack_x_y_sample_weight(data)
        return keras.tree.map_structure(lambda t: t * 2.0, self(x, training=False))


class _ComputeLoss:
    def compute_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool = True,
    ) -> Any:
        loss = super().compute_loss(x, y, y_pred, sample_weight, training)  # type: ignore[misc]
        return loss + 0.1 * ops.mean(ops.square(keras.tree.flatten(y_pred)[0]))


class _ComputeMetrics:
    def compute_metrics(self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        logs = super().compute_metrics(x, y, y_pred, sample_weight)  # type: ignore[misc]
        return {**logs, "largest_of_a_mean": ops.mean(keras.tree.flatten(y_pred)[0])}


OWN: dict[str, type] = {
    "train_step": _TrainStep,
    "train_step_loops": _TrainStepLoops,
    "test_step": _TestStep,
    "predict_step": _PredictStep,
    "compute_loss": _ComputeLoss,
    "compute_metrics": _ComputeMetrics,
}


class _Wrapper(keras.Model):
    """Calls a model, and is built by fit."""

    def __init__(self, inner: keras.Model, **options: Any):
        super().__init__(**options)
        self.inner = inner

    def call(self, inputs: Any, training: bool = False) -> Any:
        return self.inner(inputs, training=training)


# -- models -----------------------------------------------------------------------------------


def _inputs(program: Program) -> tuple[list[Any], Any]:
    """Return the inputs, and one tensor out of all of them."""
    made, parts = [], []
    for i, kind in enumerate(program.inputs):
        if kind == "dense":
            made.append(keras.Input((FEATURES,), name=f"in_{i}"))
            h = _dense()(made[-1])
            parts.append(L.RepeatVector(LENGTH)(h) if program.sequences else h)
        elif kind == "image":
            made.append(keras.Input((4, 4, 1), name=f"in_{i}"))
            h = L.Conv2D(2, 3, activation="tanh")(made[-1])
            h = _dense()(L.Flatten()(h))
            parts.append(L.RepeatVector(LENGTH)(h) if program.sequences else h)
        else:
            made.append(keras.Input((LENGTH,), dtype="int32", name=f"in_{i}"))
            h = L.Embedding(WORDS, WIDTH, mask_zero=kind == "masked_words")(made[-1])
            if program.words == "mean":
                h = L.GlobalAveragePooling1D()(h)
            elif program.words == "gru":
                h = L.GRU(WIDTH)(h)
            parts.append(h)
    if len(parts) == 1:
        return made, parts[0]
    return made, L.Dense(WIDTH)(L.Concatenate()(parts))


def _structure(program: Program, prefix: str, leaves: list[Any]) -> Any:
    """Return the inputs or outputs of a model as it takes them."""
    if len(leaves) == 1:
        return leaves[0]
    if program.named:
        return {f"{prefix}_{i}": leaf for i, leaf in enumerate(leaves)}
    return leaves


def build(program: Program) -> keras.Model:
    """Return the program's compiled model."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(program.policy)
    try:
        inputs, h = _inputs(program)
        h = _through(program.layers, h)
        outputs = []
        for i, output in enumerate(program.outputs):
            units, activation = {
                "value": (2, None),
                "class": (CLASSES, "softmax"),
                "binary": (1, "sigmoid"),
            }[output.task]
            head = L.Dense(units, activation=activation, dtype="float32", name=f"out_{i}")
            outputs.append(head(h))
        arguments = (
            _structure(program, "in", inputs),
            _structure(program, "out", outputs),
        )
        bases = tuple(OWN[name] for name in program.own)
        if program.wrapped:
            model = type("Wrapper", (*bases, _Wrapper), {})(keras.Model(*arguments))
        else:
            model = type("Own", (*bases, keras.Model), {})(*arguments) if bases else None
            model = model or keras.Model(*arguments)
        _compile(program, model)
        return model
    finally:
        keras.config.set_dtype_policy(before)


def _compile(program: Program, model: keras.Model) -> None:
    outputs = program.outputs

    def metrics(names: str) -> Any:
        made = [[METRICS[o.task][n]() for n in getattr(o, names)] for o in outputs]
        if not any(made):
            return None
        return _structure(program, "out", made)

    losses = [LOSSES[o.task][o.loss](reduction=o.reduction) if o.loss else None for o in outputs]
    weights = [o.loss_weight for o in outputs]
    model.compile(
        optimizer=optimizer(program),
        loss=_structure(program, "out", losses),
        loss_weights=None if len(outputs) == 1 else _structure(program, "out", weights),
        metrics=metrics("metrics"),
        weighted_metrics=metrics("weighted"),
        run_eagerly=program.eager,
        jit_compile=program.jit,
        steps_per_execution=program.executions,
    )


# The rate of each, and what keeps it from dividing by noise.
OPTIMIZERS: dict[str, tuple[float, dict[str, Any]]] = {
    "SGD": (0.02, {}),
    "Adam": (0.005, {"epsilon": 1e-3}),
    "AdamW": (0.005, {"epsilon": 1e-3}),
    "Adamax": (0.005, {"epsilon": 1e-3}),
    "Nadam": (0.005, {"epsilon": 1e-3}),
    "RMSprop": (0.005, {"epsilon": 1e-3}),
    "Adagrad": (0.02, {"epsilon": 1e-3}),
    "Adadelta": (0.1, {"epsilon": 1e-3}),
    "Ftrl": (0.02, {}),
}


def optimizer(program: Program) -> keras.optimizers.Optimizer:
    """Return the program's optimizer."""
    rate: Any
    rate, more = OPTIMIZERS[program.optimizer]
    if program.schedule:
        rate = keras.optimizers.schedules.ExponentialDecay(rate, 2, 0.7)
    kind = getattr(keras.optimizers, program.optimizer)
    made = kind(rate, **more, **dict(program.options))
    if program.loss_scale:
        made = keras.optimizers.LossScaleOptimizer(
            made, initial_scale=256.0, dynamic_growth_steps=3
        )
    return made


# -- data -------------------------------------------------------------------------------------


def rows_of(program: Program, rows: int, seed: int = 3) -> tuple[Any, Any, Any]:
    """Return (x, y, sample_weight or None) of so many rows, as fit takes them."""
    random = np.random.default_rng(seed)
    signal = random.normal(size=(rows, FEATURES)).astype("float32")
    x = []
    for kind in program.inputs:
        if kind == "dense":
            x.append(signal)
        elif kind == "image":
            x.append(random.normal(size=(rows, 4, 4, 1)).astype("float32"))
        else:
            lengths = random.integers(1, LENGTH + 1, rows)
            ids = random.integers(1, WORDS, (rows, LENGTH))
            x.append((ids * (np.arange(LENGTH) < lengths[:, None])).astype("int32"))
    middle = (LENGTH,) if program.sequences else ()
    y = []
    for output in program.outputs:
        if output.task == "value":
            noise = random.normal(size=(rows, *middle, 2))
            label = noise + signal[:, :2].reshape(rows, *(1 for _ in middle), 2)
        elif output.task == "class":
            label = random.integers(0, CLASSES, (rows, *middle))
            if output.loss in _ONE_HOT:
                label = np.eye(CLASSES)[label]
        else:
            label = random.integers(0, 2, (rows, *middle, 1))
        sparse = output.task == "class" and output.loss not in _ONE_HOT
        y.append(label.astype("int32" if sparse else "float32"))

    def weights() -> np.ndarray:
        shape = (rows, *middle)
        w = random.uniform(0.2, 2.0, shape)
        if program.weights == "zeros":
            w *= random.random(shape) < 0.5
        return w.astype("float32")

    sample_weight = None
    if program.weights == "each":
        sample_weight = _structure(program, "out", [weights() for _ in program.outputs])
    elif program.weights in ("rows", "zeros"):
        sample_weight = weights()
    return _structure(program, "in", x), _structure(program, "out", y), sample_weight


def _cut(data: Any, start: int, stop: int) -> Any:
    return keras.tree.map_structure(lambda a: a[start:stop], data)


class Batches(keras.utils.PyDataset):
    """Batches of given sizes."""

    def __init__(self, parts: list[Any]):
        super().__init__()
        self.parts = parts

    def __len__(self) -> int:
        return len(self.parts)

    def __getitem__(self, index: int) -> Any:
        return self.parts[index]


def _feed(program: Program, data: Data, steps: bool = True) -> dict[str, Any]:
    """Return x, y and so on for fit, evaluate and predict."""
    x, y, sample_weight = rows_of(program, data.total)
    parts = (x, y) if sample_weight is None else (x, y, sample_weight)
    if data.source == "arrays":
        given = {"x": x, "y": y, "batch_size": data.batch}
        return given if sample_weight is None else {**given, "sample_weight": sample_weight}
    # A dataset takes a list for a tensor.
    parts = keras.tree.map_structure(lambda a: a, parts)
    parts = tuple(tuple(part) if isinstance(part, list) else part for part in parts)
    if data.source == "dataset":
        dataset = tf.data.Dataset.from_tensor_slices(parts)
        if data.shuffle:
            dataset = dataset.shuffle(data.rows, seed=5)
        dataset = dataset.batch(data.batch, drop_remainder=data.drop)
        return {"x": dataset.repeat() if data.steps and steps else dataset}
    ends = np.cumsum([0, *data.sizes])
    pieces = [_cut(parts, start, stop) for start, stop in itertools.pairwise(ends)]
    if data.source == "py_dataset":
        return {"x": Batches(pieces)}
    if data.source == "generator":
        return {"x": (piece for piece in pieces)}
    spec = keras.tree.map_structure(lambda a: tf.TensorSpec((None, *a.shape[1:]), a.dtype), parts)
    dataset = tf.data.Dataset.from_generator(lambda: iter(pieces), output_signature=spec)
    if data.source == "batches":
        dataset = dataset.apply(tf.data.experimental.assert_cardinality(len(pieces)))
    return {"x": dataset.repeat() if data.steps and steps else dataset}


def _validation(program: Program) -> dict[str, Any]:
    if program.validation == "split":
        return {"validation_split": 0.3, "validation_freq": program.validation_freq}
    if not program.validation:
        return {}
    data = Data(
        {"arrays": "arrays", "dataset": "batches", "unknown": "unknown"}[program.validation],
        rows=7,
        batch=3,
        sizes=(3, 1, 3),
    )
    given = _feed(dataclasses.replace(program, data=data), data)
    validation = given["x"]
    more: dict[str, Any] = {"validation_freq": program.validation_freq}
    if data.source == "arrays":
        parts = (given["x"], given["y"], given.get("sample_weight"))
        validation = parts if parts[2] is not None else parts[:2]
        more["validation_batch_size"] = 3
    return {"validation_data": validation, **more}


# -- callbacks --------------------------------------------------------------------------------


class Recorder(keras.callbacks.Callback):
    """What a callback sees: logs after epochs, and after batches; weights after epochs."""

    def __init__(self, numbered: bool = True) -> None:
        super().__init__()
        self.numbered = numbered
        self.epochs: list[dict[str, float]] = []
        self.batches: list[dict[str, float]] = []
        self.weights: list[np.ndarray] = []
        self.rates: list[float] = []

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.batches.append({"batch": batch if self.numbered else 0, **_numbers(logs)})

    def on_test_batch_end(self, batch: int, logs: Any = None) -> None:
        self.batches.append({"test": batch if self.numbered else 0, **_numbers(logs)})

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.epochs.append({"epoch": epoch, **_numbers(logs)})
        self.weights += [np.array(w, np.float64) for w in self.model.get_weights()]
        self.rates.append(float(np.asarray(self.model.optimizer.learning_rate)))


def _numbers(logs: Any) -> dict[str, float]:
    return {name: float(value) for name, value in (logs or {}).items() if np.ndim(value) == 0}


def _monitor(program: Program) -> str:
    return "val_loss" if program.validation and program.validation_freq == 1 else "loss"


_c = keras.callbacks
# In the mode "max" a loss that falls is one that does not improve: the callback acts.
CALLBACKS: dict[str, Callable[[Program], Any]] = {
    "rate": lambda p: _c.LearningRateScheduler(lambda epoch, rate: rate * 0.5),
    "plateau": lambda p: _c.ReduceLROnPlateau(_monitor(p), 0.3, patience=0, mode="max", min_lr=0),
    "early": lambda p: _c.EarlyStopping(
        _monitor(p), patience=1, mode="max", restore_best_weights=True
    ),
    "best": lambda p: _c.EarlyStopping(
        _monitor(p), patience=5, mode="min", restore_best_weights=True
    ),
    "ema": lambda p: _c.SwapEMAWeights(swap_on_epoch=True),
    "nan": lambda p: _c.TerminateOnNaN(),
}
AFTER = ("fit", "train_on_batch", "test_on_batch", "predict_on_batch", "freeze")


# -- running ----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a run gave, by name: numbers and arrays."""

    seen: dict[str, Any]


def run(program: Program, strategy: Any = None, nudge: int = 0) -> Outcome:
    """Build, fit, evaluate, predict, under a strategy or without one.

    Args:
        program: What to run.
        strategy: Where.
        nudge: Another number but 0 draws which weights begin one bit larger, and which smaller.
    """
    keras.utils.clear_session(free_memory=False)  # the same automatic names in every run
    keras.utils.set_random_seed(7)
    with contextlib.nullcontext() if strategy is None else strategy.scope():
        model = build(program)
    if nudge:
        random = np.random.default_rng(nudge)
        for weight in model.trainable_weights:
            off = random.choice([-1, 1], weight.shape) * float(np.finfo(np.float32).eps)
            weight.assign(weight.numpy() * (1.0 + off))
    data = program.data
    # Of several steps at once Keras counts those too that a pass does not have any more.
    recorder = Recorder(numbered=program.executions == 1)
    settings = {
        "epochs": program.epochs,
        "verbose": 0,
        "shuffle": data.shuffle and data.source == "arrays",
        **_validation(program),
    }
    if data.steps:
        settings["steps_per_epoch"] = data.steps
    if program.weights == "class":
        settings["class_weight"] = {0: 0.5, 1: 2.0, 2: 1.0}
    callbacks = [recorder, *(CALLBACKS[name](program) for name in program.callbacks)]
    history = model.fit(**_feed(program, data), **settings, callbacks=callbacks)
    seen: dict[str, Any] = {"history": history.history}
    if "fit" in program.after:
        again = model.fit(
            **_feed(program, data), **{**settings, "epochs": program.epochs + 1},
            initial_epoch=program.epochs,
        )  # fmt: skip
        seen["again"] = again.history
    if "freeze" in program.after:
        model.layers[-1].trainable = False
        _compile_again(program, model, strategy)
        seen["frozen"] = model.fit(**_feed(program, data), **settings).history
    seen["test"] = model.evaluate(**_feed(program, data, steps=False), verbose=0, return_dict=True)
    given = _feed(program, data, steps=False)
    given = {k: v for k, v in given.items() if k in ("x", "batch_size")}
    seen["predictions"] = model.predict(**given, verbose=0)
    x, y, weight = rows_of(program, 5, seed=4)
    if "train_on_batch" in program.after:
        seen["train_on_batch"] = model.train_on_batch(x, y, sample_weight=weight, return_dict=True)
    if "test_on_batch" in program.after:
        seen["test_on_batch"] = model.test_on_batch(x, y, sample_weight=weight, return_dict=True)
    if "predict_on_batch" in program.after:
        seen["predict_on_batch"] = model.predict_on_batch(x)
    store: dict[str, Any] = {}
    model.optimizer.save_own_variables(store)
    seen |= {
        "weights": model.get_weights(),
        "optimizer": list(store.values()),
        "epochs": recorder.epochs,
        "batches": recorder.batches,
        "weights after epochs": recorder.weights,
        "rates": recorder.rates,
    }
    return Outcome(seen)


def _compile_again(program: Program, model: keras.Model, strategy: Any) -> None:
    with contextlib.nullcontext() if strategy is None else strategy.scope():
        _compile(program, model)


def compare(
    a: Outcome, b: Outcome, program: Program, batches: bool = True, limit: float | None = None
) -> dict[str, float]:
    """Return what differs by more than the program's tolerance, and by how much.

    Args:
        a: The outcome that is right.
        b: The other one.
        program: The program.
        batches: Whether logs after batches are compared.
        limit: Another tolerance.
    """
    found = {}
    limit = program.tolerance if limit is None else limit
    right, other = _flat(a.seen), _flat(b.seen)
    if not batches:
        right, other = (
            {k: v for k, v in d.items() if not k.startswith("batches")} for d in (right, other)
        )
    for name in sorted(right.keys() | other.keys()):
        if name not in right or name not in other:
            found[name] = float("inf")
            continue
        x, y = (np.asarray(v, np.float64) for v in (right[name], other[name]))
        if x.shape != y.shape or not np.array_equal(np.isnan(x), np.isnan(y)):
            found[name] = float("inf")
            continue
        # Relative to the largest number of an array: a sum has no more digits than its terms.
        size = max(1.0, float(np.nanmax(np.abs(x), initial=0.0)))
        with np.errstate(invalid="ignore"):
            off = np.where((x == y) | np.isnan(x), 0.0, np.abs(x - y)) / size
        worst = float(np.nanmax(off, initial=0.0))
        if not worst <= limit:
            found[name] = worst
    return found


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    """Return the leaves of nested dicts and lists by their path."""
    if isinstance(value, dict):
        items: Any = ((str(k), v) for k, v in value.items())
        if set(value) == {"compile_metrics"}:  # older versions of Keras leave them nested
            return _flat(value["compile_metrics"], name)
    elif isinstance(value, list | tuple):
        items = ((str(i), v) for i, v in enumerate(value))
    else:
        return {name: value}
    flat: dict[str, Any] = {}
    for key, inner in items:
        flat |= _flat(inner, f"{name} {key}".strip())
    return flat


# -- what may differ --------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Deviation:
    """A kind of program that may differ from one device.

    Attributes:
        reason: Why.
        holds: Says whether a program is of this kind, for so many replicas.
        strategy: The only one that it is about; "" for all.
    """

    reason: str
    holds: Callable[[Program, int], bool]
    strategy: str = ""


def _has(*names: str) -> Callable[[Program, int], bool]:
    return lambda program, replicas: bool(set(names) & set(program.layers))


def _own_divisors(program: Program) -> bool:
    """Say whether a loss may have another divisor than the rows."""
    losses = [o for o in program.outputs if o.loss]
    return (
        bool(program.weights and program.weights != "class" and _weighs(program))
        or program.masked
        or any(o.loss == "sparse_ignore" or o.reduction == "sum" for o in losses)
    )


def _weighs(program: Program) -> bool:
    return any(o.reduction == "mean_with_sample_weight" for o in program.outputs)


def _step_is_own(program: Program) -> bool:
    return any(name.startswith("train_step") for name in program.own)


def _uneven(program: Program, replicas: int) -> bool:
    return not program.data.even(replicas) or bool(program.after)


_STATE = {"calls", "float_calls", "running", "rows", "largest"}
BY_DESIGN = [
    Deviation(
        "BatchNormalization without synchronized=True normalises each replica by its own rows",
        _has("local_batch_norm"),
    ),
    Deviation("every replica draws its own random numbers", _has("dropout", "noise")),
    Deviation(
        "float state of a layer is the mean over the replicas: not that over unequal rows",
        lambda p, n: "running" in p.layers and _uneven(p, n),
    ),
    Deviation(
        "a loss function's scalar is taken for a mean over rows: weights and masks come after it",
        lambda p, n: any(o.loss in _SCALAR for o in p.outputs) and (bool(p.weights) or p.masked),
    ),
    Deviation(
        "each replica compares its own rows with one another",
        lambda p, n: any(o.loss in _WHOLE_BATCH for o in p.outputs),
    ),
    Deviation(
        "what a compute_loss of one's own adds is averaged over rows",
        lambda p, n: "compute_loss" in p.own and _own_divisors(p),
    ),
    Deviation(
        "there is no graph that says whether a state is a maximum",
        lambda p, n: p.eager and "largest" in p.layers,
    ),
    Deviation(
        "no graph says whether a fraction counts steps, of which a replica without rows has none",
        lambda p, n: p.eager and "float_calls" in p.layers and min(p.data.batches) < n,
    ),
    Deviation(
        "a train_step of one's own is averaged over rows: its loss has another divisor",
        lambda p, n: _step_is_own(p) and _own_divisors(p),
    ),
    Deviation(
        "in a train_step of one's own the losses of the replicas reach each other through a "
        "synchronized BatchNormalization before they are weighted by their rows",
        lambda p, n: _step_is_own(p) and "batch_norm" in p.layers and _uneven(p, n),
    ),
    Deviation(
        "on servers BatchNormalization goes by the rows of each worker, synchronized or not",
        _has("batch_norm"),
        "parameter_server",
    ),
    Deviation(
        "servers sum an Embedding's gradients by row first; one device updates a row that a batch "
        "names twice in parts",
        lambda p, n: (
            any("words" in name for name in p.inputs)
            and (p.optimizer != "SGD" or any("clip" in name for name, _ in p.options))
        ),
        "parameter_server",
    ),
]
PENDING: list[Deviation] = []


def may_differ(program: Program, replicas: int = 2, strategy: str = "mirrored") -> str:
    """Return why a program may differ from one device by design; "" if it must not."""
    found = (
        one.reason
        for one in BY_DESIGN
        if one.strategy in ("", strategy) and one.holds(program, replicas)
    )
    return next(found, "")


def pending(program: Program, replicas: int = 2) -> str:
    """Return which known fault a program meets; "" for none."""
    return next((one.reason for one in PENDING if one.holds(program, replicas)), "")


def refused(program: Program, strategy: str) -> str:
    """Return why a strategy does not run a program at all; "" if it does."""
    if strategy == "parameter_server":
        if program.data.source in ("generator", "py_dataset"):
            return "fit on parameter servers takes no generator and no PyDataset"
        if program.eager or program.jit:
            return "run_eagerly and jit_compile are not for parameter servers"
        if "spectral" in program.layers and "train_step" in program.own:
            return "with max_staleness=0 weights stay what they are during a train_step"
    return ""


# -- drawing ----------------------------------------------------------------------------------


def _seldom(draw: Any, value: Any, default: Any, one_in: int = 6) -> Any:
    return value if draw(st.integers(1, one_in)) == one_in else default


def _some(names: Any, most: int = 2) -> Any:
    return st.lists(st.sampled_from(list(names)), max_size=most, unique=True).map(tuple)


@st.composite
def _data(draw: Any) -> Data:
    source = draw(
        st.sampled_from(["arrays", "dataset", "batches", "unknown", "py_dataset", "generator"])
    )
    sizes = tuple(draw(st.lists(st.integers(1, 5), min_size=1, max_size=4)))
    batch = draw(st.integers(1, 6))
    rows = draw(st.integers(max(2, batch), 16))
    rows = min(rows, batch * 5)
    default = Data()
    if source in ("arrays", "dataset"):
        dataset = source == "dataset"
        return Data(
            source,
            rows=rows,
            batch=batch,
            drop=dataset and draw(st.booleans()),
            steps=draw(st.integers(1, 4)) if dataset and draw(st.booleans()) else 0,
            shuffle=_seldom(draw, True, False, 4),
        )
    endless = source in ("batches", "unknown") and draw(st.integers(1, 3)) == 3
    return dataclasses.replace(
        default, source=source, sizes=sizes, steps=draw(st.integers(1, 5)) if endless else 0
    )


@st.composite
def _output(draw: Any, sequences: bool, precise: bool) -> Output:
    task = draw(st.sampled_from(["value", "class", "binary"])) if precise else "value"
    seldom = draw(st.integers(1, 6)) == 6
    losses = [n for n in LOSSES[task] if seldom or n not in _WHOLE_BATCH]
    metrics = [n for n in METRICS[task] if not (sequences and n in _NO_SEQUENCES)]
    if not precise:
        losses, metrics = ["mse", "own_per_row"], ["mae", "mse"]
    loss = draw(st.sampled_from(losses))
    reductions = ["sum_over_batch_size"] * 3 + ["sum", "mean", "mean_with_sample_weight"]
    has_reduction = not loss.startswith("own") or loss.endswith("class")
    return Output(
        task=task,
        loss=loss,
        reduction=draw(st.sampled_from(reductions)) if has_reduction else "sum_over_batch_size",
        loss_weight=draw(st.sampled_from([1.0, 1.0, 0.3, 2.0])),
        metrics=draw(_some(metrics)),
        weighted=draw(_some([n for n in metrics if n != "scalar"], 1)),
    )


@st.composite
def _options(draw: Any, name: str) -> tuple[tuple[str, Any], ...]:
    options: dict[str, Any] = {}
    if name == "SGD" and draw(st.booleans()):
        options |= {"momentum": 0.8, "nesterov": draw(st.booleans())}
    if name in ("Adam", "AdamW") and draw(st.booleans()):
        options["amsgrad"] = True
    if name == "RMSprop" and draw(st.booleans()):
        options |= {"momentum": 0.5, "centered": True}
    clip = draw(st.sampled_from([None, None, "clipnorm", "global_clipnorm", "clipvalue"]))
    if clip:
        options[clip] = 0.02 if clip == "clipvalue" else 0.1
    if draw(st.integers(1, 3)) == 3:
        options["weight_decay"] = 0.05
    if draw(st.integers(1, 3)) == 3:
        options |= {"use_ema": True, "ema_momentum": 0.8}
        if draw(st.booleans()):
            options["ema_overwrite_frequency"] = draw(st.integers(1, 3))
    if draw(st.integers(1, 3)) == 3:
        options["gradient_accumulation_steps"] = draw(st.integers(2, 3))
    if draw(st.integers(1, 6)) == 6:
        options["loss_scale_factor"] = 16.0
    return tuple(options.items())


@st.composite
def programs(draw: Any, known: bool = True) -> Program:
    """Draw a program.

    Args:
        draw: Hypothesis's.
        known: Whether programs that meet known faults (`PENDING`) are left out.
    """
    precise = draw(st.integers(1, 8)) < 8
    kinds = ["dense", "image", "words", "masked_words"]
    inputs = draw(
        st.one_of(
            st.sampled_from([(kind,) for kind in kinds]),
            st.lists(st.sampled_from(kinds), min_size=2, max_size=2).map(tuple),
        )
    )
    words = draw(st.sampled_from(["mean", "mean", "each", "each", "gru"]))
    has_words = any("words" in name for name in inputs)
    words = words if has_words else "mean"
    sequences = has_words and words == "each"
    unwanted = {"dropout", "noise", "local_batch_norm"} if draw(st.integers(1, 10)) < 10 else set()
    unwanted |= set(_VECTORS_ONLY) if sequences else set()
    unwanted |= set() if precise else {"add_loss", "activity"}  # Keras adds them up as float32
    names = [name for name in _NAMES if name not in unwanted]
    layers = tuple(draw(st.lists(st.sampled_from(names), max_size=3)))
    count = draw(st.sampled_from([1, 1, 2]))
    outputs = tuple(draw(_output(sequences, precise)) for _ in range(count))
    own = _seldom(draw, draw(_some(OWN)), (), 3)
    if sum(name.startswith("train_step") for name in own) > 1:
        own = tuple(name for name in own if name != "train_step_loops")
    data = draw(_data())
    optimizer_name = draw(st.sampled_from(list(OPTIMIZERS))) if precise else "SGD"
    options = draw(_options(optimizer_name))
    if has_words:  # Keras cannot divide the gradients of a table
        options = tuple(pair for pair in options if pair[0] != "loss_scale_factor")
    weights = draw(st.sampled_from(["", "", "rows", "zeros", "each", "class"]))
    if weights == "class":
        one_class = count == 1 and outputs[0].task == "class" and not sequences
        weights = weights if one_class and outputs[0].loss not in _ONE_HOT else ""
    if weights == "each" and count == 1:
        weights = "zeros"
    schedule = draw(st.integers(1, 4)) == 4
    callbacks = draw(_some(CALLBACKS)) if precise else ()
    if schedule:
        callbacks = tuple(name for name in callbacks if name not in ("rate", "plateau"))
    if "use_ema" not in dict(options) or _seldom(draw, False, True):
        callbacks = tuple(name for name in callbacks if name != "ema")
    validations = ["", "", "arrays", "dataset", "unknown"]
    if data.source == "arrays" and data.rows >= 6:
        validations.append("split")
    eager = draw(st.integers(1, 12)) == 12
    jit = not eager and draw(st.integers(1, 14)) == 14
    policy = "float32" if precise else draw(st.sampled_from(["mixed_float16", "mixed_bfloat16"]))
    # Keras's scale of 32768 leads to the end of float16, where the sum over all rows overflows and
    # the sums over those of a replica do not.
    loss_scale = policy == "mixed_float16" or draw(st.integers(1, 6)) == 6
    program = Program(
        inputs=inputs,
        words=words,
        layers=layers,
        outputs=outputs,
        named=draw(st.booleans()),
        wrapped=draw(st.integers(1, 4)) == 4,
        own=own,
        policy=policy,
        optimizer=optimizer_name,
        options=options,
        schedule=schedule,
        loss_scale=loss_scale,
        executions=draw(st.sampled_from([1, 1, 1, 2, 3])) if not eager else 1,
        jit=jit,
        eager=eager,
        data=data,
        weights=weights,
        epochs=1 if data.source == "generator" else draw(st.integers(1, 3)),
        validation=draw(st.sampled_from(validations)),
        validation_freq=draw(st.sampled_from([1, 1, 2])),
        callbacks=callbacks,
        after=_seldom(draw, draw(_some(AFTER)), (), 3),
    )
    if program.validation_freq > program.epochs:
        # Keras would never look at the validation data, tfdp does before the first step.
        program = dataclasses.replace(program, validation_freq=1)
    hypothesis.assume(not (known and pending(program)))
    return program


def drawn(
    examples: int, seed: int, strategy: str = "mirrored", known: bool = True
) -> list[Program]:
    """Return so many different programs that a strategy runs; the same for the same arguments."""
    found: dict[Program, None] = {}

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=5 * examples + 20,
        database=None,
        deadline=None,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(programs(known))
    def draw(program: Program) -> None:
        if not refused(program, strategy):
            found[program] = None

    draw()
    # Many of what Hypothesis draws are neighbours of one it has drawn before.
    everything = list(found)
    return random.Random(seed).sample(everything, min(examples, len(everything)))


def simpler(program: Program) -> Iterator[Program]:
    """Yield programs that lack one thing of this one, the largest first."""
    default = Program()
    for field in dataclasses.fields(Program):
        value, usual = getattr(program, field.name), getattr(default, field.name)
        if value == usual:
            continue
        yield dataclasses.replace(program, **{field.name: usual})
        if isinstance(value, tuple) and len(value) > 1:
            for i in range(len(value)):
                rest = value[:i] + value[i + 1 :]
                yield dataclasses.replace(program, **{field.name: rest})
    for i, output in enumerate(program.outputs):
        for field in dataclasses.fields(Output):
            if getattr(output, field.name) != field.default and field.name != "task":
                try:
                    less = dataclasses.replace(output, **{field.name: field.default})
                except TypeError:
                    continue
                if less.loss in LOSSES[less.task]:
                    outputs = (*program.outputs[:i], less, *program.outputs[i + 1 :])
                    yield dataclasses.replace(program, outputs=outputs)
    for field in dataclasses.fields(Data):
        if getattr(program.data, field.name) != field.default:
            data = dataclasses.replace(program.data, **{field.name: field.default})
            yield dataclasses.replace(program, data=data)
