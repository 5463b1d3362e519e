"""Runs the trials, each in processes of its own, and reads what they say.

    tuned = Tuner(start, folder, workers=0, first=64).tune()

`start` begins the processes of a trial and returns their exit code: from a config (tfdp tune-batch)
or from functions (tfdp.tune_batch).
"""

import dataclasses
import os
import pathlib
import re
import sys
from collections.abc import Callable, Sequence

from tfdp import config
from tfdp.cluster import Task
from tfdp.error import Error
from tfdp.launch import local, machine, plan
from tfdp.launch.shape import Shape
from tfdp.tuning import recommend, record, search, told
from tfdp.tuning.settings import NOISE, ROOM, VARIABLE, Trial

# How a process ends that got no memory: killed by the kernel, aborted by C++, or at an address that
# an allocation should have given.
_KILLED = (128 + 9, 128 + 6, 128 + 11)
# What the launcher returns when it was asked to end.
_ASKED_TO_END = {128 + 1: "SIGHUP", 128 + 15: "SIGTERM"}
_NO_MEMORY = re.compile(
    r"ResourceExhausted|OOM when allocating|std::bad_alloc|MemoryError|out of memory|"
    r"Cannot allocate memory|CUDA_ERROR_OUT_OF_MEMORY|Failed to allocate|"
    r"could not execute a primitive|"  # oneDNN's
    r"Resource temporarily unavailable|can't start new thread|pthread_create\(\) failed"
)
# Memory ends there where so many times the rows would not fit.
_NEAR = 1.3
# A trial of many rows on a slow device takes fewer steps, within about so many seconds.
_STEPS, _FEWEST, _SECONDS = 12, 6, 20.0


def launch(script: Sequence[str], workers: int, settings: Trial) -> int:
    """Start the processes of a trial and wait for them; return the exit code of the first to fail.

    Args:
        script: "-m", the module and its arguments.
        workers: How many; 0 for one process that is no cluster.
        settings: What it is asked for.
    """
    more = {VARIABLE: settings.to_text()}
    if workers:
        processes = plan.plan(
            plan.local_cluster(Shape(workers), machine.free_ports(workers)),
            script,
            seed=0,
            gpus=machine.gpus(os.environ),
            log_dir=settings.folder,
            environ=more,
            cores=machine.cores(),
        )
    else:
        processes = [
            plan.TaskProcess(
                Task("worker", 0),
                "127.0.0.1",
                (sys.executable, "-m", "tfdp.run", *script),
                {**more, "PYTHONUNBUFFERED": "1"},
                pathlib.Path(settings.folder, "worker-0.log"),
            )
        ]
    folder = config.make_run_dir(settings.folder)
    for left in (*folder.glob(f"*{told.END}"), *folder.glob("*.log")):  # of an earlier run
        left.unlink()
    with open(os.devnull, "wb") as nowhere:
        code = local.run(processes, settings.folder, stdout=nowhere, stderr=nowhere)
    if code == 130:
        raise KeyboardInterrupt
    if code in _ASKED_TO_END:
        sys.stderr.write(f"tfdp: Interrupted by {_ASKED_TO_END[code]}: the trial was ended.\n")
        raise SystemExit(code)
    return code


