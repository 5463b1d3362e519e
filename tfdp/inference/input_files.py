"""From --input to files with counted records.

    found = find("data/*.csv")          # looks at names and sizes only
    files = scan(found)                 # reads: how many records each file holds, and where
    found.base, found.names             # "data", ("a.csv", "b.csv")

What a pattern means is told by the names: *.tfrecord, *.csv, *.npy, images, or a folder of one of
these; `tfds:NAME/SPLIT` is a split of a TFDS dataset that has been prepared.
"""

import dataclasses
import glob
import os
from collections.abc import Callable, Iterable
from typing import Any

from tfdp.inference import raw_rows
from tfdp.inference.failures import InferenceError
from tfdp.inference.shards import File

IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".gif", ".bmp", ".webp")
TFDS_PREFIX = "tfds:"
_KINDS = "TFRecord, .csv, .npy, images, a folder of these, or tfds:NAME/SPLIT"


@dataclasses.dataclass(frozen=True)
class Found:
    """The files of an input.

    Attributes:
        kind: "tfrecord", "csv", "npy", "images" or "tfds".
        base: The folder to which the names are relative.
        names: The files in order; the ids of rows begin with them.
        stats: Size in bytes and time of the last change (ns) of each.
    """

    kind: str
    base: str
    names: tuple[str, ...]
    stats: tuple[tuple[int, int], ...]

    def path(self, name: str) -> str:
        """Return the path of a file."""
        return os.path.join(self.base, name)

    def described(self) -> dict[str, Any]:
        """Return what tells this input from another, as job.json holds it."""
        files = [[name, *stats] for name, stats in zip(self.names, self.stats, strict=True)]
        return {"kind": self.kind, "files": files}


@dataclasses.dataclass(frozen=True)
class Split:
    """A split of a TFDS dataset, or a part of one (see tfds_input).

    Attributes:
        found: Its files, each as often as a piece of it is in the split.
        files: The same with their counts.
        header: {"features": {name: [dtype, shape]}}, None for a feature that is no tensor.
        features: The dataset's tfds.features.FeaturesDict.
    """

    found: Found
    files: list[File]
    header: dict[str, Any]
    features: Any


def base_of(pattern: str) -> str:
    """Return the folder to which the names of the files are relative."""
    if os.path.isdir(pattern):
        return pattern
    base = os.path.dirname(pattern)
    while glob.has_magic(base):
        base = os.path.dirname(base)
    return base


def find(pattern: str) -> Found:
    """Find the files that a path, a folder or a glob pattern names, sorted by name.

    Raises:
        InferenceError: If there are none, or of several kinds.
    """
    base = base_of(pattern)
    if os.path.isdir(pattern):
        paths = [
            os.path.join(folder, name)
            for folder, folders, names in os.walk(pattern)
            for name in names
            if _visible(folders, name)
        ]
    else:
        paths = [path for path in glob.glob(pattern, recursive=True) if os.path.isfile(path)]
    by_kind: dict[str, list[str]] = {}
    for path in paths:
        by_kind.setdefault(kind_of(path), []).append(path)
    other = by_kind.pop("", [])
    if not by_kind:
        why = f"matches no file in {os.getcwd()}"
        if other:
            why = f"matches {other[0]!r}, which is none of the kinds that are read"
        raise InferenceError(f"--input={pattern!r} {why}. Name {_KINDS}.")
    if len(by_kind) > 1:
        counts = " and ".join(f"{len(paths)} {kind}" for kind, paths in sorted(by_kind.items()))
        raise InferenceError(f"--input={pattern!r} matches files of several kinds: {counts}.")
    ((kind, paths),) = by_kind.items()
    if other and not os.path.isdir(pattern):
        raise InferenceError(
            f"--input={pattern!r} matches {other[0]!r} beside {kind} files. Name {_KINDS}."
        )
    return of_files(kind, base, sorted(os.path.relpath(path, base or ".") for path in paths))


def of_files(kind: str, base: str, names: Iterable[str]) -> Found:
    """Return what is found when the files are known."""
    names = tuple(names)
    stats = []
    for name in names:
        path = os.path.join(base, name)
        try:
            facts = os.stat(path)
        except OSError as error:
            raise InferenceError(f"{path} cannot be read: {error.strerror or error}.") from error
        stats.append((facts.st_size, facts.st_mtime_ns))
    return Found(kind, base, names, tuple(stats))


def kind_of(path: str) -> str:
    """Return the kind of a file by its name, "" for one that is not read."""
    name = os.path.basename(path).lower()
    if name.endswith((".tfrecord", ".tfrecords", ".tfrec")) or ".tfrecord-" in name:
        return "tfrecord"
    if name.endswith(".csv"):
        return "csv"
    if name.endswith(".npy"):
        return "npy"
    return "images" if name.endswith(IMAGE_ENDINGS) else ""


def header(found: Found) -> dict[str, Any] | None:
    """Return what the head of the files says about a row, None where it says nothing.

    For CSV {"columns": names}; for .npy {"dtype": ..., "shape": ..., "fields": {name: [dtype,
    shape]}}, with no fields for a plain array.

    Raises:
        InferenceError: If two files differ in it.
    """
    if found.kind == "csv":
        return {"columns": _same(found, raw_rows.csv_header, "the columns")}
    if found.kind == "npy":
        return _same(found, lambda path: _npy_header(path)[1], "rows of")
    return None


def scan(found: Found) -> list[File]:
    """Count the records of every file.

    Raises:
        InferenceError: If a file cannot be read.
    """
    count = {
        "images": lambda path, name: File(name, 1),
        "npy": lambda path, name: File(name, _npy_header(path)[0]),
        "csv": raw_rows.scan_csv,
        "tfrecord": raw_rows.scan_tfrecord,
    }[found.kind]
    return [count(found.path(name), name) for name in found.names]


def _visible(folders: list[str], name: str) -> bool:
    # Whatever is hidden, what tools leave behind included, is not input; the order of os.walk is
    # no matter, as the names are sorted.
    folders[:] = [folder for folder in folders if not folder.startswith((".", "__"))]
    return not name.startswith(".")


def _same(found: Found, read: Callable[[str], Any], what: str) -> Any:
    first = read(found.path(found.names[0]))
    for name in found.names[1:]:
        other = read(found.path(name))
        if other != first:
            raise InferenceError(
                f"{found.path(name)} has {what} {_shown(other)}, but {found.names[0]} has "
                f"{_shown(first)}: one input has to be alike in all files."
            )
    return first


def _shown(header: Any) -> str:
    if isinstance(header, dict):
        return f"{header['dtype']} {tuple(header['shape'])}"
    return ", ".join(header)


def _npy_header(path: str) -> tuple[int, dict[str, Any]]:
    import numpy as np

    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InferenceError(f"{path} is no array that can be read: {error}.") from error
    if array.ndim == 0:
        raise InferenceError(f"{path} holds a single value: its first dimension has to be rows.")
    fields = {}
    for name in array.dtype.names or ():
        kind = array.dtype[name]
        fields[name] = [kind.base.name, list(kind.shape)]
    dtype = "record" if fields else array.dtype.name
    return len(array), {"dtype": dtype, "shape": list(array.shape[1:]), "fields": fields}
