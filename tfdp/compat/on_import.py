"""Do something as soon as somebody has imported a module, and nothing if nobody does.

    call_after("keras", function)                       # function() once keras is there
    call_after("tensorflow", function, around=quiet)    # imported inside `with quiet():`

So a script starts at once, and pays for TensorFlow where it imports it itself.
"""

import contextlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
import threading
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any


def call_after(
    name: str,
    function: Callable[[], None],
    around: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext,
) -> None:
    """Call a function when a module has been imported; at once if it has been already.

    Args:
        name: Of the module.
        function: Called in the thread that imports; what it raises, the import statement raises.
        around: Returns a context that the module's code runs in.
    """
    if name in sys.modules:
        function()
    else:
        sys.meta_path.insert(0, _Finder(name, function, around))


def is_awaited(name: str) -> bool:
    """Say whether something is done as soon as somebody imports a module."""
    return any(isinstance(f, _Finder) and f.name == name for f in sys.meta_path)


def is_being_imported(name: str) -> bool:
    """Say whether a module's code is running, as that of a module which imports another one."""
    module = sys.modules.get(name)
    return bool(getattr(getattr(module, "__spec__", None), "_initializing", False))


class _Finder(importlib.abc.MetaPathFinder):
    """Finds one module the way the other finders do, until it has been imported.

    Whoever only looks whether the module is there (`importlib.util.find_spec`) changes nothing,
    and neither does an import that fails.
    """

    def __init__(self, name: str, function: Any, around: Any):
        self.name, self._function, self._around = name, function, around
        self._asking = threading.local()  # set while this thread asks the other finders

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != self.name or getattr(self._asking, "now", False):
            return None
        self._asking.now = True
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            self._asking.now = False
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            with self._around():
                execute(module)
            if self in sys.meta_path:
                sys.meta_path.remove(self)
                self._function()

        # On this one loader, which nobody else uses: every search makes a loader of its own.
        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec
