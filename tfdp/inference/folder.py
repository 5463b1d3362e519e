"""The output folder of a job: its lock, job.json, and the parts that are there.

    with lock(folder):                      # InferenceError if another predictor holds it
        job = read_job(folder)              # None in a new folder
    parts = Parts.of(folder, job)
    parts.missing()                         # [3, 4]

    OUT/part-00003-of-00016.jsonl   appears by a rename, when all of it is written
    OUT/job.json                    what the parts are made with, and which records each holds
    OUT/errors.jsonl                rows that could not be read, at the end of the job
    OUT/summary.json                the counts, at the end of the job
    OUT/.tfdp/writing-KEY/         the parts that are being made, see claims and part
    OUT/.tfdp/errors-KEY/00003      the unreadable rows of part 3

KEY is a hash of what job.json holds: a worker of another job that still runs has lost its folder,
fails when it renames, and cannot spoil a part.
"""

import contextlib
import dataclasses
import fcntl
import json
import os
import pathlib
import shutil
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from tfdp.inference import shards
from tfdp.inference.failures import InferenceError, JobFailed

JOB = "job.json"
ERRORS = "errors.jsonl"
SUMMARY = "summary.json"
WORK = ".tfdp"


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


def write_beside(path: pathlib.Path, content: str) -> None:
    """Write a small file so that it is whole or absent.

    Raises:
        JobFailed: If it cannot be written.
    """
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


# -- the job --------------------------------------------------------------------------------------


def read_job(folder: pathlib.Path) -> dict[str, Any] | None:
    """Return the job that a folder belongs to, None for a new one.

    Raises:
        InferenceError: If it cannot be read, or there are parts of an unknown job.
    """
    try:
        job = json.loads((folder / JOB).read_text())
        if not isinstance(job, dict) or not {"cut", "key"} <= job.keys():
            raise ValueError("it does not say which records make which part")
        return job
    except FileNotFoundError:
        strange = [entry.name for entry in folder.iterdir() if entry.name.startswith("part-")]
        if strange:
            raise InferenceError(
                f"--output={folder} holds {strange[0]} but no {JOB}: nobody knows what made it. "
                "Choose another folder."
            ) from None
        return None
    except (OSError, ValueError) as error:
        raise InferenceError(f"{folder / JOB} cannot be read: {error}.") from error


def write_job(folder: pathlib.Path, job: Mapping[str, Any]) -> None:
    """Write job.json: a line for each entry, since the cut may be long."""
    lines = [f" {json.dumps(name)}: {json.dumps(value)}" for name, value in job.items()]
    write_beside(folder / JOB, "{\n" + ",\n".join(lines) + "\n}\n")


