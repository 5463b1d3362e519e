"""One step of each published network on two replicas is that of one device."""

import keras
import numpy as np
import pytest
from conftest import exhaustive_unless

from tfdp import fit
from tfdp.models import resnet, vgg

# The networks for 224 pixels run on 32: what differs between replicas does not depend on it.
MODELS = [
    pytest.param(resnet.resnet164, {"width": 0.25}, id="resnet164", marks=exhaustive_unless(True)),
    pytest.param(vgg.vgg19_32, {"width": 0.25}, id="vgg19_32", marks=exhaustive_unless(True)),
    pytest.param(resnet.resnet164, {}, id="resnet164-whole", marks=exhaustive_unless(False)),
    pytest.param(vgg.vgg19_32, {}, id="vgg19_32-whole", marks=exhaustive_unless(False)),
    pytest.param(resnet.resnet50, {}, id="resnet50-whole", marks=exhaustive_unless(False)),
    pytest.param(vgg.vgg19, {"dropout": 0.0}, id="vgg19-whole", marks=exhaustive_unless(False)),
]


def step(build, options, strategy):
    """Return the weights before and after a step, and its loss."""
    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(5)
    random = np.random.default_rng(0)
    x = random.integers(0, 256, (6, 32, 32, 3), np.uint8)
    y = random.integers(0, 10, 6)
    with strategy.scope():
        model = build((32, 32, 3), 10, synchronized=True, **options)
        model.compile(keras.optimizers.SGD(0.01), "sparse_categorical_crossentropy")
    before = model.get_weights()
    history = model.fit(x, y, batch_size=6, epochs=1, shuffle=False, verbose=0)
    return before, model.get_weights(), history.history["loss"][0]


@pytest.mark.parametrize(("build", "options"), MODELS)
def test_a_step_on_two_replicas_is_that_of_one_device(build, options, one_device, mirrored):
    fit.enable()
    start, expected, loss = step(build, options, one_device)
    same, found, other = step(build, options, mirrored[2])
    for a, b in zip(start, same, strict=True):
        np.testing.assert_array_equal(a, b)
    assert other == pytest.approx(loss, rel=1e-5)
    moved = largest = 0.0
    for a, b, c in zip(start, expected, found, strict=True):
        moved = max(moved, float(np.abs(b - a).max()))
        largest = max(largest, float(np.abs(b - c).max() / max(1.0, np.abs(b).max())))
    assert moved > 1e-3
    # Batch normalisation over few rows of a deep network multiplies what rounding differs by.
    assert largest < 1e-4 * max(1.0, moved)
