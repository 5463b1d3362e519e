"""The manifest of a served model: what it is made of, and whether all of it is there.

    write(folder, {"config": ...})            # folder/manifest.json, with a SHA-256 of each file
    verify(version_folder("models/digits"))   # raises Error: "variables/... is missing"

A SavedModel that another program has exported has no manifest.json: then only the files that every
SavedModel has are asked for.
"""

import hashlib
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from tfdp.error import Error

NAME = "manifest.json"
_READ_BYTES = 1 << 20


def version_folder(path: str | os.PathLike[str]) -> pathlib.Path:
    """Return the folder of a version: `path` itself, or the highest number below it.

    Raises:
        Error: If neither is a SavedModel.
    """
    path = pathlib.Path(path)
    if (path / "saved_model.pb").is_file() or (path / NAME).is_file():
        return path
    if path.is_file():
        raise Error(
            f"There is no model in {path}: it is a file, and a SavedModel is a folder. Make one of "
            "a .keras file with tfdp export --run=FILE.keras --output=MODELS/NAME."
        )
    if not path.is_dir():
        raise Error(f"There is no model in {path}: no such folder.")
    versions = [entry for entry in path.iterdir() if entry.name.isdecimal()]
    if versions:
        return max(versions, key=lambda entry: int(entry.name))  # 10 comes after 9
    raise Error(
        f"There is no model in {path}: neither saved_model.pb nor a folder with a number (1, 2, "
        "...). Make one with tfdp export."
    )


def files(folder: pathlib.Path) -> list[str]:
    """Return the files of a version in a fixed order, the manifest left out."""
    found = (path for path in folder.rglob("*") if path.is_file())
    names = (path.relative_to(folder).as_posix() for path in found)
    return sorted(name for name in names if name != NAME)


def sha256(path: pathlib.Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(_READ_BYTES):
            digest.update(block)
    return digest.hexdigest()


def write(folder: pathlib.Path, facts: Mapping[str, Any]) -> None:
    """Write manifest.json: the facts, and size and SHA-256 of every file that is there."""
    content = {
        **facts,
        "files": {
            name: {"bytes": (folder / name).stat().st_size, "sha256": sha256(folder / name)}
            for name in files(folder)
        },
    }
    (folder / NAME).write_text(json.dumps(content, indent=1) + "\n")


def read(folder: pathlib.Path) -> dict[str, Any]:
    """Return the manifest of a version, {} where it has none.

    Raises:
        Error: If it cannot be read.
    """
    try:
        content = json.loads((folder / NAME).read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise Error(f"{folder / NAME} cannot be read: {error}.") from error
    if not isinstance(content, dict) or not isinstance(content.get("files", {}), dict):
        raise Error(f"{folder / NAME} is no manifest of tfdp.")
    return content


def verify(folder: pathlib.Path) -> str:
    """Check that a version is whole, by every byte where it has a manifest.

    Returns:
        A hash of its name-less content: equal for copies of one model.

    Raises:
        Error: Naming each file that is missing, changed, or not in the manifest.
    """
    found = files(folder)
    hashes = {name: sha256(folder / name) for name in found}
    listed = read(folder).get("files")
    problems = []
    if listed is None:
        wanted = ["saved_model.pb"]
        if (folder / "variables").is_dir():
            wanted.append("variables/variables.index")
            count = _data_files(found)
            wanted += [
                f"variables/variables.data-{number:05}-of-{count:05}" for number in range(count)
            ]
        problems = [f"{name} is missing" for name in wanted if name not in hashes]
    else:
        for name, facts in sorted(listed.items()):
            if name not in hashes:
                problems.append(f"{name} is missing")
            elif hashes[name] != facts.get("sha256"):
                problems.append(f"{name} was changed")
        problems += [f"{name} is not in the manifest" for name in found if name not in listed]
    if problems:
        raise Error(f"The model {folder} is not whole: {', '.join(problems)}.")
    # The names and the content, so that a copy elsewhere is the same model.
    return hashlib.sha256(json.dumps(hashes, sort_keys=True).encode()).hexdigest()


def _data_files(found: list[str]) -> int:
    """Return how many files hold the variables, by the name of any that is there; else 1."""
    for name in found:
        if name.startswith("variables/variables.data-") and name[-5:].isdecimal():
            return int(name[-5:])
    return 1
