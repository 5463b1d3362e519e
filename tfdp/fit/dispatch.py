"""enable() teaches Keras's fit the strategies of tf.distribute; disable() undoes it.

    enable(communication=Communication(compression="bfloat16"))
    model.fit(...)          # under the strategy the model was made in
    disable()

It replaces six methods on `keras.Model` by one that looks at the model's strategy, the one that
says what jit_compile="auto" means there, and those that save, which are the chief's work (and
`export` takes no partitions of variables). A model that was made and is fitted outside of any
strategy goes to Keras's own code.
"""

import contextlib
import functools
import logging
import weakref
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from tfdp.compat import compiled, distribute, keras_variables
from tfdp.error import Error
from tfdp.fit import evaluator, saving
from tfdp.fit.replicas import communication as communication_lib
from tfdp.fit.replicas import engine as replicas_engine
from tfdp.fit.replicas import model_watch
from tfdp.fit.servers import coordinator, partitions
from tfdp.fit.servers import engine as servers_engine

_log = logging.getLogger("tfdp")

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
_server_options_of: "weakref.WeakKeyDictionary[Any, coordinator.Options]" = (
    weakref.WeakKeyDictionary()
)
_is_evaluator = False
_alone = ""  # what is lost where a model has no strategy; said once
# Where a model keeps what trains it: a trainer refers to its model, so that a table of trainers
# would keep both for ever.
_TRAINER = "_tfdp_trainer"
# Those of parameter servers live as long as the process, and their models with them: what they
# have traced is removed from every worker when it goes, and the end of a process would wait for a
# worker that is dead.
_server_trainers: list[Any] = []
_is_enabled = False
_prepared: "weakref.WeakSet[Any]" = weakref.WeakSet()
_installed: dict[str, Callable[..., Any]] = {}
_replaced: dict[str, Any] = {}  # what stood on keras.Model itself: None where it was inherited


def enable(communication: communication_lib.Communication | None = None) -> None:
    """Teach `keras.Model` the strategies of tf.distribute. A second call changes only options.

    What another library has put in the place of a method (a logger of runs, say) stays: it runs
    around this package where it came later, and for models without a strategy where it came first.

    Args:
        communication: How gradients travel, for strategies that were not given their own.
    """
    global _communication, _is_enabled
    if communication is not None:
        _communication = communication
    _is_enabled = True
    keras_variables.let_variables_convert(True)
    for name in (*METHODS, compiled.RESOLVE_AUTO_JIT, *saving.METHODS):
        if not _is_installed(name):
            _replaced[name] = vars(keras.Model).get(name)
            _installed[name] = _replacement(name)
            setattr(keras.Model, name, _installed[name])


def disable() -> None:
    """Give `keras.Model` its own methods back, and leave what other libraries have put there."""
    global _is_enabled
    _is_enabled = False
    keras_variables.let_variables_convert(False)
    for name, method in list(_installed.items()):
        if vars(keras.Model).get(name) is not method:
            continue  # another library's stands around it: there it hands on what it gets
        if _replaced[name] is None:
            delattr(keras.Model, name)
        else:
            setattr(keras.Model, name, _replaced[name])
        del _installed[name]


def _is_installed(name: str) -> bool:
    """Say whether a method of this package is in place, itself or inside what wraps it."""
    method = vars(keras.Model).get(name)
    while method is not None:
        if method is _installed.get(name):
            return True
        method = getattr(method, "__wrapped__", None)
    return False


def _replacement(name: str) -> Callable[..., Any]:
    stock = getattr(keras.Model, name)
    if name in saving.METHODS:
        method = _saver(name, stock)
    else:
        method = _auto_jit(stock) if name == compiled.RESOLVE_AUTO_JIT else _dispatcher(name, stock)

    @functools.wraps(stock)
    def checked(self: keras.Model, *args: Any, **kwargs: Any) -> Any:
        return (method if _is_enabled else stock)(self, *args, **kwargs)

    checked.tfdp = True  # type: ignore[attr-defined]
    return checked


