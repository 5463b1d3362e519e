"""Plain values as YAML, in block style, with every text in JSON's quotes unless it is a plain word.

    print(yaml_text.documents([{"kind": "Service", "spec": {"clusterIP": "None"}}]), end="")

A subset that every reader of YAML takes alike; JSON's strings are strings of YAML 1.2.
"""

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

# Words that no reader of YAML takes for anything but themselves.
_PLAIN = re.compile(r"[A-Za-z][A-Za-z0-9]*([-./][A-Za-z0-9]+)*")
_NOT_PLAIN = {"null", "true", "false", "yes", "no", "on", "off", "y", "n", "none"}


def documents(values: Sequence[Any]) -> str:
    """Return values as the documents of one file."""
    return "---\n".join("".join(f"{line}\n" for line in _lines(value)) for value in values)


def _lines(value: Any) -> Iterator[str]:
    if isinstance(value, dict) and value:
        for name, part in value.items():
            yield from _entry(f"{_scalar(str(name))}:", part)
    elif isinstance(value, list | tuple) and value:
        for part in value:
            first, *rest = _lines(part)
            yield f"- {first}"
            yield from (f"  {line}" for line in rest)
    else:
        yield _scalar(value)


def _entry(name: str, part: Any) -> Iterator[str]:
    if isinstance(part, dict | list | tuple) and part:
        yield name
        yield from (f"  {line}" for line in _lines(part))
    else:
        yield f"{name} {_scalar(part)}"


def _scalar(value: Any) -> str:
    if isinstance(value, str):
        plain = _PLAIN.fullmatch(value) and value.lower() not in _NOT_PLAIN
        return value if plain else json.dumps(value)
    if isinstance(value, dict | list | tuple):
        return "{}" if isinstance(value, dict) else "[]"
    return json.dumps(value)
