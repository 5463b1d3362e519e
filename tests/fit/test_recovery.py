"""A fit that was killed goes on where it was: the same weights, the same history, bit for bit."""

import contextlib
import csv
import logging
import os
import signal
import sys
import tempfile
import threading

import keras
import numpy as np
import pytest
import safetensors.numpy
import tensorflow as tf

import tfdp
from tfdp import fit
from tfdp.checkpoints.store import Store
from tfdp.compat import data_adapters, distribute
from tfdp.fit import random_state

ROWS, BATCH = 44, 8  # six steps, the last of four rows
rng = np.random.default_rng(0)
X = rng.normal(size=(ROWS, 5)).astype("float32")
Y = (X[:, 0] * X[:, 1] > 0).astype("int32")
VAL = (X[:40], Y[:40])  # two steps


class Killed(Exception):
    pass


class Kill(keras.callbacks.Callback):
    """Raises at a hook, the n-th time."""

    def __init__(self, hook, number):
        super().__init__()
        self.left = number
        setattr(self, hook, self._count)

    def _count(self, *args, **kwargs):
        self.left -= 1
        if self.left == 0:
            raise Killed


class Ahead(keras.callbacks.Callback):
    """Draws NumPy's next number at the end of a step, as one who reads a batch ahead does."""

    def __init__(self, step):
        super().__init__()
        self.left = step

    def on_train_batch_end(self, batch, logs=None):
        self.left -= 1
        if self.left == 0:
            np.random.normal()


class Lives:
    """Numbers the trainings, so that what reads for a killed one draws no number of the next's."""

    def __init__(self):
        self.lock, self.now = threading.Lock(), 0

    def begin(self):
        with self.lock:
            self.now += 1

    def noise(self, life, size):
        """Return random numbers; zeros, and no draw, in a life that has ended."""
        with self.lock:
            noise = np.random.normal(size=size) if life == self.now else np.zeros(size)
        return noise.astype("float32")


LIVES = Lives()


class Counter(keras.callbacks.Callback):
    """Remembers by itself what it has seen."""

    def __init__(self):
        super().__init__()
        self.batches, self.epochs = 0, np.zeros(3)

    def on_train_batch_end(self, batch, logs=None):
        self.batches += 1

    def on_epoch_end(self, epoch, logs=None):
        self.epochs[epoch % 3] += 1

    def state_dict(self):
        return {"batches": self.batches, "epochs": self.epochs}

    def load_state_dict(self, state):
        self.batches, self.epochs = state["batches"], state["epochs"]


def data(kind):
    """Return what fit is given, made anew as a new process would."""
    whole = tf.data.Dataset.from_tensor_slices((X, Y))
    life = LIVES.now
    if kind == "arrays":
        return {"x": X, "y": Y, "batch_size": BATCH, "shuffle": False}
    if kind == "shuffled arrays":
        return {"x": X, "y": Y, "batch_size": BATCH}
    if kind == "shuffled":
        return {"x": whole.shuffle(ROWS, seed=3).batch(BATCH)}
    if kind == "endless":
        return {"x": whole.shuffle(ROWS, seed=3).repeat().batch(BATCH), "steps_per_epoch": 4}
    if kind == "generator":

        def batches():
            for step in range(100):
                yield X[step % 30 : step % 30 + BATCH], Y[step % 30 : step % 30 + BATCH]

        return {"x": batches(), "steps_per_epoch": 5}
    if kind == "drawn":

        def noisy(x):
            return x + LIVES.noise(life, x.shape)

        def with_noise(x, y):
            return tf.ensure_shape(tf.numpy_function(noisy, [x], tf.float32), (None, 5)), y

        return {"x": whole.batch(BATCH).map(with_noise).prefetch(2)}
    assert kind == "sequence"

    class Sequence(keras.utils.PyDataset):
        def __len__(self):
            return 5

        def __getitem__(self, index):
            begin = index * BATCH
            noise = LIVES.noise(life, (BATCH, 5))
            return X[begin : begin + BATCH] + noise, Y[begin : begin + BATCH]

    return {"x": Sequence(), "shuffle": False}


def regularized():
    return [
        keras.layers.Dense(8, "relu"),
        keras.layers.BatchNormalization(),
        keras.layers.Dropout(0.3),
        keras.layers.Dense(2),
    ]


