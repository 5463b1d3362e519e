"""Cases that were found in scripts of real users: what layers and train_steps assign, and more."""

from typing import Any

import keras
import numpy as np
import tensorflow as tf

import tfdp
from fit import cases

L = keras.layers


def arrays() -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(3)
    x = generator.normal(size=(48, 4)).astype("float32")
    return x, (x @ np.array([[1.0], [-2.0], [0.5], [3.0]]) + 0.3).astype("float32")


def fit(batch: int = 8) -> Any:
    def settings() -> dict[str, Any]:
        x, y = arrays()
        return {"x": x, "y": y, "batch_size": batch}

    return settings


def dense(kind: type[keras.Model] = keras.Model, units: int = 1, **more: Any) -> keras.Model:
    inputs = keras.Input((4,))
    return kind(inputs, L.Dense(units)(L.Dense(3, "tanh")(inputs)), **more)


# -- layers that assign ---------------------------------------------------------------------------


class RowCounter(L.Layer):
    """Counts rows, adds up and keeps the largest of what passes through, and counts calls."""

    def build(self, shape: Any) -> None:
        def state(name: str, dtype: str, aggregation: str = "none") -> Any:
            return self.add_weight(
                name=name, dtype=dtype, initializer="zeros", trainable=False,
                aggregation=aggregation,
            )  # fmt: skip

        del shape
        self.rows = state("rows", "float32", "sum")
        self.whole_rows = state("whole_rows", "int64", "sum")
        self.largest = state("largest", "float32")
        self.smallest = state("smallest", "float32")
        self.calls = state("calls", "int32")
        self.float_calls = state("float_calls", "float32")

    def call(self, x: Any) -> Any:
        rows = keras.ops.shape(x)[0]
        self.rows.assign_add(keras.ops.sum(keras.ops.ones_like(x[:, 0])))
        self.whole_rows.assign_add(keras.ops.cast(rows, "int64"))
        self.largest.assign(keras.ops.maximum(self.largest, keras.ops.max(x)))
        self.smallest.assign(keras.ops.minimum(keras.ops.min(x), self.smallest))
        self.calls.assign_add(1)
        self.float_calls.assign_add(1.0)
        return x


class Balanced(L.Layer):
    """Overwrites a weight by something of the rows: their mean, which replicas do not share."""

    def build(self, shape: Any) -> None:
        self.shift = self.add_weight(name="shift", shape=(shape[-1],), initializer="zeros")

    def call(self, x: Any, training: bool = False) -> Any:
        shifted = x - self.shift
        if training:
            self.shift.assign(0.9 * self.shift + 0.1 * keras.ops.mean(x, 0))
        return shifted


class Undeclared(L.Layer):
    """Counts rows in a whole number that does not say how replicas' are put together."""

    def build(self, shape: Any) -> None:
        del shape
        self.rows = self.add_weight(
            name="rows", dtype="int32", initializer="zeros", trainable=False
        )

    def call(self, x: Any) -> Any:
        self.rows.assign_add(keras.ops.shape(x)[0])
        return x


def spectral() -> keras.Model:
    model = keras.Sequential([keras.Input((4,)), L.SpectralNormalization(L.Dense(1))])
    model.compile(cases.sgd(), "mse")
    return model


def sequential(layer: Any) -> Any:
    def build() -> keras.Model:
        model = keras.Sequential([keras.Input((4,)), layer(), L.Dense(1)])
        model.compile(cases.sgd(), "mse")
        return model

    return build


# -- train_steps that assign ----------------------------------------------------------------------


class Step(keras.Model):
    """A train_step on `loss`, with `before` and `after` for what a kind adds."""

    def train_step(self, data: Any) -> dict[str, Any]:
        x, y = data
        with tf.GradientTape() as tape:
            loss = self.compute_loss(x, y, self(x, training=True))
        self.apply(tape.gradient(loss, self.trainable_variables))
        self.after()
        return {"loss": loss}

    def apply(self, gradients: Any) -> None:
        self.optimizer.apply_gradients(zip(gradients, self.trainable_variables, strict=True))

    def after(self) -> None:
        pass


class Named(Step):
    """Logs its loss under a name that no metric has: the last batch's is that of the epoch."""

    def train_step(self, data: Any) -> dict[str, Any]:
        return {"objective": super().train_step(data)["loss"]}


class Known(Step):
    """Gives its optimizer no variables: it knows those that it was built with."""

    def compile(self, *args: Any, **kwargs: Any) -> None:
        super().compile(*args, **kwargs)
        self.optimizer.build(self.layers[-1].trainable_variables)

    def train_step(self, data: Any) -> dict[str, Any]:
        x, y = data
        with tf.GradientTape() as tape:
            loss = self.compute_loss(x, y, self(x, training=True))
        self.apply(tape.gradient(loss, self.layers[-1].trainable_variables))
        return {"objective": loss}

    def apply(self, gradients: Any) -> None:
        self.optimizer.apply(gradients)


