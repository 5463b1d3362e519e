"""What scripts do around fit: other libraries, threads, copies, several strategies and models."""

import copy
import gc
import logging
import pickle
import threading
import weakref

import keras
import numpy as np
import pytest
import tensorflow as tf

from fit import cases, script_cases
from tfdp import fit
from tfdp.compat import graphs
from tfdp.fit import dispatch
from tfdp.fit import feed as feed_lib


@pytest.fixture(autouse=True)
def enabled():
    fit.enable()
    yield
    fit.disable()
    fit.enable()


@pytest.fixture
def patched():
    """Let a test put something in the place of keras.Model.fit, as a logger of runs does."""
    calls = []

    def patch():
        before = keras.Model.fit

        def logged(self, *args, **kwargs):
            calls.append(self)
            return before(self, *args, **kwargs)

        logged.__wrapped__ = before
        keras.Model.fit = logged
        return lambda: setattr(keras.Model, "fit", before)

    fit.disable()
    yield patch, calls
    if "fit" in vars(keras.Model):
        del keras.Model.fit
    dispatch._installed.pop("fit", None)


def trained(model):
    model.fit(**cases.array_fit()(), verbose=0)
    return isinstance(vars(model).get("_tfdp_trainer"), dispatch.replicas_engine.SyncTrainer)


@pytest.mark.parametrize("first", ["tfdp", "other"])
def test_another_library_replaces_fit(first, patched, mirrored):
    patch, calls = patched
    if first == "tfdp":
        fit.enable()
    undo = patch()
    others = vars(keras.Model)["fit"]
    fit.enable()
    with mirrored[2].scope():
        model = cases.classifier()
    assert trained(model)
    # Around tfdp it sees every fit; inside it, those without a strategy.
    assert calls == ([model] if first == "tfdp" else [])
    alone = cases.classifier()
    alone.fit(**cases.array_fit()(), verbose=0)
    assert calls[-1] is alone
    # disable() leaves the other library's method, and tfdp's does nothing any more.
    fit.disable()
    assert vars(keras.Model)["fit"] is others
    alone.fit(**cases.array_fit()(), verbose=0)
    assert calls.count(alone) == 2
    fit.enable()
    assert trained(model)
    if first == "tfdp":
        undo()
        fit.enable()
        assert trained(model)


def test_models_that_nobody_holds_are_freed(mirrored):
    alive = []
    for _ in range(3):
        with mirrored[2].scope():
            model = cases.classifier()
        model.fit(**cases.array_fit()(), validation_data=cases.arrays(9), verbose=0)
        model.predict(cases.arrays()[0], verbose=0)
        model.train_on_batch(*cases.arrays())
        alive.append(weakref.ref(model))
        del model
    keras.utils.clear_session()
    gc.collect()
    assert [one() for one in alive] == [None] * 3


def test_numbers_of_variables_on_replicas(mirrored):
    """As scripts read them: TensorFlow's own variables of replicas have no __int__."""
    with mirrored[2].scope():
        model = cases.classifier()
        pair = tf.Variable([1.0, 2.0])
        flag = tf.Variable(1 + 2j)
    history = model.fit(**cases.array_fit()(), verbose=0)
    iterations = model.optimizer.iterations
    steps = int(iterations)
    assert steps == iterations.numpy() > 0
    assert float(model.optimizer.learning_rate) == pytest.approx(0.1)
    assert np.asarray(iterations) == steps
    np.testing.assert_array_equal(np.array(pair, "float64"), [1.0, 2.0])
    assert complex(flag) == 1 + 2j
    assert len(history.epoch) == 1
    fit.disable()
    assert not hasattr(type(pair), "__int__")


def test_sparse_gradients_of_a_strategy_with_collectives():
    """The strategies of conftest reduce on one device; this one is as MirroredStrategy() is."""
    name = "sparse_gradients_in_one_execution"
    case = next(case for case in script_cases.script_cases() if case.name == name)
    fit.disable()
    expected = cases.run(case)
    fit.enable()
    found = cases.run(case, tf.distribute.MirroredStrategy(["cpu:0", "cpu:1"]))
    assert max(cases.differences(expected, found).values()) <= case.tolerance


