"""From config.training to what compile gets: the optimizer with its schedule, loss and metrics.

learned = learning.make(config.training, global_batch_size=512, steps_per_epoch=98)
print(learned.line)             # Optimizer sgd, learning rate 0.1 for 128 -> 0.4 for 512 ...
model.compile(learned.optimizer, learned.loss, learned.metrics)
"""

import dataclasses
import difflib
from typing import Any

import keras

from tfdp import config as config_lib
from tfdp import learning_rate, losses, optimizers, schedules
from tfdp.error import Error


@dataclasses.dataclass(frozen=True)
class Learned:
    """What compile gets.

    Attributes:
        optimizer: Of Keras, made.
        loss: A name of Keras, or an object.
        metrics: The same, each.
        line: What was made of the settings; "" where they were taken as they are.
    """

    optimizer: Any
    loss: Any
    metrics: list[Any]
    line: str


def make(
    settings: config_lib.Training, global_batch_size: int, steps_per_epoch: int | None
) -> Learned:
    """Return what the settings ask for; call it under the strategy's scope.

    Args:
        settings: Those of the config, checked.
        global_batch_size: Rows of one step.
        steps_per_epoch: Optimizer steps of one epoch; None if nobody knows.

    Raises:
        Error: If something cannot be imported, or a schedule needs what is not known.
    """
    rate, base = settings.learning_rate, settings.base_batch_size
    if base and base != global_batch_size:
        rate = learning_rate.scale_learning_rate(
            rate, base, global_batch_size, "sgd", _rule(settings)
        )
    line = ""
    if base or settings.warmup_epochs or settings.schedule != "constant":
        line = learning_rate.described(
            settings.optimizer,
            settings.learning_rate,
            base if base != global_batch_size else 0,
            rate,
            global_batch_size,
            settings.warmup_epochs if _warms_up(settings, rate) else 0.0,
            settings.schedule,
        )
    optimizer = _optimizer(settings, schedule(settings, rate, steps_per_epoch))
    metrics = [
        _imported("metrics", name.strip(), keras.metrics.Metric)
        for name in settings.metrics.split(",")
        if name.strip()
    ]
    return Learned(optimizer, _loss(settings), metrics, line)


def schedule(settings: config_lib.Training, rate: float, steps_per_epoch: int | None) -> Any:
    """Return the learning rate of each step: a Keras schedule, or the number itself.

    Args:
        settings: Those of the config, checked.
        rate: What is reached after the warm-up.
        steps_per_epoch: Optimizer steps of one epoch; None if nobody knows.

    Raises:
        Error: If that is needed and not known.
    """
    text, warmup = settings.schedule, settings.warmup_epochs
    if not _warms_up(settings, rate):
        warmup = 0.0
    if text == "constant" and not warmup:
        return rate
    if steps_per_epoch is None:
        name, value = ("schedule", text) if text != "constant" else ("warmup_epochs", warmup)
        raise Error(
            f"config.training.{name}={value!r}: nobody has counted the records, so an epoch has no "
            "number of steps. Use a source that is counted, or schedule='constant' and "
            "warmup_epochs=0."
        )
    steps = round(warmup * steps_per_epoch)
    start = settings.learning_rate if settings.base_batch_size else 0.0
    if text == "cosine":
        return keras.optimizers.schedules.CosineDecay(
            start if steps else rate,
            max(1, settings.epochs * steps_per_epoch - steps),
            warmup_target=rate if steps else None,
            warmup_steps=steps,
        )
    factors = [] if text == "constant" else learning_rate.milestones(text)
    if factors is None:
        setting, wanted = "training.schedule", "(learning_rate, steps_per_epoch, epochs)"
        function = config_lib.load(setting, text)
        given = (rate, steps_per_epoch, settings.epochs)
        config_lib.check_takes(setting, text, wanted, function, *given)
        made: Any = function(*given)
    else:
        made = schedules.pieces(
            rate, [(round(epoch * steps_per_epoch), factor) for epoch, factor in factors]
        )
        if factors and factors[0][0] == 0:
            start *= factors[0][1]  # a recipe that begins with less begins so here too
    return schedules.Warmup(made, steps, start) if steps else made