def scaled_adam():
    adam = keras.optimizers.Adam(0.05, use_ema=True, ema_momentum=0.9)
    return keras.optimizers.LossScaleOptimizer(adam, dynamic_growth_steps=5)


def deciding():
    """Return callbacks that decide by what they remember."""
    return [
        keras.callbacks.EarlyStopping("loss", patience=3, restore_best_weights=True),
        keras.callbacks.ReduceLROnPlateau("loss", patience=1, factor=0.5, min_delta=0.05),
    ]


def train(
    strategy,
    folder,
    kind="shuffled",
    kill=None,
    epochs=4,
    more=(),
    backup=None,
    layers=regularized,
    optimizer=scaled_adam,
    callbacks=deciding,
    **options,
):
    """Train in what stands for a process of its own; return the model, or None if killed."""
    LIVES.begin()
    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(11)
    with strategy.scope():
        model = keras.Sequential([keras.Input((5,)), *layers()])
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(optimizer(), loss, metrics=["accuracy"], **options)
    given = [*callbacks(), *more]
    if backup is not False:
        backup = {"save_freq": 1, "keep": 3, **(backup or {})}
        given.insert(0, tfdp.callbacks.BackupAndRestore(folder, **backup))
    if kill:
        given.append(Kill(*kill))
    try:
        model.fit(**data(kind), epochs=epochs, validation_data=VAL, callbacks=given, verbose=0)
    except Killed:
        return None
    return model


def facts(model):
    """Return all that two trainings have to have in common."""
    weights = [np.asarray(v).tobytes() for v in model.variables]
    state = [np.asarray(v).tobytes() for v in model.optimizer.variables]
    return weights, state, model.history.epoch, model.history.history


_UNDISTURBED = {}


def undisturbed(strategy, *args, **how):
    """Return the facts of a training that nobody kills; each is run once."""
    key = (id(strategy), repr(args), repr(sorted(how.items())))
    if key not in _UNDISTURBED:
        with tempfile.TemporaryDirectory() as folder:
            _UNDISTURBED[key] = facts(train(strategy, folder, *args, **how))
    return _UNDISTURBED[key]


@pytest.fixture(autouse=True)
def enabled():
    fit.enable()
    yield
    fit.disable()


@pytest.fixture(params=["one_device", "mirrored"])
def strategy(request, one_device, mirrored):
    return one_device if request.param == "one_device" else mirrored[2]


# What replicas save and restore, others of these tests show.
ON_REPLICAS_AGAIN = pytest.mark.parametrize(
    "strategy",
    ["one_device", pytest.param("mirrored", marks=pytest.mark.exhaustive)],
    indirect=True,
)


KILLS = {
    "first step": ("on_train_batch_end", 1),
    "end of an epoch": ("on_epoch_end", 2),
    "validation": ("on_test_batch_begin", 2),
    "last step": ("on_train_batch_end", 24),
}
# What other tests show, with other data.
MORE_KILLS = {
    "within an epoch": ("on_train_batch_end", 9),
    "beginning of an epoch": ("on_epoch_begin", 3),
}


def named(shown, again):
    """Return the parameter sets of two tables, the second for --all alone."""
    return [
        *(pytest.param(value, id=name) for name, value in shown.items()),
        *(
            pytest.param(value, id=name, marks=pytest.mark.exhaustive)
            for name, value in again.items()
        ),
    ]


@pytest.mark.parametrize("kill", named(KILLS, MORE_KILLS))
def test_a_killed_training_ends_as_one_that_was_not(kill, one_device, tmp_path):
    assert train(one_device, tmp_path, kill=kill) is None
    assert facts(train(one_device, tmp_path)) == undisturbed(one_device)


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param("arrays", marks=pytest.mark.exhaustive),  # shuffled ones go on, too
        *("shuffled arrays", "endless", "generator", "sequence"),
    ],
)
def test_each_kind_of_input_goes_on_at_its_batch(kind, one_device, tmp_path):
    assert train(one_device, tmp_path, kind, kill=("on_train_batch_end", 7)) is None
    assert facts(train(one_device, tmp_path, kind)) == undisturbed(one_device, kind)


@pytest.mark.parametrize("kind", ["sequence", "drawn"])
def test_a_dataset_that_draws_numbers_may_be_read_ahead(kind, one_device, tmp_path):
    """The numbers in a checkpoint stand where a reader left them that was ahead of the steps."""
    ahead = Ahead(6)
    assert train(one_device, tmp_path, kind, ("on_train_batch_end", 7), more=[ahead]) is None
    assert facts(train(one_device, tmp_path, kind)) == undisturbed(one_device, kind)


