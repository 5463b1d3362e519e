"""Models by name, for `config.model.name`. Preprocessing is part of the model.

model = build("convnet", source.image_shape, source.classes, pixel_max=16.0, dropout=0.25)
"""

import importlib
from collections.abc import Callable
from typing import Any

import keras


class ModelError(ValueError):
    """A model that cannot be built, with what to do."""


def build(
    name: str, input_shape: tuple[int, ...], classes: int, pixel_max: float, dropout: float
) -> keras.Model:
    """Return the model of a name.

    Args:
        name: A function of this module, or "package.module:function" of your own.
        input_shape: (height, width, channels).
        classes: Number of labels; the model gives their probabilities.
        pixel_max: The largest value of a pixel.
        dropout: Fraction of the last hidden units that training leaves out.

    Raises:
        ModelError: If there is no such function, or what it returns could not be exported.
    """
    function = _function(name)
    model = function(input_shape, classes, pixel_max=pixel_max, dropout=dropout)
    if not getattr(model, "inputs", None):
        raise ModelError(
            f"config.model.name={name!r} returns a {type(model).__name__} without named inputs, "
            "which cannot be exported. Return a Functional or Sequential model with keras.Input."
        )
    return model


def convnet(
    input_shape: tuple[int, ...], classes: int, *, pixel_max: float = 255.0, dropout: float = 0.25
) -> keras.Model:
    """Return a small convolutional network: two convolutions, one hidden layer."""
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input(input_shape, name="image", dtype="uint8"),
            layers.Rescaling(1.0 / pixel_max),
            layers.Conv2D(32, 3, padding="same", activation="relu"),
            layers.Conv2D(64, 3, padding="same", activation="relu"),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dense(128, activation="relu"),
            layers.Dropout(dropout),
            # Probabilities in float32, whatever the precision of the rest.
            layers.Dense(classes, activation="softmax", dtype="float32", name="probabilities"),
        ],
        name="convnet",
    )


_BUILT_IN: dict[str, Callable[..., keras.Model]] = {"convnet": convnet}


def _function(name: str) -> Any:
    if name in _BUILT_IN:
        return _BUILT_IN[name]
    module, _, attribute = name.partition(":")
    if not attribute:
        raise ModelError(
            f"config.model.name={name!r}: use one of {', '.join(_BUILT_IN)}, or "
            "package.module:function."
        )
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ModelError(f"config.model.name={name!r} cannot be imported: {error}") from error
