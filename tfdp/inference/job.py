"""A whole job of `tfdp predict`, top to bottom: check, lock, start workers, watch them, count.

    summary = run(Settings(model="models/digits", input="data/*.csv", output="out", workers=2))
    summary.rows, summary.errors

What can be wrong with the command is said before rows are read, and most of it before a worker is
started. The same command run again does what is missing. The workers decide by themselves who
makes which part; what happens here is to see that they live, and what is there.
"""

import collections
import contextlib
import dataclasses
import json
import math
import os
import pathlib
import shutil
import time
from collections.abc import Callable, Sequence
from typing import IO, Any

from tfdp.inference import folder as folder_lib
from tfdp.inference import input_files, signature
from tfdp.inference.failures import InferenceError, JobFailed
from tfdp.inference.hosts import Hosts
from tfdp.inference.pool import Pool, Worker, last_words
from tfdp.inference.progress_line import Progress
from tfdp.inference.settings import (
    DEFAULT_BATCH_SIZE,
    Order,
    Settings,
    check,
    extension,
)
from tfdp.serving import manifest

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


def run(
    settings: Settings,
    stream: IO[str] | None = None,
    hosts: Hosts | None = None,
    start: Callable[[Order], int] | None = None,
) -> Summary:
    """Carry out a job, or what is missing of it.

    Args:
        settings: What to do.
        stream: Where the progress is shown.
        hosts: Where the workers run; None for this machine.
        start: Runs `tasks` of an order on hosts that a platform chooses, which see the same files,
            to their end; returns their exit code. None where the workers are watched from here.

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
        if start is not None:
            settings = dataclasses.replace(settings, model=os.path.abspath(model))
            return _Run(Order(settings, 0, known), stream).run_tasks(start)
        return _Run(_order(settings, model, known, hosts), stream, hosts).run()


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


def _order(
    settings: Settings, model: pathlib.Path, known: dict[str, Any], hosts: Hosts | None
) -> Order:
    if hosts is not None:
        threads = settings.threads or hosts.threads
        settings = dataclasses.replace(
            settings, model=str(model), workers=hosts.workers, threads=threads
        )
        return Order(settings, 0, known)
    workers = settings.workers or len(_gpus()) or 1
    threads = settings.threads or max(1, len(os.sched_getaffinity(0)) // workers)
    settings = dataclasses.replace(settings, model=str(model), workers=workers, threads=threads)
    return Order(settings, os.getpid(), known)


def _gpus() -> Sequence[str]:
    from tfdp.launch import machine

    return machine.gpus(os.environ)


class _Run:
    """The state of one run, and its story."""

    def __init__(self, order: Order, stream: IO[str] | None, hosts: Hosts | None = None) -> None:
        self._order = order
        self._hosts = hosts
        self._settings = order.settings
        self._stream = stream
        self._deaths: collections.Counter[int | None] = collections.Counter()
        self._began, self._finished = math.inf, 0.0
        self._before = 0
        # Whether a worker has seen that the input is that of job.json.
        self._is_agreed = False
        # Known as soon as job.json is there.
        self._parts: folder_lib.Parts | None = None
        self._missing: list[int] = []
        self._errors = 0
        self._look_again = 0.0
        self._progress: Progress | None = None

    def run(self) -> Summary:
        """Watch the workers until nothing is missing."""
        try:
            self._look()
            self._before = self._done_rows()
            relays = self._hosts.relays(self._order) if self._hosts is not None else ()
            with Pool(self._order, () if relays else _gpus(), relays) as pool:
                while not self._is_done(pool, ended := pool.wait(_POLL_SECONDS)):
                    for worker, _ in ended:
                        pool.start(worker.slot)
        except KeyboardInterrupt:
            raise Interrupted(self._how_far()) from None
        except JobFailed as error:
            raise JobFailed(f"{error} {self._how_far()}") from error
        finally:
            if self._progress is not None:
                self._progress.close()
            if self._parts is not None:
                shutil.rmtree(self._parts.writing, ignore_errors=True)
        assert self._parts is not None
        predicted = self._parts.rows - self._before
        # Not less than nothing: workers of an earlier launcher may have made all that was missing.
        seconds = max(1e-3, self._finished - self._began)
        return _finish(self._settings, self._parts, predicted, seconds)

    def run_tasks(self, start: Callable[[Order], int]) -> Summary:
        """Let tasks make what is missing, and see what there is when all have ended."""
        self._look()
        self._before, began = self._done_rows(), time.monotonic()
        try:
            code = start(self._order)
        except KeyboardInterrupt:
            raise Interrupted(self._how_far()) from None
        self._look()
        if self._parts is None or self._missing:
            # 128 and more: a signal to the launcher has ended them.
            failed = Interrupted if code in (130, 143) else JobFailed
            raise failed(f"The tasks have ended with exit code {code}. {self._how_far()}")
        shutil.rmtree(self._parts.writing, ignore_errors=True)
        predicted = self._parts.rows - self._before
        return _finish(self._settings, self._parts, predicted, time.monotonic() - began)

    def _is_done(self, pool: Pool, ended: list[tuple[Worker, str]]) -> bool:
        for worker in (*pool.workers, *(worker for worker, _ in ended)):
            self._began = min(self._began, worker.state.began or math.inf)
            self._finished = max(self._finished, worker.state.finished or 0.0)
            self._is_agreed |= worker.state.ready
        if self._parts is None or ended or time.monotonic() >= self._look_again:
            self._look()
        if self._parts is not None and self._is_agreed:
            self._show(self._parts, pool)
            if not self._missing:
                return True
        for worker, how in ended:
            self._count_death(worker, how)
        if any(worker.state.ready for worker in pool.workers):
            self._deaths.pop(None, None)
        return False

    def _show(self, parts: folder_lib.Parts, pool: Pool) -> None:
        if self._errors > self._settings.max_errors:
            parts.collect_errors(self._settings.max_errors)
        if self._progress is None:
            self._progress = Progress(self._stream, parts.rows, self._before)
        # A worker may tell of a part that is there already.
        states = [worker.state for worker in pool.workers if worker.state.part in self._missing]
        running = sum(state.rows for state in states)
        self._progress.show(self._done_rows() + running, self._errors)

    def _look(self) -> None:
        """Look what there is in the folder."""
        began = time.monotonic()
        folder = pathlib.Path(self._settings.output)
        job = folder_lib.read_job(folder) if self._parts is None else None
        if job is not None:
            folder_lib.check_same_job(folder, job, self._order.job)
            self._parts = folder_lib.Parts.of(folder, job)
            self._missing = self._parts.missing()
        if self._parts is not None:
            self._missing = self._parts.missing(self._missing)
            self._errors = len(self._parts.error_lines())
        ended = time.monotonic()
        self._look_again = ended + (ended - began) / _LOOK_SHARE

    def _done_rows(self) -> int:
        parts = self._parts
        return parts.rows - sum(map(parts.rows_of, self._missing)) if parts else 0

    def _count_death(self, worker: Worker, how: str) -> None:
        """Give up where workers end one after the other, at one part or before the first."""
        number = worker.state.part
        if number is not None and number not in self._missing:
            return  # between two parts: that has cost nothing
        self._deaths[number] += 1
        said = f"the last one {how}.{last_words(worker.log)} Log: {worker.log}."
        if number is None and self._deaths[None] >= _FAILED_STARTS:
            raise JobFailed(f"Workers end before they have loaded the model: {said}")
        if number is not None and self._deaths[number] >= _DEATHS:
            raise JobFailed(f"Shard {number} has ended {_DEATHS} workers: {said}")

    def _how_far(self) -> str:
        # A worker may have written job.json and have failed since the last look. What the user
        # reads is why the run stopped, not what this look may find wrong.
        with contextlib.suppress(InferenceError):
            self._look()
        if self._parts is None:
            return "No part has been begun; the same command starts again."
        count = self._parts.count
        complete = count - len(self._parts.missing())
        return f"{complete} of {count} parts are complete; the same command goes on from there."


def _finish(settings: Settings, parts: folder_lib.Parts, predicted: int, seconds: float) -> Summary:
    errors = parts.collect_errors(settings.max_errors)
    counts = {
        "rows": parts.rows,
        "predicted": parts.rows - errors,
        "errors": errors,
        "parts": parts.count,
    }
    folder_lib.write_beside(parts.folder / folder_lib.SUMMARY, json.dumps(counts, indent=1) + "\n")
    work = folder_lib.work_folder(parts.folder)
    for path in (*work.glob("worker-*.log"), *work.glob("plan-*.lock")):
        path.unlink(missing_ok=True)
    return Summary(parts.rows, errors, parts.count, predicted, seconds)
