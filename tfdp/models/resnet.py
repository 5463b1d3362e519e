"""Residual networks: ResNet-164 for 32 pixels, and ResNet-50 for 224.

model = resnet164((32, 32, 3), 10)        # 1.7 M weights
model = resnet50((224, 224, 3), 1000)     # 25.6 M weights
"""

from typing import Any

import keras

from tfdp.models import blocks

# Blocks of each of the three stages: (164 - 2) / 9 layers.
_BLOCKS = 18


def resnet164(
    input_shape: tuple[int, ...],
    classes: int,
    *,
    pixel_max: float = 255.0,
    width: float = 1.0,
    synchronized: bool = False,
) -> keras.Model:
    """Return ResNet-164 with pre-activation bottlenecks, of 1.7 M trainable weights.

    He et al. 2016, Identity Mappings in Deep Residual Networks, https://arxiv.org/abs/1603.05027:
    three stages of 18 blocks, each of 1x1, 3x3 and 1x1 convolutions, with normalisation and
    rectifier before each convolution. The first block of a stage has a 1x1 convolution as its
    shortcut, which takes what is normalised.

    Args:
        input_shape: (height, width, channels), of at least 4 pixels a side.
        classes: Number of labels.
        pixel_max: The largest value of a pixel.
        width: Factor of the number of channels.
        synchronized: Whether the replicas normalise together.
    """
    net = blocks.Blocks(width, synchronized)
    inputs, x = blocks.images(input_shape, pixel_max, blocks.CIFAR)
    x = net.convolution(x, 16, 3)
    for stage in range(3):
        for number in range(_BLOCKS):
            strides = 2 if stage > 0 and number == 0 else 1
            x = _bottleneck(net, x, 16 << stage, strides, projects=number == 0)
    x = keras.layers.GlobalAveragePooling2D()(net.normalized(x))
    return keras.Model(inputs, blocks.classifier(x, classes), name="resnet164")


def _bottleneck(net: blocks.Blocks, x: Any, channels: int, strides: int, projects: bool) -> Any:
    active = net.normalized(x)
    shortcut = net.convolution(active, 4 * channels, 1, strides) if projects else x
    y = net.convolution(active, channels, 1)
    y = net.convolution(net.normalized(y), channels, 3, strides)
    y = net.convolution(net.normalized(y), 4 * channels, 1)
    return keras.layers.Add()([shortcut, y])


def resnet50(
    input_shape: tuple[int, ...],
    classes: int,
    *,
    pixel_max: float = 255.0,
    synchronized: bool = False,
) -> keras.Model:
    """Return ResNet-50 as He et al. 2015 published it: that of keras.applications.

    25.6 M trainable weights for 1,000 classes (https://arxiv.org/abs/1512.03385). The batch
    normalisation of keras.applications forgets a hundredth of its statistics at each step; the
    recipes, and this function, a tenth. Many others, as torchvision, take the stride in the 3x3
    convolutions ("version 1.5"), which is better by half a point.

    Args:
        input_shape: (height, width, channels), of at least 32 pixels a side.
        classes: Number of labels.
        pixel_max: The largest value of a pixel.
        synchronized: Whether the replicas normalise together.
    """
    inputs, x = blocks.images(input_shape, pixel_max, blocks.IMAGENET)
    body = keras.applications.ResNet50(
        include_top=False, weights=None, input_tensor=x, pooling="avg"
    )
    for layer in body.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum, layer.epsilon = blocks.MOMENTUM, blocks.EPSILON
            layer.synchronized = synchronized
    return keras.Model(inputs, blocks.classifier(body.output, classes), name="resnet50")