@pytest.mark.parametrize("replicas", [1, 2, pytest.param(3, marks=pytest.mark.exhaustive)])
def test_one_killed_when_all_steps_of_an_epoch_are_done_sums_them_up_anew(
    replicas, mirrored, tmp_path
):
    """The statistics of the replicas are put together at the end of an epoch: no step is left."""
    at_once = {"backup": {"asynchronous": False}}
    kill = ("on_test_begin", 1)
    assert train(mirrored[replicas], tmp_path, epochs=2, kill=kill, **at_once) is None
    assert Store(tmp_path).newest().place.name.endswith("6-0")
    found = facts(train(mirrored[replicas], tmp_path, epochs=2, **at_once))
    assert found == undisturbed(mirrored[replicas], epochs=2)


@pytest.mark.exhaustive  # each of them has a test above
def test_many_kills_change_nothing(mirrored, tmp_path):
    more = [("on_epoch_end", 1), ("on_test_batch_begin", 1)]
    for kill in [("on_train_batch_end", number) for number in (4, 5, 1, 6)] + more:
        assert train(mirrored[2], tmp_path, kill=kill) is None
    assert facts(train(mirrored[2], tmp_path)) == undisturbed(mirrored[2])


@pytest.mark.parametrize(
    "options",
    [
        {"steps_per_execution": 2},
        {"run_eagerly": True},
        # The step is another program, and what is saved of it the same.
        pytest.param({"jit_compile": True}, marks=pytest.mark.exhaustive),
    ],
)
def test_each_way_to_run_steps_goes_on(options, one_device, tmp_path):
    kill = ("on_train_batch_end", 4)
    assert train(one_device, tmp_path, epochs=2, kill=kill, **options) is None
    found = facts(train(one_device, tmp_path, epochs=2, **options))
    assert found == undisturbed(one_device, epochs=2, **options)


def test_saving_changes_nothing(strategy, tmp_path):
    assert facts(train(strategy, tmp_path, backup=False)) == undisturbed(strategy)


def warmed_up_lars():
    """The rate of each step is another, and the last is that of a loss scale that has grown."""
    schedule = keras.optimizers.schedules.CosineDecay(4.0, 24)
    lars = tfdp.optimizers.LARS(tfdp.schedules.Warmup(schedule, 11, 0.1), weight_decay=1e-3)
    return keras.optimizers.LossScaleOptimizer(lars, dynamic_growth_steps=5)


def warmed_up_lamb():
    return tfdp.optimizers.LAMB(tfdp.schedules.Warmup(0.05, 11), weight_decay=1e-2)


def none():
    return []


@ON_REPLICAS_AGAIN
@pytest.mark.parametrize(
    "optimizer",
    [warmed_up_lars, pytest.param(warmed_up_lamb, marks=pytest.mark.exhaustive)],
)
def test_a_warm_up_goes_on_at_its_step(optimizer, strategy, tmp_path):
    how = {"optimizer": optimizer, "callbacks": none}
    assert train(strategy, tmp_path, kill=("on_train_batch_end", 9), **how) is None
    assert facts(train(strategy, tmp_path, **how)) == undisturbed(strategy, **how)


def test_keras_own_callback_does_the_same(one_device, tmp_path):
    def own(folder):
        return [keras.callbacks.BackupAndRestore(str(folder), save_freq=2)]

    kill = ("on_train_batch_end", 9)
    again = {"backup": False, "more": own(tmp_path / "b")}
    assert train(one_device, tmp_path, kill=kill, **again) is None
    again = {"backup": False, "more": own(tmp_path / "b")}
    assert facts(train(one_device, tmp_path, **again)) == undisturbed(one_device)


def test_early_stopping_stops_where_it_would_have(one_device, tmp_path):
    more = {"epochs": 30}
    *_, epochs, _ = expected = undisturbed(one_device, **more)
    assert 4 < len(epochs) < 30
    for number in (3, 20, 40):
        if train(one_device, tmp_path, kill=("on_train_batch_end", number), **more):
            break
    assert facts(train(one_device, tmp_path, **more)) == expected


