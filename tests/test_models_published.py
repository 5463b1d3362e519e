"""The published networks: their numbers of weights, and their steps on replicas."""

import keras
import numpy as np
import pytest

from tfdp import models
from tfdp.error import Error
from tfdp.models import blocks, resnet, vgg


def trainable(model):
    return sum(int(np.prod(v.shape)) for v in model.trainable_variables)


@pytest.mark.parametrize(
    ("build", "size", "classes", "weights", "published"),
    [
        # Liu et al. 2017, table 1: 20.04 M for CIFAR-10, 20.08 M for CIFAR-100.
        (vgg.vgg19_32, 32, 10, 20_035_018, "20.04"),
        (vgg.vgg19_32, 32, 100, 20_081_188, "20.08"),
        # The same: 1.70 M and 1.73 M; He et al. 2016: 1.7 M.
        (resnet.resnet164, 32, 10, 1_703_258, "1.70"),
        (resnet.resnet164, 32, 100, 1_726_388, "1.73"),
        # torchvision: 25.56 M without the biases of convolutions, which add 26,560 here.
        (resnet.resnet50, 224, 1000, 25_583_592, "25.58"),
        # torchvision's vgg19_bn has 143.68 M, with 5,504 biases of convolutions. The paper: 144 M.
        pytest.param(
            *(vgg.vgg19, 224, 1000, 143_672_744, "143.67"),
            marks=pytest.mark.exhaustive,  # counted again below
        ),
    ],
)
def test_weights(build, size, classes, weights, published):
    # Layers are made, and not their numbers: 144 M of them would take seconds.
    with keras.StatelessScope():
        model = build((size, size, 3), classes)
    assert trainable(model) == weights
    assert f"{weights / 1e6:.2f}" == published
    assert [(i.name, i.shape, i.dtype) for i in model.inputs] == [
        ("image", (None, size, size, 3), "uint8")
    ]
    assert model.output_shape == (None, classes)


def test_vgg19_without_normalisation_is_that_of_keras_applications():
    with keras.StatelessScope():
        ours = vgg.vgg19((224, 224, 3), 1000)
        theirs = keras.applications.VGG19(weights=None)
    channels = sum(sum(stage) for stage in vgg.STAGES)
    # Two numbers of normalisation stand for each channel in the place of one bias.
    assert trainable(ours) - channels == trainable(theirs) == 143_667_240


def test_164_layers():
    with keras.StatelessScope():
        model = resnet.resnet164((32, 32, 3), 10)
    layers = [layer for layer in model.layers if isinstance(layer, keras.layers.Conv2D)]
    # Three shortcuts are no layers of a path; the classes are one.
    assert len(layers) - 3 + 1 == 164
    sizes = [layer.output.shape[1] for layer in layers]
    # A stage has 54 and its shortcut; the first 1x1 of a stage still has the size before.
    assert {size: sizes.count(size) for size in sizes} == {32: 57, 16: 55, 8: 54}


def test_pixels_are_normalised_by_channel():
    inputs, x = blocks.images((1, 2, 3), 255.0, blocks.IMAGENET)
    pixels = np.array([[[[124, 116, 104], [255, 0, 0]]]], "uint8")
    found = np.asarray(keras.Model(inputs, x)(pixels))[0, 0]
    np.testing.assert_allclose(found[0], np.zeros(3), atol=0.02)
    np.testing.assert_allclose(found[1], [2.249, -2.036, -1.804], atol=1e-3)  # torchvision's
    inputs, x = blocks.images((1, 1, 1), 16.0, blocks.CIFAR)
    whole = np.asarray(keras.Model(inputs, x)(np.array([[[[16]]]], "uint8")))
    assert whole.item() == pytest.approx((255 - 120.733) / 63.933, rel=1e-4)


def test_normalisation_is_that_of_the_recipes():
    with keras.StatelessScope():
        made = [
            resnet.resnet50((32, 32, 3), 10, synchronized=True),
            vgg.vgg19_32((32, 32, 3), 10, synchronized=True),
        ]
    for model in made:
        found = [x for x in model.layers if isinstance(x, keras.layers.BatchNormalization)]
        assert {(x.momentum, x.epsilon, x.synchronized) for x in found} == {(0.9, 1e-5, True)}


def test_width_is_asked_for_where_it_is_taken():
    narrow = models.build("tfdp.models.vgg:vgg19_32", (32, 32, 3), 10, 255.0, 0.0, width=0.25)
    assert narrow.layers[2].filters == 16
    with pytest.raises(Error) as raised:
        models.build("tfdp.models.resnet:resnet50", (32, 32, 3), 10, 255.0, 0.0, width=0.25)
    assert str(raised.value) == (
        "config.model.width=0.25: 'tfdp.models.resnet:resnet50' takes no width=. Leave it out, or "
        "let your function take it."
    )
    with pytest.raises(Error, match=r"config.model.synchronized=True: 'convnet' takes no"):
        models.build("convnet", (8, 8, 1), 10, 16.0, 0.0, synchronized=True)