class Handed(Named):
    """Gives its optimizer lists, which are empty if nothing is to be trained."""

    def apply(self, gradients: Any) -> None:
        self.optimizer.apply(gradients, self.trainable_variables)


class Clipped(Step):
    """Clips its weights after each update, as a WGAN's critic."""

    def after(self) -> None:
        for variable in self.trainable_variables:
            variable.assign(keras.ops.clip(variable, -0.3, 0.3))


class Teacher(Step):
    """Moves another model after its own weights, as mean teachers and momentum encoders."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.teacher = dense()
        self.teacher.trainable = False

    def after(self) -> None:
        for mine, theirs in zip(self.trainable_variables, self.teacher.variables, strict=False):
            theirs.assign(0.9 * theirs + 0.1 * mine)


class Halving(Step):
    """Halves its learning rate at each step."""

    def after(self) -> None:
        self.optimizer.learning_rate.assign(self.optimizer.learning_rate * 0.9)


class Sharpness(keras.Model):
    """Sharpness-aware minimisation: climbs, takes the gradient there, goes back, descends."""

    def train_step(self, data: Any) -> dict[str, Any]:
        x, y = data
        with tf.GradientTape() as tape:
            loss = self.compute_loss(x, y, self(x, training=True))
        climb = tape.gradient(loss, self.trainable_variables)
        # Steps of fixed size: the norm of a gradient is of a replica's rows.
        steps = [0.01 * tf.ones_like(g) for g in climb]
        for variable, step in zip(self.trainable_variables, steps, strict=True):
            variable.assign_add(step)
        with tf.GradientTape() as tape:
            there = self.compute_loss(x, y, self(x, training=True))
        gradients = tape.gradient(there, self.trainable_variables)
        for variable, step in zip(self.trainable_variables, steps, strict=True):
            variable.assign_sub(step)
        self.optimizer.apply_gradients(zip(gradients, self.trainable_variables, strict=True))
        return {"loss": loss}


class Accumulating(Step):
    """Gathers gradients by hand, and applies them at every second step."""

    def build(self, shape: Any) -> None:
        super().build(shape)
        self.steps = self.add_weight(name="steps", dtype="int32", initializer="zeros")
        self.steps.trainable = False
        self.gathered = [
            self.add_weight(name=f"gathered_{i}", shape=v.shape, initializer="zeros")
            for i, v in enumerate(list(self.trainable_variables))
        ]
        for variable in self.gathered:
            variable.trainable = False

    def apply(self, gradients: Any) -> None:
        self.steps.assign_add(1)
        for variable, gradient in zip(self.gathered, gradients, strict=True):
            variable.assign_add(gradient)

        def update() -> Any:
            self.optimizer.apply_gradients(
                [(v / 2.0, w) for v, w in zip(self.gathered, self.trainable_variables, strict=True)]
            )
            for variable in self.gathered:
                variable.assign(keras.ops.zeros_like(variable))
            return tf.constant(True)

        tf.cond(tf.equal(self.steps % 2, 0), update, lambda: tf.constant(False))


class ManyOptimizers(keras.Model):
    """Updates its layers by optimizers in a list, in a dict and in a compiled model inside."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.listed = [cases.sgd(0.05)]
        self.named = {"head": keras.optimizers.Adam(0.01)}

    def train_step(self, data: Any) -> dict[str, Any]:
        x, y = data
        with tf.GradientTape(persistent=True) as tape:
            loss = self.compute_loss(x, y, self(x, training=True))
        inner = next(layer for layer in self.layers if isinstance(layer, keras.Model))
        parts = [
            (self.listed[0], self.layers[1]),
            (inner.optimizer, inner),
            (self.named["head"], self.layers[-1]),
        ]
        for optimizer, layer in parts:
            gradients = tape.gradient(loss, layer.trainable_variables)
            optimizer.apply_gradients(zip(gradients, layer.trainable_variables, strict=True))
        return {"loss": loss}


def stepping(kind: type[keras.Model], **options: Any) -> Any:
    def build() -> keras.Model:
        model = dense(kind)
        model.compile(cases.sgd(), "mse", **options)
        return model

    return build


def accumulating() -> keras.Model:
    model = dense(Accumulating)
    model.build((None, 4))
    model.compile(cases.sgd(), "mse")
    return model


def many_optimizers(**options: Any) -> keras.Model:
    inner = keras.Sequential([keras.Input((3,)), L.Dense(3, "tanh")], name="inner")
    inner.compile(cases.sgd(0.02), "mse")
    inputs = keras.Input((4,))
    outputs = L.Dense(1)(inner(L.Dense(3, "tanh")(inputs)))
    model = ManyOptimizers(inputs, outputs)
    model.compile(cases.sgd(), "mse", **options)
    return model


# -- metrics --------------------------------------------------------------------------------------


