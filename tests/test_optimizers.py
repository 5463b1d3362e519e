"""The optimizers beside NumPy, and beside values that others have published."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfdp
from tfdp.error import Error

STEPS = 20


def rates(step):
    return 0.4 if step < 7 else 0.04  # so that it matters where the rate is kept


# -- in NumPy, in float64, as the papers write it --------------------------------------------------


def norm(value):
    return np.sqrt(np.sum(value * value))


def sgd(w, gradients, momentum, decay, nesterov=False, corrected=True):
    m = np.zeros_like(w)
    for step, g in enumerate(gradients):
        g, rate = g + decay * w, rates(step)
        if corrected:
            m = momentum * m + g
            w = w - rate * (g + momentum * m if nesterov else m)
        else:
            m = momentum * m - rate * g
            w = w + (momentum * m - rate * g if nesterov else m)
    return w


def lars(w, gradients, momentum, decay, nesterov=False, scaled=True, eta=0.001, adapts=True):
    m = np.zeros_like(w)
    for step, g in enumerate(gradients):
        rate = rates(step) * 50
        if adapts and norm(w) > 0 and norm(g) > 0:
            rate *= eta * norm(w) / (norm(g) + decay * norm(w))
        g = g + decay * w
        m = momentum * m + (rate * g if scaled else g)
        if nesterov:
            move = momentum * m + (rate * g if scaled else g)
        else:
            move = m
        w = w - (move if scaled else rate * move)
    return w


def lamb(w, gradients, decay, corrected=True, adapts=True, b1=0.9, b2=0.999, epsilon=1e-6):
    m, v = np.zeros_like(w), np.zeros_like(w)
    for step, g in enumerate(gradients):
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
        by = (1 - b1 ** (step + 1), 1 - b2 ** (step + 1)) if corrected else (1.0, 1.0)
        u = (m / by[0]) / (np.sqrt(v / by[1]) + epsilon) + decay * w
        ratio = norm(w) / norm(u) if adapts and norm(w) > 0 and norm(u) > 0 else 1.0
        w = w - 0.1 * rates(step) * ratio * u
    return w


# -- in Keras -------------------------------------------------------------------------------------


class Rates(keras.optimizers.schedules.LearningRateSchedule):
    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def __call__(self, step):
        return self.factor * keras.ops.where(step < 7, 0.4, 0.04)


def gradients_of(shape, seed=1):
    random = np.random.default_rng(seed)
    return [random.normal(size=shape) for _ in range(STEPS)]


def trained(optimizer, w, gradients, compiled=False):
    variable = keras.Variable(w.astype("float32"), name="kernel")
    optimizer.build([variable])

    @tf.function(jit_compile=True)
    def step(g):
        optimizer.apply([g], [variable])

    for g in gradients:
        g = tf.constant(g, tf.float32)
        step(g) if compiled else optimizer.apply([g], [variable])
    return variable.numpy()


WEIGHTS = np.random.default_rng(0).normal(size=(4, 5))
own = tfdp.optimizers
CASES = {
    "sgd": (
        lambda: own.SGD(Rates(1), 0.9, weight_decay=0.05),
        lambda w, g: sgd(w, g, 0.9, 0.05),
    ),
    "sgd nesterov": (
        lambda: own.SGD(Rates(1), 0.9, nesterov=True),
        lambda w, g: sgd(w, g, 0.9, 0.0, nesterov=True),
    ),
    "sgd uncorrected": (
        lambda: own.SGD(Rates(1), 0.9, momentum_correction=False),
        lambda w, g: sgd(w, g, 0.9, 0.0, corrected=False),
    ),
    "keras sgd is the uncorrected one": (
        lambda: keras.optimizers.SGD(Rates(1), 0.9, nesterov=True),
        lambda w, g: sgd(w, g, 0.9, 0.0, nesterov=True, corrected=False),
    ),
    "lars": (lambda: own.LARS(Rates(50), weight_decay=0.05), lambda w, g: lars(w, g, 0.9, 0.05)),
    "lars nesterov": (
        lambda: own.LARS(Rates(50), 0.8, 0.05, nesterov=True),
        lambda w, g: lars(w, g, 0.8, 0.05, nesterov=True),
    ),
    "lars unscaled": (
        lambda: own.LARS(Rates(50), 0.9, 0.05, 0.002, scale_momentum=False),
        lambda w, g: lars(w, g, 0.9, 0.05, scaled=False, eta=0.002),
    ),
    "lars excluded": (
        lambda: own.LARS(
            Rates(50),
            weight_decay=0.05,
            exclude_from_weight_decay=["ker"],
            exclude_from_layer_adaptation=["nel$"],
        ),
        lambda w, g: lars(w, g, 0.9, 0.0, adapts=False),
    ),
    "lamb": (lambda: own.LAMB(Rates(0.1), weight_decay=0.05), lambda w, g: lamb(w, g, 0.05)),
    "lamb uncorrected": (
        lambda: own.LAMB(Rates(0.1), bias_correction=False),
        lambda w, g: lamb(w, g, 0.0, corrected=False),
    ),
    "lamb excluded": (
        lambda: own.LAMB(Rates(0.1), weight_decay=0.05, exclude_from_layer_adaptation="kernel"),
        lambda w, g: lamb(w, g, 0.05, adapts=False),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_20_steps_are_those_of_numpy(name):
    make, expected = CASES[name]
    gradients = gradients_of(WEIGHTS.shape)
    wanted = expected(WEIGHTS, gradients)
    assert np.abs(wanted - WEIGHTS).max() > 0.01  # it moves
    np.testing.assert_allclose(trained(make(), WEIGHTS, gradients), wanted, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("name", ["lars", "lamb"])
def test_xla_computes_the_same(name):
    make, expected = CASES[name]
    gradients = gradients_of(WEIGHTS.shape)
    found = trained(make(), WEIGHTS, gradients, compiled=True)
    np.testing.assert_allclose(found, expected(WEIGHTS, gradients), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("kind", [own.LARS, own.LAMB])
def test_biases_get_neither_ratio_nor_decay(kind):
    w, gradients = np.arange(1.0, 6.0), gradients_of(5)
    if kind is own.LARS:
        make, wanted = (
            kind(Rates(50), weight_decay=0.05),
            lars(w, gradients, 0.9, 0.0, adapts=False),
        )
    else:
        make, wanted = kind(Rates(0.1), weight_decay=0.05), lamb(w, gradients, 0.0, adapts=False)
    np.testing.assert_allclose(trained(make, w, gradients), wanted, atol=1e-6, rtol=1e-5)
    everything = kind(1.0, exclude_from_weight_decay=(), exclude_from_layer_adaptation=())
    variable = keras.Variable(w, name="bias")
    everything.build([variable])
    assert everything.needs_whole(variable)
    assert not make.needs_whole(variable)


@pytest.mark.parametrize(
    ("make", "wanted"),
    [
        (lambda: own.LARS(Rates(50), weight_decay=0.05), lambda w, g: lars(w, g, 0.9, 0.05)),
        (lambda: own.LAMB(Rates(0.1), weight_decay=0.05), lambda w, g: lamb(w, g, 0.05)),
    ],
)
@pytest.mark.parametrize("zero", ["weights", "gradients"])
def test_a_norm_of_zero_makes_the_ratio_1(make, wanted, zero):
    w = np.zeros((2, 3)) if zero == "weights" else np.ones((2, 3))
    gradients = gradients_of((2, 3))[:1]
    if zero == "gradients":
        gradients = [np.zeros((2, 3))]
    found = trained(make(), w, gradients)
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found, wanted(w, gradients), atol=1e-6)


def minimised(optimizer):
    """The sum of squares of (1, 2, 3) after each of five steps."""
    variable = keras.Variable(np.array([1.0, 2.0, 3.0]), name="x")
    optimizer.build([variable])
    values = []
    for _ in range(5):
        optimizer.apply([2.0 * tf.convert_to_tensor(variable)], [variable])
        values.append(f"{np.sum(variable.numpy() ** 2):.2E}")
    return values


def test_the_values_that_optax_prints():
    """From the docstrings of optax.lamb and optax.lars, whose vectors are not left out."""
    everything = {"exclude_from_layer_adaptation": (), "exclude_from_weight_decay": ()}
    lamb = minimised(own.LAMB(0.003, epsilon=1e-6, **everything))
    assert lamb == ["1.39E+01", "1.38E+01", "1.38E+01", "1.37E+01", "1.36E+01"]
    assert minimised(own.LARS(0.003, **everything)) == ["1.40E+01"] * 5


def test_a_sparse_gradient_moves_what_a_dense_one_moves():
    rows = tf.IndexedSlices(tf.ones((2, 5)), tf.constant([1, 3]), tf.constant([4, 5]))
    dense = np.zeros((4, 5))
    dense[[1, 3]] = 1.0
    for make, expected in (CASES["lars"], CASES["lamb"]):
        variable = keras.Variable(WEIGHTS.astype("float32"), name="kernel")
        optimizer = make()
        optimizer.build([variable])
        optimizer.apply([rows], [variable])
        np.testing.assert_allclose(variable.numpy(), expected(WEIGHTS, [dense]), atol=1e-6)


@pytest.mark.parametrize("name", ["sgd", "lars unscaled", "lars excluded", "lamb uncorrected"])
def test_a_saved_model_goes_on_with_its_optimizer(name, tmp_path):
    make = {
        "sgd": lambda r: own.SGD(r, weight_decay=0.01),
        "lars unscaled": lambda r: own.LARS(r, 0.8, 0.01, 0.01, True, scale_momentum=False),
        "lars excluded": lambda r: own.LARS(r, exclude_from_layer_adaptation=["0/kernel"]),
        "lamb uncorrected": lambda r: own.LAMB(r, weight_decay=0.01, bias_correction=False),
    }[name]
    keras.utils.set_random_seed(3)
    x, y = np.random.default_rng(0).normal(size=(2, 32, 4)).astype("float32")
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4)])
    model.compile(make(tfdp.schedules.Warmup(0.01, 6, 0.001)), "mse")
    model.fit(x, y, batch_size=8, verbose=0)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    assert again.optimizer.get_config() == model.optimizer.get_config()
    for one in (model, again):
        one.fit(x, y, batch_size=8, verbose=0, shuffle=False)
    for ours, theirs in zip(model.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert int(again.optimizer.iterations) == 8


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: own.SGD(0.1, momentum=1.0),
            "SGD: momentum=1.0. Use a number from 0 up to below 1.",
        ),
        (lambda: own.LARS(0.1, weight_decay=-1), "LARS: weight_decay=-1. Use a number from 0 up."),
        (lambda: own.LARS(0.1, trust_coefficient="x"), "LARS: trust_coefficient='x'. Use a number"),
        (lambda: own.LAMB(0.1, beta_2=1.5), "LAMB: beta_2=1.5. Use a number from 0 up to below 1."),
        (
            lambda: own.LAMB(0.1, exclude_from_weight_decay=["("]),
            "'(' is no regular expression: missing ), unterminated subpattern at position 0. Use "
            "one, or ().",
        ),
    ],
)
def test_refused(make, message):
    with pytest.raises(Error) as raised:
        make()
    assert str(raised.value).startswith(message)
