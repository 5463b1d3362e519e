"""Random layers: every replica draws for itself, and a run with the same seed repeats."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from fit import cases
from tfdp import fit

L = keras.layers


def masks(strategy, steps: int = 2) -> np.ndarray:
    """Return what Dropout leaves of ones: (steps, replicas, columns)."""
    seen = []

    class Keep(keras.layers.Layer):
        def call(self, inputs):
            context = tf.distribute.get_replica_context()
            if isinstance(inputs, keras.KerasTensor) or context is None:
                return inputs
            replica = context.replica_id_in_sync_group
            tf.py_function(lambda r, t: seen.append((int(r), t.numpy())), [replica, inputs], [])
            return inputs

    keras.utils.set_random_seed(11)
    with strategy.scope():
        model = keras.Sequential([keras.Input((64,)), L.Dropout(0.5, seed=5), Keep(), L.Dense(1)])
        model.compile("sgd", "mse")
    model.fit(np.ones((4 * steps, 64)), np.ones((4 * steps, 1)), batch_size=4, verbose=0)
    replicas = strategy.num_replicas_in_sync
    by_replica = [[t for r, t in seen if r == replica] for replica in range(replicas)]
    return np.array([[by_replica[r][s][0] for r in range(replicas)] for s in range(steps)])


def test_replicas_and_steps_draw_different_masks(mirrored):
    fit.enable()
    drawn = masks(mirrored[2]).reshape(4, 64)
    for i in range(4):
        for j in range(i):
            assert not np.array_equal(drawn[i], drawn[j]), (i, j)


def test_the_first_replica_draws_what_one_device_draws(mirrored, one_device):
    fit.enable()
    np.testing.assert_array_equal(masks(mirrored[2])[:, 0], masks(one_device)[:, 0])


def test_seeds_stay_equal_on_all_copies(mirrored):
    """So that a checkpoint of any copy holds the state of all."""
    fit.enable()
    with mirrored[2].scope():
        model = cases.classifier(L.Dense(8), L.Dropout(0.3))
    before = model.layers[1].seed_generator.state.numpy()
    model.fit(**cases.array_fit()(), verbose=0)
    copies = mirrored[2].experimental_local_results(model.layers[1].seed_generator.state.value)
    np.testing.assert_array_equal(copies[0].numpy(), copies[1].numpy())
    np.testing.assert_array_equal(copies[0].numpy(), [before[0], before[1] + 4])  # one draw a step


@pytest.mark.parametrize("jit", [False, True])
def test_the_same_seed_repeats_bit_for_bit(jit, mirrored):
    fit.enable()

    def build():
        return cases.classifier(
            L.Reshape((3, 2, 1)),
            L.RandomTranslation(0.3, 0.3),
            L.GaussianNoise(0.1),
            L.Flatten(),
            L.Dense(8, activation="tanh"),
            L.Dropout(0.4),
            jit_compile=jit,
        )

    case = cases.Case("random", build, cases.array_fit())
    first, second = (cases.run(case, mirrored[2]) for _ in range(2))
    for a, b in zip(first.weights, second.weights, strict=True):
        np.testing.assert_array_equal(a, b)
    assert first.history == second.history
