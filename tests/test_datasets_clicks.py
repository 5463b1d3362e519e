"""The synthetic clicks: always the same, in parts that make the whole, with a known best AUC."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfdp import config
from tfdp.datasets import clicks
from tfdp.error import Error


def test_no_model_knows_more_than_the_probability():
    _, _, probability = clicks.pairs("test")
    _, _, clicked = clicks.records("test")
    assert probability.mean() == pytest.approx(clicked.mean(), abs=0.01)
    metric = keras.metrics.AUC(num_thresholds=2000)
    metric.update_state(clicked, probability)
    assert clicks.best_auc() == pytest.approx(float(metric.result()), abs=1e-3)
    assert 0.93 < clicks.best_auc() < 0.94


def test_the_parts_of_two_pipelines_are_the_whole():
    data = config.Data(global_batch_size=4096, shuffle_buffer=0)
    users = [
        np.concatenate([x["user"].numpy() for x, _ in clicks.batches(data, "test", context)])
        for context in (tf.distribute.InputContext(2, 0), tf.distribute.InputContext(2, 1))
    ]
    whole = clicks.records("test")[0]
    assert np.array_equal(users[0], whole[0::2])
    assert np.array_equal(users[1], whole[1::2])


def test_a_split_that_does_not_exist():
    with pytest.raises(Error) as raised:
        clicks.records("valid")
    assert str(raised.value) == "The clicks have no split 'valid'. Use one of train, test."
