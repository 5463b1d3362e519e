"""Copies for a checkpoint: what they hold, and that their memory is used again."""

import numpy as np
import pytest

from tfdp.checkpoints.copies import Copies

VALUES = {
    "kernel": np.arange(12, dtype=np.float32).reshape(3, 4),
    "steps": np.array(7, np.int64),
    "half": np.arange(5, dtype=np.float16),
    "none": np.empty((0, 3), np.float32),
    "large": np.arange(3 * (1 << 19) + 3.0).reshape(3, -1),
    "turned": np.arange(6.0).reshape(2, 3).T,
}


@pytest.fixture(params=["plain", "reserved", "reserved too little"])
def copies(request):
    made = Copies()
    if request.param != "plain":
        short = request.param == "reserved too little"
        size = 50 if short else sum(value.nbytes for value in VALUES.values())
        made.reserve(0 if short else len(VALUES), size)
    return made


def test_copies_keep_their_values(copies):
    originals = {name: value.copy() for name, value in VALUES.items()}
    made = {name: copies(name, value) for name, value in originals.items()}
    for value in originals.values():
        value[...] = 1
    for name, value in VALUES.items():
        np.testing.assert_array_equal(made[name], value)
        assert made[name].dtype == value.dtype
        assert made[name].shape == value.shape


def test_memory_is_used_again(copies):
    first = {name: copies(name, value) for name, value in VALUES.items()}
    for name, value in VALUES.items():
        assert copies(name, value + 1) is first[name]


def test_all_lies_in_what_was_reserved():
    copies = Copies()
    copies.reserve(len(VALUES), sum(value.nbytes for value in VALUES.values()))
    made = [copies(name, value) for name, value in VALUES.items() if value.size]
    assert len({id(one.base) for one in made}) == 1


def test_another_shape_has_other_memory(copies):
    copies("kernel", np.zeros(3))
    again = copies("kernel", np.ones((4, 2)))
    np.testing.assert_array_equal(again, np.ones((4, 2)))
