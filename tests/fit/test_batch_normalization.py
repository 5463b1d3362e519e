"""BatchNormalization: synchronised it is exact; alone, each replica normalises by its own rows.

The reference of the second is computed here from the replicas' own batches, step by step.
"""

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import exhaustive_unless

from fit import cases
from tfdp import fit

L = keras.layers
MOMENTUM, EPSILON, RATE = 0.7, 1e-3, 0.1


def model(synchronized: bool, **compile: object) -> keras.Model:
    norm = L.BatchNormalization(synchronized=synchronized, momentum=MOMENTUM, epsilon=EPSILON)
    return cases.classifier(L.Dense(8), norm, L.Activation("tanh"), **compile)


def with_losses() -> keras.Model:
    """A model with losses of its layers, before and after the layer that communicates."""
    before = L.Dense(8, activity_regularizer=keras.regularizers.L2(0.1))
    norm = L.BatchNormalization(synchronized=True, momentum=MOMENTUM, epsilon=EPSILON)
    after = L.Dense(8, "tanh", activity_regularizer=keras.regularizers.L1(0.1))
    return cases.classifier(before, norm, after)


def masked() -> keras.Model:
    """A model whose BatchNormalization goes by the words that a mask lets through."""
    words = keras.Input((5,), dtype="int32")
    embedded = L.Embedding(9, 4, mask_zero=True)(words)
    norm = L.BatchNormalization(synchronized=True, momentum=MOMENTUM, epsilon=EPSILON)
    made = keras.Model(words, L.Dense(1)(L.GlobalAveragePooling1D()(norm(embedded))))
    made.compile(keras.optimizers.SGD(RATE), "mse")
    return made


def convolutional() -> keras.Model:
    """A model with convolutions, of which oneDNN's gradient takes no batch without a row."""
    image = keras.Input((6, 6, 1))
    hidden = L.Conv2D(2, 3, activation="tanh")(image)
    norm = L.BatchNormalization(synchronized=True, momentum=MOMENTUM, epsilon=EPSILON)
    hidden = L.Conv2D(2, 3, activation="tanh")(norm(hidden))
    made = keras.Model(image, L.Dense(1)(L.Flatten()(hidden)))
    made.compile(keras.optimizers.SGD(RATE), "mse")
    return made


def undefined_on_zeros() -> keras.Model:
    """A model that makes NaN of a row of zeros, and of its gradient."""

    class Direction(L.Layer):
        def call(self, x):
            return x / keras.ops.norm(x, axis=-1, keepdims=True)

    norm = L.BatchNormalization(synchronized=True, momentum=MOMENTUM, epsilon=EPSILON)
    layers = [L.Flatten(), Direction(), L.Dense(8, "tanh"), norm, L.Dense(1)]
    made = keras.Sequential([keras.Input((6, 6, 1)), *layers])
    made.compile(keras.optimizers.SGD(RATE), "mse")
    return made


def images(sizes: list[int]) -> tf.data.Dataset:
    random = np.random.default_rng(6)
    x = random.normal(size=(sum(sizes), 6, 6, 1)).astype("float32")
    batches = [(part, part.mean((1, 2))) for part in np.split(x, np.cumsum(sizes)[:-1])]
    signature = (tf.TensorSpec((None, 6, 6, 1)), tf.TensorSpec((None, 1)))
    made = tf.data.Dataset.from_generator(lambda: iter(batches), output_signature=signature)
    return made.apply(tf.data.experimental.assert_cardinality(len(sizes)))


def masked_words() -> dict[str, np.ndarray]:
    random = np.random.default_rng(5)
    return {"x": random.integers(0, 9, (22, 5)), "y": random.normal(size=(22, 1)), "batch_size": 4}


SYNCHRONISED = [
    cases.Case(
        "even", lambda: model(True), lambda: {"x": cases.dataset(24)}, predicts=True, tolerance=2e-5
    ),
    cases.Case("ragged", lambda: model(True), cases.array_fit(), predicts=True, tolerance=2e-5),
    cases.Case(
        "empty_replica", lambda: model(True), lambda: {"x": cases.known([6, 1, 6])}, tolerance=2e-5
    ),
    cases.Case(
        "empty_replica_of_images",
        lambda: convolutional(),
        lambda: {"x": images([6, 1, 6])},
        tolerance=2e-5,
    ),
    cases.Case(
        "empty_replica_of_nan",
        lambda: undefined_on_zeros(),
        lambda: {"x": images([6, 1, 6])},
        tolerance=2e-5,
    ),
    cases.Case("activity", lambda: with_losses(), cases.array_fit(), tolerance=2e-5),
    cases.Case("masked", lambda: masked(), lambda: masked_words(), predicts=True, tolerance=2e-5),
    cases.Case("jit", lambda: model(True, jit_compile=True), cases.array_fit(), tolerance=2e-5),
]


