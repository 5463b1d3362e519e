"""The output folder of a job: its lock, its description, and which parts are complete.

    with lock(folder):                      # InferenceError if another predictor holds it
        check_same_job(folder, job)         # InferenceError with the difference
        done = complete_parts(folder, parts, "jsonl")

    OUT/part-00003-of-00016.jsonl   appears by a rename, when all of it is written
    OUT/job.json                    the model, signature and input that the parts are made with
    OUT/errors.jsonl                rows that could not be read, at the end of the job
    OUT/summary.json                the counts, at the end of the job
    OUT/.tfdp/                      the lock, what is being written, errors of each part

A worker holds a lock on the file that it writes. So a launcher that was started again sees which
shards the workers of one that was killed are still about to finish.
"""

import contextlib
import fcntl
import json
import os
import pathlib
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from tfdp.inference import shards
from tfdp.inference.errors import InferenceError, JobFailed

JOB = "job.json"
ERRORS = "errors.jsonl"
SUMMARY = "summary.json"
WORK = ".tfdp"
# Of more input files than this, one hash is kept instead of the list.
_MOST_FILES = 10_000


@contextlib.contextmanager
def lock(folder: pathlib.Path) -> Iterator[None]:
    """Hold an output folder, which is made when it is absent.

    Raises:
        InferenceError: If another predictor holds it, or it cannot be written.
    """
    try:
        work_folder(folder).mkdir(parents=True, exist_ok=True)
        file = open(work_folder(folder) / "lock", "a+")
    except OSError as error:
        raise InferenceError(
            f"--output={folder} cannot be written: {error.strerror or error}."
        ) from error
    with file:
        try:
            # Never removed, and the kernel releases it when the process ends, however it ends.
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            holder = file.read().strip() or "unknown"
            raise InferenceError(
                f"--output={folder} is being written by another tfdp predict (process {holder}). "
                "Wait for it, or choose another folder."
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def work_folder(folder: pathlib.Path) -> pathlib.Path:
    """Return the folder of what is not for users."""
    return folder / WORK


def describe_input(
    kind: str, names: Iterable[str], stats: Iterable[tuple[int, int]], rows: int
) -> dict[str, Any]:
    """Return what tells one input from another: names, sizes, times of change, rows."""
    import hashlib

    files = {name: [size, changed] for name, (size, changed) in zip(names, stats, strict=True)}
    described: dict[str, Any] = {"kind": kind, "rows": rows, "count": len(files)}
    if len(files) <= _MOST_FILES:
        described["files"] = files
    else:
        text = json.dumps(files, sort_keys=True)
        described["sha256"] = hashlib.sha256(text.encode()).hexdigest()
    return described


def read_job(folder: pathlib.Path) -> dict[str, Any] | None:
    """Return the job that a folder belongs to, None for a new one.

    Raises:
        InferenceError: If it cannot be read, or there are parts of an unknown job.
    """
    try:
        job = json.loads((folder / JOB).read_text())
        assert isinstance(job, dict)
        return job
    except FileNotFoundError:
        strange = [entry.name for entry in folder.iterdir() if entry.name.startswith("part-")]
        if strange:
            raise InferenceError(
                f"--output={folder} holds {strange[0]} but no {JOB}: nobody knows what made it. "
                "Choose another folder."
            ) from None
        return None
    except (OSError, ValueError, AssertionError) as error:
        raise InferenceError(f"{folder / JOB} cannot be read: {error}.") from error


def check_same_job(folder: pathlib.Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Check what is known of a job against the one that the parts in a folder are made with.

    Raises:
        InferenceError: With every difference.
    """
    differences = list(_differences(old, new))
    if differences:
        raise InferenceError(
            f"--output={folder} holds parts of another job: {'; '.join(differences)}. Choose "
            "another folder, or remove that one."
        )


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    for name in new:
        if name == "input":
            yield from _input_differences(old.get(name, {}), new[name])
        elif old.get(name) != new[name]:
            if name == "model":
                yield "another model (its files differ)"
            else:
                yield f"{name} was {_short(old.get(name))}, and is {_short(new[name])}"


def _input_differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    if old == new:
        return
    before, now = old.get("files", {}), new.get("files", {})
    changed = [name for name in now if name in before and before[name] != now[name]]
    for what, names in (
        ("was not in the input", [name for name in now if name not in before]),
        ("is in the input no more", [name for name in before if name not in now]),
        ("has changed", changed),
    ):
        if names:
            more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
            yield f"{names[0]}{more} {what}"
    if before.keys() == now.keys() and not changed:
        yield f"the input was {_counts(old)}, and is {_counts(new)}"


def _counts(described: Mapping[str, Any]) -> str:
    hashed = f", {described['sha256'][:8]}" if "sha256" in described else ""
    return (
        f"{described.get('rows')} rows in {described.get('count')} {described.get('kind')} files"
        f"{hashed}"
    )


def _short(value: Any) -> str:
    text = json.dumps(value) if not isinstance(value, str) else repr(value)
    return text if len(text) <= 200 else text[:200] + "..."


def write_beside(path: pathlib.Path, content: str) -> None:
    """Write a small file so that it is whole or absent."""
    beside = path.parent / WORK / f"{path.name}.{os.getpid()}"
    try:
        with open(beside, "w") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        beside.rename(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)
        raise JobFailed(f"{path} cannot be written: {error.strerror or error}.") from error


def complete_parts(folder: pathlib.Path, parts: int, extension: str) -> set[int]:
    """Return the numbers of the parts that are there."""
    present = set(os.listdir(folder))
    return {
        number for number in range(parts) if shards.part_name(number, parts, extension) in present
    }


# -- what is being written ------------------------------------------------------------------------


def writing_folder(folder: pathlib.Path, job_hash: str) -> pathlib.Path:
    """Return where the workers of a job write; those of another job write elsewhere."""
    return work_folder(folder) / f"writing-{job_hash[:16]}"


def writing_path(writing: pathlib.Path, number: int) -> pathlib.Path:
    """Return the file that this process writes a part to."""
    return writing / f"{number:05}.{os.getpid()}"


def clear(folder: pathlib.Path, job_hash: str) -> None:
    """Remove what nobody writes any more: all of other jobs, and of this one what is unlocked.

    A worker of another job that still runs fails when it renames: it cannot spoil a part.
    """
    keep = writing_folder(folder, job_hash)
    for entry in work_folder(folder).glob("writing-*"):
        if entry != keep:
            shutil.rmtree(entry, ignore_errors=True)
    keep.mkdir(parents=True, exist_ok=True)
    for entry in keep.iterdir():
        if not _is_locked(entry):
            entry.unlink(missing_ok=True)


def being_finished(writing: pathlib.Path) -> dict[int, list[int]]:
    """Return the shards that living workers write, with the numbers of their processes."""
    found: dict[int, list[int]] = {}
    for entry in writing.iterdir():
        name = re.fullmatch(r"(\d+)\.(\d+)", entry.name)
        if name and _is_locked(entry):
            found.setdefault(int(name[1]), []).append(int(name[2]))
    return found


def _is_locked(path: pathlib.Path) -> bool:
    try:
        with open(path, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return False
    except FileNotFoundError:
        return False
    except OSError:
        return True


# -- errors ---------------------------------------------------------------------------------------


def errors_path(folder: pathlib.Path, number: int) -> pathlib.Path:
    """Return the file of the rows of one shard that could not be read."""
    return work_folder(folder) / "errors" / f"{number:05}.jsonl"


def count_errors(folder: pathlib.Path, numbers: Iterable[int]) -> int:
    """Return how many rows of some complete shards could not be read."""
    return sum(len(lines) for lines in _errors(folder, numbers, {}))


def collect_errors(
    folder: pathlib.Path, numbers: Iterable[int], unfinished: Mapping[int, list[str]]
) -> int:
    """Write errors.jsonl, in the order of the input; return how many rows it names.

    Args:
        folder: The output folder.
        numbers: The complete shards.
        unfinished: Lines of shards that are not.
    """
    lines = [line for part in _errors(folder, numbers, unfinished) for line in part]
    if lines:
        write_beside(folder / ERRORS, "".join(line + "\n" for line in lines))
    else:
        (folder / ERRORS).unlink(missing_ok=True)
    return len(lines)


def too_many(folder: pathlib.Path, errors: int, most: int) -> str:
    """Return what to say when more rows are unreadable than are allowed."""
    return (
        f"{errors} rows cannot be read, which is more than --max_errors={most}: see "
        f"{folder / ERRORS}."
    )


def _errors(
    folder: pathlib.Path, numbers: Iterable[int], unfinished: Mapping[int, list[str]]
) -> Iterator[list[str]]:
    complete = set(numbers)
    for number in sorted(complete | set(unfinished)):
        if number not in complete:
            yield unfinished[number]
            continue
        try:
            yield errors_path(folder, number).read_text().splitlines()
        except FileNotFoundError:
            yield []
