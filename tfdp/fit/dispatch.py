"""enable() teaches Keras's fit the strategies of tf.distribute; disable() undoes it.

    enable(communication=Communication(compression="bfloat16"))
    model.fit(...)          # under the strategy the model was made in
    disable()

It replaces six methods on `keras.Model` by one that looks at the model's strategy, the one that
says what jit_compile="auto" means there, and `export`, which takes no partitions of variables. A
model that was made and is fitted outside of any strategy goes to Keras's own code.
"""

import functools
import weakref
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from tfdp import compat
from tfdp.fit import communication as communication_lib
from tfdp.fit import epochs, evaluator, parameter_server, partitions, sync

METHODS = (
    "fit",
    "evaluate",
    "predict",
    "train_on_batch",
    "test_on_batch",
    "predict_on_batch",
)
_SYNCHRONOUS = (
    tf.distribute.OneDeviceStrategy,
    tf.distribute.MirroredStrategy,
    tf.distribute.MultiWorkerMirroredStrategy,
)
_TAUGHT = (*_SYNCHRONOUS, tf.distribute.ParameterServerStrategy)

_communication = communication_lib.Communication()
_communication_of: "weakref.WeakKeyDictionary[Any, communication_lib.Communication]" = (
    weakref.WeakKeyDictionary()
)
_server_options_of: "weakref.WeakKeyDictionary[Any, epochs.Options]" = weakref.WeakKeyDictionary()
_is_evaluator = False
_trainers: "weakref.WeakKeyDictionary[keras.Model, Any]" = weakref.WeakKeyDictionary()


def enable(communication: communication_lib.Communication | None = None) -> None:
    """Teach `keras.Model` the strategies of tf.distribute. A second call changes only options.

    Args:
        communication: How gradients travel, for strategies that were not given their own.
    """
    global _communication
    if communication is not None:
        _communication = communication
    for name in METHODS:
        if name not in vars(keras.Model):
            setattr(keras.Model, name, _dispatcher(name))
    if compat.RESOLVE_AUTO_JIT not in vars(keras.Model):
        setattr(keras.Model, compat.RESOLVE_AUTO_JIT, _auto_jit())
    if not hasattr(keras.Model.export, "tfdp"):
        keras.Model.export = _export_whole()


def disable() -> None:
    """Give `keras.Model` its own methods back."""
    if hasattr(keras.Model.export, "tfdp"):
        keras.Model.export = keras.Model.export.tfdp
    for name in (*METHODS, compat.RESOLVE_AUTO_JIT):
        if hasattr(vars(keras.Model).get(name), "tfdp"):
            delattr(keras.Model, name)


def set_communication(
    strategy: tf.distribute.Strategy, communication: communication_lib.Communication
) -> None:
    """Use these options for the models of one strategy."""
    _communication_of[strategy] = communication


def set_server_options(strategy: tf.distribute.Strategy, options: epochs.Options) -> None:
    """Train the models of one ParameterServerStrategy like this."""
    _server_options_of[strategy] = options


def set_evaluator(evaluates: bool, run: str | None = None) -> None:
    """Say whether there is an evaluator, and whether it is this process.

    Args:
        evaluates: Let `fit` of this process evaluate the checkpoints that another one writes.
        run: What the run is called by those who train and by its evaluator, "" where nobody has
            named it; None without an evaluator: then no `fit` leaves word for one.
    """
    global _is_evaluator
    _is_evaluator = evaluates
    evaluator.set_run(run)


def _dispatcher(name: str) -> Callable[..., Any]:
    stock = getattr(keras.Model, name)

    @functools.wraps(stock)
    def method(self: keras.Model, *args: Any, **kwargs: Any) -> Any:
        trainer = trainer_of(self)
        if trainer is None:
            if name == "fit" and _is_evaluator:
                evaluator.check_stock_fit(self, kwargs.get("callbacks", args[5:6]))
            return stock(self, *args, **kwargs)
        return getattr(trainer, name)(*args, **kwargs)

    method.tfdp = True  # type: ignore[attr-defined]
    return method


def _auto_jit() -> Callable[[keras.Model], bool]:
    stock = getattr(keras.Model, compat.RESOLVE_AUTO_JIT)

    @functools.wraps(stock)
    def method(self: keras.Model) -> bool:
        if isinstance(self.distribute_strategy, tf.distribute.ParameterServerStrategy):
            return False
        if isinstance(self.distribute_strategy, _SYNCHRONOUS):
            return _has_gpus() and compat.supports_jit(self)
        return stock(self)

    method.tfdp = True  # type: ignore[attr-defined]
    return method


def _export_whole() -> Callable[..., Any]:
    stock = keras.Model.export

    @functools.wraps(stock)
    def method(self: keras.Model, *args: Any, **kwargs: Any) -> Any:
        with partitions.whole(self):
            return stock(self, *args, **kwargs)

    method.tfdp = stock  # type: ignore[attr-defined]
    return method


def _has_gpus() -> bool:
    return bool(tf.config.list_physical_devices("GPU"))


def trainer_of(model: keras.Model) -> Any:
    """Return what trains this model, or None for Keras itself.

    Raises:
        ValueError: If the model and the scope it is used in do not belong together.
    """
    strategy = model.distribute_strategy
    scope = tf.distribute.get_strategy() if tf.distribute.has_strategy() else None
    if not isinstance(strategy, _TAUGHT):
        if isinstance(scope, _TAUGHT):
            raise ValueError(_made_outside(model))
        return None
    if scope is not None and scope is not strategy:
        raise ValueError(
            f"Model {model.name!r} was made under one strategy's scope() and is used inside "
            "another's. Use it inside its own, or make and compile it under this one."
        )
    _check(model, strategy)
    trainer = _trainers.get(model)
    if isinstance(strategy, tf.distribute.ParameterServerStrategy):
        options = _server_options_of.get(strategy, epochs.Options())
        if trainer is None or (trainer.strategy, trainer.options) != (strategy, options):
            trainer = _trainers[model] = parameter_server.ServerTrainer(model, strategy, options)
        return trainer
    communication = _communication_of.get(strategy, _communication)
    if trainer is None or trainer.strategy is not strategy:
        trainer = sync.SyncTrainer(model, strategy, communication)
        _trainers[model] = trainer
    trainer.communication = communication
    return evaluator.Evaluator(trainer) if _is_evaluator else trainer


def _check(model: keras.Model, strategy: tf.distribute.Strategy) -> None:
    inside = strategy.extended.variable_created_in_scope
    ours = set()
    if isinstance(strategy, tf.distribute.ParameterServerStrategy):
        # Its trainer keeps them in the coordinator.
        ours = {id(v) for metric in model.metrics for v in metric.variables}
    for variable in model.variables:
        value = variable.value
        if isinstance(value, tf.Variable) and not inside(value) and id(variable) not in ours:
            raise ValueError(_made_outside(model, variable.path))
    optimizer = getattr(model, "optimizer", None)
    if optimizer is not None and not inside(optimizer.variables[0].value):
        raise ValueError(
            f"Model {model.name!r} was compiled with an optimizer that was made outside of its "
            "strategy's scope. Write:  with strategy.scope(): model.compile(optimizer=...)"
        )


def _made_outside(model: keras.Model, variable: str = "") -> str:
    part = f" (its variable {variable!r} at least)" if variable else ""
    return (
        f"Model {model.name!r} was made outside of the strategy's scope{part}. Write:  "
        "with strategy.scope(): model = ...; model.compile(...)"
    )
