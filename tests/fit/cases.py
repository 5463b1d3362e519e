"""Training problems whose numbers must not depend on how many replicas train them.

A case builds and compiles a model, and says what to give to fit. It is run once on one device and
once under a strategy; `run` returns everything a user can see of it.
"""

import dataclasses
import itertools
import pathlib
import pickle
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import references
import tensorflow as tf

import tfdp

FEATURES, CLASSES, ROWS, BATCH, EPOCHS = 6, 3, 22, 6, 3
L = keras.layers


@dataclasses.dataclass(frozen=True)
class Case:
    """One problem.

    Attributes:
        name: Of the test.
        build: Returns a compiled model.
        fit: Returns fit's keyword arguments (new objects at every call).
        evaluate: Returns evaluate's; by default the case's own data without what only fit takes.
        reference: "keras" (stock, no strategy) or "one_device" (this package on one device).
        tolerance: Largest difference allowed, in weights, logs and predictions.
        evaluates: Whether it is evaluated after the training.
        predicts: Whether predictions are compared.
        three: Whether the case is worth running on three replicas too.
    """

    name: str
    build: Callable[[], keras.Model]
    fit: Callable[[], dict[str, Any]]
    evaluate: Callable[[], dict[str, Any]] | None = None
    reference: str = "keras"
    tolerance: float = 1e-5
    evaluates: bool = True
    predicts: bool = False
    three: bool = False

    def __str__(self) -> str:
        return self.name


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a run gave: weights, the optimizer's state, epoch logs, evaluate's, predictions."""

    weights: list[np.ndarray]
    optimizer: list[np.ndarray]
    history: dict[str, list[float]]
    test: dict[str, float]
    predictions: Any = None


def run(case: Case, strategy: Any = None, logical: bool = False, **overrides: Any) -> Outcome:
    """Build, fit and evaluate a case, under a strategy or without one.

    With `logical` the optimizer's variables are those that it saves: partitions put together.
    """
    keras.utils.clear_session(free_memory=False)  # the same automatic names in every run
    keras.utils.set_random_seed(7)
    if strategy is None:
        model = case.build()
    else:
        with strategy.scope():
            model = case.build()
    settings = {"epochs": EPOCHS, "verbose": 0, "shuffle": False, **case.fit(), **overrides}
    history = model.fit(**settings)
    if case.evaluate is None:
        names = ("x", "y", "sample_weight", "batch_size")
        test = {k: v for k, v in case.fit().items() if k in names}
        if settings.get("steps_per_epoch"):
            test["steps"] = settings["steps_per_epoch"]
    else:
        test = case.evaluate()
    results = {}
    if case.evaluates:
        results = model.evaluate(**test, verbose=0, return_dict=True)
    predictions = None
    if case.predicts:
        given = {k: v for k, v in test.items() if k in ("x", "batch_size", "steps")}
        predictions = model.predict(**given, verbose=0)
    optimizer = [v.numpy() for v in model.optimizer.variables]
    if logical:
        store: dict[str, Any] = {}
        model.optimizer.save_own_variables(store)
        optimizer = list(store.values())
    return Outcome(model.get_weights(), optimizer, history.history, results, predictions)


def reference(case: Case, one_device: Any) -> Outcome:
    """Return what one device gives: stock Keras, or this package where Keras cannot.

    Args:
        case: Of TABLES.
        one_device: A OneDeviceStrategy.
    """

    def train(path: pathlib.Path) -> None:
        if case.reference == "keras":
            tfdp.disable()
            outcome = run(case)
        else:
            tfdp.enable()
            outcome = run(case, one_device)
        path.write_bytes(pickle.dumps(outcome))

    path = references.kept(f"{case.name}.pickle", train)
    return pickle.loads(path.read_bytes())  # noqa: S301 (the tests' own file)


def differences(a: Outcome, b: Outcome) -> dict[str, float]:
    """Return the largest difference of each visible part; inf for one of another shape.

    Absolute up to 1, relative to `a` above: a loss summed over a batch has no more digits.
    """
    found: dict[str, float] = {}

    def compare(name: str, x: Any, y: Any) -> None:
        x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
        if x.shape != y.shape or not np.array_equal(np.isnan(x), np.isnan(y)):
            found[name] = np.inf
        else:
            scaled = np.abs(x - y) / np.maximum(1.0, np.abs(x))
            found[name] = float(np.nanmax(scaled, initial=0.0))

    for part in ("weights", "optimizer"):
        pairs = zip(getattr(a, part), getattr(b, part), strict=True)
        for i, (x, y) in enumerate(pairs):
            compare(f"{part} {i}", x, y)
    for part, x, y in (("log", a.history, b.history), ("test", _flat(a.test), b.test)):
        assert x.keys() == y.keys(), f"{part}: {list(x)} and {list(y)}"
        for name in x:
            compare(f"{part} {name}", x[name], y[name])
    for i, (x, y) in enumerate(
        zip(keras.tree.flatten(a.predictions), keras.tree.flatten(b.predictions), strict=True)
    ):
        if x is not None:
            x, y = (v.to_tensor() if isinstance(v, tf.RaggedTensor) else v for v in (x, y))
            compare(f"prediction {i}", x, y)
    return found


def _flat(logs: dict[str, Any]) -> dict[str, Any]:
    """Return logs as Keras 3.15 gives them: older ones leave {"compile_metrics": {...}} nested."""
    flat = {}
    for name, value in logs.items():
        flat.update(_flat(value) if isinstance(value, dict) else {name: value})
    return flat


# -- data -------------------------------------------------------------------------------------


def arrays(rows: int = ROWS) -> tuple[np.ndarray, np.ndarray]:
    """Return (rows, FEATURES) float32 inputs and labels below CLASSES that depend on them."""
    random = np.random.default_rng(3)
    x = random.normal(size=(rows, FEATURES)).astype("float32")
    y = (np.abs(x[:, 0] * 2 + x[:, 1]).astype(int) + (x[:, 2] > 0)) % CLASSES
    return x, y


def targets(rows: int = ROWS) -> np.ndarray:
    x, _ = arrays(rows)
    return (x[:, :2] * 3 + x[:, 2:4] ** 2 + 1).astype("float32")


def dataset(rows: int = ROWS, batch: int = BATCH, y: Any = None, drop: bool = False) -> Any:
    x, labels = arrays(rows)
    y = labels if y is None else y
    return tf.data.Dataset.from_tensor_slices((x, y)).batch(batch, drop_remainder=drop)


def batches(sizes: list[int]) -> tf.data.Dataset:
    """Return a dataset of batches of exactly these sizes, of unknown cardinality."""
    x, y = arrays(sum(sizes))
    ends = np.cumsum([0, *sizes])

    def generate() -> Any:
        for start, stop in itertools.pairwise(ends):
            yield x[start:stop], y[start:stop]

    return tf.data.Dataset.from_generator(
        generate,
        output_signature=(
            tf.TensorSpec((None, FEATURES), tf.float32),
            tf.TensorSpec((None,), tf.int64),
        ),
    )


def known(sizes: list[int]) -> tf.data.Dataset:
    """Return the same with its cardinality known."""
    return batches(sizes).apply(tf.data.experimental.assert_cardinality(len(sizes)))


# -- models -----------------------------------------------------------------------------------


def sgd(rate: float = 0.1, **options: Any) -> keras.optimizers.Optimizer:
    return keras.optimizers.SGD(rate, **options)


def classifier(
    *hidden: Any,
    optimizer: Any = None,
    loss: Any = None,
    metrics: Any = ("accuracy",),
    **compile: Any,
) -> keras.Model:
    layers = hidden or (L.Dense(8, activation="tanh"),)
    model = keras.Sequential(
        [keras.Input((FEATURES,)), *layers, L.Dense(CLASSES, activation="softmax")]
    )
    model.compile(
        optimizer or sgd(),
        loss or "sparse_categorical_crossentropy",
        metrics=list(metrics) if metrics else None,
        **compile,
    )
    return model


def regressor(loss: Any = "mse", optimizer: Any = None, **compile: Any) -> keras.Model:
    model = keras.Sequential([keras.Input((FEATURES,)), L.Dense(8, activation="tanh"), L.Dense(2)])
    model.compile(optimizer or sgd(0.02), loss, metrics=["mae"], **compile)
    return model


def array_fit(**more: Any) -> Callable[[], dict[str, Any]]:
    def make() -> dict[str, Any]:
        x, y = arrays()
        return {"x": x, "y": y, "batch_size": BATCH, **more}

    return make


def regression_fit(**more: Any) -> Callable[[], dict[str, Any]]:
    def make() -> dict[str, Any]:
        return {"x": arrays()[0], "y": targets(), "batch_size": BATCH, **more}

    return make


def weights(rows: int = ROWS) -> np.ndarray:
    w = np.random.default_rng(5).uniform(0.0, 2.0, rows).astype("float32")
    w[::5] = 0.0
    return w


# -- batches ----------------------------------------------------------------------------------


def batch_cases() -> list[Case]:
    def data(sizes: list[int], make: Any = known) -> Any:
        return lambda: {"x": make(sizes)}

    return [
        Case("even", classifier, lambda: {"x": dataset(24)}, predicts=True, three=True),
        Case("even_static", classifier, lambda: {"x": dataset(24, drop=True)}, three=True),
        Case("ragged_last", classifier, array_fit(), predicts=True, three=True),
        Case("one_row_last", classifier, data([6, 6, 1]), predicts=True, three=True),
        Case("first_uneven", classifier, data([5, 6, 6]), three=True),
        Case("all_but_one_empty", classifier, data([1, 1, 1]), predicts=True, three=True),
        Case("smaller_than_replicas", classifier, data([1]), three=True),
        Case("one_row_known", classifier, lambda: {"x": dataset(3, 1, drop=True)}, three=True),
        Case("one_row_known_sequences", masked_model, masked_fit(batch_size=1)),
        Case("not_a_multiple", classifier, data([7, 5, 7, 4]), predicts=True, three=True),
    ]


# -- inputs -----------------------------------------------------------------------------------


class Batches(keras.utils.PyDataset):
    """The arrays as a PyDataset."""

    def __init__(self, **options: Any):
        super().__init__(**options)
        self.x, self.y = arrays()

    def __len__(self) -> int:
        return -(-ROWS // BATCH)

    def __getitem__(self, index: int) -> Any:
        part = slice(index * BATCH, (index + 1) * BATCH)
        return self.x[part], self.y[part]


def generator(times: int = 1) -> Any:
    x, y = arrays()
    for _ in range(times):
        for start in range(0, ROWS, BATCH):
            yield x[start : start + BATCH], y[start : start + BATCH]


def two_towers() -> keras.Model:
    a, b = keras.Input((FEATURES,), name="a"), keras.Input((2,), name="b")
    h = L.Dense(6, activation="tanh")(L.Concatenate()([a, b]))
    outputs = {
        "label": L.Dense(CLASSES, activation="softmax", name="label")(h),
        "value": L.Dense(1, name="value")(h),
    }
    model = keras.Model({"a": a, "b": b}, outputs)
    model.compile(
        sgd(0.05),
        {"label": "sparse_categorical_crossentropy", "value": "mse"},
        loss_weights={"label": 1.0, "value": 0.3},
        metrics={"label": ["accuracy"], "value": ["mae"]},
    )
    return model


def towers_fit(weighted: bool = False, as_dataset: bool = False) -> Callable[[], dict[str, Any]]:
    def make() -> dict[str, Any]:
        x, labels = arrays()
        inputs = {"a": x, "b": targets()}
        outputs = {"label": labels, "value": targets()[:, :1]}
        sample_weight = {"label": weights(), "value": weights()[::-1].copy()}
        parts = (inputs, outputs, sample_weight) if weighted else (inputs, outputs)
        if as_dataset:
            return {"x": tf.data.Dataset.from_tensor_slices(parts).batch(BATCH)}
        given = {"x": inputs, "y": outputs, "batch_size": BATCH}
        return {**given, "sample_weight": sample_weight} if weighted else given

    return make


def word_dataset() -> tf.data.Dataset:
    vocabulary = np.array(["red", "green", "blue", "cyan"])
    words = vocabulary[np.random.default_rng(1).integers(0, 4, (ROWS, 3))]
    return tf.data.Dataset.from_tensor_slices((words, arrays()[1])).batch(BATCH)


def string_model() -> keras.Model:
    inputs = keras.Input((3,), dtype="string")
    ids = L.StringLookup(vocabulary=["red", "green", "blue"])(inputs)
    h = L.Flatten()(L.Embedding(5, 4)(ids))
    model = keras.Model(inputs, L.Dense(CLASSES, activation="softmax")(h))
    model.compile(sgd(), "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def sparse_model() -> keras.Model:
    inputs = keras.Input((FEATURES,), sparse=True)
    h = L.Dense(8, activation="tanh")(inputs)
    model = keras.Model(inputs, L.Dense(CLASSES, activation="softmax")(h))
    model.compile(sgd(), "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def sparse_dataset() -> tf.data.Dataset:
    x, y = arrays()
    x = np.where(x > 0, x, 0)
    return tf.data.Dataset.from_tensor_slices((tf.sparse.from_dense(x), y)).batch(BATCH)


class RaggedModel(keras.Model):
    """Sums the embeddings of lists of different lengths."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = L.Embedding(10, 4)
        self.head = L.Dense(CLASSES, activation="softmax")
        self.embedding.build(None)
        self.head.build((None, 4))
        self.built = True

    def call(self, inputs: Any) -> Any:
        embedded = inputs.with_values(self.embedding(inputs.values))
        return self.head(tf.reduce_sum(embedded, axis=1))