def test_a_callback_of_ones_own_is_asked_what_it_remembers(one_device, tmp_path):
    kill = ("on_train_batch_end", 10)
    assert train(one_device, tmp_path, kill=kill, more=[Counter()]) is None
    counter = Counter()
    train(one_device, tmp_path, more=[counter])
    assert (counter.batches, counter.epochs.tolist()) == (24, [2, 1, 1])


class Sums(keras.layers.Layer):
    """Adds up what passes through, by column: a vector that replicas' changes are added to."""

    def build(self, shape):
        self.sums = self.add_weight(
            shape=(shape[-1],), initializer="zeros", trainable=False, aggregation="sum"
        )

    def call(self, x, training=False):
        if training:
            self.sums.assign(self.sums + keras.ops.sum(x, axis=0))
        return x


@pytest.mark.parametrize(
    "number", [*(pytest.param(n, marks=pytest.mark.exhaustive) for n in (1, 4)), 8]
)
def test_what_replicas_add_up_goes_on(number, mirrored, tmp_path):
    counting = {"layers": lambda: [Sums(), keras.layers.Dense(2)], "epochs": 2}
    expected = facts(train(mirrored[2], tmp_path / "a", **counting))
    kill = ("on_train_batch_end", number)
    assert train(mirrored[2], tmp_path / "b", kill=kill, **counting) is None
    assert facts(train(mirrored[2], tmp_path / "b", **counting)) == expected


def test_callbacks_that_begin_later_find_what_was_restored(one_device, tmp_path):
    class Look(keras.callbacks.Callback):
        found = None

        def on_train_begin(self, logs=None):
            self.found = int(self.model.optimizer.iterations)

    kill, at_once = ("on_train_batch_end", 9), {"asynchronous": False}
    assert train(one_device, tmp_path, kill=kill, more=[Look()], backup=at_once) is None
    look = Look()
    train(one_device, tmp_path, more=[look])
    assert look.found == 8


