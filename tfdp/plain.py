"""Facts as plain data: frozen dataclasses as JSON and back, and files that are whole.

    @dataclasses.dataclass(frozen=True)
    class Point(plain.Facts):
        replicas: int
        seconds: tuple[float, ...] = ()

    Point.read(Point(2, (0.1, 0.2)).write("runs/a/point.json"))     # the same point

What is read has exactly the fields that are written, each of its type.
"""

import collections.abc
import dataclasses
import json
import os
import pathlib
import types
import typing
from collections.abc import Mapping
from typing import Any, Self

from tfdp.error import Error


@dataclasses.dataclass(frozen=True)
class Facts:
    """A base of frozen dataclasses that are kept as JSON."""

    def to_json(self) -> str:
        """Return the text of a file."""
        return json.dumps(dataclasses.asdict(self), indent=1) + "\n"

    def to_text(self) -> str:
        """Return the same on one line: the value of a variable, or a word of a command."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Return the facts that a text holds.

        Raises:
            ValueError: If it holds none, with the place that does not fit.
        """
        return _made(cls, json.loads(text), "")

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Self:
        """Return the facts that a file holds; errors are those of from_json, and OSError."""
        return cls.from_json(pathlib.Path(path).read_text())

    @classmethod
    def from_variable(cls, environ: Mapping[str, str], variable: str) -> Self | None:
        """Return the facts that a variable of an environment holds; None where it is not set.

        Raises:
            Error: If it holds something else.
        """
        text = environ.get(variable)
        if not text:
            return None
        try:
            return cls.from_json(text)
        except ValueError:
            raise Error(f"{variable}={text!r}: tfdp sets that itself. Unset it.") from None

    def write(self, path: str | os.PathLike[str]) -> pathlib.Path:
        """Write the file, and its folder where there is none; return its path."""
        path = pathlib.Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        replace(path, self.to_json())
        return path


def replace(path: pathlib.Path, text: str) -> None:
    """Write a file in place of one that may be there: others see all of it, or what was before."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    part.write_text(text)
    os.replace(part, path)


def _made(kind: Any, value: Any, path: str) -> Any:
    """Return the value of a type out of what json.loads gave.

    Raises:
        ValueError: If it does not fit, with the place.
    """
    if kind is Any:
        return value
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        if not isinstance(value, dict):
            raise ValueError(f"{path or 'it'} is no object")
        hints = typing.get_type_hints(kind)
        names = [field.name for field in dataclasses.fields(kind)]
        if set(value) != set(names):
            odd = sorted(set(value) ^ set(names))[0]
            raise ValueError(f"{path}{odd} is {'missing' if odd in names else 'unknown'}")
        made = {name: _made(hints[name], value[name], f"{path}{name}.") for name in names}
        return typing.cast(Any, kind)(**made)
    if origin is types.UnionType:
        if value is None and type(None) in arguments:
            return None
        return _made(next(one for one in arguments if one is not type(None)), value, path)
    if origin is tuple and isinstance(value, list):
        return tuple(_made(arguments[0], one, path) for one in value)
    if origin in (dict, collections.abc.Mapping) and isinstance(value, dict):
        return {name: _made(arguments[1], one, f"{path}{name}.") for name, one in value.items()}
    wanted = (int, float) if kind is float else kind
    if origin is None and isinstance(value, wanted) and isinstance(value, bool) <= (kind is bool):
        return kind(value)
    raise ValueError(f"{path.rstrip('.')} is {value!r}")
