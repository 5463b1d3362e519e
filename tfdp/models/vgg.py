"""VGG-19 (Simonyan and Zisserman 2014, configuration E), with batch normalisation.

model = vgg19_32((32, 32, 3), 10)         # 20.04 M weights
model = vgg19((224, 224, 3), 1000)        # 143.7 M weights

https://arxiv.org/abs/1409.1556
"""

from typing import Any

import keras

from tfdp.models import blocks

# Channels of the convolutions, stage by stage.
STAGES = ((64, 64), (128, 128), (256,) * 4, (512,) * 4, (512,) * 4)


def vgg19_32(
    input_shape: tuple[int, ...],
    classes: int,
    *,
    pixel_max: float = 255.0,
    width: float = 1.0,
    synchronized: bool = False,
) -> keras.Model:
    """Return VGG-19 for images of 32 pixels: 16 convolutions and one layer for the classes.

    This is the network that others train on CIFAR, with 20.04 M trainable weights for 10 classes
    and 20.08 M for 100 (Liu et al. 2017, https://arxiv.org/abs/1708.06519, table 1).

    Args:
        input_shape: (height, width, channels), of at least 16 pixels a side.
        classes: Number of labels.
        pixel_max: The largest value of a pixel.
        width: Factor of the number of channels.
        synchronized: Whether the replicas normalise together.
    """
    net = blocks.Blocks(width, synchronized)
    inputs, x = blocks.images(input_shape, pixel_max, blocks.CIFAR)
    x = _stages(net, x, pools=4)
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, blocks.classifier(x, classes), name="vgg19_32")


def vgg19(
    input_shape: tuple[int, ...],
    classes: int,
    *,
    pixel_max: float = 255.0,
    dropout: float = 0.5,
    width: float = 1.0,
    synchronized: bool = False,
) -> keras.Model:
    """Return VGG-19 for images of 224 pixels, with two hidden layers of 4,096 units.

    With batch normalisation, as it is trained today: 143.7 M trainable weights for 1,000 classes.
    The paper's network, of 144 M, has none, and keras.applications.VGG19 has no dropout either.

    Args:
        input_shape: (height, width, channels), of at least 32 pixels a side.
        classes: Number of labels.
        pixel_max: The largest value of a pixel.
        dropout: Fraction of the hidden units that training leaves out.
        width: Factor of the number of channels and units.
        synchronized: Whether the replicas normalise together.
    """
    net = blocks.Blocks(width, synchronized)
    inputs, x = blocks.images(input_shape, pixel_max, blocks.IMAGENET)
    x = keras.layers.Flatten()(_stages(net, x, pools=5))
    for _ in range(2):
        start = keras.initializers.RandomNormal(0.0, 0.01)
        units = net.channels(4096)
        x = keras.layers.Dense(units, activation="relu", kernel_initializer=start)(x)
        x = keras.layers.Dropout(dropout)(x)
    return keras.Model(inputs, blocks.classifier(x, classes), name="vgg19")


def _stages(net: blocks.Blocks, x: Any, pools: int) -> Any:
    for number, stage in enumerate(STAGES):
        for channels in stage:
            x = net.normalized(net.convolution(x, channels, 3))
        if number < pools:
            x = keras.layers.MaxPooling2D(2)(x)
    return x
