"""enable() and disable(), and what is said to a model that is in the wrong scope."""

import contextlib

import keras
import numpy as np
import pytest
import tensorflow as tf

from fit import cases
from tfdp import fit
from tfdp.compat import compiled
from tfdp.fit import dispatch
from tfdp.fit.replicas import engine


@pytest.fixture(autouse=True)
def enabled():
    fit.enable()


def test_disable_restores_keras_own_methods():
    fit.disable()
    before = {name: getattr(keras.Model, name) for name in dispatch.METHODS}
    fit.enable()
    fit.enable()
    assert all(getattr(keras.Model, name) is not before[name] for name in dispatch.METHODS)
    fit.disable()
    assert {name: getattr(keras.Model, name) for name in dispatch.METHODS} == before
    assert not any(
        name in vars(keras.Model) for name in (*dispatch.METHODS, compiled.RESOLVE_AUTO_JIT)
    )


@pytest.mark.parametrize("gpus", [False, True])
def test_auto_means_xla_where_there_are_gpus(gpus, mirrored, monkeypatch):
    monkeypatch.setattr(dispatch, "_has_gpus", lambda: gpus)
    with mirrored[2].scope():
        model = cases.classifier(jit_compile="auto")
        off = cases.classifier(jit_compile=False)
    assert model.jit_compile is gpus
    assert off.jit_compile is False
    fit.disable()
    with mirrored[2].scope():
        assert cases.classifier(jit_compile="auto").jit_compile is False


def test_a_model_without_a_strategy_keeps_keras_own_code(monkeypatch):
    monkeypatch.setattr(dispatch.replicas_engine, "SyncTrainer", None)  # would fail if it were used
    model = cases.classifier()
    model.fit(**cases.array_fit()(), verbose=0)
    assert dispatch.trainer_of(model) is None


class Counting(keras.Model):
    """Overrides fit and calls super, as a user may."""

    def __init__(self, **options):
        super().__init__(**options)
        self.head = keras.layers.Dense(cases.CLASSES, activation="softmax")
        self.calls = 0

    def call(self, inputs):
        return self.head(inputs)

    def fit(self, *args, **kwargs):
        self.calls += 1
        return super().fit(*args, **kwargs)


def test_a_model_that_each_of_several_tasks_trains_alone_is_said_once(caplog, mirrored):
    x, y = cases.arrays(4)
    fit.set_several("each of the 2 workers trains it by itself, on all rows.")
    with mirrored[2].scope():
        shared = cases.classifier()
    shared.fit(x, y, verbose=0)
    assert not [one for one in caplog.records if one.name == "tfdp"]
    alone = cases.classifier()
    alone.evaluate(x, y, verbose=0)
    alone.fit(x, y, verbose=0)
    cases.classifier().fit(x, y, verbose=0)
    # TensorFlow may warn too, of graphs that are traced again: where other tests have run before.
    (said,) = [one for one in caplog.records if one.name == "tfdp"]
    assert said.getMessage().startswith(
        f"Model {alone.name!r} was made without a strategy: each of the 2 workers trains it by "
        "itself, on all rows. To train one model on all of them, "
    )


def test_super_fit_reaches_the_trainer(mirrored):
    with mirrored[2].scope():
        model = Counting()
        model.compile(cases.sgd(), "sparse_categorical_crossentropy")
    model.fit(**cases.array_fit()(), verbose=0)
    assert model.calls == 1
    assert isinstance(dispatch.trainer_of(model), engine.SyncTrainer)


def test_a_loaded_model_is_trained_under_the_scope_it_is_loaded_in(mirrored, tmp_path):
    with mirrored[2].scope():
        model = cases.classifier(optimizer=keras.optimizers.Adam(0.01))
    model.fit(**cases.array_fit()(), verbose=0)
    model.save(tmp_path / "m.keras")
    with mirrored[2].scope():
        loaded = keras.models.load_model(tmp_path / "m.keras")
    a = model.fit(**cases.array_fit()(), verbose=0, shuffle=False).history["loss"]
    b = loaded.fit(**cases.array_fit()(), verbose=0, shuffle=False).history["loss"]
    assert b == pytest.approx(a, abs=1e-5)
    alone = keras.models.load_model(tmp_path / "m.keras")
    assert alone.optimizer.iterations.numpy() == 4


