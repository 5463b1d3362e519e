"""Copies of datasets that stand on their own, and the stages of a pipeline by name."""

import time

import numpy as np
import pytest
import tensorflow as tf

from tfdp.bench import stages
from tfdp.compat import dataset_graphs

TYPES = (tf.int64,)


def waits(seconds):
    def wait(x):
        time.sleep(seconds)
        return x

    def map_function(x):
        waited = tf.numpy_function(wait, [x], tf.int64)
        waited.set_shape(x.shape)
        return waited

    return map_function


def orders(dataset, passes=3):
    return [[x.tolist() for x in dataset.as_numpy_iterator()] for _ in range(passes)]


MAKE = {
    "shuffle": lambda: tf.data.Dataset.range(20).shuffle(20).batch(4),
    "cached_shuffle": lambda: tf.data.Dataset.range(20).shuffle(20).cache().batch(4),
    "two_shuffles": lambda: tf.data.Dataset.range(20).shuffle(5).batch(2).shuffle(5),
    "sampled": lambda: tf.data.Dataset.sample_from_datasets(
        [tf.data.Dataset.range(9).shuffle(9), tf.data.Dataset.range(9)], [0.5, 0.5]
    ),
    "plain": lambda: tf.data.Dataset.range(20).batch(4),
}


@pytest.mark.parametrize("name", MAKE)
def test_a_copy_leaves_the_orders_of_a_dataset_where_they_are(name):
    tf.random.set_seed(3)
    untouched = orders(MAKE[name]())
    tf.random.set_seed(3)
    dataset = MAKE[name]()
    copy, problem = dataset_graphs.independent(dataset)
    assert problem == ""
    assert orders(copy) == untouched  # from the first pass on
    assert orders(dataset) == untouched


def test_maps_of_python_run_in_parallel_and_in_order():
    dataset = tf.data.Dataset.range(40).map(waits(0.0)).map(lambda x: x + 1).batch(4)
    changed, count = dataset_graphs.in_parallel(dataset)
    assert count == 2
    assert orders(changed, 1) == orders(dataset, 1)
    assert changed.element_spec == dataset.element_spec
    few = tf.data.Dataset.range(8).map(lambda x: x + 1, num_parallel_calls=2)
    changed, count = dataset_graphs.in_parallel(few)
    assert count == 1
    assert orders(changed, 1) == orders(few, 1)


def test_what_cannot_be_read_twice_is_named(tmp_path):
    cached = tf.data.Dataset.range(4).cache(str(tmp_path / "cache"))
    _, problem = dataset_graphs.independent(cached)
    assert "it would be cached in" in problem
    orders(cached, 1)  # filled
    assert dataset_graphs.independent(cached)[1] == ""


def test_the_chain_counts_elements():
    dataset = (
        tf.data.Dataset.range(100)
        .filter(lambda x: True)
        .map(lambda x: x, num_parallel_calls=2)
        .batch(5)
        .batch(2)
        .map(lambda x: x, num_parallel_calls=tf.data.AUTOTUNE)
        .prefetch(1)
    )
    links = [(link.name, link.elements, link.parallelism) for link in dataset_graphs.chain(dataset)]
    assert links == [
        ("Prefetch", 1, 1),
        ("ParallelMap", 1, 0),
        ("Batch", 1, 1),
        ("Batch", 2, 1),
        ("ParallelMap", 10, 2),
        ("Filter", 10, 1),  # nobody knows how many it takes
    ]
    # What is before a cache is not read again.
    cached = tf.data.Dataset.range(9).map(lambda x: x).cache().batch(3)
    assert [link.name for link in dataset_graphs.chain(cached)] == ["Batch", "Cache"]


def test_the_slowest_stage_is_named_with_its_line():
    slow = waits(0.004)
    dataset = tf.data.Dataset.range(64).map(lambda x: x + 1).batch(8).map(slow).prefetch(2)
    found = stages.timed(dataset, seconds=0.1)
    assert found[0].name == "Map"
    assert found[0].function == "map_function"
    line = slow.__code__.co_firstlineno
    assert found[0].made_at.endswith(f"test_bench_stages.py:{line}")
    assert found[0].seconds_per_step >= 0.002
    assert len(found) == 5


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (None, ("", "")),
        (np.add, ("", "")),
        (eval("lambda x: x"), ("<lambda>", "")),  # noqa: S307
        (stages.place, ("place", "config.data")),
    ],
)
def test_places_of_functions(function, expected):
    assert stages.place(function) == expected