def test_a_new_strategy_for_each_trial():
    """Each over the same devices, of any number, with TensorFlow's own collectives."""
    for trial, devices in enumerate((2, 2, 3, 2)):
        strategy = tf.distribute.MirroredStrategy([f"cpu:{i}" for i in range(devices)])
        with strategy.scope():
            inputs = keras.Input((cases.FEATURES,))
            model = keras.Model(inputs, keras.layers.Dense(trial + 1)(inputs))
            model.compile(cases.sgd(), "mse")
        x, _ = cases.arrays()
        history = model.fit(x, np.ones((len(x), trial + 1)), verbose=0)
        assert np.isfinite(history.history["loss"][0])


def outcome(model, **options):
    return model.fit(**cases.array_fit()(), verbose=0, shuffle=False, **options).history["loss"]


def test_copies(mirrored):
    with mirrored[2].scope():
        model = cases.classifier(optimizer=keras.optimizers.Adam(0.01))
        outcome(model)
        clone = keras.models.clone_model(model)
        clone.compile(cases.sgd(), "sparse_categorical_crossentropy")
        pickled = pickle.loads(pickle.dumps(model))  # noqa: S301 - its own model
        deep = copy.deepcopy(model)
    weights = model.get_weights()
    expected = outcome(model)
    for other in (pickled, deep):
        assert dispatch.trainer_of(other).model is other
        assert outcome(other) == pytest.approx(expected, abs=1e-6)
    outcome(clone)
    assert model.optimizer.iterations.numpy() == 8
    assert clone.optimizer.iterations.numpy() == 4
    # A shallow copy shares the variables and trains them.
    with mirrored[2].scope():
        shallow = copy.copy(model)
    outcome(shallow)
    assert dispatch.trainer_of(shallow).model is shallow
    assert not np.allclose(model.get_weights()[0], weights[0])


