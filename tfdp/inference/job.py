"""A whole job of `tfdp predict`, top to bottom: check, lock, cut, hand out, count.

    summary = run(Settings(model="models/digits", input="data/*.csv", output="out", workers=2))
    summary.rows, summary.errors

What can be wrong with the command is said before rows are read, and most of it before a worker is
started. The same command run again does what is missing.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import IO, Any

from tfdp.inference import folder as folder_lib
from tfdp.inference import listing, shards, signature
from tfdp.inference.errors import InferenceError, JobFailed
from tfdp.inference.handout import HandOut
from tfdp.inference.pool import Pool
from tfdp.inference.progress import Progress
from tfdp.inference.settings import DEFAULT_BATCH_SIZE, Settings, check, extension
from tfdp.serving import manifest


@dataclasses.dataclass(frozen=True)
class Summary:
    """What a job has reached.

    Attributes:
        rows: Records of the input.
        errors: How many of them could not be read; all others are in the parts.
        parts: How many files the output has.
        predicted: Rows that this run has predicted.
        seconds: How long this run took from its first shard to its last.
    """

    rows: int
    errors: int
    parts: int
    predicted: int
    seconds: float


class Interrupted(JobFailed):
    """A job that was told to stop."""

    def __init__(self, message: str) -> None:
        super().__init__(message)


def run(settings: Settings, stream: IO[str] | None = None) -> Summary:
    """Carry out a job, or what is missing of it.

    Args:
        settings: What to do.
        stream: Where the progress is shown.

    Raises:
        InferenceError: For a command that cannot be carried out; nothing has been changed.
        JobFailed: If it stops; the parts that are complete stay.
        Interrupted: After a KeyboardInterrupt.
    """
    check(settings)
    model = manifest.version_folder(settings.model)
    model_hash = manifest.verify(model)
    known = signature.from_json(manifest.read(model).get("signatures", {}))
    if known:
        signature.choose(known, settings.signature)
    found = None
    if not settings.input.startswith(listing.TFDS_PREFIX):
        found = listing.find(settings.input)
        if known:
            _bind(settings, known, found.kind, listing.header(found))
    folder = pathlib.Path(settings.output)
    with folder_lib.lock(folder):
        old = folder_lib.read_job(folder)
        job = {
            "model": model_hash,
            "signature": settings.signature,
            "format": extension(settings),
            "id": settings.id,
            "map": {name: list(names) for name, names in sorted(settings.map.items())},
            "jit_compile": settings.jit_compile,
            "batch_size": settings.batch_size or (old or {}).get("batch_size", DEFAULT_BATCH_SIZE),
        }
        if settings.shard_rows:
            job["shard_rows"] = settings.shard_rows
        if old is not None:
            folder_lib.check_same_job(folder, old, job)
        return _Run(settings, folder, model, job, old, found, stream).run()


def _bind(
    settings: Settings,
    known: Mapping[str, signature.Signature],
    kind: str,
    header: Mapping[str, Any] | None,
) -> dict[str, list[str]]:
    """Return which columns go where; check the column of the ids as well."""
    chosen = signature.choose(known, settings.signature)
    columns = signature.bind(chosen, kind, header, settings.map, known)
    if settings.id:
        if kind == "images" or (kind == "npy" and not (header or {}).get("fields")):
            raise InferenceError(f"--id={settings.id}: {kind} have no columns; leave it out.")
        have = (header or {}).get({"csv": "columns", "npy": "fields"}.get(kind, ""))
        if have is not None and settings.id not in have:
            raise InferenceError(
                f"--id={settings.id}: the input has no such column. It has {', '.join(have)}."
            )
    return columns


class _Run:
    """The state of one run, and its story."""

    def __init__(
        self,
        settings: Settings,
        folder: pathlib.Path,
        model: pathlib.Path,
        job: dict[str, Any],
        old: Mapping[str, Any] | None,
        found: listing.Found | None,
        stream: IO[str] | None,
    ) -> None:
        self._settings = settings
        self._folder = folder
        self._model = model
        self._job = job
        self._old = old
        self._found = found
        self._stream = stream

    def run(self) -> Summary:
        """Do what is missing."""
        if self._old is not None and self._found is not None:
            # Before a worker is started: has the input changed, is there anything to do?
            self._check_input(self._found, self._old["input"]["rows"])
            parts = shards.count(self._old["input"]["rows"], self._old["shard_rows"])
            complete = folder_lib.complete_parts(self._folder, parts, self._job["format"])
            if len(complete) == parts:
                return self._finish(self._old["input"]["rows"], parts, 0, 0.0)
        progress = None
        try:
            with self._pool() as pool:
                known = self._first_ready(pool)
                start, files = self._inspect(pool, known)
                rows = sum(file.records for file in files)
                self._settle(rows)
                hand_out = HandOut(
                    pool,
                    self._folder,
                    list(shards.cut(files, self._job["shard_rows"])),
                    start | {"hash": self._hash(), "parts": self._parts(rows)},
                    max_errors=self._settings.max_errors,
                    timeout_seconds=self._settings.timeout_seconds,
                )
                progress = Progress(self._stream, rows)
                predicted, seconds = hand_out.run(progress)
        except KeyboardInterrupt:
            if progress is not None:
                progress.close()
            raise Interrupted(self._how_far()) from None
        except JobFailed as error:
            raise JobFailed(f"{error} {self._how_far()}") from error
        finally:
            if progress is not None:
                progress.close()
            self._tidy()
        return self._finish(rows, self._parts(rows), predicted, seconds)

    def _pool(self) -> Pool:
        from tfdp.launch import machine

        settings = self._settings
        gpus = machine.gpus(os.environ)
        workers = settings.workers or len(gpus) or 1
        cores = len(os.sched_getaffinity(0))
        threads = settings.threads or max(1, cores // workers)
        job = {"model": str(self._model), "threads": threads}
        job |= {name: self._job[name] for name in ("signature", "batch_size", "jit_compile")}
        logs = folder_lib.work_folder(self._folder)
        return Pool(workers, job, logs, settings.timeout_seconds, gpus)

    def _first_ready(self, pool: Pool) -> dict[str, signature.Signature]:
        for message in _messages(pool):
            if "ready" in message:
                return signature.from_json(message["ready"])
        raise AssertionError

    def _inspect(
        self, pool: Pool, known: Mapping[str, signature.Signature]
    ) -> tuple[dict[str, Any], list[shards.File]]:
        """Check that the input fits; count its records. Returns what the workers need as well."""
        settings, found = self._settings, self._found
        signature.choose(known, settings.signature)
        tfds, header, files = None, None, None
        if found is None:
            text = settings.input.removeprefix(listing.TFDS_PREFIX)
            told = _ask(pool, {"tfds": text, "data_dir": settings.data_dir})
            names = [name for name, _, _ in told["files"]]
            found = self._found = listing.of_files("tfds", told["base"], names)
            spans = {name: (first, records) for name, first, records in told["files"]}
            tfds = {"name": text.rpartition("/")[0], "data_dir": settings.data_dir}
            header = {"features": told["features"]}
            files = [
                dataclasses.replace(file, first=spans[name][0], records=spans[name][1])
                for name, file in zip(found.names, listing.scan(found), strict=True)
            ]
        else:
            header = listing.header(found)
        columns = _bind(settings, known, found.kind, header)
        if found.kind == "tfrecord":
            self._check_features(pool, known, columns)
        files = files or listing.scan(found)
        return {
            "kind": found.kind,
            "base": found.base,
            "columns": columns,
            "header": header,
            "tfds": tfds,
            "id": settings.id,
            "extension": self._job["format"],
            "max_errors": settings.max_errors,
            "output": str(self._folder),
        }, files

    def _check_features(
        self,
        pool: Pool,
        known: Mapping[str, signature.Signature],
        columns: Mapping[str, list[str]],
    ) -> None:
        assert self._found is not None
        wanted = [name for names in columns.values() for name in names]
        wanted += [self._settings.id] if self._settings.id else []
        wanted = [name for name in wanted if name != signature.RECORD]
        file = self._found.path(self._found.names[0])
        have = _ask(pool, {"file": file, "features": wanted})["features"]
        missing = [name for name in wanted if name not in have]
        # Where none of the first records can be read, they are errors of rows.
        if missing and have:
            model = "; ".join(str(one) for one in known.values())
            raise InferenceError(
                f"The first records of {file} have no feature {missing[0]!r}, but "
                f"{', '.join(have)}. Name another with --map=INPUT=FEATURE. The model has: {model}."
            )

    def _check_input(self, found: listing.Found, rows: int) -> None:
        described = folder_lib.describe_input(found.kind, found.names, found.stats, rows)
        assert self._old is not None
        folder_lib.check_same_job(self._folder, self._old, {"input": described})

    def _settle(self, rows: int) -> None:
        """Fix what the parts are made with; write it down before the first of them."""
        assert self._found is not None
        if self._old is not None:
            self._check_input(self._found, rows)
        old = self._old or {}
        self._job.setdefault(
            "shard_rows",
            old.get("shard_rows") or shards.default_shard_rows(rows, self._job["batch_size"]),
        )
        self._job["input"] = folder_lib.describe_input(
            self._found.kind, self._found.names, self._found.stats, rows
        )
        if self._old is None:
            folder_lib.write_beside(
                self._folder / folder_lib.JOB, json.dumps(self._job, indent=1) + "\n"
            )
        folder_lib.clear(self._folder, self._hash())

    def _hash(self) -> str:
        return hashlib.sha256(json.dumps(self._job, sort_keys=True).encode()).hexdigest()

    def _parts(self, rows: int) -> int:
        return shards.count(rows, self._job["shard_rows"])

    def _how_far(self) -> str:
        if "shard_rows" not in self._job or "input" not in self._job:
            return "No part has been begun; the same command starts again."
        parts = self._parts(self._job["input"]["rows"])
        complete = folder_lib.complete_parts(self._folder, parts, self._job["format"])
        return (
            f"{len(complete)} of {parts} parts are complete; the same command goes on from there."
        )

    def _tidy(self) -> None:
        """Remove what killed workers have left, when they are gone."""
        with contextlib.suppress(OSError):
            if "input" in self._job:
                folder_lib.clear(self._folder, self._hash())

    def _finish(self, rows: int, parts: int, predicted: int, seconds: float) -> Summary:
        errors = folder_lib.collect_errors(self._folder, range(parts), {})
        if errors > self._settings.max_errors:
            raise JobFailed(folder_lib.too_many(self._folder, errors, self._settings.max_errors))
        counts = {"rows": rows, "predicted": rows - errors, "errors": errors, "parts": parts}
        folder_lib.write_beside(
            self._folder / folder_lib.SUMMARY, json.dumps(counts, indent=1) + "\n"
        )
        for log in folder_lib.work_folder(self._folder).glob("worker-*.log"):
            log.unlink(missing_ok=True)
        return Summary(rows, errors, parts, predicted, seconds)


def _messages(pool: Pool) -> Iterator[dict[str, Any]]:
    """Yield messages of any worker; an answer that says what is wrong is raised."""
    while True:
        for _, message in pool.events(1.0):
            if "failed" in message:
                raise (InferenceError if message["mistake"] else JobFailed)(message["failed"])
            yield message


def _ask(pool: Pool, question: dict[str, Any]) -> dict[str, Any]:
    """Ask a ready worker; another one if it dies."""
    while True:
        worker = next((one for one in pool.workers if one.is_ready), None)
        if worker is None:
            next(message for message in _messages(pool) if "ready" in message)
            continue
        pool.send(worker, inspect=question)
        for message in _messages(pool):
            if "inspected" in message:
                return message["inspected"]
            if "died" in message and worker not in pool.workers:
                break
