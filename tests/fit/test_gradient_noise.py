"""The gradient noise scale of a linear regression whose moments are known."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfdp

WIDTH, NOISE = 6, 0.5
# Where the model stands, away from the best weights: it is not moved.
AWAY = np.linspace(-0.4, 0.6, WIDTH).astype("float32")
# Of the squared error (x . away - noise)^2 with x ~ N(0, 1): E g = 2 away.
SQUARED = 4 * float(AWAY @ AWAY)
TRACE = 4 * ((WIDTH + 2) * float(AWAY @ AWAY) + WIDTH * NOISE**2) - SQUARED


def batches(rows, steps):
    random = np.random.default_rng(0)
    x = random.normal(size=(rows * steps, WIDTH)).astype("float32")
    y = -(NOISE * random.normal(size=(rows * steps, 1))).astype("float32")
    return tf.data.Dataset.from_tensor_slices((x, y)).batch(rows)


def still():
    return keras.optimizers.SGD(0.0)


def scaled():
    return keras.optimizers.LossScaleOptimizer(still(), initial_scale=2.0**10)


def measured(strategy, rows, steps, optimizer=still, dtype="float32", every=1, **communication):
    """Trains without moving; returns the callback and the History."""
    tfdp.enable(tfdp.Communication(**communication))
    try:
        with strategy.scope():
            dense = keras.layers.Dense(1, use_bias=False, dtype=dtype)
            model = keras.Sequential([keras.Input((WIDTH,)), dense])
            dense.set_weights([AWAY[:, None]])
            model.compile(optimizer(), "mse", jit_compile=False)
        callback = tfdp.callbacks.GradientNoiseScale(every, smoothing=1.0)
        history = model.fit(batches(rows, steps), callbacks=[callback], verbose=0)
        return callback, history.history
    finally:
        tfdp.enable(tfdp.Communication())


@pytest.mark.parametrize("replicas", [1, pytest.param(2, marks=pytest.mark.exhaustive), 3])
@pytest.mark.parametrize(
    ("rows", "options"),
    [
        (24, {}),
        (20, {}),  # not equally much on three
        (24, {"optimizer": scaled, "dtype": "mixed_float16"}),
        (24, {"compression": "bfloat16"}),
    ],
    ids=["even", "ragged", "float16", "bfloat16 on the wire"],
)
def test_within_a_tenth_after_300_steps(replicas, rows, options, mirrored):
    callback, history = measured(mirrored[replicas], rows, 300, **options)
    assert callback.measured == 300
    assert callback.squared_gradient == pytest.approx(SQUARED, rel=0.1)
    assert callback.trace == pytest.approx(TRACE, rel=0.1)
    assert history["gradient_noise_scale"] == [callback.scale]


@pytest.mark.parametrize("replicas", [1, 2])
def test_shares_of_any_size_give_the_same_numbers(replicas, mirrored):
    """By hand: 3 of 7 rows on the first of two replicas, or in the first half, 4 in the second."""
    callback, _ = measured(mirrored[replicas], 7, 1)
    data = next(iter(batches(7, 1)))
    x, y = (part.numpy() for part in data)
    each = 2 * (x @ AWAY[:, None] - y) * x
    parts = [each[:3], each[3:]]
    small = sum(len(part) / 7 * np.sum(part.mean(0) ** 2) for part in parts)
    large = np.sum(each.mean(0) ** 2)
    trace = (small - large) * 7
    assert callback.trace == pytest.approx(trace, rel=1e-5)
    assert callback.squared_gradient == pytest.approx(large - trace / 7, rel=1e-4)


def test_halves_of_a_batch_are_what_two_replicas_have(mirrored):
    """With the same masks of Dropout, and the same statistics of BatchNormalization."""
    tfdp.enable()
    found = []
    for replicas in (1, 2):
        keras.utils.set_random_seed(3)
        with mirrored[replicas].scope():
            hidden = [keras.layers.Dense(8), keras.layers.BatchNormalization()]
            rest = [keras.layers.Dropout(0.5), keras.layers.Dense(1)]
            model = keras.Sequential([keras.Input((WIDTH,)), *hidden, *rest])
            model.compile(still(), "mse", jit_compile=False)
        callback = tfdp.callbacks.GradientNoiseScale(1, smoothing=1.0)
        model.fit(batches(10, 3), callbacks=[callback], verbose=0)
        found.append((callback.squared_gradient, callback.trace))
    assert found[0] == pytest.approx(found[1], rel=1e-4)


@pytest.mark.parametrize(
    ("replicas", "steps", "every", "count"),
    [(1, 33, 16, 3), (2, 33, 16, 3), (1, 129, None, 2), (2, 65, None, 3)],
)
def test_one_step_of_so_many_is_measured(replicas, steps, every, count, mirrored):
    callback, _ = measured(mirrored[replicas], 4, steps, every=every)
    assert callback.measured == count


def test_of_one_row_nothing_can_be_said(one_device):
    callback, history = measured(one_device, 1, 3)
    assert callback.measured == 0
    assert "gradient_noise_scale" not in history


@pytest.mark.parametrize("jit_compile", [False, True], ids=["", "XLA"])
@pytest.mark.parametrize("replicas", [pytest.param(1, marks=pytest.mark.exhaustive), 2])
def test_the_training_is_the_same_with_it(replicas, jit_compile, mirrored):
    """What is measured beside a step assigns nothing and draws nothing."""
    tfdp.enable()

    def trained(callbacks):
        keras.utils.set_random_seed(3)
        with mirrored[replicas].scope():
            hidden = [keras.layers.BatchNormalization(), keras.layers.Dropout(0.5)]
            spectral = keras.layers.SpectralNormalization(keras.layers.Dense(1))
            model = keras.Sequential([keras.Input((WIDTH,)), *hidden, spectral])
            adam = keras.optimizers.Adam(0.1)
            model.compile(adam, "mse", metrics=["mae"], jit_compile=jit_compile)
        history = model.fit(batches(10, 7), callbacks=callbacks, verbose=0).history
        history.pop("gradient_noise_scale", None)
        return model.get_weights(), history

    with_it = trained([tfdp.callbacks.GradientNoiseScale(2)])
    without = trained([])
    for one, other in zip(with_it[0], without[0], strict=True):
        np.testing.assert_array_equal(one, other)
    assert with_it[1] == without[1]


def test_where_it_cannot_be_measured_it_is_one_line():
    for options, message in [
        ({"every": 0}, "every=0"),
        ({"smoothing": 2}, "smoothing=2"),
    ]:
        with pytest.raises(tfdp.Error, match=f"GradientNoiseScale.{message}"):
            tfdp.callbacks.GradientNoiseScale(**options)
