"""Handing out shards to idle workers, until all parts are there.

    hand_out = HandOut(pool, folder, shards, start, max_errors=100, timeout_seconds=60.0)
    predicted, seconds = hand_out.run(progress)

Workers pull: whoever has finished gets the next shard, so that a slow one does not set the time.
What a dead worker had not finished goes back to the front of the queue.
"""

import collections
import contextlib
import os
import pathlib
import signal
import time
from collections.abc import Mapping, Sequence
from typing import Any

from tfdp.inference import folder as folder_lib
from tfdp.inference import shards as shards_lib
from tfdp.inference.errors import InferenceError, JobFailed
from tfdp.inference.pool import Pool, Worker, last_words
from tfdp.inference.progress import Progress

# Workers that one shard may end before it is taken for the reason.
_DEATHS = 5
_POLL_SECONDS = 0.25


class HandOut:
    """The shards of a job that are missing, and who has which."""

    def __init__(
        self,
        pool: Pool,
        folder: pathlib.Path,
        shards: Sequence[shards_lib.Shard],
        start: Mapping[str, Any],
        *,
        max_errors: int,
        timeout_seconds: float,
    ) -> None:
        """Find out what is missing.

        Args:
            pool: The workers; some may be ready.
            folder: The output folder, held by this process.
            shards: All shards of the job.
            start: What a worker is told before its first shard.
            max_errors: Rows that may be unreadable.
            timeout_seconds: How long the workers of a killed launcher may take for their shards.
        """
        self._pool = pool
        self._folder = folder
        self._shards = shards
        self._total_rows = sum(shard.rows for shard in shards)
        self._start = dict(start)
        self._max_errors = max_errors
        self._writing = folder_lib.writing_folder(folder, start["hash"])
        self._complete = self._on_disk()
        # Workers of a launcher that was killed finish what they run: wait for them, to the end
        # of the queue and no longer than for workers of this one.
        self._orphans = set(folder_lib.being_finished(self._writing)) - self._complete
        self._patience = timeout_seconds
        self._pending = collections.deque(
            shard.number
            for shard in shards
            if shard.number not in self._complete and shard.number not in self._orphans
        )
        self._deaths: collections.Counter[int] = collections.Counter()
        self._told: set[Worker] = set()
        self._errors = {
            number: folder_lib.count_errors(folder, [number]) for number in self._complete
        }
        self._lines: dict[int, list[str]] = {}

    def run(self, progress: Progress) -> tuple[int, float]:
        """Hand out until nothing is missing.

        Returns:
            Rows that were predicted or named as errors in this run, and the seconds it took.

        Raises:
            JobFailed: If a worker cannot go on, or too many rows are unreadable.
        """
        before = self._done_rows()
        progress.start(before)
        began = idle_since = time.monotonic()
        self._check_errors()
        while len(self._complete) < len(self._shards):
            self._give()
            for worker, message in self._pool.events(_POLL_SECONDS):
                self._hear(worker, message)
            if self._pending or any(worker.shards for worker in self._pool.workers):
                idle_since = time.monotonic()
            self._look_at_orphans(time.monotonic() - idle_since > self._patience)
            running = sum(worker.rows for worker in self._pool.workers if worker.shards)
            # A worker may tell of a shard that is done already.
            done = min(self._total_rows, self._done_rows() + running)
            progress.show(done, sum(self._errors.values()))
        return self._done_rows() - before, time.monotonic() - began

    def _give(self) -> None:
        for worker in self._pool.workers:
            if not worker.is_ready:
                continue
            if worker not in self._told:
                self._pool.send(worker, start=self._start)
                self._told.add(worker)
            # One to run and one to read ahead, but near the end to whoever is idle.
            plenty = len(self._pending) > 4 * len(self._pool.workers)
            while self._pending and len(worker.shards) < (2 if plenty else 1):
                shard = self._shards[self._pending.popleft()]
                spans = [
                    (span.file, span.first, span.count, span.offset, span.skip)
                    for span in shard.spans
                ]
                worker.shards.append(shard.number)
                self._pool.send(
                    worker, shard={"number": shard.number, "rows": shard.rows, "spans": spans}
                )

    def _hear(self, worker: Worker, message: Mapping[str, Any]) -> None:
        if "done" in message:
            number = message["done"]
            worker.shards.remove(number)
            worker.rows = 0
            self._complete.add(number)
            self._errors[number] = message["errors"]
            self._check_errors()
        elif "error" in message:
            number = message["shard"]
            self._lines.setdefault(number, []).append(message["error"])
            self._errors[number] = len(self._lines[number])
            self._check_errors()
        elif "failed" in message:
            raise (InferenceError if message["mistake"] else JobFailed)(message["failed"])
        elif "died" in message:
            self._told.discard(worker)
            self._take_back(worker, message["died"])

    def _take_back(self, worker: Worker, how: str) -> None:
        # The last thing it did may have been to finish a part.
        on_disk = self._on_disk()
        for place, number in enumerate(worker.shards):
            self._lines.pop(number, None)
            self._errors.pop(number, None)
            if number in on_disk:
                self._adopt(number)
            elif place == 0:
                self._deaths[number] += 1
                if self._deaths[number] >= _DEATHS:
                    raise JobFailed(
                        f"Shard {number} has ended {_DEATHS} workers: the last one {how}."
                        f"{last_words(worker.log)} Log: {worker.log}."
                    )
        missing = [number for number in worker.shards if number not in on_disk]
        self._pending.extendleft(reversed(missing))
        for entry in self._writing.glob(f"*.{worker.process.pid}*"):
            entry.unlink(missing_ok=True)

    def _look_at_orphans(self, impatient: bool) -> None:
        if not self._orphans:
            return
        on_disk, alive = self._on_disk(), folder_lib.being_finished(self._writing)
        for number in sorted(self._orphans):
            if number in on_disk:
                self._adopt(number)
            elif number not in alive or impatient:
                for pid in alive.get(number, ()):
                    _kill_worker(pid)
                self._pending.append(number)
            else:
                continue
            self._orphans.discard(number)

    def _adopt(self, number: int) -> None:
        self._complete.add(number)
        self._errors[number] = folder_lib.count_errors(self._folder, [number])
        self._check_errors()

    def _check_errors(self) -> None:
        if sum(self._errors.values()) <= self._max_errors:
            return
        unfinished = {
            number: lines for number, lines in self._lines.items() if number not in self._complete
        }
        written = folder_lib.collect_errors(self._folder, self._complete, unfinished)
        raise JobFailed(folder_lib.too_many(self._folder, written, self._max_errors))

    def _on_disk(self) -> set[int]:
        return folder_lib.complete_parts(self._folder, len(self._shards), self._start["extension"])

    def _done_rows(self) -> int:
        return sum(self._shards[number].rows for number in self._complete)


def _kill_worker(pid: int) -> None:
    """End a stopped worker of a launcher that is gone, if that is what has this number."""
    with contextlib.suppress(OSError):
        handle = os.pidfd_open(pid)
        try:
            command = pathlib.Path(f"/proc/{pid}/cmdline").read_bytes()
            if b"tfdp.inference.worker" in command:
                signal.pidfd_send_signal(handle, signal.SIGKILL)
        finally:
            os.close(handle)
