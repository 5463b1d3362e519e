"""train_on_batch, test_on_batch and predict_on_batch split their batch over the replicas."""

import contextlib

import keras
import numpy as np
import pytest

from fit import cases
from tfdp import fit


def run(strategy, rows: int, reduction: str = "sum_over_batch_size"):
    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(7)
    loss = keras.losses.MeanSquaredError(reduction=reduction)

    def build():
        return cases.regressor(loss, cases.sgd(0.01))

    if strategy is None:
        model = build()
    else:
        with strategy.scope():
            model = build()
    x, y = cases.arrays(rows)[0], cases.targets(rows)
    weight = cases.weights(rows)
    return [
        model.train_on_batch(x, y),
        model.train_on_batch(x, y, sample_weight=weight, return_dict=True)["loss"],
        model.test_on_batch(x, y),
        model.test_on_batch(x, y, sample_weight=weight),
        model.predict_on_batch(x),
        *model.get_weights(),
    ]


@pytest.mark.parametrize("rows", [6, 7, 1])
@pytest.mark.parametrize(
    "reduction", ["sum_over_batch_size", pytest.param("sum", marks=pytest.mark.exhaustive)]
)
def test_batch_methods_agree_with_one_device(rows, reduction, mirrored):
    fit.disable()
    expected = run(None, rows, reduction)
    fit.enable()
    for a, b in zip(expected, run(mirrored[2], rows, reduction), strict=True):
        np.testing.assert_allclose(np.asarray(b), np.asarray(a), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("build", [cases.classifier, cases.unbuilt])
@pytest.mark.parametrize("on_batch", [False, True])
def test_predict_needs_no_labels_before_the_first_fit(build, on_batch, mirrored):
    """Losses and metrics are made at the first fit or evaluate, which count from their start."""
    x, y = cases.arrays()
    got = []
    for strategy in (None, mirrored[2]):
        fit.disable() if strategy is None else fit.enable()
        keras.utils.set_random_seed(7)
        with strategy.scope() if strategy else contextlib.nullcontext():
            model = build()
        first = model.predict_on_batch(x) if on_batch else model.predict(x, verbose=0)
        tested = model.evaluate(x, y, verbose=0)
        history = model.fit(x, y, batch_size=cases.BATCH, shuffle=False, verbose=0).history
        got.append([first, tested, *history.values(), *model.get_weights()])
    for a, b in zip(*got, strict=True):
        np.testing.assert_allclose(np.asarray(b), np.asarray(a), atol=1e-5)


def test_class_weight(mirrored):
    x, y = cases.arrays(7)
    got = []
    for strategy in (None, mirrored[2]):
        fit.disable() if strategy is None else fit.enable()
        keras.utils.set_random_seed(7)
        if strategy is None:
            model = cases.classifier()
        else:
            with strategy.scope():
                model = cases.classifier()
        got.append(model.train_on_batch(x, y, class_weight={0: 1.0, 1: 3.0, 2: 0.5}))
    np.testing.assert_allclose(got[1], got[0], atol=1e-5)


def test_several_inputs_and_outputs(mirrored):
    data = cases.towers_fit(weighted=True)()
    got = []
    for strategy in (None, mirrored[2]):
        fit.disable() if strategy is None else fit.enable()
        keras.utils.set_random_seed(7)
        if strategy is None:
            model = cases.two_towers()
        else:
            with strategy.scope():
                model = cases.two_towers()
        logs = model.train_on_batch(data["x"], data["y"], data["sample_weight"], return_dict=True)
        outputs = model.predict_on_batch(data["x"])
        got.append([*logs.values(), *outputs.values(), *model.get_weights()])
        assert list(logs) == sorted(logs)
    for a, b in zip(*got, strict=True):
        np.testing.assert_allclose(np.asarray(b), np.asarray(a), atol=1e-5)


def test_one_array_of_weights_for_the_steps_of_two_outputs(mirrored):
    """Fit refuses one array with an axis beside the rows for several outputs; this does not."""
    random = np.random.default_rng(2)
    x, weight = random.normal(size=(6, 4, 2)), random.uniform(size=(6, 4))
    y = [random.normal(size=(6, 4, 1)) for _ in range(2)]
    got = []
    for strategy in (None, mirrored[2]):
        fit.disable() if strategy is None else fit.enable()
        keras.utils.set_random_seed(7)
        with strategy.scope() if strategy else contextlib.nullcontext():
            inputs = keras.Input((4, 2))
            model = keras.Model(inputs, [keras.layers.Dense(1)(inputs) for _ in range(2)])
            model.compile(cases.sgd(), "mse")
        losses = model.train_on_batch(x, y, weight)
        got.append([losses, model.test_on_batch(x, y, weight), *model.get_weights()])
    for a, b in zip(*got, strict=True):
        np.testing.assert_allclose(np.asarray(b), np.asarray(a), atol=1e-5)
