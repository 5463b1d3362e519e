"""Replicas that train by themselves between two meetings, against NumPy and against each other."""

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfdp
from tfdp.fit import optimizers

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
        tfdp.enable(tfdp.Communication())


def split(replicas, batch=5, count=26):
    """The rows of each replica, for each step of an epoch."""
    steps = []
    for begin in range(0, count, batch):
        here = np.arange(begin, min(begin + batch, count))
        bounds = [r * len(here) // replicas for r in range(replicas + 1)]
        steps.append([here[a:b] for a, b in itertools.pairwise(bounds)])
    return steps


def by_hand(steps, every, after=0, epochs=2, outer=None):
    """The same in NumPy, in float64: the weights, and the loss of each epoch.

    Args:
        steps: What `split` returns.
        outer: (rate, momentum) of an outer SGD with Nesterov.
    """
    x, y = (part.astype("float64") for part in rows())
    replicas, count = len(steps[0]), sum(len(part) for parts in steps for part in parts)
    w = [START[:, None].astype("float64")] * replicas
    m = [np.zeros_like(w[0])] * replicas
    velocity, losses, step = np.zeros_like(w[0]), [], 0

    def gradient(part, weights):
        error = x[part] @ weights - y[part]
        return 2 * x[part].T @ error / len(error), float(np.sum(error**2))

    for _ in range(epochs):
        start, trained, since, squares = w[0], set(), 0, 0.0
        for number, parts in enumerate(steps, 1):
            together = step < after
            if together:
                parts = [np.concatenate(parts)] * replicas
            for r, part in enumerate(parts):
                if len(part):
                    g, square = gradient(part, w[r])
                    squares += square / replicas if together else square
                    m[r] = MOMENTUM * m[r] - RATE * g
                    w[r] = w[r] + m[r]
                    trained.add(r)
            step, since = step + 1, since + 1
            if together:
                start, trained, since = w[0], set(), 0
            elif since == every or number == len(steps):
                mean = np.mean([w[r] for r in trained], 0)
                if outer:
                    velocity = outer[1] * velocity - outer[0] * (start - mean)
                    mean = start + outer[1] * velocity - outer[0] * (start - mean)
                w = [mean] * replicas
                start, trained, since = mean, set(), 0
        m = [np.mean(m, 0)] * replicas
        losses.append(squares / count)
    return w[0], losses


def periodic(every, **more):
    return tfdp.Communication(sync_every=every, **more)


@pytest.mark.parametrize("replicas", [pytest.param(2, marks=pytest.mark.exhaustive), 3])
@pytest.mark.parametrize(
    ("every", "after", "how"),
    [
        (4, 0, {}),
        (5, 0, {}),  # the last step alone, of which all replicas but one have no row
        (4, 3, {}),
        (2, 8, {"steps_per_execution": 4}),
        (4, 2, {"run_eagerly": True}),
        (4, 0, {"jit_compile": True}),
    ],
    ids=["apart", "one with rows", "together first", "executions", "eager", "XLA"],
)
def test_the_numbers_are_those_of_numpy(replicas, every, after, how, mirrored):
    """26 rows by 5: batches that do not divide, and in the last some replicas are empty."""
    model, history = trained(mirrored[replicas], periodic(every, sync_after=after), **how)
    weights, losses = by_hand(split(replicas), every, after)
    np.testing.assert_allclose(model.get_weights()[0], weights, atol=1e-6)
    np.testing.assert_allclose(history["loss"], losses, rtol=1e-5)
    assert int(model.optimizer.iterations) == 12


def test_an_outer_optimizer_moves_by_the_difference(mirrored):
    """Its sign, too: a wrong one would move away."""
    outer = keras.optimizers.SGD(0.7, momentum=0.9, nesterov=True)
    model, _ = trained(mirrored[2], periodic(2, outer=outer), epochs=3)
    weights, _ = by_hand(split(2), 2, epochs=3, outer=(0.7, 0.9))
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


def test_what_optimizers_keep_for_weights_is_told_from_what_they_count_by(one_device):
    """Of a weight that is a single number the momentum is one too."""
    with one_device.scope():
        model = keras.Sequential([keras.Input((WIDTH,)), keras.layers.Dense(1)])
        model.temperature = model.add_weight(shape=())
        model.compile(keras.optimizers.LossScaleOptimizer(keras.optimizers.Nadam(0.1)), "mse")
        model.optimizer.build(model.trainable_variables)
    slots, numbers = optimizers.kept(model)
    names = ["dynamic_scale", "iteration", "iteration", "learning_rate", "step_counter"]
    assert sorted(v.name for v in numbers) == names
    # And Nadam's product, and the rate of the loss scale's own, which nobody uses.
    assert len(slots) == 2 * len(model.trainable_variables) + 2


class Killed(Exception):
    pass


class Kill(keras.callbacks.Callback):
    """Stands for the end of the process."""

    def __init__(self, after):
        super().__init__()
        self.left = after

    def on_train_batch_end(self, batch, logs=None):
        self.left -= 1
        if self.left == 0:
            raise Killed


def deep(strategy, folder, kill=None, save_freq=1, communication=None, epochs=2):
    """Trains what keeps state of every kind; returns the model, or None if killed."""
    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(3)
    tfdp.enable(communication or periodic(4, outer=keras.optimizers.SGD(0.7, momentum=0.9)))
    try:
        with strategy.scope():
            hidden = [keras.layers.Dense(8), keras.layers.BatchNormalization()]
            hidden += [keras.layers.Dropout(0.2), keras.layers.Dense(1)]
            model = keras.Sequential([keras.Input((WIDTH,)), *hidden])
            adam = keras.optimizers.Adam(0.05, use_ema=True, ema_momentum=0.9)
            scaled = keras.optimizers.LossScaleOptimizer(adam, dynamic_growth_steps=7)
            model.compile(scaled, "mse", metrics=["mae"], jit_compile=False)
        callbacks = [tfdp.callbacks.BackupAndRestore(folder, save_freq=save_freq)] if folder else []
        callbacks += [Kill(kill)] if kill else []
        data = tf.data.Dataset.from_tensor_slices(rows(62)).batch(5)
        model.fit(data, epochs=epochs, validation_data=rows(7), callbacks=callbacks, verbose=0)
        return model
    except Killed:
        return None
    finally:
        tfdp.enable(tfdp.Communication())


def facts(model):
    state = [np.asarray(v).tolist() for v in [*model.variables, *model.optimizer.variables]]
    return state, model.history.history


def test_a_training_goes_on_within_an_epoch_as_if_nothing_had_happened(mirrored, tmp_path):
    """Killed between two meetings, it goes on from the one before: to the bit."""
    for kill in (6, 7, 5):  # at steps 6, 11, and 13 of 26
        assert deep(mirrored[2], tmp_path, kill) is None
    assert facts(deep(mirrored[2], tmp_path)) == facts(deep(mirrored[2], None))


@pytest.mark.exhaustive  # test_recovery goes on with other replicas
def test_it_goes_on_with_other_replicas_and_other_periods(mirrored, tmp_path):
    """What each optimizer kept for itself becomes one: replicas in sync must be equal."""
    assert deep(mirrored[2], tmp_path, kill=10) is None
    model = deep(mirrored[3], tmp_path, communication=tfdp.Communication())
    for variable in [*model.variables, *model.optimizer.variables]:
        copies = [np.asarray(v) for v in mirrored[3].experimental_local_results(variable.value)]
        for copy in copies[1:]:
            np.testing.assert_array_equal(copy, copies[0])


def test_all_replicas_are_equal_where_a_callback_reads_them(mirrored, tmp_path):
    """At the end of an epoch, and where ModelCheckpoint saves within one."""
    strategy, seen = mirrored[2], []

    def differ(model):
        variables = [*model.variables, *model.optimizer.variables]
        copies = [strategy.experimental_local_results(v.value) for v in variables]
        return any(np.any(np.asarray(c[0]) != np.asarray(c[-1])) for c in copies)

    class Look(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            seen.append(differ(self.model))

        def on_epoch_end(self, epoch, logs=None):
            seen.append(differ(self.model))

    every_three = keras.callbacks.ModelCheckpoint(tmp_path / "{batch}.keras", save_freq=3)
    trained(strategy, periodic(8), epochs=1, callbacks=[Look(), every_three])
    apart, equal = True, False
    assert seen == [apart, apart, equal, apart, apart, equal, equal]


class Own(keras.Sequential):
    """A train_step of one's own."""

    def train_step(self, data):
        x, y = data
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(self(x, training=True) - y))
        weights = self.trainable_variables
        self.optimizer.apply(tape.gradient(loss, weights), weights)
        return {"loss": loss}


@pytest.mark.parametrize("how", [{}, {"jit_compile": True}], ids=["", "XLA"])
def test_a_train_step_of_ones_own_trains_apart(how, mirrored):
    tfdp.enable(periodic(4))
    try:
        with mirrored[2].scope():
            model = Own([keras.Input((WIDTH,)), keras.layers.Dense(1, use_bias=False)])
            model.set_weights([START[:, None]])
            sgd = keras.optimizers.SGD(RATE, momentum=MOMENTUM)
            model.compile(sgd, **{"jit_compile": False, **how})
        data = tf.data.Dataset.from_tensor_slices(rows()).batch(5)
        model.fit(data, epochs=2, verbose=0)
    finally:
        tfdp.enable(tfdp.Communication())
    np.testing.assert_allclose(model.get_weights()[0], by_hand(split(2), 4)[0], atol=1e-6)


def test_differences_travel_compressed(mirrored):
    """Of weights 2**-8 would be lost; of what a period has made of them it is little."""
    model, _ = trained(mirrored[2], periodic(4, compression="bfloat16"))
    weights, _ = by_hand(split(2), 4)
    assert np.any(model.get_weights()[0] != weights)
    moved = np.max(np.abs(weights - START[:, None]))
    np.testing.assert_allclose(model.get_weights()[0], weights, atol=2**-8 * moved)


def test_what_is_given_up_is_said_once(mirrored, one_device, caplog):
    with caplog.at_level("INFO", "tfdp"):
        trained(mirrored[2], periodic(4, sync_after=100))
    said = [r.getMessage() for r in caplog.records if "sync_every" in r.getMessage()]
    assert len(said) == 1
    assert said[0].startswith("sync_every=4: after 100 steps together replicas train by themselves")
    caplog.clear()
    with caplog.at_level("INFO", "tfdp"):
        alone, _ = trained(one_device, periodic(4))
    assert "sync_every=4 changes nothing here" in caplog.text
    np.testing.assert_array_equal(alone.get_weights(), trained(one_device)[0].get_weights())


def test_what_cannot_be_is_one_line(mirrored):
    for options, message in [
        ({"sync_every": 0}, "sync_every=0"),
        ({"sync_every": 2.5}, "sync_every=2.5"),
        ({"sync_every": 4, "sync_after": -1}, "sync_after=-1"),
        ({"sync_every": 4, "outer": "sgd"}, "outer='sgd'"),
        ({"outer": keras.optimizers.SGD(0.7)}, "needs sync_every"),
    ]:
        with pytest.raises(ValueError, match=message):
            tfdp.Communication(**options)
    with pytest.raises(tfdp.Error, match=r"GradientNoiseScale.*sync_every=4"):
        trained(mirrored[2], periodic(4), callbacks=[tfdp.callbacks.GradientNoiseScale()])
