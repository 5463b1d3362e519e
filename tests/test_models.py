import keras
import numpy as np
import pytest

from tfdp import config, models
from tfdp.error import Error

IMAGES = np.arange(2 * 8 * 8, dtype="uint8").reshape(2, 8, 8, 1) % 17


def test_the_names_that_a_config_may_give():
    assert tuple(models._BUILT_IN) == config.MODELS


def test_convnet_takes_bytes_and_gives_probabilities():
    model = models.build("convnet", (8, 8, 1), 10, pixel_max=16.0, dropout=0.25)
    assert [(i.name, i.shape, i.dtype) for i in model.inputs] == [
        ("image", (None, 8, 8, 1), "uint8")
    ]
    assert model.output_shape == (None, 10)
    probabilities = np.asarray(model(IMAGES))
    np.testing.assert_allclose(probabilities.sum(-1), [1, 1], atol=1e-6)
    assert [layer.rate for layer in model.layers if isinstance(layer, keras.layers.Dropout)] == [
        0.25
    ]


def test_pixels_become_0_to_1():
    model = models.build("convnet", (8, 8, 1), 10, pixel_max=16.0, dropout=0.0)
    rescaled = np.asarray(model.layers[0](IMAGES))
    np.testing.assert_allclose(rescaled, IMAGES / 16.0, atol=1e-7)


def test_a_function_of_your_own(tmp_path, monkeypatch):
    (tmp_path / "my_models.py").write_text(
        "import keras\n"
        "def build(shape, classes, *, pixel_max, dropout):\n"
        "    name = f'{classes}-{pixel_max}-{dropout}'\n"
        "    return keras.Sequential([keras.Input(shape), keras.layers.Flatten()], name=name)\n"
        "def without_input(shape, classes, *, pixel_max, dropout):\n"
        "    return keras.Sequential([keras.layers.Dense(classes)])\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    made = models.build("my_models:build", (28, 28, 3), 7, pixel_max=255.0, dropout=0.5)
    assert made.inputs[0].shape == (None, 28, 28, 3)
    assert made.name == "7-255.0-0.5"
    with pytest.raises(Error) as raised:
        models.build("my_models:without_input", (8, 8, 1), 7, pixel_max=255.0, dropout=0.5)
    assert str(raised.value) == (
        "config.model.name='my_models:without_input' returns a Sequential without named inputs, "
        "which cannot be exported. Return a Functional or Sequential model with keras.Input."
    )


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "resnet",
            "config.model.name='resnet': use one of convnet, or package.module:function.",
        ),
        (
            "no_such_package:build",
            "config.model.name='no_such_package:build' cannot be imported: "
            "No module named 'no_such_package'.",
        ),
        (
            "json:build",
            "config.model.name='json:build' cannot be imported: "
            "module 'json' has no attribute 'build'.",
        ),
        (
            "os:getcwd",
            "config.model.name='os:getcwd' takes (), but it is called with (input_shape, classes). "
            "Name a function or a class that takes that.",
        ),
    ],
)
def test_no_such_model(name, message):
    with pytest.raises(Error) as raised:
        models.build(name, (8, 8, 1), 10, pixel_max=16.0, dropout=0.0)
    assert str(raised.value) == message


def test_the_default_model_is_for_images():
    with pytest.raises(Error, match=r"is for images.*shape \(7,\).*package.module"):
        models.build("convnet", (7,), 3, pixel_max=1.0, dropout=0.5)


def test_a_function_gets_what_it_takes(tmp_path, monkeypatch):
    (tmp_path / "two_arguments.py").write_text(
        "import keras\n"
        "def build(input_shape, classes):\n"
        "    return keras.Sequential([keras.Input(input_shape), keras.layers.Dense(classes)])\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    model = models.build("two_arguments:build", (7,), 3, pixel_max=1.0, dropout=0.5)
    assert model.output_shape == (None, 3)
