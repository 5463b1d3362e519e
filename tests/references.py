"""What several processes of a test run compare with, made once for all of them."""

import os
import pathlib
import shutil
from collections.abc import Callable

# The folder that the processes of a run share. conftest.py makes it.
VARIABLE = "REFERENCES"


def kept(name: str, make: Callable[[pathlib.Path], object]) -> pathlib.Path:
    """Return a file or folder of this name; the first that asks for it makes it.

    Two that ask at the same time both make it, and one of them is kept.

    Args:
        name: Of the reference.
        make: Writes the file, or fills the folder, at the path it is given.
    """
    path = pathlib.Path(os.environ[VARIABLE], name)
    if not path.exists():
        made = path.with_name(f"{name}.{os.getpid()}")
        make(made)
        try:
            made.rename(path)
        except OSError:  # a folder that another process has made meanwhile
            shutil.rmtree(made)
    return path