class Tuner:
    """Finds the largest batch, the throughput and the noise scale of one training.

    Args:
        start: Starts a trial, as `launch` does, and returns its exit code.
        folder: Of the trials and of what is written.
        workers: Processes that train together; 0: one, that is no cluster.
        first: The global batch to begin with.
        max_batch: Rows of a replica that are wished for at most; 0 for any number.
        noise_seconds: How long a training may run for the noise scale; 0 leaves it out.
        tell: Called with a line when there is news.
    """

    def __init__(
        self,
        start: Callable[[Trial], int],
        folder: str | os.PathLike[str],
        workers: int,
        first: int,
        max_batch: int = 0,
        noise_seconds: float = 60.0,
        tell: Callable[[str], None] = lambda line: None,
    ):
        self._start, self._folder = start, pathlib.Path(folder)
        self._workers, self._first = workers, first
        self._max_batch, self._noise_seconds = max_batch, noise_seconds
        self._tell = tell
        self._attempts: list[record.Attempt] = []
        self._records: int | None = None

    def tune(self) -> record.Tuned:
        """Run the trials; return what was found.

        Raises:
            Error: If a trial fails, and not for want of memory, or if not even one row fits.
        """
        replicas = max(1, self._workers)  # the first trial says how many there are
        while True:
            rows = search.following(
                self._attempts, max(1, self._first // replicas), self._most(replicas)
            )
            if rows is None:
                break
            attempt, tasks = self._room(rows, replicas)
            if tasks:
                replicas, self._records = tasks[0].replicas, tasks[0].records
                attempt = dataclasses.replace(attempt, per_replica=attempt.global_batch // replicas)
            self._attempts.append(attempt)
            self._tell(_line(len(self._attempts), attempt))
        largest = search.largest(self._attempts)
        if not largest:
            raise Error(
                f"A batch of {self._attempts[-1].per_replica} for each replica does not fit into "
                f"memory. Take a smaller model or inputs, or give it more memory. Logs: "
                f"{self._folder}"
            )
        noise = self._noise(largest, replicas)
        ran = [one for one in self._attempts if one.fits and one.step_seconds]
        throughput = recommend.line_of([(one.global_batch, one.step_seconds) for one in ran])
        held_by = self._held_by(largest, replicas)
        return record.Tuned(
            largest,
            held_by,
            replicas,
            self._records,
            tuple(self._attempts),
            search.lines(self._attempts),
            throughput,
            noise,
            recommend.recommend(
                throughput, noise, self._first, replicas, largest * replicas, held_by
            ),
        )

    def _most(self, replicas: int) -> int:
        """Return the most rows of a replica that make sense: an epoch has two steps at least."""
        bounds = [1 << 40]
        if self._max_batch:
            bounds.append(self._max_batch)
        if self._records:
            bounds.append(max(1, self._records // 2 // replicas))
        return min(bounds)

    def _held_by(self, largest: int, replicas: int) -> str:
        if largest >= self._most(replicas):
            is_wish = self._max_batch and largest >= self._max_batch
            return record.BY_WISH if is_wish else record.BY_RECORDS
        predicted = min((one.largest for one in search.lines(self._attempts)), default=0)
        failed = [one.per_replica for one in self._attempts if not one.fits]
        if predicted <= largest * _NEAR or any(rows <= largest * _NEAR for rows in failed):
            return record.BY_MEMORY
        return record.BY_TRIALS

    def _room(self, rows: int, replicas: int) -> tuple[record.Attempt, list[told.Told]]:
        number = len(self._attempts) + 1
        global_batch = rows * replicas
        folder = self._folder / f"trial-{number}"
        settings = Trial(
            ROOM, str(folder), global_batch, max(1, self._workers), self._steps(global_batch)
        )
        code = self._start(settings)
        if code:
            reason = self._failed(code, folder, number == 1)
            return record.Attempt(rows, global_batch, False, reason=reason), []
        tasks = self._read(folder)
        seconds = max(one.step_seconds for one in tasks)
        rooms = tuple(room for one in tasks for room in one.rooms)
        return record.Attempt(rows, global_batch, True, seconds, tasks[0].steps, rooms), tasks

    def _steps(self, global_batch: int) -> int:
        """Return how many steps a trial takes, by the times of those before."""
        rates = [one.step_seconds / one.global_batch for one in self._attempts if one.step_seconds]
        if not rates:
            return _STEPS
        return int(min(_STEPS, max(_FEWEST, _SECONDS / (rates[-1] * global_batch))))

    def _read(self, folder: pathlib.Path) -> list[told.Told]:
        found = told.read(folder)
        if len(found) < max(1, self._workers):
            raise Error(
                f"A trial has ended without measuring anything. Its model has to be trained by "
                f"fit. Logs: {folder}"
            )
        return found

    def _failed(self, code: int, folder: pathlib.Path, is_first: bool) -> str:
        """Return why a trial did not fit.

        Raises:
            Error: If it failed for another reason.
        """
        logs = sorted(folder.glob("*.log"))
        text = "".join(log.read_text(errors="replace")[-20_000:] for log in logs)
        if match := _NO_MEMORY.search(text):
            return f"no memory: {match[0]}"
        if code in _KILLED and not (is_first and code != _KILLED[0]):
            return f"ended by signal {code - 128}, as a process does that gets no memory"
        last = next((line for line in reversed(text.splitlines()) if line.strip()), "")
        if code == 2 and last.startswith("tfdp: "):  # a setting, said in words
            raise Error(f"{last.removeprefix('tfdp: ').strip()} Logs: {folder}")
        raise Error(
            f"A trial has failed with exit code {code}, and not for want of memory: "
            f"{last.strip() or 'it printed nothing.'} Logs: {folder}"
        )

    def _noise(self, largest: int, replicas: int) -> record.Noise:
        if not self._noise_seconds:
            return record.Noise(None, reason="The gradient noise scale was not asked for.")
        rows = min(self._first, largest * replicas)
        self._tell(f"A training with a batch of {rows:,} for the gradient noise scale ...")
        folder = self._folder / "noise"
        settings = Trial(
            NOISE, str(folder), rows, max(1, self._workers), seconds=self._noise_seconds
        )
        if code := self._start(settings):
            try:
                why = self._failed(code, folder, False)
            except Error as error:  # the largest batch is known all the same
                why = str(error)
            return record.Noise(None, rows, reason=f"The noise scale was not measured: {why}")
        found = self._read(folder)[0]
        reason = ""
        if found.scale is None:
            reason = f"After {found.steps:,} steps the noise still hides the gradient."
        return record.Noise(
            found.scale, rows, found.steps, found.planned_steps, found.over_time, reason
        )


def _line(number: int, attempt: record.Attempt) -> str:
    text = f"Trial {number}: {attempt.per_replica:,} rows on a replica "
    if not attempt.fits:
        return f"{text}do not fit ({attempt.reason})."
    rate = attempt.global_batch / attempt.step_seconds if attempt.step_seconds else 0.0
    return f"{text}ran, {rate:,.0f} examples/s."
