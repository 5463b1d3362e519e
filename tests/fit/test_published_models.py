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

from tfdp import fit
from tfdp.models import blocks, resnet, vgg

# The networks for 224 pixels run on 32: what differs between replicas does not depend on it.
TOGETHER = {"width": 0.25, "synchronized": True}
MODELS = [
    pytest.param(vgg.vgg19_32, TOGETHER, id="vgg19_32-synchronized"),
    pytest.param(vgg.vgg19_32, {}, id="vgg19_32"),
    pytest.param(resnet.resnet164, {}, id="resnet164"),
    pytest.param(resnet.resnet50, {}, id="resnet50"),
    pytest.param(vgg.vgg19, {"dropout": 0.0}, id="vgg19"),
]
# Each of their layers has its own tests, and the least of them takes twelve seconds.
pytestmark = pytest.mark.exhaustive


@pytest.fixture
def double(monkeypatch):
    """Let layers compute in float64: so deep a network multiplies what rounding differs by."""
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")

    def classifier(x, classes):
        return keras.layers.Dense(classes, activation="softmax")(x)

    monkeypatch.setattr(blocks, "classifier", classifier)  # the networks' own is of float32
    yield
    keras.config.set_floatx("float32")
    keras.config.set_dtype_policy("float32")


def step(build, options, strategy):
    """Return the weights before a step and after it, which are trained, and the loss."""
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
    after = {v.path: v.numpy() for v in model.weights}
    trained = {v.path for v in model.trainable_variables}
    return before, after, trained, history.history["loss"][0]


@pytest.mark.parametrize(("build", "options"), MODELS)
def test_a_step_on_two_replicas_is_that_of_one_device(build, options, one_device, mirrored, double):
    fit.enable()
    start, expected, trained, loss = step(build, options, one_device)
    same, found, _, other = step(build, options, mirrored[2])
    for a, b in zip(start, same, strict=True):
        np.testing.assert_array_equal(a, b)
    assert other == pytest.approx(loss, rel=1e-6)
    moved = max(np.abs(b - a).max() for a, b in zip(start, expected.values(), strict=True))
    assert moved > 1e-3
    for path, value in expected.items():
        # Moving averages of the replicas are put together in float32.
        tolerance = 1e-8 if path in trained else 1e-6
        largest = max(1.0, np.abs(value).max())
        np.testing.assert_allclose(found[path], value, 0, tolerance * largest, err_msg=path)
