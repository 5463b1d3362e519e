"""The verbs of the command line: a module for each, with SYNOPSIS, `define` and `run`.

define(values, words)   # its flags, in absl's FlagValues; words is the command line
run(values)             # carries it out; returns the exit code, raises Error for what cannot be

Only `launch` takes words beside its flags: run(values, positional, script). HINT of another says
what to write in place of such words.
"""

import contextlib
import os
import sys
from collections.abc import Callable, Iterator

from absl import flags


def adder(values: flags.FlagValues) -> Callable[..., None]:
    """Return what defines a flag: add(flags.DEFINE_bool, "json", False, "Print JSON.")."""

    def add(define: Callable[..., object], name: str, default: object, text: str) -> None:
        define(name, default, text, flag_values=values)

    return add


@contextlib.contextmanager
def stdout_to(descriptor: int) -> Iterator[None]:
    """Let what is printed in here, by this process and its tasks, go to another descriptor."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(descriptor, 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)


def one_line(error: Exception) -> str:
    """Return what an error says, on one line of at most 500 characters."""
    text = str(error)
    if "Traceback (most recent call last)" in text:  # of a config file: its last line says it
        text = text.partition("Error whilst")[0] + text.strip().splitlines()[-1]
    text = " ".join(text.split())
    return text if len(text) < 500 else text[:500] + " ..."