def ragged_model() -> keras.Model:
    model = RaggedModel()
    model.compile(sgd(), "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def ragged_dataset() -> tf.data.Dataset:
    _, y = arrays()
    lists = [list(range(1, 2 + i % 4)) for i in range(ROWS)]
    return tf.data.Dataset.from_tensor_slices((tf.ragged.constant(lists), y)).batch(BATCH)


def typed(dtype: str, scale: float = 1.0) -> Callable[[], keras.Model]:
    def build() -> keras.Model:
        inputs = keras.Input((FEATURES,), dtype=dtype)
        h = L.Lambda(lambda t: tf.cast(t, tf.float32) * scale)(inputs)
        h = L.Dense(8, activation="tanh")(h)
        model = keras.Model(inputs, L.Dense(CLASSES, activation="softmax")(h))
        model.compile(sgd(), "sparse_categorical_crossentropy", metrics=["accuracy"])
        return model

    return build


def typed_fit(convert: Callable[[np.ndarray], np.ndarray]) -> Callable[[], dict[str, Any]]:
    return lambda: {"x": convert(arrays()[0]), "y": arrays()[1], "batch_size": BATCH}


def unlabelled() -> keras.Model:
    """A model that is trained by add_loss alone: y is None."""

    class Reconstruct(keras.layers.Layer):
        def call(self, inputs: Any) -> Any:
            original, copy = inputs
            self.add_loss(keras.ops.mean(keras.ops.square(original - copy)))
            return copy

    inputs = keras.Input((FEATURES,))
    copy = L.Dense(FEATURES)(L.Dense(3, activation="tanh")(inputs))
    model = keras.Model(inputs, Reconstruct()([inputs, copy]))
    model.compile(sgd())
    return model


def input_cases() -> list[Case]:
    once = {"epochs": 1}
    x = arrays()[0]
    return [
        Case("numpy", classifier, array_fit(), predicts=True),
        Case("validation_split", classifier, array_fit(validation_split=0.3)),
        Case(
            "validation_data",
            classifier,
            array_fit(validation_data=arrays(13), validation_batch_size=5, validation_freq=2),
        ),
        Case(
            "validation_steps",
            classifier,
            lambda: {"x": dataset(), "validation_data": dataset().repeat(), "validation_steps": 5},
        ),
        Case("dataset_known", classifier, lambda: {"x": dataset()}, predicts=True),
        Case(
            "dataset_unknown",
            classifier,
            lambda: {"x": batches([6, 6, 6, 4])},
            reference="one_device",
            predicts=True,
        ),
        Case(
            "dataset_repeat",
            classifier,
            lambda: {"x": dataset().repeat(), "steps_per_epoch": 5},
        ),
        Case(
            "dataset_steps_across_epochs",
            classifier,
            lambda: {"x": dataset(24), "steps_per_epoch": 2},
        ),
        Case(
            "generator",
            classifier,
            lambda: {"x": generator(), **once},
            evaluate=lambda: {"x": generator()},
            reference="one_device",
        ),
        Case(
            "generator_infinite",
            classifier,
            lambda: {"x": generator(1000), "steps_per_epoch": 4},
            evaluate=lambda: {"x": generator(1000), "steps": 5},
            reference="one_device",
        ),
        Case("py_dataset", classifier, lambda: {"x": Batches()}, predicts=True),
        Case("py_dataset_threads", classifier, lambda: {"x": Batches(workers=2)}),
        Case("two_inputs_outputs", two_towers, towers_fit(), predicts=True),
        Case("two_inputs_outputs_dataset", two_towers, towers_fit(as_dataset=True)),
        Case(
            "uint8",
            typed("uint8", 1 / 64),
            typed_fit(lambda v: np.clip(v * 64 + 128, 0, 255).astype("uint8")),
        ),
        Case("int32", typed("int32", 0.1), typed_fit(lambda v: (v * 10).astype("int32"))),
        Case("bool", typed("bool"), typed_fit(lambda v: v > 0)),
        Case("string", string_model, lambda: {"x": word_dataset()}, predicts=True),
        Case("sparse", sparse_model, lambda: {"x": sparse_dataset()}, predicts=True),
        Case("ragged", ragged_model, lambda: {"x": ragged_dataset()}, predicts=True),
        Case("no_targets", unlabelled, lambda: {"x": x, "batch_size": BATCH}),
        Case(
            "no_weights_in_tuple",
            classifier,
            lambda: {"x": generator_with_none(), **once},
            evaluate=lambda: {"x": generator_with_none()},
            reference="one_device",
        ),
        Case("unbuilt", unbuilt, array_fit(), predicts=True),
        Case("train_shuffled", classifier, array_fit(shuffle=True), reference="one_device"),
    ]


def generator_with_none() -> Any:
    for x, y in generator():
        yield x, y, None


def unbuilt() -> keras.Model:
    model = keras.Sequential(
        [L.Dense(8, activation="tanh"), L.Dense(CLASSES, activation="softmax")]
    )
    model.compile(sgd(), "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


# -- losses -----------------------------------------------------------------------------------


def masked_model(loss: Any = None, **compile: Any) -> keras.Model:
    """Classifies each item of a sequence; id 0 is padding."""
    inputs = keras.Input((5,), dtype="int32")
    h = L.Embedding(7, 4, mask_zero=True)(inputs)
    h = L.TimeDistributed(L.Dense(6, activation="tanh"))(h)
    outputs = L.Dense(CLASSES, activation="softmax")(h)
    model = keras.Model(inputs, outputs)
    model.compile(
        sgd(),
        loss or "sparse_categorical_crossentropy",
        metrics=["accuracy"],
        weighted_metrics=["sparse_categorical_crossentropy"],
        **compile,
    )
    return model


def masked_fit(weighted: bool = False, batch_size: int = BATCH) -> Callable[[], dict[str, Any]]:
    def make() -> dict[str, Any]:
        random = np.random.default_rng(2)
        lengths = random.integers(1, 6, ROWS)
        ids = random.integers(1, 7, (ROWS, 5)) * (np.arange(5) < lengths[:, None])
        given = {"x": ids.astype("int32"), "y": ids % CLASSES, "batch_size": batch_size}
        if weighted:
            given["sample_weight"] = random.uniform(0, 2, (ROWS, 5)).astype("float32")
        return given

    return make


def per_sample(y_true: Any, y_pred: Any) -> Any:
    return keras.ops.mean(keras.ops.abs(y_true - y_pred) ** 1.5, axis=-1)


def scalar_mean(y_true: Any, y_pred: Any) -> Any:
    return keras.ops.mean(keras.ops.square(y_true - y_pred))


def scalar_from_keras(y_true: Any, y_pred: Any) -> Any:
    return keras.losses.MeanSquaredError()(y_true, y_pred) + scalar_mean(y_true, y_pred)


class PerSample(keras.losses.Loss):
    def call(self, y_true: Any, y_pred: Any) -> Any:
        return keras.ops.sum(keras.ops.square(y_true - y_pred), axis=-1)


def regularized() -> keras.Model:
    l2 = keras.regularizers.L2(0.02)
    return classifier(
        L.Dense(8, activation="tanh", kernel_regularizer=l2, bias_regularizer="l1"),
        L.Dense(7, activation="tanh", activity_regularizer=keras.regularizers.L2(0.05)),
    )


def with_add_loss() -> keras.Model:
    class Pull(keras.layers.Layer):
        def call(self, inputs: Any) -> Any:
            self.add_loss(0.1 * keras.ops.mean(keras.ops.square(inputs)))
            return inputs

    return classifier(L.Dense(8, activation="tanh"), Pull())


class ScalarLoss(keras.losses.Loss):
    def call(self, y_true: Any, y_pred: Any) -> Any:
        return scalar_mean(y_true, y_pred)


class OwnLoss(keras.Model):
    """Overrides compute_loss, partly with Keras's and partly with its own terms."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.head = L.Dense(8, activation="tanh"), L.Dense(2)
        self.extra = keras.metrics.Mean(name="extra")
        self.own = keras.losses.MeanAbsoluteError()

    def call(self, inputs: Any) -> Any:
        return self.head(self.hidden(inputs))

    def compute_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        **more: Any,
    ) -> Any:
        stock = super().compute_loss(x, y, y_pred, sample_weight, **more)
        extra = keras.ops.mean(keras.ops.square(y_pred)) + self.own(y, y_pred)
        self.extra.update_state(extra)
        return stock + 0.1 * extra


def own_loss() -> keras.Model:
    model = OwnLoss()
    model.compile(sgd(0.02), "mse", metrics=["mae"])
    return model


def loss_cases() -> list[Case]:
    losses = keras.losses
    cases = [
        Case(
            f"reduction_{reduction}{'_weighted' if weighted else ''}",
            lambda r=reduction: regressor(losses.MeanSquaredError(reduction=r), sgd(0.004)),
            regression_fit(**({"sample_weight": weights()} if weighted else {})),
            three=weighted,
        )
        for reduction in ("sum_over_batch_size", "mean", "sum", "mean_with_sample_weight", None)
        for weighted in (False, True)
    ]
    return [
        *cases,
        Case(
            "class_weight", classifier, array_fit(class_weight={0: 1.0, 1: 3.0, 2: 0.5}), three=True
        ),
        Case("masked", masked_model, masked_fit(), three=True),
        Case("masked_weighted", masked_model, masked_fit(weighted=True), three=True),
        Case(
            "masked_sum",
            lambda: masked_model(losses.SparseCategoricalCrossentropy(reduction="sum")),
            masked_fit(),
        ),
        Case(
            "masked_mean_with_sample_weight",
            lambda: masked_model(
                losses.SparseCategoricalCrossentropy(reduction="mean_with_sample_weight")
            ),
            masked_fit(weighted=True),
        ),
        Case(
            "ignore_class",
            lambda: classifier(loss=losses.SparseCategoricalCrossentropy(ignore_class=1)),
            array_fit(),
            three=True,
        ),
        Case("two_outputs_weighted", two_towers, towers_fit(weighted=True), three=True),
        Case("function_per_sample", lambda: regressor(per_sample), regression_fit(), three=True),
        Case("function_scalar", lambda: regressor(scalar_mean), regression_fit(), three=True),
        Case("function_scalar_keras", lambda: regressor(scalar_from_keras), regression_fit()),
        Case("loss_subclass", lambda: regressor(PerSample()), regression_fit()),
        Case(
            "loss_subclass_weighted",
            lambda: regressor(PerSample()),
            regression_fit(sample_weight=weights()),
        ),
        Case(
            "loss_subclass_scalar_sum",
            lambda: regressor(ScalarLoss(reduction="sum")),
            regression_fit(),
            three=True,
        ),
        Case("huber", lambda: regressor(losses.Huber(0.5)), regression_fit()),
        Case("regularizers", regularized, array_fit(), three=True),
        Case("add_loss", with_add_loss, array_fit(), three=True),
        Case("compute_loss", own_loss, regression_fit(), three=True),
        Case(
            "compute_loss_weighted", own_loss, regression_fit(sample_weight=weights()), three=True
        ),
    ]


# -- optimizers -------------------------------------------------------------------------------


def optimizer_cases() -> list[Case]:
    o = keras.optimizers

    def case(name: str, make: Callable[[], Any], **more: Any) -> Case:
        return Case(name, lambda: classifier(optimizer=make()), array_fit(), **more)

    def excluded() -> Any:
        optimizer = o.AdamW(0.02, weight_decay=0.1)
        optimizer.exclude_from_weight_decay(var_names=["bias"])
        return optimizer

    schedule = o.schedules.ExponentialDecay
    own = tfdp.optimizers

    def warmed_up(rate: float) -> Any:
        return tfdp.schedules.Warmup(schedule(rate, 6, 0.5), 5, rate / 10)

    def small(optimizer: Any) -> keras.Model:
        """A model whose variables are too small to be cut by the tests' parameter servers."""
        model = keras.Sequential(
            [
                keras.Input((FEATURES,)),
                L.Reshape((3, FEATURES // 3)),
                L.Dense(3, activation="tanh"),
                L.GlobalAveragePooling1D(),
                L.Dense(CLASSES, activation="softmax"),
            ]
        )
        model.compile(optimizer, "sparse_categorical_crossentropy", metrics=["accuracy"])
        return model

    return [
        case("adam", lambda: o.Adam(0.02)),
        case("adam_amsgrad", lambda: o.Adam(0.02, amsgrad=True)),
        case("adamw", lambda: o.AdamW(0.02, weight_decay=0.1)),
        case("adamw_exclusions", excluded),
        case("adamax", lambda: o.Adamax(0.02)),
        case("adadelta", lambda: o.Adadelta(1.0)),
        case("adagrad", lambda: o.Adagrad(0.1)),
        case("adafactor", lambda: o.Adafactor(0.05)),
        case("ftrl", lambda: o.Ftrl(0.1)),
        case("lamb", lambda: o.Lamb(0.02)),
        case("lion", lambda: o.Lion(0.002)),
        case("muon", lambda: o.Muon(0.02)),
        case("nadam", lambda: o.Nadam(0.02)),
        case("rmsprop", lambda: o.RMSprop(0.02, momentum=0.5, centered=True)),
        case("sgd_momentum", lambda: o.SGD(0.1, momentum=0.9, nesterov=True)),
        case("clipnorm", lambda: sgd(clipnorm=0.05)),
        case("global_clipnorm", lambda: sgd(global_clipnorm=0.1)),
        case("clipvalue", lambda: sgd(clipvalue=0.02)),
        case("accumulation", lambda: sgd(gradient_accumulation_steps=3)),
        case(
            "accumulation_clip",
            lambda: o.Adam(0.02, gradient_accumulation_steps=2, global_clipnorm=0.1),
        ),
        case("ema", lambda: sgd(use_ema=True, ema_momentum=0.8)),
        case(
            "ema_overwrite",
            lambda: sgd(use_ema=True, ema_momentum=0.8, ema_overwrite_frequency=2),
        ),
        case("weight_decay", lambda: sgd(weight_decay=0.05)),
        case("schedule", lambda: sgd(schedule(0.2, 3, 0.5))),
        case("loss_scale_factor", lambda: sgd(loss_scale_factor=64.0)),
        case("loss_scale", lambda: o.LossScaleOptimizer(sgd())),
        case(
            "loss_scale_grows", lambda: o.LossScaleOptimizer(o.Adam(0.02), dynamic_growth_steps=3)
        ),
        case("tfdp_sgd", lambda: own.SGD(warmed_up(0.1), weight_decay=0.05, nesterov=True)),
        case("tfdp_lars", lambda: own.LARS(warmed_up(1.0), weight_decay=0.05), tolerance=1e-6),
        case("tfdp_lamb", lambda: own.LAMB(warmed_up(0.02), weight_decay=0.05), tolerance=1e-6),
        case(
            "tfdp_lars_by_element",  # so that parameter servers may cut its variables
            lambda: own.LARS(0.05, weight_decay=0.05, exclude_from_layer_adaptation=["."]),
        ),
        Case("tfdp_lars_small", lambda: small(own.LARS(warmed_up(5.0))), array_fit()),
        case(
            "tfdp_lamb_accumulation_clip",
            lambda: own.LAMB(0.02, gradient_accumulation_steps=2, global_clipnorm=0.1),
        ),
        case(
            "tfdp_lars_loss_scale",
            lambda: o.LossScaleOptimizer(own.LARS(1.0), dynamic_growth_steps=3),
        ),
        Case(
            "tfdp_lamb_jit_compile",
            lambda: classifier(optimizer=own.LAMB(0.02, weight_decay=0.05), jit_compile=True),
            array_fit(),
        ),
        case("loss_scale_nadam", lambda: o.LossScaleOptimizer(o.Nadam(0.02, epsilon=1e-3))),
        Case("frozen", frozen, array_fit()),
        Case("frozen_whole", frozen_whole, array_fit()),
        Case("constraints", constrained, array_fit()),
    ]


def frozen() -> keras.Model:
    first = L.Dense(8, activation="tanh")
    model = classifier(first, L.Dense(8, activation="tanh"))
    first.trainable = False
    model.compile(sgd(), "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def frozen_whole() -> keras.Model:
    model = classifier()
    model.trainable = False
    model.compile(sgd(), "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def constrained() -> keras.Model:
    return classifier(
        L.Dense(8, activation="tanh", kernel_constraint=keras.constraints.UnitNorm()),
        L.Dense(8, activation="tanh", kernel_constraint="non_neg", bias_constraint="max_norm"),
    )


# -- metrics ----------------------------------------------------------------------------------


def binary_model(metrics: Callable[[], list[Any]]) -> Callable[[], keras.Model]:
    def build() -> keras.Model:
        model = keras.Sequential(
            [
                keras.Input((FEATURES,)),
                L.Dense(8, activation="tanh"),
                L.Dense(1, activation="sigmoid"),
            ]
        )
        model.compile(
            sgd(0.5),
            "binary_crossentropy",
            metrics=[*metrics(), keras.metrics.MeanMetricWrapper(scalar_mean, name="scalar")],
            weighted_metrics=metrics(),
        )
        return model

    return build


def binary_fit() -> dict[str, Any]:
    x, y = arrays()
    given = {"x": x, "y": (y > 0).astype("float32")[:, None], "batch_size": BATCH}
    return {**given, "sample_weight": weights()}


def many_metrics() -> list[Any]:
    m = keras.metrics
    return [
        m.AUC(name="auc"),
        m.AUC(name="auc_pr", curve="PR", num_thresholds=31),
        m.BinaryAccuracy(),
        m.BinaryCrossentropy(),
        m.BinaryIoU(),
        m.FalseNegatives(),
        m.FalsePositives(),
        m.TrueNegatives(),
        m.TruePositives(),
        m.Hinge(),
        m.SquaredHinge(),
        m.KLDivergence(),
        m.LogCoshError(),
        m.MeanAbsoluteError(),
        m.MeanAbsolutePercentageError(),
        m.MeanSquaredError(),
        m.MeanSquaredLogarithmicError(),
        m.Poisson(),
        m.Precision(),
        m.Recall(),
        m.PrecisionAtRecall(0.6),
        m.RecallAtPrecision(0.6),
        m.SensitivityAtSpecificity(0.6),
        m.SpecificityAtSensitivity(0.6),
        m.RootMeanSquaredError(),
        m.R2Score(),
        m.F1Score(threshold=0.5, average="micro"),
        m.FBetaScore(threshold=0.4, beta=2.0, average="macro"),
        m.MeanMetricWrapper(per_sample, name="per_sample"),
    ]


class Largest(keras.metrics.Metric):
    """A metric of the user's own: counts by class what the model is sure of."""

    def __init__(self, name: str = "sure", **options: Any):
        super().__init__(name=name, **options)
        self.counts = self.add_variable((CLASSES,), "zeros", dtype="int32", name="counts")

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        sure = keras.ops.max(y_pred, axis=-1) > 0.4
        taken = keras.ops.one_hot(keras.ops.argmax(y_pred, axis=-1), CLASSES, dtype="int32")
        self.counts.assign_add(keras.ops.sum(taken * keras.ops.cast(sure, "int32")[:, None], 0))

    def result(self) -> Any:
        return keras.ops.max(self.counts)


def class_metrics() -> keras.Model:
    m = keras.metrics
    return classifier(
        metrics=[
            "accuracy",
            m.SparseCategoricalCrossentropy(),
            m.SparseTopKCategoricalAccuracy(k=2),
            m.MeanIoU(num_classes=CLASSES, sparse_y_pred=False, name="mean_iou"),
            m.IoU(num_classes=CLASSES, target_class_ids=[0], sparse_y_pred=False, name="iou"),
            Largest(),
        ]
    )


def regression_metrics() -> keras.Model:
    m = keras.metrics
    model = keras.Sequential([keras.Input((FEATURES,)), L.Dense(8, activation="tanh"), L.Dense(2)])
    model.compile(
        sgd(0.02),
        "mse",
        metrics=[
            "mae",
            m.CosineSimilarity(),
            m.MeanRelativeError(normalizer=[1.0, 2.0])
            if hasattr(m, "MeanRelativeError")
            else "mse",
            m.R2Score(class_aggregation="variance_weighted_average"),
            m.RootMeanSquaredError(),
            m.ConcordanceCorrelation(),
            m.PearsonCorrelation(),
        ],
    )
    return model


class LayerMetric(keras.layers.Layer):
    def __init__(self) -> None:
        super().__init__()
        self.size = keras.metrics.Mean(name="size")

    def call(self, inputs: Any) -> Any:
        self.size.update_state(keras.ops.mean(keras.ops.abs(inputs)))
        return inputs


def metric_cases() -> list[Case]:
    return [
        Case("many_metrics", binary_model(many_metrics), binary_fit, three=True),
        Case("class_metrics", class_metrics, array_fit(), three=True),
        Case("regression_metrics", regression_metrics, regression_fit(), three=True),
        Case(
            "layer_metric",
            lambda: classifier(L.Dense(8, activation="tanh"), LayerMetric()),
            array_fit(),
            three=True,
        ),
        Case("no_metrics", lambda: classifier(metrics=None), array_fit()),
    ]


# -- execution --------------------------------------------------------------------------------


class OwnTestStep(keras.Model):
    """Overrides test_step, as the Keras guide writes it."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.head = L.Dense(8, activation="tanh"), L.Dense(2)

    def call(self, inputs: Any) -> Any:
        return self.head(self.hidden(inputs))

    def test_step(self, data: Any) -> Any:
        x, y = data
        y_pred = self(x, training=False)
        loss = self.compute_loss(y=y, y_pred=y_pred)
        for metric in self.metrics:
            if metric.name == "loss":
                metric.update_state(loss)
            else:
                metric.update_state(y, y_pred)
        return {m.name: m.result() for m in self.metrics}


class OwnTrainStep(OwnTestStep):
    """Overrides train_step too, and logs something of its own."""

    def train_step(self, data: Any) -> Any:
        x, y = data
        with tf.GradientTape() as tape:
            y_pred = self(x, training=True)
            loss = self.compute_loss(y=y, y_pred=y_pred)
        gradients = tape.gradient(loss, self.trainable_variables)
        self.optimizer.apply_gradients(zip(gradients, self.trainable_variables, strict=True))
        for metric in self.metrics:
            if metric.name == "loss":
                metric.update_state(loss)
            else:
                metric.update_state(y, y_pred)
        return {**self.get_metrics_result(), "spread": keras.ops.std(y_pred, axis=0)[0] * 0 + loss}


def own_step(kind: type, **compile: Any) -> Callable[[], keras.Model]:
    def build() -> keras.Model:
        model = kind()
        model.compile(sgd(0.02), "mse", metrics=["mae"], **compile)
        return model

    return build


def one_row_last(rows: int = BATCH + 1, batch_size: int = BATCH) -> dict[str, Any]:
    """Return data whose last batch has one row: a replica without any has no part in its logs."""
    return {"x": arrays(rows)[0], "y": targets(rows), "batch_size": batch_size}


def execution_cases() -> list[Case]:
    def even() -> dict[str, Any]:
        return {"x": arrays(24)[0], "y": targets(24), "batch_size": BATCH}

    return [
        Case("steps_per_execution", lambda: classifier(steps_per_execution=2), array_fit()),
        Case("steps_per_execution_odd", lambda: classifier(steps_per_execution=3), array_fit()),
        Case(
            "steps_per_execution_unknown",
            lambda: classifier(steps_per_execution=3),
            lambda: {"x": batches([6, 6, 6, 4])},
            reference="one_device",
        ),
        Case("run_eagerly", lambda: classifier(run_eagerly=True), array_fit(), predicts=True),
        Case("run_eagerly_towers", lambda: eager_towers(), towers_fit(weighted=True)),
        Case("jit_compile", lambda: classifier(jit_compile=True), array_fit(), predicts=True),
        Case(
            "jit_compile_adam_clip",
            lambda: classifier(
                optimizer=keras.optimizers.Adam(0.02, global_clipnorm=0.1), jit_compile=True
            ),
            array_fit(),
        ),
        Case(
            "jit_compile_accumulation",
            lambda: classifier(optimizer=sgd(gradient_accumulation_steps=2), jit_compile=True),
            array_fit(),
        ),
        Case(
            "jit_compile_loss_scale",
            lambda: classifier(
                optimizer=keras.optimizers.LossScaleOptimizer(sgd()), jit_compile=True
            ),
            array_fit(),
        ),
        Case(
            "jit_compile_steps",
            lambda: classifier(jit_compile=True, steps_per_execution=2),
            array_fit(),
        ),
        Case("jit_compile_masked", lambda: masked_model(jit_compile=True), masked_fit()),
        Case("test_step", own_step(OwnTestStep), regression_fit(), three=True),
        Case("train_step", own_step(OwnTrainStep), even, three=True),
        Case("train_step_ragged", own_step(OwnTrainStep), regression_fit(), three=True),
        Case("train_step_logs", own_step(OwnTrainStep), one_row_last),
        Case("train_step_logs_one_row", own_step(OwnTrainStep), lambda: one_row_last(3, 1)),
        Case("train_step_eager", own_step(OwnTrainStep, run_eagerly=True), even),
        Case("train_step_jit", own_step(OwnTrainStep, jit_compile=True), even),
        Case("train_step_executions", own_step(OwnTrainStep, steps_per_execution=2), even),
    ]


def eager_towers() -> keras.Model:
    model = two_towers()
    model.run_eagerly = True
    return model


# -- precision --------------------------------------------------------------------------------


def with_policy(policy: str, **compile: Any) -> Callable[[], keras.Model]:
    def build() -> keras.Model:
        before = keras.config.dtype_policy()
        keras.config.set_dtype_policy(policy)
        try:
            return classifier(L.Dense(8, activation="tanh"), L.Dense(8), **compile)
        finally:
            keras.config.set_dtype_policy(before)

    return build


def overflowing_fit() -> dict[str, Any]:
    """Return data whose second batch overflows on one replica only."""
    x, y = arrays()
    x = x.copy()
    x[BATCH] = 3e38
    return {"x": x, "y": y, "batch_size": BATCH}


def overflowing(**compile: Any) -> Callable[[], keras.Model]:
    def build() -> keras.Model:
        optimizer = keras.optimizers.LossScaleOptimizer(
            keras.optimizers.Adam(0.02), initial_scale=1024.0
        )
        return classifier(optimizer=optimizer, metrics=None, **compile)

    return build


def precision_cases() -> list[Case]:
    x, y = arrays()

    def finite() -> dict[str, Any]:
        return {"x": x, "y": y, "batch_size": BATCH}

    cases = [
        Case(
            f"{policy}{'_jit' if jit else ''}",
            with_policy(policy, jit_compile=jit),
            array_fit(),
            tolerance=tolerance,
        )
        for policy, tolerance in (("mixed_float16", 5e-3), ("mixed_bfloat16", 3e-2))
        for jit in (False, True)
    ]
    return [
        *cases,
        Case("overflow", overflowing(), overflowing_fit, evaluate=finite, three=True),
        Case("overflow_jit", overflowing(jit_compile=True), overflowing_fit, evaluate=finite),
        Case(
            "overflow_executions",
            overflowing(steps_per_execution=2),
            overflowing_fit,
            evaluate=finite,
        ),
    ]


# -- models that run() does not fit ---------------------------------------------------------------


def trained_weights(
    build: Callable[[], keras.Model], scope: Any, x: np.ndarray, y: Any
) -> list[np.ndarray]:
    """Return the weights after two epochs of a model that is built in a scope."""
    keras.utils.set_random_seed(4)
    with scope:
        model = build()
    model.fit(x, y, batch_size=8, epochs=2, verbose=0, shuffle=False)
    return model.get_weights()


class Autoencoder(keras.Model):
    """Has a train_step and no call()."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = keras.Sequential([keras.Input((6,)), keras.layers.Dense(4, "tanh")])
        self.decoder = keras.Sequential([keras.Input((4,)), keras.layers.Dense(6)])
        self.error = keras.metrics.Mean(name="error")

    @property
    def metrics(self) -> list[Any]:
        return [self.error]

    def train_step(self, data: Any) -> dict[str, Any]:
        with tf.GradientTape() as tape:
            loss = keras.ops.mean((self.decoder(self.encoder(data)) - data) ** 2)
        gradients = tape.gradient(loss, self.trainable_variables)
        self.optimizer.apply_gradients(zip(gradients, self.trainable_variables, strict=True))
        self.error.update_state(loss)
        return {"error": self.error.result()}


class TwoOptimizers(keras.Model):
    """Updates its two layers by optimizers of their own."""

    def train_step(self, data: Any) -> dict[str, Any]:
        x, y = data
        with tf.GradientTape(persistent=True) as tape:
            loss = self.compute_loss(x, y, self(x, training=True))
        for optimizer, layer in zip((self.optimizer, self.second), self.layers[1:], strict=True):
            gradients = tape.gradient(loss, layer.trainable_variables)
            optimizer.apply_gradients(zip(gradients, layer.trainable_variables, strict=True))
        return {"loss": loss}


class UnusedLoss(keras.Model):
    """Computes its loss itself, and is compiled with another."""

    def compute_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool = True,
    ) -> Any:
        return keras.ops.mean(keras.ops.abs(y - y_pred))


def found_in_scripts() -> list[Case]:
    from fit import script_cases  # it uses this module

    return script_cases.script_cases()


def only_trained(table: list[Case]) -> list[Case]:
    """Return the cases of what evaluate knows by the weights alone."""
    return [dataclasses.replace(case, evaluates=False) for case in table]


TABLES: dict[str, Callable[[], list[Case]]] = {
    "batches": batch_cases,
    "inputs": input_cases,
    "losses": loss_cases,
    "optimizers": lambda: only_trained(optimizer_cases()),
    "metrics": metric_cases,
    "execution": execution_cases,
    "precision": lambda: only_trained(precision_cases()),
    "scripts": found_in_scripts,
}
