"""Models by name, for `config.model.name`. Preprocessing is part of the model.

model = build("convnet", source.image_shape, source.classes, pixel_max=16.0, dropout=0.25)
"""

import importlib
import inspect
from collections.abc import Callable
from typing import Any

import keras

from tfdp import layers


class ModelError(ValueError):
    """A model that cannot be built, with what to do."""


def build(
    name: str, input_shape: tuple[int, ...], classes: int, pixel_max: float, dropout: float
) -> keras.Model:
    """Return the model of a name.

    Args:
        name: A function of this module, or "package.module:function" of your own. It is called
            with (input_shape, classes), and with pixel_max= and dropout= where it takes them.
        input_shape: (height, width, channels).
        classes: Number of labels; the model gives their probabilities.
        pixel_max: The largest value of a pixel.
        dropout: Fraction of the last hidden units that training leaves out.

    Raises:
        ModelError: If there is no such function, or what it returns could not be exported.
    """
    function = _function(name)
    if function is convnet and len(input_shape) != 3:
        raise ModelError(
            f"config.model.name={name!r} is for images, and these records have the shape "
            f"{tuple(input_shape)}. Name a function of your own that takes (input_shape, classes) "
            "and returns a model: --config.model.name=package.module:function."
        )
    options = {"pixel_max": pixel_max, "dropout": dropout}
    takes = inspect.signature(function).parameters
    if not any(p.kind is p.VAR_KEYWORD for p in takes.values()):
        options = {key: value for key, value in options.items() if key in takes}
    return _named(name, function(input_shape, classes, **options))


def _named(name: str, model: Any) -> keras.Model:
    if not getattr(model, "inputs", None):
        raise ModelError(
            f"config.model.name={name!r} returns a {type(model).__name__} without named inputs, "
            "which cannot be exported. Return a Functional or Sequential model with keras.Input."
        )
    return model


def build_own(name: str) -> keras.Model:
    """Return the model of "package.module:function", called without arguments.

    Raises:
        ModelError: If there is no such function, or what it returns could not be exported.
    """
    return _named(name, _function(name)())


def convnet(
    input_shape: tuple[int, ...], classes: int, *, pixel_max: float = 255.0, dropout: float = 0.25
) -> keras.Model:
    """Return a small convolutional network: two convolutions, one hidden layer."""
    return keras.Sequential(
        [
            keras.Input(input_shape, name="image", dtype="uint8"),
            keras.layers.Rescaling(1.0 / pixel_max),
            keras.layers.Conv2D(32, 3, padding="same", activation="relu"),
            keras.layers.Conv2D(64, 3, padding="same", activation="relu"),
            keras.layers.MaxPooling2D(),
            keras.layers.Flatten(),
            keras.layers.Dense(128, activation="relu"),
            keras.layers.Dropout(dropout),
            # Probabilities in float32, whatever the precision of the rest.
            keras.layers.Dense(
                classes, activation="softmax", dtype="float32", name="probabilities"
            ),
        ],
        name="convnet",
    )


def two_towers(users: int = 3_000, items: int = 1_000, width: int = 8) -> keras.Model:
    """Return a compiled model of clicks: a user's vector times an item's, and a bias for each.

    Args:
        users: Number of users; the input "user" holds their ids, one a row.
        items: Number of items; the input "item".
        width: Of the vectors.
    """
    inputs = {
        "user": keras.Input((), dtype="int64", name="user"),
        "item": keras.Input((), dtype="int64", name="item"),
    }

    def tower(name: str, rows: int) -> tuple[Any, Any]:
        start = keras.initializers.RandomNormal(0.0, 0.3)
        vector = layers.Embedding(rows, width, embeddings_initializer=start, name=f"{name}_vectors")
        bias = layers.Embedding(rows, 1, embeddings_initializer="zeros", name=f"{name}_biases")
        return vector(inputs[name]), bias(inputs[name])

    (user, user_bias), (item, item_bias) = tower("user", users), tower("item", items)
    product = keras.layers.Dot(axes=1, name="product")([user, item])
    score = keras.layers.Add(name="score")([product, user_bias, item_bias])
    clicked = keras.layers.Activation("sigmoid", dtype="float32", name="clicked")(score)
    model = keras.Model(inputs, clicked, name="two_towers")
    model.compile(
        # It leaves rows without gradient as they are: a step costs what its rows cost. Gradients
        # are means over a batch: the usual first value of 0.1 would outweigh them for ever.
        keras.optimizers.Adagrad(0.1, initial_accumulator_value=1e-7),
        "binary_crossentropy",
        metrics=[keras.metrics.AUC(name="auc")],
    )
    return model


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