def check_same_job(folder: pathlib.Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Check what is known of a job against the one that the parts in a folder are made with.

    Args:
        folder: The output folder.
        old: What job.json holds.
        new: Some of its entries; the files of an input may lack their counts.

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
            yield from _input_differences(old["input"], new["input"])
        elif old.get(name) != new[name]:
            if name == "model":
                yield "another model (its files differ)"
            else:
                yield f"{name} was {_short(old.get(name))}, and is {_short(new[name])}"


def _input_differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    if old["kind"] != new["kind"]:
        yield f"the input was {old['kind']}, and is {new['kind']}"
        return
    before, now = (_files_by_name(one["kind"], one["files"]) for one in (old, new))
    for what, names in (
        ("was not in the input", [name for name in now if name not in before]),
        ("is in the input no more", [name for name in before if name not in now]),
        ("has changed", [name for name in now if name in before and before[name] != now[name]]),
    ):
        if names:
            more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
            yield f"{names[0]}{more} {what}"


def _files_by_name(kind: str, files: list[list[Any]]) -> dict[str, list[Any]]:
    """Return size and time of change by file; of TFDS, whose splits cut files, by piece of one."""
    if kind != "tfds":
        return {name: facts[:2] for name, *facts in files}
    return {
        f"{name}[{first}:{first + records}]": [size, changed]
        for name, size, changed, first, records in files
    }


def _short(value: Any) -> str:
    text = json.dumps(value) if not isinstance(value, str) else repr(value)
    return text if len(text) <= 200 else text[:200] + "..."


# -- the parts ------------------------------------------------------------------------------------


def clear(folder: pathlib.Path, job: Mapping[str, Any] | None) -> None:
    """Remove what other jobs have left."""
    keep = Parts.of(folder, job) if job else None
    for entry in work_folder(folder).glob("*-*/"):
        if keep is None or entry not in (keep.writing, keep.errors):
            shutil.rmtree(entry, ignore_errors=True)


@dataclasses.dataclass(frozen=True)
class Parts:
    """The parts of one job.

    Attributes:
        folder: The output folder.
        rows: Records of the input.
        shard_rows: Of each part; the last one may have fewer.
        extension: The format.
        key: Tells this job from others that had this folder.
    """

    folder: pathlib.Path
    rows: int
    shard_rows: int
    extension: str
    key: str

    @classmethod
    def of(cls, folder: pathlib.Path, job: Mapping[str, Any]) -> "Parts":
        """Return the parts that a job.json describes."""
        return cls(folder, job["input"]["rows"], job["shard_rows"], job["format"], job["key"])

    @property
    def count(self) -> int:
        """How many there are."""
        return shards.count(self.rows, self.shard_rows)

    @property
    def writing(self) -> pathlib.Path:
        """The folder of what is being written."""
        return work_folder(self.folder) / f"writing-{self.key}"

    @property
    def errors(self) -> pathlib.Path:
        """The folder of the unreadable rows."""
        return work_folder(self.folder) / f"errors-{self.key}"

    def rows_of(self, number: int) -> int:
        """Return how many records make a part."""
        return min(self.shard_rows, self.rows - number * self.shard_rows)

    def path(self, number: int) -> pathlib.Path:
        """Return where a part is when it is complete."""
        return self.folder / shards.part_name(number, self.count, self.extension)

    def missing(self, among: Iterable[int] | None = None) -> list[int]:
        """Return the numbers of the parts that are not there, of some or of all, in order."""
        present = set(os.listdir(self.folder))
        numbers = range(self.count) if among is None else among
        return [number for number in numbers if self.path(number).name not in present]

    def errors_path(self, number: int) -> pathlib.Path:
        """Return the file of the unreadable rows of a part that is there."""
        return self.errors / f"{number:05}"

    def error_lines(self) -> list[str]:
        """Return the unreadable rows that are known so far, in the order of the input."""
        lines: dict[int, list[str]] = {}
        for path in (*self.errors.glob("*"), *self.writing.glob("*.errors")):
            number, found = int(path.name.partition(".")[0]), _whole_lines(path)
            # Two processes may have begun it.
            lines[number] = max(lines.get(number, []), found, key=len)
        return [line for number in sorted(lines) for line in lines[number]]

    def collect_errors(self, most: int) -> int:
        """Write errors.jsonl; return how many rows it names.

        Raises:
            JobFailed: If there are more than `most`, or it cannot be written.
        """
        lines = self.error_lines()
        if lines:
            write_beside(self.folder / ERRORS, "".join(lines))
        else:
            (self.folder / ERRORS).unlink(missing_ok=True)
        if len(lines) > most:
            raise JobFailed(
                f"{len(lines)} rows cannot be read, which is more than --max_errors={most}: see "
                f"{self.folder / ERRORS}."
            )
        return len(lines)


def _whole_lines(path: pathlib.Path) -> list[str]:
    """Return the lines of a file that may have been renamed now, or be written."""
    try:
        lines = path.read_text().splitlines(keepends=True)
    except FileNotFoundError:
        return []
    return [line for line in lines if line.endswith("\n")]
