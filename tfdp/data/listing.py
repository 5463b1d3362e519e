"""From patterns to files, before TensorFlow is imported.

find("data/*.tfrecord, more/*.tfrecord")    # sorted within each pattern, each file once
"""

import glob
import os

from tfdp.error import Error


def find(patterns: str) -> list[str]:
    """Return the files that patterns with commas between them name.

    Raises:
        Error: If one of them matches no file.
    """
    found: dict[str, None] = {}
    for pattern in (pattern.strip() for pattern in patterns.split(",")):
        names = sorted(path for path in glob.glob(pattern, recursive=True) if os.path.isfile(path))
        if not names:
            raise Error(f"{pattern!r} matches no file in {os.getcwd()}.")
        found.update(dict.fromkeys(names))
    return list(found)