# What another of them shows.
AGAIN = ("even", "empty_replica_of_images")


@pytest.mark.parametrize("replicas", [pytest.param(2, marks=pytest.mark.exhaustive), 3])
@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, marks=exhaustive_unless(case.name not in AGAIN), id=case.name)
        for case in SYNCHRONISED
    ],
)
def test_synchronised_is_exact(case, replicas, mirrored):
    fit.disable()
    expected = cases.run(case)
    fit.enable()
    found = cases.differences(expected, cases.run(case, mirrored[replicas]))
    assert not {name: value for name, value in found.items() if not value <= case.tolerance}


class Reference:
    """The model of `model(False)` trained by hand on the parts of each batch."""

    def __init__(self, weights: list[np.ndarray], replicas: int):
        kernel, bias, gamma, beta, mean, variance, head, head_bias = weights
        self.trained = [tf.Variable(w) for w in (kernel, bias, gamma, beta, head, head_bias)]
        self.means, self.variances = [mean] * replicas, [variance] * replicas

    def forward(self, x, mean, variance):
        kernel, bias, gamma, beta, head, head_bias = self.trained
        h = tf.nn.batch_normalization(x @ kernel + bias, mean, variance, beta, gamma, EPSILON)
        return tf.nn.softmax(tf.tanh(h) @ head + head_bias)

    def step(self, parts):
        rows = sum(len(x) for x, _ in parts)
        with tf.GradientTape() as tape:
            total = 0.0
            for r, (x, y) in enumerate(parts):
                if not len(x):
                    continue
                mean, variance = tf.nn.moments(x @ self.trained[0] + self.trained[1], [0])
                losses = keras.losses.sparse_categorical_crossentropy(
                    y, self.forward(x, mean, variance)
                )
                total += tf.reduce_sum(losses) / rows
                self.means[r] = self.means[r] * MOMENTUM + mean.numpy() * (1 - MOMENTUM)
                self.variances[r] = self.variances[r] * MOMENTUM + variance.numpy() * (1 - MOMENTUM)
        for variable, gradient in zip(
            self.trained, tape.gradient(total, self.trained), strict=True
        ):
            variable.assign_sub(RATE * gradient)

    def end_epoch(self):
        self.means = [np.mean(self.means, 0)] * len(self.means)
        self.variances = [np.mean(self.variances, 0)] * len(self.variances)

    def weights(self):
        kernel, bias, gamma, beta, head, head_bias = (v.numpy() for v in self.trained)
        return [kernel, bias, gamma, beta, self.means[0], self.variances[0], head, head_bias]


@pytest.mark.parametrize("replicas", [pytest.param(2, marks=pytest.mark.exhaustive), 3])
@pytest.mark.parametrize("sizes", [[6, 6, 6], [6, 5, 4], [6, 1, 6]], ids=str)
@pytest.mark.parametrize("jit", [False, pytest.param(True, marks=pytest.mark.exhaustive)])
def test_alone_each_replica_uses_its_own_rows(sizes, replicas, jit, mirrored):
    fit.enable()
    keras.utils.set_random_seed(7)
    with mirrored[replicas].scope():
        trained = model(False, jit_compile=jit)
    reference = Reference(trained.get_weights(), replicas)
    x, y = cases.arrays(sum(sizes))
    starts = np.cumsum([0, *sizes])
    for _ in range(2):
        for start, size in zip(starts, sizes, strict=False):
            edges = [start + r * size // replicas for r in range(replicas + 1)]
            reference.step([(x[a:b], y[a:b]) for a, b in itertools.pairwise(edges)])
        reference.end_epoch()
    trained.fit(cases.known(sizes), epochs=2, verbose=0)
    for expected, got in zip(reference.weights(), trained.get_weights(), strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-5)


def test_saved_statistics_are_the_average_of_all_replicas(mirrored, tmp_path):
    """A callback that saves at a known step finds the average, not replica 0's statistics."""
    fit.enable()
    seen = []

    class Watch(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            norm = self.model.layers[1]
            copies = mirrored[2].experimental_local_results(norm.moving_mean.value)
            seen.append(float(np.abs(copies[0].numpy() - copies[1].numpy()).max()))

    with mirrored[2].scope():
        trained = model(False)
    save = keras.callbacks.ModelCheckpoint(str(tmp_path / "{batch}.keras"), save_freq=2)
    trained.fit(cases.known([6, 6, 6]), verbose=0, callbacks=[Watch(), save])
    assert [difference == 0.0 for difference in seen] == [False, True, False]
    copies = mirrored[2].experimental_local_results(trained.layers[1].moving_mean.value)
    np.testing.assert_array_equal(copies[0].numpy(), copies[1].numpy())
