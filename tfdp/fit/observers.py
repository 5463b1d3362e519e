"""Who looks at a fit before it begins: to measure how fast it will be, say.

    observe_next_fit(observe)       # observe(rehearsal) is called once, by the next fit
    for observe in due(callbacks): ...

A callback that has a method `tfdp_before_training(rehearsal)` is such an observer of its own fit.
What a rehearsal offers stands in replicas/rehearsal.py.
"""

from collections.abc import Callable
from typing import Any

_waiting: list[Callable[[Any], None]] = []


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
