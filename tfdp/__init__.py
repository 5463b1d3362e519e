"""tfdp: Keras 3's model.fit on many devices and machines, with the numbers of one device.

    import tfdp

    strategy = tfdp.strategy()              # from TF_CONFIG, or this machine's devices
    with strategy.scope():
        model = build()
        model.compile(...)
    model.fit(dataset_of_global_batches, epochs=3)

    tfdp.export(model, "models/digits")                 # a SavedModel, as the next version
    tfdp.predict("models/digits", images, workers=2)    # a row for each image, in order

A script that makes its own `tf.distribute` strategy needs no more than `tfdp.enable()`, or to be
started by the launcher: `tfdp launch --workers=2 -- script.py`.

Importing tfdp imports no TensorFlow: names are loaded when they are first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

from tfdp.version import VERSION as __version__

if TYPE_CHECKING:
    from tfdp import callbacks, layers, losses, optimizers, schedules
    from tfdp.error import Error
    from tfdp.fit import Communication, disable, enable
    from tfdp.inference.rows import predict
    from tfdp.launch.discovery import is_chief
    from tfdp.launch.notebook import notebook_launcher
    from tfdp.launch.progress import report_progress
    from tfdp.learning_rate import scale_learning_rate
    from tfdp.serving.export import export
    from tfdp.strategies import strategy
    from tfdp.tuning.call import tune_batch

_HOMES = {
    "Communication": "tfdp.fit",
    "Error": "tfdp.error",
    "disable": "tfdp.fit",
    "enable": "tfdp.fit",
    "export": "tfdp.serving.export",
    "is_chief": "tfdp.launch.discovery",
    "notebook_launcher": "tfdp.launch.notebook",
    "predict": "tfdp.inference.rows",
    "report_progress": "tfdp.launch.progress",
    "scale_learning_rate": "tfdp.learning_rate",
    "strategy": "tfdp.strategies",
    "tune_batch": "tfdp.tuning.call",
}

__all__ = [
    "Communication",
    "Error",
    "__version__",
    "callbacks",
    "disable",
    "enable",
    "export",
    "is_chief",
    "layers",
    "losses",
    "notebook_launcher",
    "optimizers",
    "predict",
    "report_progress",
    "scale_learning_rate",
    "schedules",
    "strategy",
    "tune_batch",
]


# Modules with public names: tfdp.layers.Embedding.
_MODULES = ("callbacks", "layers", "losses", "optimizers", "schedules")


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"tfdp.{name}")
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'tfdp' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES, *_MODULES])
