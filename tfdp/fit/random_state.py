"""Where random numbers stand: Python's, NumPy's, and those of seed generators.

before = plain(now())
take(before)        # draws the same again
put_back = returning(states)
put_back()          # so do the seed generators that have these states
"""

import os
import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tfdp.compat import data_adapters


def seed() -> str:
    """Return what shuffles without a seed of their own draw by: the script's seed, or TFDP_SEED."""
    own = data_adapters.own_seed()
    return os.environ.get("TFDP_SEED", "") if own is None else str(own)


def now() -> tuple[Any, Any]:
    """Return both states as Python and NumPy have them: it costs little."""
    return random.getstate(), np.random.get_state()


def put_back(states: tuple[Any, Any]) -> None:
    """Set both to what `now` returned."""
    python, numpy = states
    random.setstate(python)
    np.random.set_state(numpy)


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


def returning(states: Sequence[Any]) -> Callable[[], None]:
    """Return what gives the states of seed generators the values that they have now.

    Args:
        states: TensorFlow's variables, those of each replica.
    """
    values = [np.array(state) for state in states]

    def put_back() -> None:
        for state, value in zip(states, values, strict=True):
            state.assign(value)

    return put_back
