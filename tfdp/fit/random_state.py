"""Where Python's and NumPy's random numbers stand.

before = plain(now())
take(before)        # draws the same again
"""

import random
from typing import Any

import numpy as np


def now() -> tuple[Any, Any]:
    """Return both states as Python and NumPy have them: it costs little."""
    return random.getstate(), np.random.get_state()


def plain(states: tuple[Any, Any]) -> dict[str, Any]:
    """Return both states as plain data, for a JSON file."""
    (version, numbers, gauss), (name, keys, *rest) = states
    return {
        "python": [version, list(numbers), gauss],
        "numpy": [name, np.asarray(keys).tolist(), *rest],
    }


def take(state: dict[str, Any]) -> None:
    """Set both to what `plain` returned."""
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, np.array(keys, np.uint32), *rest))
