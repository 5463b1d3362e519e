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

from tfdp.compat import data_adapters, distribute


def seed() -> str:
    """Return what shuffles without a seed of their own draw by, in words; "" for nothing.

    TensorFlow's draw by its global seed, Python's and NumPy's by TFDP_SEED, unless the script has
    set all three by keras.utils.set_random_seed.
    """
    of_tensorflow, own = distribute.global_seed(), data_adapters.own_seed()
    of_python = os.environ.get("TFDP_SEED", "") if own is None else str(own)
    found = [of_python, "" if of_tensorflow is None else str(of_tensorflow)]
    return " and ".join(dict.fromkeys(filter(None, found)))


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
