"""A whole job of `tfdp predict`, top to bottom: check, lock, start workers, watch them, count.

    summary = run(Settings(model="models/digits", input="data/*.csv", output="out", workers=2))
    summary.rows, summary.errors

What can be wrong with the command is said before rows are read, and most of it before a worker is
started. The same command run again does what is missing. The workers decide by themselves who
makes which part; what happens here is to see that they live, and what is there.
"""

import collections
import dataclasses
import json
import math
import os
import pathlib
import shutil
import time
from collections.abc import Sequence
from typing import IO, Any

from tfdp import manifest
from tfdp.inference import folder as folder_lib
from tfdp.inference import input_files, signature
from tfdp.inference.failures import JobFailed
from tfdp.inference.pool import Pool, Worker, last_words
from tfdp.inference.progress_line import Progress
from tfdp.inference.settings import (
    DEFAULT_BATCH_SIZE,
    Settings,
    WorkerSettings,
    check,
    extension,
)

# Workers that one part may end before it is taken for the reason.
_DEATHS = 5
# Workers that may end one after the other before one of them is ready.
_FAILED_STARTS = 3
_POLL_SECONDS = 0.25
# Looking which parts are there takes at most this share of the time.
_LOOK_SHARE = 0.05


@dataclasses.dataclass(frozen=True)
class Summary:
    """What a job has reached.

    Attributes:
        rows: Records of the input.
        errors: How many of them could not be read; all others are in the parts.
        parts: How many files the output has.
        predicted: Rows that this run has predicted.
        seconds: How long this run took from its first part to its last.
    """

    rows: int
    errors: int
    parts: int
    predicted: int
    seconds: float


class Interrupted(JobFailed):
    """A job that was told to stop."""


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
    known: dict[str, Any] = {
        "model": manifest.verify(model),
        "signature": settings.signature,
        "format": extension(settings),
        "id": settings.id,
        "map": {name: list(names) for name, names in sorted(settings.map.items())},
        "jit_compile": settings.jit_compile,
    }
    found = _look_at_input(settings, model)
    folder = pathlib.Path(settings.output)
    with folder_lib.lock(folder):
        job = folder_lib.read_job(folder)
        known["batch_size"] = settings.batch_size or (job or known).get(
            "batch_size", DEFAULT_BATCH_SIZE
        )
        if settings.shard_rows:
            known["shard_rows"] = settings.shard_rows
        if job is not None:
            told = {"input": found.described()} if found else {}
            folder_lib.check_same_job(folder, job, known | told)
        folder_lib.clear(folder, job)
        # Whether a TFDS dataset is the same is seen by a worker.
        if job is not None and found and not folder_lib.Parts.of(folder, job).missing():
            return _finish(settings, folder_lib.Parts.of(folder, job), 0, 0.0)
        return _Run(settings, _worker_settings(settings, model, known), stream).run()


def _look_at_input(settings: Settings, model: pathlib.Path) -> input_files.Found | None:
    """Check what can be checked without TensorFlow; return the files, None for TFDS."""
    known = signature.from_json(manifest.read(model).get("signatures", {}))
    if known:
        signature.choose(known, settings.signature)
    if settings.input.startswith(input_files.TFDS_PREFIX):
        return None
    found = input_files.find(settings.input)
    if known:
        chosen, header = known[settings.signature], input_files.header(found)
        signature.bind(chosen, found.kind, header, settings.map, known, settings.id)
    return found


