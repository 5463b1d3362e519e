"""What the published image networks are made of: pixels, convolutions, normalisation, classes.

net = blocks.Blocks(width=0.25, synchronized=True)
x = net.convolution(x, 64, 3)
"""

import dataclasses
from typing import Any

import keras

# Mean and standard deviation of the pixels of each channel, of 0 to 255, over the training images.
CIFAR = ((125.3, 123.0, 113.9), (63.0, 62.1, 66.7))
IMAGENET = ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
MOMENTUM, EPSILON = 0.9, 1e-5


def images(input_shape: tuple[int, ...], pixel_max: float, statistics: Any) -> tuple[Any, Any]:
    """Return the input of bytes, and its pixels with a mean of 0 and a deviation of 1.

    Args:
        input_shape: (height, width, channels).
        pixel_max: The largest value of a pixel.
        statistics: CIFAR or IMAGENET. Images of other than three channels get their average.
    """
    inputs = keras.Input(input_shape, name="image", dtype="uint8")
    means, deviations = statistics
    if input_shape[-1] != len(means):
        means = [sum(means) / len(means)] * input_shape[-1]
        deviations = [sum(deviations) / len(deviations)] * input_shape[-1]
    scale = [255.0 / pixel_max / deviation for deviation in deviations]
    offset = [-mean / deviation for mean, deviation in zip(means, deviations, strict=True)]
    return inputs, keras.layers.Rescaling(scale, offset, name="normalized")(inputs)


def classifier(x: Any, classes: int) -> Any:
    """Return the classes' probabilities, in float32 whatever the precision of the rest."""
    head = keras.layers.Dense(classes, activation="softmax", dtype="float32", name="probabilities")
    return head(x)


@dataclasses.dataclass(frozen=True)
class Blocks:
    """Makes layers.

    Attributes:
        width: Factor of the number of channels; 1 is the published network.
        synchronized: Whether the replicas normalise together.
    """

    width: float = 1.0
    synchronized: bool = False

    def channels(self, number: int) -> int:
        """Return how many there are of a layer's `number` published ones."""
        return max(1, round(number * self.width))

    def convolution(self, x: Any, channels: int, size: int, strides: int = 1) -> Any:
        """Return a convolution without bias, with the start of He et al. 2015 (by fan-out)."""
        start = keras.initializers.VarianceScaling(2.0, "fan_out", "untruncated_normal")
        return keras.layers.Conv2D(
            self.channels(channels),
            size,
            strides,
            padding="same",
            use_bias=False,
            kernel_initializer=start,
        )(x)

    def normalized(self, x: Any) -> Any:
        """Return what batch normalisation and a rectifier make of it."""
        normalization = keras.layers.BatchNormalization(
            momentum=MOMENTUM, epsilon=EPSILON, synchronized=self.synchronized
        )
        return keras.layers.Activation("relu")(normalization(x))
