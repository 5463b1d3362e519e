"""Where Python's and NumPy's random numbers stand, as plain data.

before = now()
take(before)        # draws the same again
"""

import random
from typing import Any

import numpy as np


def now() -> dict[str, Any]:
    """Return both states."""
    version, numbers, gauss = random.getstate()
    name, keys, *rest = np.random.get_state()
    return {
        "python": [version, list(numbers), gauss],
        "numpy": [name, np.asarray(keys).tolist(), *rest],
    }


def take(state: dict[str, Any]) -> None:
    """Set both to a state that `now` returned, also by way of a JSON file."""
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, np.array(keys, np.uint32), *rest))