class Counted(keras.metrics.Metric):
    """A metric whose result is a dict."""

    def __init__(self, name: str = "counted"):
        super().__init__(name=name)
        self.seen = self.add_weight(name="seen", initializer="zeros")
        self.error = self.add_weight(name="error", initializer="zeros")

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        self.seen.assign_add(keras.ops.cast(keras.ops.shape(y_true)[0], "float32"))
        self.error.assign_add(keras.ops.sum(keras.ops.abs(y_true - y_pred)))

    def result(self) -> dict[str, Any]:
        return {"rows": self.seen, "error": self.error / keras.ops.maximum(self.seen, 1.0)}


def counted() -> keras.Model:
    model = dense()
    model.compile(cases.sgd(), "mse", metrics=[Counted()])
    return model


class Kept(keras.metrics.Mean):
    """A metric that goes on over the epochs."""

    def reset_state(self) -> None:
        pass

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        super().update_state(keras.ops.abs(y_true - y_pred))


def kept() -> keras.Model:
    model = dense()
    model.compile(cases.sgd(), "mse", metrics=[Kept(name="kept")])
    return model


def script_cases() -> list[cases.Case]:
    case = cases.Case
    build: list[tuple[str, Any]] = [
        ("spectral_normalization", spectral),
        ("layer_counts", sequential(RowCounter)),
        ("layer_counts_undeclared", sequential(Undeclared)),
        ("layer_overwrites_a_weight", sequential(Balanced)),
        ("gradients_alone", stepping(Known)),
        ("clipped_weights", stepping(Clipped)),
        ("teacher", stepping(Teacher)),
        ("learning_rate_in_step", stepping(Halving)),
        ("sharpness", stepping(Sharpness)),
        ("accumulation_by_hand", accumulating),
        ("optimizers_everywhere", many_optimizers),
        ("dict_metric", counted),
        ("metric_kept_over_epochs", kept),
    ]
    # A size that the shapes say looks like a number of calls: here it has to be declared.
    found = [case(n, model, fit()) for n, model in build if n != "layer_counts_undeclared"]
    # Batches of 1 row: some replicas are empty.
    found += [
        case(f"{name}_of_one_row", model, lambda: {"x": cases_of_rows(), "y": None})
        for name, model in build
        if name != "accumulation_by_hand"
    ]
    found += [
        case("clipped_eagerly", stepping(Clipped, run_eagerly=True), fit()),
        case("sharpness_eagerly", stepping(Sharpness, run_eagerly=True), fit()),
        case(
            "optimizers_everywhere_eagerly",
            lambda: many_optimizers(run_eagerly=True),
            fit(),
        ),
        case("nothing_to_train", nothing_to_train, fit()),
        case("nothing_to_train_in_own_step", lambda: nothing_to_train(Handed), fit()),
        case("squares_of_sparse_gradients", words, word_rows),
        case("sparse_gradients_in_one_execution", several_words, lambda: word_rows(9)),
        case("spectral_compiled", compiled(spectral), fit()),
        case("layer_counts_compiled", compiled(sequential(RowCounter)), fit()),
    ]
    return found


def nothing_to_train(kind: type[keras.Model] = keras.Model) -> keras.Model:
    """Keras does not build the optimizer of a model whose weights are all frozen."""
    model = dense(kind)
    model.trainable = False
    model.compile(keras.optimizers.Nadam(0.01), "mse")
    return model


def words() -> keras.Model:
    """The gradient of an embedding is sparse, and Adagrad makes a tensor of its square.

    tfdp's, since Keras's gives the rows that a batch names twice in parts, and servers sum them.
    """
    inputs = keras.Input((3,), dtype="int32")
    outputs = L.Dense(1)(L.Flatten()(tfdp.layers.Embedding(9, 4)(inputs)))
    model = keras.Model(inputs, outputs)
    model.compile(keras.optimizers.Adagrad(0.1, global_clipnorm=0.1, use_ema=True), "mse")
    return model


def several_words() -> keras.Model:
    """The last of the steps of one execution has fewer rows of sparse gradients."""
    inputs = keras.Input((3,), dtype="int32")
    outputs = L.Dense(1)(L.Flatten()(L.Embedding(9, 4)(inputs)))
    model = keras.Model(inputs, outputs)
    model.compile(keras.optimizers.Adagrad(0.1), "mse", steps_per_execution=6)
    return model


def word_rows(batch: int = 8) -> dict[str, Any]:
    x, y = arrays()
    words = np.floor(3 * np.abs(x[:, :3])).clip(0, 8).astype("int32")
    return {"x": words, "y": y, "batch_size": batch}


def compiled(build: Any) -> Any:
    def again() -> keras.Model:
        model = build()
        model.compile(cases.sgd(), "mse", jit_compile=True)
        return model

    return again


def cases_of_rows() -> tf.data.Dataset:
    x, y = arrays()
    whole = tf.data.Dataset.from_tensor_slices((x[:13], y[:13])).batch(4)
    return whole.apply(tf.data.experimental.assert_cardinality(4))
