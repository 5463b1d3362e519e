"""How many records each file holds, remembered beside the files.

    counts = count(["data/a.tfrecord", "data/b.tfrecord"], tfrecord.count)     # [1000, 990]

`.tfdp-counts.json` in the folder of the files (below ~/.cache/tfdp where that cannot be written)
keeps name, size, time of change, records and, once a file was checked, which of them are damaged.
An entry stands as long as size and time are those of the file. A file that holds fewer records than
were counted before has been cut, and is refused.
"""

import dataclasses
import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Callable, Sequence

from tfdp.data import sharding, tfrecord
from tfdp.data.errors import REPAIR
from tfdp.error import Error

NAME = ".tfdp-counts.json"
_log = logging.getLogger("tfdp")


@dataclasses.dataclass(frozen=True)
class Count:
    """What is known of a file.

    Attributes:
        size: Bytes.
        changed: Time of the last change, in ns.
        records: How many it holds, damaged ones included.
        damaged: Their numbers; None if nobody has looked.
        reasons: What is wrong with them.
    """

    size: int
    changed: int
    records: int
    damaged: tuple[int, ...] | None = None
    reasons: tuple[str, ...] = ()


def count(paths: Sequence[str], counter: Callable[[str], int]) -> list[int]:
    """Return the number of records of every file, from memory or by counting.

    Raises:
        Error: If a file is empty, damaged, shorter than it was, or cannot be read.
    """
    made = _each(paths, lambda path: Count(*state(path), _counted(path, counter)))
    return [made[path].records for path in paths]


def check(paths: Sequence[str], bad_records: int) -> dict[str, Count]:
    """Read every record of TFRecord files, and return what is damaged.

    Raises:
        Error: If more than `bad_records` records are.
    """
    made = _each(paths, _checked, lambda entry: entry.damaged is not None)
    reasons = [reason for path in paths for reason in made[path].reasons]
    if len(reasons) > bad_records:
        raise Error(
            f"{len(reasons)} damaged records, config.data.bad_records={bad_records} may be "
            f"skipped. The first: {reasons[0]}"
        )
    for reason in reasons:
        _log.warning("Skipped: %s", reason)
    if reasons:
        _log.warning("%d damaged records are skipped in every epoch.", len(reasons))
    return made


def state(path: str) -> tuple[int, int]:
    """Return size and time of change of a file.

    Raises:
        Error: If it is not there, or empty.
    """
    try:
        facts = os.stat(path)
    except OSError as error:
        raise Error(f"{path} cannot be read: {error.strerror or error}.") from error
    if facts.st_size == 0:
        raise Error(f"{path} is empty: remove it, or write it again.")
    return facts.st_size, facts.st_mtime_ns


def files(paths: Sequence[str], records: Sequence[int | None]) -> list[sharding.File]:
    """Return whole files, with their records and sizes.

    Raises:
        Error: If one is not there, or empty.
    """
    return [
        sharding.File(path, one, bytes=state(path)[0])
        for path, one in zip(paths, records, strict=True)
    ]


def place(folder: str) -> str:
    """Return the file in which the counts of a folder are kept."""
    beside = os.path.join(folder, NAME)
    if os.access(beside if os.path.exists(beside) else folder or ".", os.W_OK):
        return beside
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    key = hashlib.sha256(os.path.abspath(folder).encode()).hexdigest()[:16]
    return os.path.join(cache, "tfdp", f"counts-{key}.json")


def _each(
    paths: Sequence[str],
    make: Callable[[str], Count],
    enough: Callable[[Count], bool] = lambda entry: True,
) -> dict[str, Count]:
    made: dict[str, Count] = {}
    for folder in dict.fromkeys(map(os.path.dirname, paths)):
        remembered = _read(folder)
        fresh: dict[str, Count] = {}
        for path in (path for path in paths if os.path.dirname(path) == folder):
            name = os.path.basename(path)
            entry = remembered.get(name)
            if entry and (entry.size, entry.changed) == state(path) and enough(entry):
                made[path] = entry
                continue
            made[path] = fresh[name] = make(path)
            if entry and made[path].records < entry.records:
                raise Error(
                    f"{path} holds {made[path].records:,} records, and held {entry.records:,} "
                    "when they were counted before: it has been cut. If that is meant, remove "
                    f"{place(folder)}."
                )
        if fresh:
            _write(folder, fresh)
    return made


def _counted(path: str, counter: Callable[[str], int]) -> int:
    try:
        return counter(path)
    except tfrecord.Damage as damage:
        raise Error(f"{damage} {REPAIR}") from damage
    except OSError as error:
        raise Error(f"{path} cannot be read: {error.strerror or error}.") from error


def _checked(path: str) -> Count:
    facts = state(path)
    records, damaged = 0, []
    try:
        for record in tfrecord.read(path):
            if isinstance(record, tfrecord.Damage):
                damaged.append(record)
            records += 1
    except OSError as error:
        raise Error(f"{path} cannot be read: {error.strerror or error}.") from error
    reasons = tuple(map(str, damaged))
    return Count(*facts, records, tuple(one.record for one in damaged), reasons)


def _read(folder: str) -> dict[str, Count]:
    try:
        with open(place(folder)) as file:
            entries = json.load(file)
        return {
            name: Count(size, changed, records, None if bad is None else tuple(bad), tuple(reasons))
            for name, (size, changed, records, bad, reasons) in entries.items()
        }
    except (OSError, ValueError, TypeError, AttributeError):
        return {}  # not there, or of another version: counted anew


def _write(folder: str, fresh: dict[str, Count]) -> None:
    path = place(folder)
    entries = {**_read(folder), **fresh}
    try:
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
        with tempfile.NamedTemporaryFile(
            "w", dir=os.path.dirname(path) or ".", prefix=NAME, delete=False
        ) as file:
            json.dump({name: dataclasses.astuple(entries[name]) for name in entries}, file)
        # By a rename, so that another process reads the old file or the new one.
        os.replace(file.name, path)
    except OSError as error:
        _log.info("The counts cannot be kept in %s: %s.", path, error.strerror or error)
