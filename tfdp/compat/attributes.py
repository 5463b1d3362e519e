"""Attributes of objects of Keras that are others for a while."""

import contextlib
from collections.abc import Iterator
from typing import Any

_ABSENT = object()


@contextlib.contextmanager
def replaced(*changes: tuple[Any, str, Any]) -> Iterator[None]:
    """Let objects have other attributes, also in the place of methods of their class.

    Past `__setattr__`, which tracks what it is given.

    Args:
        *changes: (object, name of the attribute, what it holds meanwhile).
    """
    before = [(one, name, vars(one).get(name, _ABSENT)) for one, name, _ in changes]
    for one, name, value in changes:
        object.__setattr__(one, name, value)
    try:
        yield
    finally:
        for one, name, value in before:
            if value is _ABSENT:
                object.__delattr__(one, name)
            else:
                object.__setattr__(one, name, value)