class TwoOptimizers(keras.Model):
    """Its second optimizer is built by the first step."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.first, self.second = keras.layers.Dense(4), keras.layers.Dense(2)
        self.other = keras.optimizers.Adam(0.1)

    def call(self, x):
        return self.second(self.first(x))

    def train_step(self, data):
        x, y = data
        with tf.GradientTape() as tape:
            loss = self.compute_loss(x, y, self(x, training=True))
        own = [*self.second.trainable_variables[::-1], *self.first.trainable_variables]
        gradients = tape.gradient(loss, own)
        self.other.apply(gradients[:2], own[:2])
        self.optimizer.apply(gradients[2:], own[2:])
        return {"loss": loss}


@pytest.mark.parametrize("replicas", [1, 2])
def test_optimizers_that_the_first_step_builds_come_back(replicas, one_device, mirrored, tmp_path):
    strategy = one_device if replicas == 1 else mirrored[2]

    def run(folder, kill=None):
        keras.utils.clear_session(free_memory=False)
        keras.utils.set_random_seed(11)
        with strategy.scope():
            model = TwoOptimizers()
            model.compile("adam", "mse")
        backup = tfdp.callbacks.BackupAndRestore(folder, save_freq=1)
        given = [backup, Kill(*kill)] if kill else [backup]
        try:
            model.fit(X, X[:, :2], batch_size=8, epochs=2, verbose=0, callbacks=given)
        except Killed:
            return None
        state = [*model.variables, *model.optimizer.variables, *model.other.variables]
        return [np.asarray(v).tobytes() for v in state]

    expected = run(tmp_path / "a")
    assert run(tmp_path / "b", ("on_train_batch_end", 4)) is None
    assert run(tmp_path / "b") == expected


def test_one_that_cannot_tell_is_named_once(one_device, tmp_path, caplog):
    class Remembers(keras.callbacks.Callback):
        def __init__(self):
            super().__init__()
            self.seen = 0

    with caplog.at_level(logging.INFO, "tfdp"):
        for _ in range(2):
            train(one_device, tmp_path, epochs=1, more=[Remembers()])
    assert caplog.text.count("the callback Remembers remembers: give it state_dict()") == 1


def test_a_csv_log_is_whole(one_device, tmp_path):
    path = tmp_path / "log.csv"
    kill = ("on_train_batch_end", 15)
    assert train(one_device, tmp_path / "b", kill=kill, more=[_csv(path)]) is None
    # What a killed process leaves behind its last checkpoint: a row too many, and half of one.
    path.write_text(path.read_text() + "2,0.1,0.1,0.1,0.1,0.1\n3,0.5")
    model = train(one_device, tmp_path / "b", more=[_csv(path)])
    with open(path) as file:
        rows = list(csv.DictReader(file))
    assert [int(row["epoch"]) for row in rows] == model.history.epoch
    assert [float(row["loss"]) for row in rows] == model.history.history["loss"]


def _csv(path):
    return keras.callbacks.CSVLogger(str(path))


# -- what is on the disk ------------------------------------------------------------------------


def test_a_checkpoint_is_read_without_tfdp(one_device, tmp_path):
    model = train(one_device, tmp_path, epochs=1, backup={"delete_checkpoint": False})
    newest = Store(tmp_path).newest()
    loaded = safetensors.numpy.load_file(newest.path / "state.safetensors")
    by_path = {name.split("/", 2)[2]: value for name, value in loaded.items() if "able/0" in name}
    for variable in model.layers[0].trainable_variables:
        assert by_path[variable.path].shape == tuple(variable.shape)
    assert "loss_scale_optimizer" in " ".join(by_path)
    assert not any("replica" in name and "variable" in name for name in loaded)


def test_what_each_replica_keeps_is_stored_for_each(mirrored, tmp_path):
    kill = ("on_train_batch_end", 4)
    assert train(mirrored[2], tmp_path, kill=kill) is None
    loaded = Store(tmp_path).newest().arrays()
    means = [n for n in loaded.specs if n.startswith("replica/") and "variable" in n]
    assert len({name.split("/")[1] for name in means}) == 2
    first, second = (loaded.read(n) for n in means if n.split("/")[3] == means[0].split("/")[3])
    assert not np.array_equal(first, second)


def test_checkpoints_go_when_training_has_ended(one_device, tmp_path):
    train(one_device, tmp_path / "b")
    assert not (tmp_path / "b").exists()
    model = train(one_device, tmp_path / "b", epochs=1)
    assert model.history.epoch == [0]  # as in Keras: the next fit starts anew


def test_one_that_has_ended_and_stays_trains_no_more(one_device, tmp_path):
    stays = {"backup": {"delete_checkpoint": False}}
    first = train(one_device, tmp_path, **stays)
    again = train(one_device, tmp_path, **stays)
    assert facts(again) == facts(first)
    longer = train(one_device, tmp_path, epochs=5, **stays)
    assert longer.history.epoch == [0, 1, 2, 3, 4]


def test_the_last_ones_stay(one_device, tmp_path):
    train(one_device, tmp_path, kill=("on_train_batch_end", 8), backup={"keep": 2})
    assert len(Store(tmp_path).places()) == 2


def test_another_model_is_refused_with_the_remedy(one_device, tmp_path):
    assert train(one_device, tmp_path, kill=("on_train_batch_end", 3)) is None
    with one_device.scope():
        model = keras.Sequential([keras.Input((5,)), keras.layers.Dense(9), keras.layers.Dense(2)])
        model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    backup = tfdp.callbacks.BackupAndRestore(tmp_path)
    with pytest.raises(tfdp.Error, match=r"is of another model: it holds .* Choose another"):
        model.fit(X, Y, batch_size=BATCH, verbose=0, callbacks=[backup])


@pytest.mark.parametrize(
    ("x", "y", "said"),
    [
        (X[:, :4], Y, "elements of a batch: ['float32 (5,)', 'int32 ()'] then, ['float32 (4,)'"),
        (X, Y.astype("int64"), "['float32 (5,)', 'int64 ()'] now"),
        (X[:41], Y[:41], "shape of x: [44, 5] then, [41, 5] now; shape of y: [44] then, [41] now"),
    ],
)
def test_other_data_is_refused_with_the_remedy(x, y, said, one_device, tmp_path):
    _fit(one_device, tmp_path, X, Y, Kill("on_train_batch_end", 9))
    with pytest.raises(tfdp.Error) as error:
        _fit(one_device, tmp_path, x, y)
    assert said in str(error.value)
    assert "Take those that the training began with" in str(error.value)


def test_other_values_are_said(one_device, tmp_path, caplog):
    _fit(one_device, tmp_path, X, Y, Kill("on_train_batch_end", 9))
    with caplog.at_level(logging.WARNING, "tfdp"):
        _fit(one_device, tmp_path, X + 1, Y)
    assert [r.getMessage() for r in caplog.records if "other data" in r.getMessage()] == [
        "The training goes on with other data: since its checkpoint the values of x have changed."
    ]


@pytest.mark.parametrize(
    ("own", "environment", "of_tensorflow", "said"),
    [
        ((1, 1), ("7", "8"), (1, 1), None),  # what the script sets, whatever a launcher draws
        ((1, 2), ("7", "7"), (1, 2), "began with the seed 1, and this start has 2: "),
        ((None, None), ("7", "8"), (7, 8), "began with the seed 7, and this start has 8: "),
        ((None, None), ("7", "7"), (7, 7), None),
        # By tf.random.set_seed alone: Python and NumPy draw by the launcher's.
        ((None, None), ("7", "7"), (1, 2), "the seed 7 and 1, and this start has 7 and 2: "),
    ],
)
def test_another_seed_is_said(
    own, environment, of_tensorflow, said, one_device, tmp_path, caplog, monkeypatch
):
    starts = ([Kill("on_train_batch_end", 9)], [])
    for kills, mine, drawn, tensorflow in zip(starts, own, environment, of_tensorflow, strict=True):
        monkeypatch.setattr(data_adapters, "own_seed", lambda mine=mine: mine)
        monkeypatch.setattr(distribute, "global_seed", lambda seed=tensorflow: seed)
        monkeypatch.setenv("TFDP_SEED", drawn)
        caplog.clear()
        with caplog.at_level(logging.WARNING, "tfdp"):
            _fit(one_device, tmp_path, X, Y, *kills)
    found = [message for message in caplog.messages if "began with the seed" in message]
    assert len(found) == (said is not None)
    assert all(said in message for message in found)


def _fit(strategy, folder, x, y, *callbacks):
    """Train on batches of eight rows until a callback kills it, if one does."""
    with strategy.scope():
        model = keras.Sequential([keras.Input(x.shape[1:]), keras.layers.Dense(1)])
        model.compile("sgd", "mse")
    backup = tfdp.callbacks.BackupAndRestore(str(folder / "backup"), save_freq=2)
    with contextlib.suppress(Killed):
        model.fit(x, y, batch_size=8, epochs=3, verbose=0, callbacks=[backup, *callbacks])


def test_another_batch_size_is_refused_with_the_remedy(one_device, tmp_path, monkeypatch):
    assert train(one_device, tmp_path, kill=("on_train_batch_end", 3)) is None
    monkeypatch.setattr(sys.modules[__name__], "BATCH", 4)
    with pytest.raises(tfdp.Error, match=r"of epochs of 6 steps, and these have 11: the data or"):
        train(one_device, tmp_path)


@pytest.mark.parametrize(
    ("wrong", "problem"),
    [
        ({"save_freq": "often"}, "use 'epoch' or a number of steps"),
        ({"save_freq": -1}, "use 'epoch' or a number of steps"),
        ({"save_seconds": 0}, "use a positive number of seconds"),
        ({"keep": 0}, "use 1 or more"),
    ],
)
def test_settings_that_cannot_be_are_refused(wrong, problem, tmp_path):
    with pytest.raises(tfdp.Error, match=problem):
        tfdp.callbacks.BackupAndRestore(tmp_path, **wrong)


def test_it_saves_by_the_clock_too(one_device, tmp_path):
    train(
        one_device,
        tmp_path,
        epochs=1,
        kill=("on_epoch_end", 1),
        backup={"save_freq": "epoch", "save_seconds": 1e-6, "asynchronous": False},
    )
    assert [place.step for place in Store(tmp_path).places()] == [4, 5, 6]


# -- other numbers of replicas ------------------------------------------------------------------


def test_other_numbers_of_replicas_go_on_with_the_same_batches(one_device, mirrored, tmp_path):
    """Without Dropout, whose masks are those of replicas: 2, 1, 3 and 2 replicas are one device."""
    undisturbed = _plain(one_device, tmp_path / "a")
    for strategy, kill in [(mirrored[2], 4), (one_device, 5), (mirrored[3], 6)]:
        assert _plain(strategy, tmp_path / "b", ("on_train_batch_end", kill)) is None
    ended = _plain(mirrored[2], tmp_path / "b")
    assert ended.history.epoch == undisturbed.history.epoch
    for ours, theirs in zip(ended.get_weights(), undisturbed.get_weights(), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)
    for name, values in undisturbed.history.history.items():
        np.testing.assert_allclose(ended.history.history[name], values, rtol=1e-5)


def _plain(strategy, folder, kill=None):
    return train(
        strategy,
        folder,
        kill=kill,
        layers=lambda: [keras.layers.Dense(8, "tanh"), keras.layers.Dense(2)],
        optimizer=lambda: keras.optimizers.SGD(0.1, momentum=0.9),
        callbacks=list,
    )


# -- SIGTERM ------------------------------------------------------------------------------------


class Terminate(keras.callbacks.Callback):
    """Sends SIGTERM to this process at a hook, the n-th time; twice."""

    def __init__(self, hook, number):
        super().__init__()
        self.left = number
        setattr(self, hook, self._count)

    def _count(self, *args, **kwargs):
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)


MOMENTS = {
    "start": ("on_train_begin", 1),
    "step": ("on_train_batch_end", 9),
    "validation": ("on_test_batch_end", 3),
}
# What a kill shows at these.
MORE_MOMENTS = {
    "end of an epoch": ("on_epoch_end", 2),
    "beginning of an epoch": ("on_epoch_begin", 2),
}


@pytest.mark.parametrize("moment", named(MOMENTS, MORE_MOMENTS))
def test_sigterm_saves_and_ends_with_143(moment, one_device, tmp_path):
    rare = {"backup": {"save_freq": "epoch"}}
    with pytest.raises(SystemExit) as ended:
        train(one_device, tmp_path, more=[Terminate(*moment)], **rare)
    assert ended.value.code == 143
    assert Store(tmp_path).newest() is not None
    assert facts(train(one_device, tmp_path, **rare)) == undisturbed(one_device)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


class Traced(keras.layers.Layer):
    """Sends SIGTERM to this process, once, while the training step is traced."""

    armed = False

    def call(self, x, training=None):
        if Traced.armed and training:
            Traced.armed = False
            os.kill(os.getpid(), signal.SIGTERM)
        return x


def test_sigterm_while_the_step_is_traced(one_device, tmp_path, monkeypatch):
    more = {"layers": lambda: [Traced(), *regularized()], "backup": {"save_freq": "epoch"}}
    undisturbed = facts(train(one_device, tmp_path / "a", **more))
    monkeypatch.setattr(Traced, "armed", True)
    with pytest.raises(SystemExit) as ended:
        train(one_device, tmp_path / "b", **more)
    assert ended.value.code == 143
    assert not Traced.armed
    assert Store(tmp_path / "b").newest().place.step == 1
    assert facts(train(one_device, tmp_path / "b", **more)) == undisturbed


@pytest.mark.parametrize("asynchronous", [True, False])
def test_sigterm_during_a_save(asynchronous, one_device, tmp_path, monkeypatch):
    more = {"backup": {"save_freq": 2, "asynchronous": asynchronous}}
    own, steps = Store.save, []

    def save(self, place, *arguments):
        steps.append(place.step)
        if len(steps) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return own(self, place, *arguments)

    monkeypatch.setattr(Store, "save", save)
    with pytest.raises(SystemExit) as ended:
        train(one_device, tmp_path, **more)
    monkeypatch.undo()
    assert ended.value.code == 143
    assert steps[1] <= steps[-1] == Store(tmp_path).newest().place.step < 24
    assert facts(train(one_device, tmp_path, **more)) == undisturbed(one_device)


class Noise(keras.layers.Layer):
    """Adds noise whenever it is called: a validation draws it too."""

    def __init__(self):
        super().__init__()
        self.seeds = keras.random.SeedGenerator(5)

    def call(self, x):
        return x + keras.random.normal(keras.ops.shape(x), seed=self.seeds)


@ON_REPLICAS_AGAIN
def test_a_validation_that_was_ended_draws_its_numbers_again(strategy, tmp_path):
    noisy = {"layers": lambda: [Noise(), *regularized()], "backup": {"save_freq": "epoch"}}
    expected = facts(train(strategy, tmp_path / "a", **noisy))
    with pytest.raises(SystemExit):
        train(strategy, tmp_path / "b", more=[Terminate("on_test_batch_end", 3)], **noisy)
    assert facts(train(strategy, tmp_path / "b", **noisy)) == expected


def test_random_states_come_back():
    before = random_state.plain(random_state.now())
    drawn = np.random.normal(size=3)
    random_state.take(before)
    np.testing.assert_array_equal(np.random.normal(size=3), drawn)