def _worker_settings(
    settings: Settings, model: pathlib.Path, known: dict[str, Any]
) -> WorkerSettings:
    workers = settings.workers or len(_gpus()) or 1
    cores = len(os.sched_getaffinity(0))
    return WorkerSettings(
        folder=settings.output,
        launcher=os.getpid(),
        workers=workers,
        threads=settings.threads or max(1, cores // workers),
        model=str(model),
        input=settings.input,
        data_dir=settings.data_dir,
        timeout_seconds=settings.timeout_seconds,
        job=known,
    )


def _gpus() -> Sequence[str]:
    from tfdp.launch import machine

    return machine.gpus(os.environ)


class _Run:
    """The state of one run, and its story."""

    def __init__(self, settings: Settings, order: WorkerSettings, stream: IO[str] | None) -> None:
        self._settings = settings
        self._order = order
        self._folder = pathlib.Path(settings.output)
        self._stream = stream
        self._tally: _Tally | None = None
        self._progress: Progress | None = None
        self._deaths: collections.Counter[int | None] = collections.Counter()
        self._began = math.inf

    def run(self) -> Summary:
        """Watch the workers until nothing is missing."""
        started = time.monotonic()
        try:
            with Pool(self._order, _gpus()) as pool:
                while not self._is_done(pool, ended := pool.wait(_POLL_SECONDS)):
                    for worker, _ in ended:
                        pool.start(worker.slot)
                ended_at = time.monotonic()
        except KeyboardInterrupt:
            self._close_line()
            raise Interrupted(self._how_far()) from None
        except JobFailed as error:
            raise JobFailed(f"{error} {self._how_far()}") from error
        finally:
            self._close_line()
            if self._tally is not None:
                shutil.rmtree(self._tally.parts.writing, ignore_errors=True)
        assert self._tally is not None
        # Workers of an earlier launcher may have made all that was missing.
        began = started if math.isinf(self._began) else self._began
        return _finish(self._settings, self._tally.parts, self._tally.new_rows, ended_at - began)

    def _is_done(self, pool: Pool, ended: list[tuple[Worker, str]]) -> bool:
        self._tally = self._tally or self._begin()
        for worker, how in ended:
            self._count_death(worker, how)
        if any(worker.state.ready for worker in pool.workers):
            self._deaths.pop(None, None)
        if self._tally is None:  # no worker has found out yet what there is to do
            return False
        tally = self._tally
        tally.look(now=bool(ended))
        for worker in (*pool.workers, *(worker for worker, _ in ended)):
            self._began = min(self._began, worker.state.began or math.inf)
        # A worker may tell of a part that is there already.
        running = [w.state for w in pool.workers if w.state.part in tally.missing]
        errors = tally.errors + sum(state.errors for state in running)
        if errors > self._settings.max_errors:
            written = tally.parts.collect_errors()
            raise JobFailed(tally.parts.too_many(written, self._settings.max_errors))
        assert self._progress is not None
        self._progress.show(tally.done_rows + sum(state.rows for state in running), errors)
        return not tally.missing

    def _begin(self) -> "_Tally | None":
        job = folder_lib.read_job(self._folder)
        if job is None:
            return None
        folder_lib.check_same_job(self._folder, job, self._order.job)
        tally = _Tally(folder_lib.Parts.of(self._folder, job))
        self._progress = Progress(self._stream, tally.parts.rows)
        self._progress.start(tally.done_rows)
        return tally

    def _count_death(self, worker: Worker, how: str) -> None:
        """Give up where workers end one after the other, at one part or before the first."""
        number = worker.state.part
        if number is not None and self._tally and self._tally.parts.path(number).exists():
            return  # between two parts: that has cost nothing
        self._deaths[number] += 1
        said = f"{how}.{last_words(worker.log)} Log: {worker.log}."
        if number is None and self._deaths[None] >= _FAILED_STARTS:
            raise JobFailed(f"Workers end before they have loaded the model: the last one {said}")
        if number is not None and self._deaths[number] >= _DEATHS:
            raise JobFailed(f"Shard {number} has ended {_DEATHS} workers: the last one {said}")

    def _how_far(self) -> str:
        if self._tally is None:
            return "No part has been begun; the same command starts again."
        self._tally.look(now=True)
        count = self._tally.parts.count
        complete = count - len(self._tally.missing)
        return f"{complete} of {count} parts are complete; the same command goes on from there."

    def _close_line(self) -> None:
        if self._progress is not None:
            self._progress.close()


class _Tally:
    """What there is of a job.

    Attributes:
        parts: All its parts.
        missing: The numbers of those that are not there.
        errors: Unreadable rows of those that are.
        done_rows: Rows of those that are, unreadable ones too.
    """

    def __init__(self, parts: folder_lib.Parts) -> None:
        self.parts = parts
        self.missing = set(range(parts.count))
        self.errors = self.done_rows = 0
        self._look_again = 0.0
        self.look(now=True)
        self._rows_before = self.done_rows

    @property
    def new_rows(self) -> int:
        """Rows of the parts that have come since the beginning."""
        return self.done_rows - self._rows_before

    def look(self, now: bool = False) -> None:
        """Look which parts have come, at once or if that has not been done lately."""
        began = time.monotonic()
        if not now and began < self._look_again:
            return
        missing = set(self.parts.missing(self.missing))
        for number in self.missing - missing:
            self.errors += self.parts.count_errors(number)
            self.done_rows += self.parts.rows_of(number)
        self.missing = missing
        ended = time.monotonic()
        self._look_again = ended + (ended - began) / _LOOK_SHARE


def _finish(settings: Settings, parts: folder_lib.Parts, predicted: int, seconds: float) -> Summary:
    errors = parts.collect_errors()
    if errors > settings.max_errors:
        raise JobFailed(parts.too_many(errors, settings.max_errors))
    counts = {
        "rows": parts.rows,
        "predicted": parts.rows - errors,
        "errors": errors,
        "parts": parts.count,
    }
    folder_lib.write_beside(parts.folder / folder_lib.SUMMARY, json.dumps(counts, indent=1) + "\n")
    for log in folder_lib.work_folder(parts.folder).glob("worker-*.log"):
        log.unlink(missing_ok=True)
    return Summary(parts.rows, errors, parts.count, predicted, seconds)
