"""Who looks at a fit before it begins, or while it runs: to measure how fast it will be, say.

    observe_next_fit(observe)       # observe(rehearsal) is called once, by the next fit
    for observe in due(callbacks): ...

    add_to_next_fit(callback)
    callbacks = with_added(callbacks)

A callback that has a method `tfdp_before_training(rehearsal)` is such an observer of its own fit.
What a rehearsal offers stands in replicas/rehearsal.py.
"""

from collections.abc import Callable
from typing import Any

_waiting: list[Callable[[Any], None]] = []
_added: list[Any] = []


def observe_next_fit(observe: Callable[[Any], None]) -> None:
    """Call `observe(rehearsal)` when the next fit is about to begin; in a cluster on every task."""
    _waiting.append(observe)


def due(callbacks: Any) -> list[Callable[[Any], None]]:
    """Return the observers of a fit; those that wait for the next one wait no longer.

    Args:
        callbacks: Of the fit: a list, or Keras's CallbackList.
    """
    given = getattr(callbacks, "callbacks", callbacks) or []
    found, _waiting[:] = list(_waiting), []
    found += [c.tfdp_before_training for c in given if hasattr(c, "tfdp_before_training")]
    return found


def add_to_next_fit(callback: Any) -> None:
    """Give the next fit one more callback; in a cluster on every task."""
    _added.append(callback)


def with_added(callbacks: Any) -> Any:
    """Return the callbacks of a fit with those that were to be added, which wait no longer.

    Args:
        callbacks: Of the fit: None, one, a list, or Keras's CallbackList, which is added to.
    """
    if not _added:
        return callbacks
    added, _added[:] = list(_added), []
    if hasattr(callbacks, "append") and hasattr(callbacks, "callbacks"):
        for callback in added:
            callbacks.append(callback)
        return callbacks
    given = callbacks if isinstance(callbacks, list | tuple) else [callbacks] if callbacks else []
    return [*given, *added]