def test_predict_in_a_thread_while_fit_runs(mirrored):
    with mirrored[2].scope():
        model = cases.classifier()
        other = cases.classifier()
    x, _ = cases.arrays()
    expected = other.predict(x, verbose=0)
    results = []

    class Predicts(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 0:
                self.thread = threading.Thread(
                    target=lambda: results.extend(other.predict(x, verbose=0) for _ in range(5))
                )
                self.thread.start()

        def on_train_end(self, logs=None):
            self.thread.join()

    model.fit(**cases.array_fit()(), epochs=5, verbose=0, callbacks=[Predicts()])
    assert len(results) == 5
    for result in results:
        np.testing.assert_allclose(result, expected, atol=1e-6)


def test_a_fit_inside_a_callback(mirrored):
    with mirrored[2].scope():
        model, inner = cases.classifier(), cases.classifier()
    inner.set_weights(model.get_weights())

    class Fits(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            assert outcome(inner)[0] == pytest.approx(logs["loss"], abs=1e-5)
            x, y = cases.arrays()
            self.model.evaluate(x, y, verbose=0)
            self.model.predict(x, verbose=0)

    history = model.fit(
        **cases.array_fit()(), epochs=2, shuffle=False, verbose=0, callbacks=[Fits()]
    )
    assert len(history.history["loss"]) == 2


def test_callbacks_of_the_users_making(mirrored):
    with mirrored[2].scope():
        first, second = cases.classifier(), cases.classifier()
    stop = keras.callbacks.EarlyStopping("loss", patience=1, min_delta=10.0)
    for model in (first, second):
        # min_delta: no epoch is better than the first, so that the third is never begun.
        assert len(outcome(model, epochs=9, callbacks=[stop])) == 2
    made = keras.callbacks.CallbackList([stop], add_history=True, model=first)
    first.fit(**cases.array_fit()(), epochs=9, verbose=0, callbacks=made)
    assert len(first.history.history["loss"]) == 2


def test_a_train_on_batch_makes_no_dataset(mirrored, monkeypatch):
    with mirrored[2].scope():
        model = cases.classifier()
    monkeypatch.setattr(feed_lib, "Feed", None)  # would fail if it were used
    x, y = cases.arrays()
    model.train_on_batch(x, y, class_weight={0: 1.0, 1: 2.0, 2: 1.0})
    model.test_on_batch(x, y)
    assert model.predict_on_batch(x[:7]).shape == (7, cases.CLASSES)


def test_state_after_each_call_on_a_batch(mirrored):
    x, y = script_cases.arrays()
    build = script_cases.sequential(script_cases.RowCounter)

    def state(model):
        model.train_on_batch(x[:7], y[:7])
        model.test_on_batch(x[7:10], y[7:10])
        model.predict_on_batch(x[10:15])
        model.train_on_batch(x[15:16], y[15:16])
        return model.layers[0].get_weights()

    fit.disable()
    expected = state(build())
    fit.enable()
    with mirrored[2].scope():
        model = build()
    for found, wanted in zip(state(model), expected, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-6)


@pytest.mark.parametrize("drop", [True, False])
def test_a_part_that_has_no_row_for_each_sample_is_refused(drop, mirrored):
    x, y = np.ones((20, 4), "float32"), np.ones((20, 1), "float32")
    anchors = tf.ones((5, 4))
    dataset = tf.data.Dataset.from_tensor_slices((x, y)).batch(8, drop_remainder=drop)
    dataset = dataset.map(lambda x, y: ({"x": x, "anchors": anchors}, y))
    with mirrored[2].scope():
        inputs = {name: keras.Input((4,), name=name) for name in ("x", "anchors")}
        both = keras.layers.Add()([inputs["x"], inputs["anchors"]])
        model = keras.Model(inputs, keras.layers.Dense(1)(both))
        model.compile("sgd", "mse")
    with pytest.raises((ValueError, tf.errors.InvalidArgumentError), match=r"x\[.*anchors.*batch"):
        model.fit(dataset, verbose=0)


def contrast(y_true, y_pred):
    return keras.ops.mean(keras.ops.abs(y_pred - keras.ops.mean(y_pred)))


@pytest.mark.parametrize(
    ("loss", "said"),
    [
        (keras.losses.Dice(), "compares the rows of a batch"),
        ("dice", "compares the rows of a batch"),
        (keras.losses.Circle(), "compares the rows of a batch"),
        (contrast, "returns one number for a batch"),
        ("mse", None),
    ],
)
def test_losses_over_the_whole_batch_are_said(loss, said, mirrored, caplog):
    from tfdp.fit import loss as loss_lib

    loss_lib._say_once.cache_clear()
    with mirrored[2].scope():
        model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, "sigmoid")])
        model.compile("sgd", loss)
    y = np.eye(3, dtype="float32")[np.arange(8) % 3]
    if isinstance(loss, keras.losses.Circle):
        y = (np.arange(8) % 3).astype("float32")
    with caplog.at_level(logging.WARNING, "tfdp"):
        model.fit(np.ones((8, 4), "float32"), y, batch_size=4, verbose=0)
    lines = [record.getMessage() for record in caplog.records if record.name == "tfdp"]
    assert [said in line for line in lines] == ([True] if said else [])


class OwnComputeLoss(keras.Model):
    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        return keras.ops.sum(sample_weight * (y - y_pred) ** 2) / keras.ops.sum(sample_weight)


def test_a_compute_loss_with_weights_is_said(mirrored, caplog):
    with mirrored[2].scope():
        inputs = keras.Input((4,))
        model = OwnComputeLoss(inputs, keras.layers.Dense(1)(inputs))
        model.compile("sgd", "mse")
    ones = np.ones((8, 1), "float32")
    with caplog.at_level(logging.WARNING, "tfdp"):
        model.fit(np.ones((8, 4), "float32"), ones, sample_weight=ones, verbose=0)
    assert "has a compute_loss of its own" in caplog.text


def test_random_layers_draw_anew_for_each_predicted_batch(mirrored):
    class Noise(keras.layers.Layer):
        def __init__(self):
            super().__init__()
            self.seeds = keras.random.SeedGenerator(3)

        def call(self, x):
            return x + keras.random.normal((1, 2), seed=self.seeds)

    with mirrored[2].scope():
        model = keras.Sequential([keras.Input((2,)), Noise()])
    drawn = model.predict(np.zeros((6, 2), "float32"), batch_size=2, verbose=0)
    assert len({tuple(row) for row in drawn.tolist()}) == 6


def test_counts_travel_whole_and_half_precision_as_averages():
    """A feed that tf.distribute splits: the rows of a batch are known by all replicas alone."""
    reduce = tf.distribute.ReductionToOneDevice()
    strategy = tf.distribute.MirroredStrategy(["cpu:0", "cpu:1"], cross_device_ops=reduce)
    fit.set_communication(strategy, fit.Communication(compression="float16"))
    with strategy.scope():
        model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1, use_bias=False)])
        model.compile(keras.optimizers.SGD(1e-6), "mse")
    # 300 rows: bfloat16 and float16 sums of rows of 1,000 would overflow 65,504.
    x = np.full((600, 4), 1000.0, "float32")
    data = tf.data.Dataset.from_tensor_slices((x, np.zeros((600, 1), "float32"))).batch(600)
    model.layers[0].kernel.assign(np.full((4, 1), 1e-3, "float32"))
    model.fit(strategy.experimental_distribute_dataset(data), verbose=0)
    kernel = model.layers[0].kernel.numpy()
    # gradient: 2 * 4 * 1000 = 8,000 for each weight.
    np.testing.assert_allclose(kernel, 1e-3 - 8000e-6, rtol=2e-3)


def test_an_optimizer_that_the_model_does_not_hold_is_refused(mirrored):
    """An optimizer that the model does not hold cannot be found: the error says what to do."""
    outside = keras.optimizers.SGD(0.1)

    class Step(keras.Model):
        def train_step(self, data):
            x, y = data
            with tf.GradientTape() as tape:
                loss = self.compute_loss(x, y, self(x))
            gradients = tape.gradient(loss, self.trainable_variables)
            outside.apply_gradients(zip(gradients, self.trainable_variables, strict=True))
            return {"loss": loss}

    with mirrored[2].scope():
        inputs = keras.Input((4,))
        model = Step(inputs, keras.layers.Dense(1)(inputs))
        model.compile("sgd", "mse")
    with pytest.raises(Exception, match="attribute of the model"):
        model.fit(np.ones((8, 4), "float32"), np.ones((8, 1), "float32"), verbose=0)


def test_graphs_say_what_a_value_is_made_of():
    a, b = tf.Variable(1.0), tf.Variable(2.0)
    seen = {}

    @tf.function(autograph=False)
    def look(x):
        seen["of x"] = graphs.depends_on(a + x, [x])
        seen["of a"] = graphs.depends_on(tf.sqrt(a), [x]), graphs.depends_on(tf.sqrt(a), [a])
        seen["constant"] = graphs.depends_on(tf.constant(1.0), [x])
        seen["max"] = graphs.extreme_of(tf.maximum(a, x), [a]), graphs.extreme_of(a + x, [a])
        seen["not of a"] = graphs.extreme_of(tf.maximum(b, x), [a])
        seen["added"] = graphs.adds_to(a + x, [a]), graphs.adds_to(x + b, [a])

        def branch():
            seen["in a branch"] = graphs.depends_on(2.0 * x, [x]), graphs.depends_on(b + 0, [x])
            return tf.constant(0)

        return tf.cond(x > 0, branch, lambda: tf.constant(1))

    look.get_concrete_function(tf.TensorSpec((), tf.float32))
    assert seen == {
        "of x": True,
        "of a": (False, True),
        "constant": False,
        "max": ("max", None),
        "not of a": None,
        "added": (True, False),
        "in a branch": (True, False),
    }
