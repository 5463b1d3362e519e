"""One step of each published network on two replicas is that of one device.

Batch normalisation sees the rows of a replica. Here both replicas get the same images, with other
labels: then a replica's statistics are those of the whole batch, and the sum of their gradients is
the gradient of one device. With synchronized=True all images differ. ResNet-164 is left out there:
for each all-reduce inside of a graph TensorFlow looks through all that comes before it
(custom_gradient.py, _get_dependent_variables), so that 163 normalisations take minutes to trace.
"""

import keras
import numpy as np
import pytest
from conftest import exhaustive_unless

from tfdp import fit
from tfdp.models import resnet, vgg

# The networks for 224 pixels run on 32: what differs between replicas does not depend on it.
TOGETHER = {"width": 0.25, "synchronized": True}
MODELS = [
    pytest.param(vgg.vgg19_32, TOGETHER, id="vgg19_32-synchronized", marks=exhaustive_unless(True)),
    pytest.param(vgg.vgg19_32, {}, id="vgg19_32", marks=exhaustive_unless(False)),
    pytest.param(resnet.resnet164, {}, id="resnet164", marks=exhaustive_unless(False)),
    pytest.param(resnet.resnet50, {}, id="resnet50", marks=exhaustive_unless(False)),
    pytest.param(vgg.vgg19, {"dropout": 0.0}, id="vgg19", marks=exhaustive_unless(False)),
]


@pytest.fixture
def double():
    """Let layers compute in float64: so deep a network multiplies what rounding differs by."""
    keras.config.set_dtype_policy("float64")
    yield
    keras.config.set_dtype_policy("float32")


def step(build, options, strategy):
    """Return the weights before and after a step, and its loss."""
    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(5)
    random = np.random.default_rng(0)
    x = random.integers(0, 256, (6, 32, 32, 3), np.uint8)
    if not options.get("synchronized"):
        x[3:] = x[:3]
    y = random.integers(0, 10, 6)
    with strategy.scope():
        model = build((32, 32, 3), 10, **options)
        model.compile(keras.optimizers.SGD(0.01), "sparse_categorical_crossentropy")
    before = model.get_weights()
    history = model.fit(x, y, batch_size=6, epochs=1, shuffle=False, verbose=0)
    return before, model.get_weights(), history.history["loss"][0]


@pytest.mark.parametrize(("build", "options"), MODELS)
def test_a_step_on_two_replicas_is_that_of_one_device(build, options, one_device, mirrored, double):
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
    # The probabilities are of float32.
    assert largest < 1e-5