def _warms_up(settings: config_lib.Training, rate: float) -> bool:
    """Say whether there is a warm-up: the rate of the base batch needs none (Goyal et al. 2017)."""
    return not settings.base_batch_size or rate > settings.learning_rate


def _optimizer(settings: config_lib.Training, rate: Any) -> Any:
    decay = {"weight_decay": settings.weight_decay} if settings.weight_decay else {}
    name = settings.optimizer
    if (
        name == "sgd"
        and not decay
        and not isinstance(rate, keras.optimizers.schedules.LearningRateSchedule)
    ):
        # Keras's own does the same where the rate stays what it is, and loads without tfdp.
        return keras.optimizers.SGD(rate, momentum=0.9)
    built_in = {
        "adam": keras.optimizers.Adam,
        "adamw": keras.optimizers.AdamW,
        "sgd": optimizers.SGD,
        "lars": optimizers.LARS,
        "lamb": optimizers.LAMB,
    }
    if name in built_in:
        return built_in[name](rate, **decay)
    setting, wanted = "training.optimizer", "(learning_rate)"
    make = config_lib.load(setting, name)
    if decay and not config_lib.takes_option(make, "weight_decay"):
        raise Error(
            f"config.training.weight_decay={settings.weight_decay!r}: {name!r} takes no "
            "weight_decay. Leave it 0, and let your function set it."
        )
    config_lib.check_takes(setting, name, wanted, make, learning_rate=rate, **decay)
    made = make(learning_rate=rate, **decay)
    if not isinstance(made, keras.optimizers.Optimizer):
        raise Error(
            f"config.training.optimizer={name!r} makes a {type(made).__name__}. Let it make a "
            "keras.optimizers.Optimizer."
        )
    return made


def _loss(settings: config_lib.Training) -> Any:
    if settings.label_smoothing:
        return losses.SmoothedCrossentropy(settings.label_smoothing)
    return _imported("loss", settings.loss, keras.losses.Loss)


def _imported(setting: str, name: str, kind: Any) -> Any:
    """Return what a name stands for: Keras's names as they are, a class called, a function."""
    if name in _WORDS[setting]:
        return name
    path = f"training.{setting}"
    if ":" in name:
        found = config_lib.load(path, name)
        if isinstance(found, type) and issubclass(found, kind):
            config_lib.check_takes(path, name, "no arguments", found)
            found = found()
    else:
        found = _of_keras(setting, name, kind)
    if not isinstance(found, kind):
        config_lib.check_takes(path, name, "(y_true, y_pred)", found, None, None)
    elif setting == "metrics":
        wanted, update = "(y_true, y_pred, sample_weight=...)", found.update_state
        config_lib.check_takes(path, name, wanted, update, None, None, sample_weight=None)
    return found if ":" in name else name


def _of_keras(setting: str, name: str, kind: Any) -> Any:
    """Return the function or the object that compile makes of a name."""
    module = {"loss": keras.losses, "metrics": keras.metrics}[setting]
    try:
        found = module.get(name)
    except ValueError:
        found = None
    except TypeError as error:  # of a class that cannot be made without arguments
        raise Error(
            f"config.training.{setting}={name!r} needs arguments, which a name does not give. "
            "Write a class that sets them, and name it: package.module:name."
        ) from error
    if found is None or type(found) is kind:
        close = difflib.get_close_matches(name, [*_WORDS[setting], *dir(module)], 1)
        hint = f"Did you mean {close[0]!r}? " if close and close[0] != name else ""
        raise Error(
            f"config.training.{setting}={name!r} is no name of Keras. {hint}Use one, or "
            "package.module:name."
        )
    return found


# What compile takes beside names of classes and functions.
_WORDS: dict[str, tuple[str, ...]] = {
    "loss": (),
    "metrics": ("accuracy", "acc", "crossentropy", "ce"),
}


def _rule(settings: config_lib.Training) -> str:
    name: Any = settings.optimizer
    try:
        return learning_rate.rule_of(
            config_lib.load("training.optimizer", name) if ":" in name else name
        )
    except Error as error:
        raise Error(
            f"config.training.base_batch_size={settings.base_batch_size}: nothing is known of how "
            f"the learning rate of {name!r} follows the batch. Set base_batch_size=0, and the "
            "learning rate for this batch."
        ) from error
