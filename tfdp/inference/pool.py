"""The worker processes of a job, as the supervisor sees them: started, heard, replaced.

    with Pool(2, {"model": ..., "threads": 1}, logs=folder, timeout_seconds=60.0) as pool:
        for worker, message in pool.events(1.0):
            pool.send(worker, shard=...)

The supervisor imports no TensorFlow: it answers at once, and needs little memory.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tfdp.inference.errors import JobFailed

# Workers that may end one after the other before one of them is ready.
_FAILED_STARTS = 3
# Importing TensorFlow holds a process up for seconds: until a worker is ready, it may be silent
# for so long at least.
_START_SECONDS = 30.0
# How long a worker that has closed its socket may take to end.
_EXIT_SECONDS = 2.0
_READ_BYTES = 1 << 16


@dataclasses.dataclass(eq=False)
class Worker:
    """A worker process that runs.

    Attributes:
        slot: Its place in the pool, kept by what replaces it.
        process: Its process.
        connection: This end of its socket.
        log: Where what it prints goes.
        heard: When it was heard last, by time.monotonic().
        is_ready: Whether it has loaded the model.
        shards: The numbers of the shards it has been given, in order.
        rows: Rows of the first of them that it has run.
    """

    slot: int
    process: subprocess.Popen[bytes]
    connection: socket.socket
    log: pathlib.Path
    heard: float
    is_ready: bool = False
    shards: list[int] = dataclasses.field(default_factory=list)
    rows: int = 0
    unread: bytes = b""
    unsent: bytearray = dataclasses.field(default_factory=bytearray)


class Pool:
    """Worker processes. Each gets its own GPU where there are GPUs."""

    def __init__(
        self,
        count: int,
        job: Mapping[str, Any],
        logs: pathlib.Path,
        timeout_seconds: float,
        gpus: Sequence[str] = (),
    ) -> None:
        """Start the workers.

        Args:
            count: How many.
            job: The first message to each.
            logs: The folder of their logs.
            timeout_seconds: How long a ready worker may be silent.
            gpus: Ids for CUDA_VISIBLE_DEVICES.
        """
        self.workers: list[Worker] = []
        self._job = dict(job)
        self._logs = logs
        self._timeout_seconds = timeout_seconds
        self._gpus = gpus
        self._failed_starts = 0
        self._selector = selectors.DefaultSelector()
        try:
            for slot in range(count):
                self._start(slot)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "Pool":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Kill what runs; wait for it."""
        for worker in self.workers:
            _kill(worker)
        for worker in self.workers:
            with contextlib.suppress(subprocess.TimeoutExpired):
                worker.process.wait(10)
            worker.connection.close()
        self.workers.clear()
        self._selector.close()

    def send(self, worker: Worker, **message: Any) -> None:
        """Send a message; a worker that does not read it holds nobody up."""
        worker.unsent += json.dumps(message).encode() + b"\n"
        self._send_more(worker)

    def events(self, seconds: float) -> Iterator[tuple[Worker, dict[str, Any]]]:
        """Yield the messages that come within so many seconds, as soon as there are some.

        The end of a worker is the message {"died": how}; the next one has been started then.

        Raises:
            JobFailed: If several end one after the other before any of them is ready.
        """
        ready = self._selector.select(seconds)
        for key, mask in ready:
            worker = key.data
            if worker not in self.workers:
                continue
            if mask & selectors.EVENT_WRITE:
                self._send_more(worker)
            if mask & selectors.EVENT_READ:
                yield from self._read(worker)
        heard = {key.data for key, _ in ready}
        now = time.monotonic()
        for worker in list(self.workers):
            # Whoever has just been heard lives: this process may have been stopped itself.
            limit = self._timeout_seconds
            if not worker.is_ready:
                limit = max(limit, _START_SECONDS)
            if worker not in heard and now - worker.heard > limit:
                _kill(worker)
                yield from self._replace(worker, f"was silent for {limit:.0f} s")

    def _start(self, slot: int) -> None:
        mine, its = socket.socketpair()
        mine.setblocking(False)
        log = self._logs / f"worker-{slot}.log"
        environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2"}
        environment.pop("TF_CONFIG", None)
        if self._gpus:
            environment["CUDA_VISIBLE_DEVICES"] = self._gpus[slot % len(self._gpus)]
        with its, open(log, "ab") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "tfdp.inference.worker", str(its.fileno())],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=(its.fileno(),),
                # Ctrl-C comes to the supervisor alone.
                start_new_session=True,
            )
        worker = Worker(slot, process, mine, log, time.monotonic())
        self.workers.append(worker)
        self._selector.register(mine, selectors.EVENT_READ, worker)
        self.send(worker, job=self._job)

    def _read(self, worker: Worker) -> Iterator[tuple[Worker, dict[str, Any]]]:
        try:
            data = worker.connection.recv(_READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        worker.heard = time.monotonic()
        *lines, worker.unread = (worker.unread + data).split(b"\n")
        messages = [json.loads(line) for line in lines]
        for message in messages:
            if "ready" in message:
                worker.is_ready = True
                self._failed_starts = 0
            if "rows" in message and "done" not in message:
                worker.rows = message["rows"]
        for message in messages:
            yield worker, message
        if not data:
            # It ends by itself in a moment, and its own exit code says why.
            with contextlib.suppress(subprocess.TimeoutExpired):
                worker.process.wait(_EXIT_SECONDS)
            _kill(worker)
            yield from self._replace(worker, "")

    def _replace(self, worker: Worker, how: str) -> Iterator[tuple[Worker, dict[str, Any]]]:
        code = worker.process.wait()
        how = how or _ended(code)
        self._selector.unregister(worker.connection)
        worker.connection.close()
        self.workers.remove(worker)
        if not worker.is_ready:
            self._failed_starts += 1
            if self._failed_starts >= _FAILED_STARTS:
                raise JobFailed(
                    f"Workers end before they have loaded the model: the last one {how}."
                    f"{last_words(worker.log)} Log: {worker.log}"
                )
        self._start(worker.slot)
        yield worker, {"died": how}

    def _send_more(self, worker: Worker) -> None:
        try:
            sent = worker.connection.send(worker.unsent)
            del worker.unsent[:sent]
        except BlockingIOError:
            pass
        except OSError:
            worker.unsent.clear()  # it has ended, which is read from the same socket
        mask = selectors.EVENT_READ | (selectors.EVENT_WRITE if worker.unsent else 0)
        self._selector.modify(worker.connection, mask, worker)


def last_words(log: pathlib.Path) -> str:
    """Return the last line of a log as a sentence, "" if there is none."""
    try:
        lines = log.read_text(errors="replace").strip().splitlines()
    except OSError:
        return ""
    return f" It said: {lines[-1].strip()[:300]}" if lines else ""


def _kill(worker: Worker) -> None:
    # The group, so that what it has started ends with it; a stopped process dies of it as well.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if worker.process.poll() is None:
            os.killpg(worker.process.pid, signal.SIGKILL)


def _ended(code: int) -> str:
    if code >= 0:
        return f"exited with code {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"