def test_fit_again_goes_on_and_recompile_is_noticed(mirrored):
    with mirrored[2].scope():
        model = cases.classifier()
        model.fit(**cases.array_fit()(), verbose=0)
        model.fit(**cases.array_fit()(), verbose=0)
        assert model.optimizer.iterations.numpy() == 8
        top = keras.metrics.SparseTopKCategoricalAccuracy(2, name="top")
        model.compile(cases.sgd(), "sparse_categorical_crossentropy", metrics=["accuracy", top])
    history = model.fit(**cases.array_fit()(), verbose=0).history
    assert list(history) == ["accuracy", "loss", "top"]
    assert model.optimizer.iterations.numpy() == 4


def test_wrong_scopes(mirrored, one_device):
    data = cases.array_fit()()
    outside = cases.classifier()
    with mirrored[2].scope(), pytest.raises(ValueError, match=r"made outside.*Write:  with strat"):
        outside.fit(**data, verbose=0)
    with mirrored[2].scope():
        inside = cases.classifier()
    with mirrored[3].scope(), pytest.raises(ValueError, match="inside another's"):
        inside.fit(**data, verbose=0)
    with mirrored[2].scope():
        late = cases.classifier()
    late.compile(cases.sgd(), "sparse_categorical_crossentropy")
    with pytest.raises(ValueError, match=r"compiled with an optimizer.*Write:  with strat"):
        late.fit(**data, verbose=0)
    layer = keras.layers.Dense(4)
    layer.build((None, cases.FEATURES))
    with mirrored[2].scope():
        mixed = cases.classifier(layer)
    with pytest.raises(ValueError, match="its variable"):
        mixed.fit(**data, verbose=0)
    with mirrored[2].scope():
        uncompiled = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    with pytest.raises(ValueError, match="compile"):
        uncompiled.fit(**data)


def test_fit_inside_its_own_scope(mirrored):
    with mirrored[2].scope():
        model = cases.classifier()
        model.fit(**cases.array_fit()(), verbose=0)
        model.evaluate(**cases.array_fit()(), verbose=0)
        assert model.predict(cases.arrays()[0], verbose=0).shape == (cases.ROWS, cases.CLASSES)


def test_one_mirrored_replica_agrees_with_none(mirrored):
    fit.disable()
    case = cases.Case("one", cases.classifier, cases.array_fit(), predicts=True)
    expected = cases.run(case)
    fit.enable()
    found = cases.differences(expected, cases.run(case, mirrored[1]))
    assert max(found.values()) <= 1e-6


def test_other_strategies_are_left_to_keras():
    strategy = tf.distribute.experimental.CentralStorageStrategy(["cpu:0", "cpu:1"])
    with strategy.scope():
        model = cases.classifier()
    assert dispatch.trainer_of(model) is None


def two_optimizers():
    inputs = keras.Input((6,))
    hidden = keras.layers.Dense(4, "tanh")(inputs)
    model = cases.TwoOptimizers(inputs, keras.layers.Dense(1)(hidden))
    model.compile(keras.optimizers.SGD(0.1), "mse")
    model.second = keras.optimizers.Adam(0.01)
    return model


def autoencoder():
    model = cases.Autoencoder()
    model.compile(keras.optimizers.Adam(0.01))
    return model


def own_loss():
    inputs = keras.Input((6,))
    model = cases.UnusedLoss(inputs, keras.layers.Dense(1)(inputs))
    model.compile("adam", "mse")
    return model


@pytest.mark.parametrize("build", [autoencoder, own_loss, two_optimizers])
def test_models_that_keras_trains(build, mirrored):
    x, _ = cases.arrays(40)
    target = None if build is autoencoder else x.sum(axis=1, keepdims=True)

    fit.disable()
    expected = cases.trained_weights(build, contextlib.nullcontext(), x, target)
    fit.enable()
    found = cases.trained_weights(build, mirrored[2].scope(), x, target)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_a_model_that_nothing_builds(mirrored):
    fit.enable()
    with mirrored[2].scope():
        model = autoencoder()
        model.extra = keras.layers.Dense(3)
    with pytest.raises(ValueError, match=r"has no call.* is not built: give it a keras.Input"):
        model.fit(cases.arrays(8)[0], verbose=0)
