"""seeds: one seed for all tasks, whoever draws."""

import json
import random

import numpy as np
import pytest

from tfdp.launch import seeds


def cluster(index):
    spec = {"cluster": {"worker": ["a:1", "b:1"]}, "task": {"type": "worker", "index": index}}
    return {"TF_CONFIG": json.dumps(spec)}


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        (cluster(0), cluster(1), True),
        ({**cluster(0), "TFDP_SEED": "7"}, {**cluster(1), "TFDP_SEED": "7"}, True),
        ({**cluster(0), "TFDP_SEED": "7"}, {**cluster(0), "TFDP_SEED": "8"}, False),
    ],
)
def test_all_tasks_draw_alike(first, second, same):
    def drawn(environ):
        seeds.begin(environ)
        return random.random(), np.random.random(), seeds.state()

    assert (drawn(first) == drawn(second)) is same


def test_alone_nothing_is_seeded():
    assert seeds.shared({}) is None
    random.seed(3)
    state = seeds.state()
    seeds.begin({})
    assert seeds.state() == state


def test_the_state_tells_who_has_drawn():
    seeds.take(5)
    fresh = seeds.state()
    np.random.random()
    drawn = seeds.state()
    assert drawn != fresh
    seeds.take(5)
    assert seeds.state() == fresh
