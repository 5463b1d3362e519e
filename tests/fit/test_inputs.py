"""Inputs that only make sense with a strategy at hand, and what is said about them."""

import functools
import itertools
import logging
import operator
import threading

import keras
import numpy as np
import pytest
import tensorflow as tf

from fit import cases
from tfdp import fit
from tfdp.compat import data_adapters
from tfdp.fit import feed as feed_lib
from tfdp.fit import split as split_lib

SIZES = [6, 6, 5, 1]


def distributed(strategy):
    return strategy.experimental_distribute_dataset(cases.known(SIZES))


def from_function(strategy):
    return strategy.distribute_datasets_from_function(per_replica)


def per_replica(context):
    """Return the parts of the batches that two replicas get, one after the other."""
    assert context.num_replicas_in_sync == 2
    return cases.batches([part for size in SIZES for part in (size // 2, size - size // 2)])


def masked_batches(sizes):
    given = cases.masked_fit()()
    ends = np.cumsum([0, *sizes])

    def generate():
        for a, b in itertools.pairwise(ends):
            yield given["x"][a:b], given["y"][a:b]

    spec = (tf.TensorSpec((None, 5), tf.int32), tf.TensorSpec((None, 5), tf.int64))
    return tf.data.Dataset.from_generator(generate, output_signature=spec)


@pytest.mark.parametrize(
    "make",
    [distributed, pytest.param(from_function, marks=pytest.mark.exhaustive), lambda _: per_replica],
)
def test_data_that_is_split_already(make, mirrored):
    fit.disable()
    whole = cases.Case("whole", cases.classifier, lambda: {"x": cases.known(SIZES)})
    expected = cases.run(whole)
    fit.enable()

    def data():
        return {"x": make(mirrored[2])}

    split = cases.Case("split", cases.classifier, data, evaluate=data)
    found = cases.differences(expected, cases.run(split, mirrored[2]))
    assert not {name: value for name, value in found.items() if not value <= 1e-5}


def loss_scaled():
    return keras.optimizers.LossScaleOptimizer(cases.sgd())


@pytest.mark.parametrize(
    ("build", "data"),
    [
        (cases.masked_model, masked_batches),
        *(
            # Other sums.
            pytest.param(build, cases.known, marks=pytest.mark.exhaustive)
            for build in (
                lambda: cases.classifier(optimizer=loss_scaled()),
                lambda: cases.classifier(cases.LayerMetric()),
            )
        ),
    ],
    ids=["own_divisors", "loss_scale", "scalar_metric"],
)
def test_split_data_whose_sums_are_needed_first(build, data, mirrored, one_device):
    fit.enable()
    whole = cases.Case("whole", build, lambda: {"x": data(SIZES)})
    expected = cases.run(whole, one_device)

    def split_data():
        return {"x": mirrored[2].experimental_distribute_dataset(data(SIZES))}

    split = cases.Case("split", build, split_data, evaluate=split_data)
    found = cases.differences(expected, cases.run(split, mirrored[2]))
    assert not {name: value for name, value in found.items() if not value <= 1e-5}


def test_a_generator_is_read_once_and_no_further(mirrored):
    fit.enable()
    taken = []

    def generate():
        for i in range(100):
            taken.append(i)
            x, y = cases.arrays(6)
            yield x, y

    with mirrored[2].scope():
        model = cases.classifier()
    model.fit(generate(), steps_per_epoch=4, epochs=3, verbose=0)
    assert int(model.optimizer.iterations.numpy()) == 12
    assert taken == list(range(12))


class Endless(keras.utils.PyDataset):
    """Batches without an end, read ahead by threads that Keras stops between two epochs."""

    @property
    def num_batches(self):
        return None

    def __getitem__(self, index):
        return np.ones((5, 4), "float32"), np.zeros((5, 3), "float32")


def test_threads_of_a_pydataset_are_not_asked_between_epochs(mirrored):
    fit.enable()
    with mirrored[2].scope():
        model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
        model.compile("sgd", "mse")
    history = model.fit(Endless(workers=2), steps_per_epoch=8, epochs=3, verbose=0)
    assert len(history.history["loss"]) == 3


def test_a_generator_that_ends_early_ends_training_with_a_warning(mirrored):
    fit.enable()
    with mirrored[2].scope():
        model = cases.classifier()
    with pytest.warns(UserWarning, match="can be read only once.* ends after epoch 1 of 3"):
        history = model.fit(cases.generator(), epochs=3, verbose=0)
    assert int(model.optimizer.iterations.numpy()) == 4
    assert history.epoch == [0]


def test_no_phantom_step(mirrored):
    fit.enable()
    with mirrored[2].scope():
        model = cases.classifier()
    model.fit(cases.batches([6, 6, 4]), epochs=4, verbose=0)
    assert int(model.optimizer.iterations.numpy()) == 12


def test_an_endless_dataset_needs_steps(mirrored):
    fit.enable()
    with mirrored[2].scope():
        model = cases.classifier()
    with pytest.raises(ValueError, match="give steps_per_epoch="):
        model.fit(cases.dataset().repeat(), verbose=0)


def test_an_endless_function_needs_steps(mirrored):
    fit.enable()
    for replicas in (1, 2):
        with mirrored[replicas].scope():
            model = cases.classifier()
        with pytest.raises(ValueError, match="give steps_per_epoch="):
            model.fit(lambda context: cases.dataset().repeat(), verbose=0)


def test_elements_without_a_shape_are_refused_by_an_unbuilt_model(mirrored):
    fit.enable()
    shapeless = tf.data.Dataset.from_generator(cases.generator, output_types=(tf.float32, tf.int64))
    with mirrored[2].scope():
        model = cases.unbuilt()
    with pytest.raises(ValueError, match="output_signature with shapes"):
        model.fit(shapeless, verbose=0)


def test_the_log_says_how_the_data_is_split(mirrored, caplog):
    fit.enable()
    with mirrored[2].scope():
        model = cases.classifier()
    with caplog.at_level(logging.INFO, "tfdp"):
        model.fit(cases.dataset(), verbose=0)
    assert "Input: every process reads every batch; each of 2 replicas keeps its rows." in (
        caplog.messages
    )


@pytest.mark.parametrize(
    ("rows", "replicas", "sizes"),
    [(6, 2, [3, 3]), (5, 2, [2, 3]), (1, 2, [0, 1]), (4, 3, [1, 1, 2]), (2, 3, [0, 1, 1])],
)
def test_rows_are_split_evenly_and_in_order(rows, replicas, sizes, mirrored):
    data = feed_lib.Feed(mirrored[replicas], 0, _Adapter(tf.data.Dataset.range(rows).batch(rows)))
    data.begin_epoch()
    element = data.split.parts(next(data.iterator))
    parts = [data.split.batch(element, r, False)[0].numpy().tolist() for r in range(replicas)]
    assert [len(part) for part in parts] == sizes
    assert functools.reduce(operator.iadd, parts, []) == list(range(rows))
    assert int(data.split.total_rows(element)) == rows


@pytest.mark.parametrize(
    ("leaf", "expected"),
    [
        (np.zeros((0, 2, 3), "float32"), np.zeros((1, 2, 3))),
        (np.zeros((0,), "int64"), np.zeros((1,))),
        (tf.zeros((0, 1), tf.string), [[b""]]),
    ],
)
def test_a_row_stands_in_for_none(leaf, expected):
    made = split_lib._stand_in(tf.convert_to_tensor(leaf), tf.constant(True))
    np.testing.assert_array_equal(made.numpy(), expected)
    assert split_lib.without_stand_in(made, 0).shape == leaf.shape


def test_a_row_stands_in_for_none_in_ragged_and_sparse_tensors():
    ragged = tf.ragged.constant([[[1], [2, 3]]], ragged_rank=2)[:0]
    assert split_lib._stand_in(ragged, tf.constant(True)).to_list() == [[]]
    sparse = tf.SparseTensor(np.zeros((0, 2), "int64"), tf.zeros((0,)), [0, 5])
    assert split_lib._stand_in(sparse, tf.constant(True)).shape == (1, 5)


def test_an_empty_replica_meets_kernels_that_take_no_empty_batch(mirrored):
    """Two convolutions with relu: oneDNN's fused kernel gives an empty batch a wrong shape."""
    layers = keras.layers

    def build():
        model = keras.Sequential(
            [
                keras.Input((8, 8, 1)),
                layers.Conv2D(4, 3, padding="same", activation="relu"),
                layers.Conv2D(4, 3, activation="relu"),
                layers.Flatten(),
                layers.Dense(1),
            ]
        )
        model.compile(cases.sgd(), "mse")
        return model

    x = np.random.default_rng(0).normal(size=(5, 8, 8, 1)).astype("float32")
    given = {"x": x, "y": x[:, 0, 0, 0], "batch_size": 2}
    case = cases.Case("conv", build, lambda: given, predicts=True)
    fit.disable()
    expected = cases.run(case)
    fit.enable()
    found = cases.differences(expected, cases.run(case, mirrored[2]))
    assert not {name: value for name, value in found.items() if not value <= 1e-5}


class _Adapter:
    def __init__(self, dataset, batches=1):
        self._dataset = dataset
        self.num_batches = batches

    def get_tf_dataset(self):
        return self._dataset

    def on_epoch_begin(self):
        pass

    def on_epoch_end(self):
        pass


def plain():
    return tf.data.Dataset.range(12)


STATE = tf.Variable(0, dtype=tf.int64)
PASSES = {
    "map": (lambda: plain().map(lambda x: x + 1).batch(4), True),
    "cached": (lambda: plain().cache().batch(4).prefetch(2), True),
    "interleaved": (
        lambda: plain().interleave(lambda x: tf.data.Dataset.from_tensors(x)).batch(4),
        True,
    ),
    "shuffled": (lambda: plain().shuffle(4, seed=1).batch(4), False),
    "shuffled_inside": (
        lambda: plain().flat_map(lambda x: tf.data.Dataset.from_tensors(x).shuffle(2)).batch(4),
        False,
    ),
    "random": (lambda: plain().map(lambda x: x + tf.random.uniform((), 0, 2, tf.int64)), False),
    "random_source": (lambda: tf.data.Dataset.random(seed=1).take(12).batch(4), False),
    "variable": (lambda: plain().map(lambda x: x + STATE).batch(4), False),
    "python": (lambda: plain().map(lambda x: tf.numpy_function(abs, [x], tf.int64)), False),
    "generator": (
        lambda: tf.data.Dataset.from_generator(lambda: iter(range(12)), output_types=tf.int64),
        False,
    ),
    "sampled": (
        lambda: tf.data.Dataset.sample_from_datasets([plain(), plain()], [0.5, 0.5]).batch(4),
        False,
    ),
}


@pytest.mark.parametrize("name", PASSES)
def test_passes_that_may_differ_are_known(name):
    make, expected = PASSES[name]
    assert data_adapters.is_the_same_each_time(make()) is expected


def test_what_a_distributed_dataset_is_made_of_is_not_seen(mirrored):
    shuffled = tf.data.Dataset.range(12).shuffle(4).batch(4)
    made = mirrored[2].experimental_distribute_dataset(shuffled)
    for own in made._cloned_datasets:
        assert not data_adapters.is_the_same_each_time(own)


@pytest.mark.parametrize("shuffled", [False, True])
def test_passes_that_are_alike_take_one_iterator(shuffled, mirrored, monkeypatch):
    fit.enable()
    iterators = []
    make = tf.data.Dataset.__iter__
    monkeypatch.setattr(
        tf.data.Dataset, "__iter__", lambda data: iterators.append(data) or make(data)
    )
    training = cases.dataset()
    if shuffled:
        training = training.shuffle(4, seed=1)
    with mirrored[2].scope():
        model = cases.classifier()
    history = model.fit(training, epochs=3, validation_data=cases.dataset(), verbose=0)
    # One for the validation, and one for the training or one for each of its epochs.
    assert len(iterators) == 1 + (3 if shuffled else 1)
    assert len(history.history["val_loss"]) == 3


def test_a_pass_that_was_left_begins_anew(mirrored):
    adapter = _Adapter(tf.data.Dataset.range(12).batch(4), batches=3)
    data = feed_lib.Feed(mirrored[2], 0, adapter)
    for steps, first in ((2, 0), (3, 0), (3, 0), (1, 0), (3, 0)):
        data.restart()
        data.begin_epoch()
        for step in range(steps):
            batch = next(data.iterator)
            if not step:
                assert batch.numpy()[0] == first
            data.took(1)
        data.end_epoch(exhausted=False)
    # Five passes were begun, as a checkpoint counts them, and the last one has ended.
    assert (data.place()["passes"], data.place()["is_open"]) == (5, False)


def test_nobody_waits_for_an_iterator_that_is_still_at_work(mirrored):
    """Its destructor waits for what the pipeline does just then, and for tf.data's autotuner."""
    begun, end, in_time = threading.Event(), threading.Event(), []

    def slow(number):
        if number > 0:
            begun.set()
            in_time.append(end.wait(30))
        return number

    numbers = tf.data.Dataset.range(4).map(lambda n: tf.py_function(slow, [n], tf.int64))
    feed = feed_lib.Feed(mirrored[2], 0, _Adapter(numbers.batch(1).prefetch(1)))
    feed.begin_epoch()
    next(feed.iterator)
    assert begun.wait(30)  # ahead, in a thread of the pipeline
    # Those of other tests may still wait for the autotuner, up to a minute.
    before = threading.enumerate()
    feed.close()
    assert not end.is_set()
    assert feed.iterator is None
    aside = [thread for thread in threading.enumerate() if thread not in before]
    end.set()
    for thread in aside:
        thread.join(90)
        assert not thread.is_alive()
    assert all(in_time)
