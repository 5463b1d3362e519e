"""Replicas that train by themselves between two meetings, against NumPy and against each other."""

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfdp

WIDTH, RATE, MOMENTUM = 4, 0.05, 0.8
START = np.linspace(-0.5, 0.5, WIDTH).astype("float32")


def rows(count=26):
    random = np.random.default_rng(5)
    x = random.normal(size=(count, WIDTH)).astype("float32")
    y = (x @ np.arange(WIDTH)[:, None] + random.normal(size=(count, 1))).astype("float32")
    return x, y


def trained(strategy, communication=None, optimizer=None, epochs=2, batch=5, callbacks=(), **how):
    """Fits a linear regression; returns the model and the History."""
    tfdp.enable(communication or tfdp.Communication())
    try:
        with strategy.scope():
            dense = keras.layers.Dense(1, use_bias=False)
            model = keras.Sequential([keras.Input((WIDTH,)), dense])
            dense.set_weights([START[:, None]])
            made = optimizer() if optimizer else keras.optimizers.SGD(RATE, momentum=MOMENTUM)
            model.compile(made, "mse", metrics=["mae"], **{"jit_compile": False, **how})
        data = tf.data.Dataset.from_tensor_slices(rows()).batch(batch)
        history = model.fit(data, epochs=epochs, callbacks=list(callbacks), verbose=0)
        return model, history.history
    finally:
        tfdp.enable()


def by_hand(replicas, every, after=0, batch=5, epochs=2, outer=None):
    """The same in NumPy, in float64: the weights, and the loss of each epoch.

    Args:
        outer: (rate, momentum) of an outer SGD with Nesterov.
    """
    x, y = (part.astype("float64") for part in rows())
    w = [START[:, None].astype("float64") for _ in range(replicas)]
    m = [np.zeros_like(w[0]) for _ in range(replicas)]
    velocity, losses, step = np.zeros_like(w[0]), [], 0

    def gradient(part, weights):
        error = x[part] @ weights - y[part]
        return 2 * x[part].T @ error / len(error), float(np.sum(error**2))

    for _ in range(epochs):
        start, trains, since, squares = w[0], set(), 0, 0.0
        for begin in range(0, len(x), batch):
            here = np.arange(begin, min(begin + batch, len(x)))
            bounds = [r * len(here) // replicas for r in range(replicas + 1)]
            parts = [here[a:b] for a, b in itertools.pairwise(bounds)]
            together = step < after
            if together:
                whole, square = gradient(here, w[0])
                squares += square
            for r, part in enumerate(parts):
                if len(part) or together:
                    g, square = (whole, 0.0) if together else gradient(part, w[r])
                    squares += square
                    m[r] = MOMENTUM * m[r] - RATE * g
                    w[r] = w[r] + m[r]
                    trains.add(r)
            step, since = step + 1, since + 1
            last = begin + batch >= len(x)
            if together:
                start, trains, since = w[0], set(), 0
            elif since == every or last:
                mean = np.mean([w[r] for r in trains], 0)
                if outer:
                    velocity = outer[1] * velocity - outer[0] * (start - mean)
                    mean = start + outer[1] * velocity - outer[0] * (start - mean)
                w = [mean] * replicas
                start, trains, since = mean, set(), 0
        m = [np.mean(m, 0)] * replicas
        losses.append(squares / len(x))
    return w[0], losses


def periodic(every, **more):
    return tfdp.Communication(sync_every=every, **more)


@pytest.mark.parametrize("replicas", [2, 3])
@pytest.mark.parametrize(
    ("every", "after", "how"),
    [
        (4, 0, {}),
        (4, 3, {}),
        (2, 8, {"steps_per_execution": 4}),
        (4, 2, {"run_eagerly": True}),
        (4, 0, {"jit_compile": True}),
    ],
    ids=["apart", "together first", "executions", "eager", "XLA"],
)
def test_the_numbers_are_those_of_numpy(replicas, every, after, how, mirrored):
    """26 rows by 5: batches that do not divide, and in the last some replicas are empty."""
    model, history = trained(mirrored[replicas], periodic(every, sync_after=after), **how)
    weights, losses = by_hand(replicas, every, after)
    np.testing.assert_allclose(model.get_weights()[0], weights, atol=1e-6)
    np.testing.assert_allclose(history["loss"], losses, rtol=1e-5)
    assert int(model.optimizer.iterations) == 12


def test_an_outer_optimizer_moves_by_the_difference(mirrored):
    """Its sign, too: a wrong one would move away."""
    outer = keras.optimizers.SGD(0.7, momentum=0.9, nesterov=True)
    model, _ = trained(mirrored[2], periodic(2, outer=outer), epochs=3)
    weights, _ = by_hand(2, 2, epochs=3, outer=(0.7, 0.9))
    np.testing.assert_allclose(model.get_weights()[0], weights, atol=1e-6)


def test_an_outer_step_of_rate_one_is_the_mean(mirrored):
    with_outer, _ = trained(mirrored[2], periodic(4, outer=keras.optimizers.SGD(1.0)))
    without, _ = trained(mirrored[2], periodic(4))
    np.testing.assert_array_equal(with_outer.get_weights(), without.get_weights())


def sgd():
    return keras.optimizers.SGD(RATE)


def test_a_period_of_one_is_synchronous(mirrored, one_device):
    model, history = trained(mirrored[2], periodic(1), sgd)
    same, expected = trained(one_device, optimizer=sgd)
    np.testing.assert_allclose(model.get_weights()[0], same.get_weights()[0], atol=1e-6)
    assert history["loss"] == pytest.approx(expected["loss"], rel=1e-6)
