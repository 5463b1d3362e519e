"""Models by name, for `config.model.name`. Preprocessing is part of the model.

model = build("convnet", source.input_shape, source.classes, pixel_max=16.0, dropout=0.25)
"""

from collections.abc import Callable
from typing import Any

import keras

from tfdp import config
from tfdp.error import Error
from tfdp.models.images import convnet


def build(
    name: str,
    input_shape: tuple[int, ...],
    classes: int,
    pixel_max: float,
    dropout: float,
    width: float = 1.0,
    synchronized: bool = False,
) -> keras.Model:
    """Return the model of a name.

    Args:
        name: "convnet", or "package.module:function" of your own. It is called
            with (input_shape, classes), with pixel_max= and dropout= where it takes them, and with
            width= and synchronized= where they are asked for.
        input_shape: (height, width, channels).
        classes: Number of labels; the model gives their probabilities.
        pixel_max: The largest value of a pixel.
        dropout: Fraction of the last hidden units that training leaves out.
        width: Factor of the number of channels.
        synchronized: Whether batch normalisation looks at the rows of all replicas.

    Raises:
        Error: If there is no such function, if it takes something else, or no width or
            synchronized and one is asked for, or if what it returns could not be exported.
    """
    function = _function(name)
    if function is convnet and len(input_shape) != 3:
        raise Error(
            f"config.model.name={name!r} is for images, and these records have the shape "
            f"{tuple(input_shape)}. Name a function of your own that takes (input_shape, classes) "
            "and returns a model: --config.model.name=package.module:function."
        )
    setting, wanted = "model.name", "(input_shape, classes)"
    given: dict[str, Any] = {"pixel_max": pixel_max, "dropout": dropout}
    options = {key: value for key, value in given.items() if config.takes_option(function, key)}
    for key, value, default in (("width", width, 1.0), ("synchronized", synchronized, False)):
        if value == default:
            continue
        if not config.takes_option(function, key):
            raise Error(
                f"config.model.{key}={value!r}: {name!r} takes no {key}=. Leave it out, or let "
                "your function take it."
            )
        options[key] = value
    config.check_takes(setting, name, wanted, function, input_shape, classes, **options)
    return _named(name, function(input_shape, classes, **options))


def _named(name: str, model: Any) -> keras.Model:
    if not getattr(model, "inputs", None):
        raise Error(
            f"config.model.name={name!r} returns a {type(model).__name__} without named inputs, "
            "which cannot be exported. Return a Functional or Sequential model with keras.Input."
        )
    return model


def build_own(name: str) -> keras.Model:
    """Return the model of "package.module:function", called without arguments.

    Raises:
        Error: If there is no such function, if it takes arguments, or what it returns could not be
            exported.
    """
    function = _function(name)
    config.check_takes("model.name", name, "no arguments", function)
    return _named(name, function())


_BUILT_IN: dict[str, Callable[..., keras.Model]] = {"convnet": convnet}


def _function(name: str) -> Any:
    if name in _BUILT_IN:
        return _BUILT_IN[name]
    if not name.partition(":")[2]:
        raise Error(
            f"config.model.name={name!r}: use one of {', '.join(_BUILT_IN)}, or "
            "package.module:function."
        )
    return config.load("model.name", name)