def set_communication(
    strategy: tf.distribute.Strategy, communication: communication_lib.Communication
) -> None:
    """Use these options for the models of one strategy."""
    _communication_of[strategy] = communication


def set_server_options(strategy: tf.distribute.Strategy, options: coordinator.Options) -> None:
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


def set_several(lost: str) -> None:
    """Say that this process is one of several, which a model without a strategy does not know.

    Args:
        lost: What a `fit` loses that trains in this process alone, as a sentence for the warning of
            the first one; "" for none.
    """
    global _alone
    _alone = lost


def _warn_alone(model: keras.Model) -> None:
    """Warn once of a model that this process trains alone, though it is one of several."""
    global _alone
    if _alone:
        _log.warning(
            "Model %r was made without a strategy: %s To train one model on all of them, make and "
            "compile it inside `with tfdp.strategy().scope():`.",
            model.name,
            _alone,
        )
        _alone = ""


def _dispatcher(name: str, stock: Callable[..., Any]) -> Callable[..., Any]:
    def method(self: keras.Model, *args: Any, **kwargs: Any) -> Any:
        trainer = trainer_of(self)
        if trainer is None:
            if name == "fit" and _is_evaluator:
                evaluator.check_stock_fit(self, kwargs.get("callbacks", args[5:6]))
            elif name == "fit":
                _warn_alone(self)
            return stock(self, *args, **kwargs)
        return getattr(trainer, name)(*args, **kwargs)

    return method


def _auto_jit(stock: Callable[..., Any]) -> Callable[..., Any]:
    def method(self: keras.Model) -> bool:
        if isinstance(self.distribute_strategy, tf.distribute.ParameterServerStrategy):
            return False
        if isinstance(self.distribute_strategy, _SYNCHRONOUS):
            return _has_gpus() and compiled.supports_jit(self)
        return stock(self)

    return method


def _saver(name: str, stock: Callable[..., Any]) -> Callable[..., Any]:
    def method(self: keras.Model, *args: Any, **kwargs: Any) -> Any:
        whole = partitions.whole(self) if name == "export" else contextlib.nullcontext()
        with whole:
            return saving.save(name, stock, self, *args, **kwargs)

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
    trainer = vars(model).get(_TRAINER)
    if trainer is not None and (trainer.model is not model or trainer.strategy is not strategy):
        trainer = None  # of a model that this one is a copy of
    communication = _communication_of.get(strategy, _communication)
    if isinstance(strategy, tf.distribute.ParameterServerStrategy):
        if communication.sync_every > 1:
            raise Error(servers_keep_no_weights(communication.sync_every))
        options = _server_options_of.get(strategy, coordinator.Options())
        if trainer is None or trainer.options != options:
            trainer = servers_engine.ServerTrainer(model, strategy, options)
            object.__setattr__(model, _TRAINER, trainer)
            _server_trainers.append(trainer)
        return trainer
    if trainer is None:
        _prepare(strategy)
        trainer = replicas_engine.SyncTrainer(model, strategy, communication)
        object.__setattr__(model, _TRAINER, trainer)
    trainer.communication = communication
    return evaluator.Evaluator(trainer) if _is_evaluator else trainer


def servers_keep_no_weights(every: int) -> str:
    """Say why parameter servers do not train with sync_every."""
    return (
        f"Communication(sync_every={every}) is for replicas that sum their gradients; the workers "
        "of parameter servers keep no weights of their own. Leave it out, or train with "
        "--workers=N and neither --chief nor --ps."
    )


def _prepare(strategy: tf.distribute.Strategy) -> None:
    """Do, at the first model of a strategy, what no script has to know of."""
    if strategy in _prepared:
        return
    _prepared.add(strategy)
    if isinstance(strategy, tf.distribute.MirroredStrategy):
        distribute.use_fresh_collective_keys(strategy)
    model_watch.watch(strategy)


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
