"""The worker processes of a job, as the supervisor sees them: started, watched, replaced.

    with Pool(order) as pool:
        for worker, how in pool.wait(0.25):         # those that have ended, and how
            pool.start(worker.slot)

Each worker goes through the parts by itself. The supervisor sees when a process ends and what it
tells of itself (see status), and kills one that is silent.
"""

import contextlib
import dataclasses
import os
import pathlib
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence

from tfdp.inference import folder as folder_lib
from tfdp.inference import hosts
from tfdp.inference.failures import InferenceError, JobFailed
from tfdp.inference.settings import Order
from tfdp.inference.status import State
from tfdp.launch.plan import TaskProcess

# Importing TensorFlow holds a process up for seconds: until a worker is ready, it may be silent
# for so long at least.
_START_SECONDS = 30.0


@dataclasses.dataclass(eq=False)
class Worker:
    """A worker process.

    Attributes:
        slot: Its place in the pool, kept by what replaces it.
        process: Its process.
        log: Where what it prints goes.
        handle: A descriptor that becomes readable when it has ended.
        memory: A descriptor of what it tells.
        state: What it has told.
        heard: When that changed, by time.monotonic().
        is_far: Whether it runs on another host; the process stands for it.
    """

    slot: int
    process: subprocess.Popen[bytes]
    log: pathlib.Path
    handle: int
    memory: int
    state: State = dataclasses.field(default_factory=State)
    heard: float = dataclasses.field(default_factory=time.monotonic)
    is_far: bool = False
    _beat: float | None = None
    _finished: float | None = None
    _finished_here: float | None = None

    def look(self) -> None:
        """Read what it tells."""
        state = State.read(self.memory)
        if state is None or state.beat == self._beat:
            return
        self._beat, self.heard = state.beat, time.monotonic()
        if self.is_far:
            # Another host has another clock: what counts is when it was heard of.
            if state.finished != self._finished:
                self._finished, self._finished_here = state.finished, self.heard
            began = None if state.began is None else self.state.began or self.heard
            state = dataclasses.replace(state, began=began, finished=self._finished_here)
        self.state = state

    def kill(self) -> None:
        """End it, with all that it has started; a stopped process dies of it as well."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if self.process.poll() is None:
                os.killpg(self.process.pid, signal.SIGKILL)


class Pool:
    """The workers. Each gets its own GPU where there are GPUs."""

    def __init__(
        self, order: Order, gpus: Sequence[str] = (), relays: Sequence[TaskProcess] = ()
    ) -> None:
        """Start the workers.

        Args:
            order: What each of them is told.
            gpus: Ids for CUDA_VISIBLE_DEVICES.
            relays: The process for each worker, where they run on other hosts; see hosts.
        """
        self.workers: list[Worker] = []
        self._order = order
        self._gpus = gpus
        self._relays = relays
        try:
            for slot in range(order.settings.workers):
                self.start(slot)
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
            worker.kill()
        for worker in list(self.workers):
            with contextlib.suppress(subprocess.TimeoutExpired):
                worker.process.wait(10)
            self._forget(worker)

    def wait(self, seconds: float) -> list[tuple[Worker, str]]:
        """Wait for so long, or until a worker ends; read what the workers tell.

        Returns:
            The workers that have ended since the last call, and how.

        Raises:
            InferenceError, JobFailed: If a worker says that the job cannot go on.
        """
        select.select([worker.handle for worker in self.workers], [], [], seconds)
        ended = []
        for worker in list(self.workers):
            code = worker.process.poll()
            worker.look()
            state = worker.state
            if state.failure:
                raise (InferenceError if state.mistake else JobFailed)(state.failure)
            limit = max(self._order.settings.timeout_seconds, 0 if state.ready else _START_SECONDS)
            if code is not None:
                ended.append((worker, _ended(code)))
            elif time.monotonic() - worker.heard > limit:
                worker.kill()
                worker.process.wait()
                ended.append((worker, f"was silent for {limit:.0f} s"))
        for worker, _ in ended:
            self._forget(worker)
        return ended

    def start(self, slot: int) -> None:
        """Start a worker."""
        log = (
            folder_lib.work_folder(pathlib.Path(self._order.settings.output)) / f"worker-{slot}.log"
        )
        memory = os.memfd_create("tfdp-worker")
        command: Sequence[str]
        if self._relays:
            command = self._relays[slot].command
            environment = hosts.environment(self._relays[slot], memory)
        else:
            words = ("-m", "tfdp.inference.worker", str(memory), self._order.to_text())
            command = (sys.executable, *words)
            environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2"}
            environment.pop("TF_CONFIG", None)
            if self._gpus:
                environment["CUDA_VISIBLE_DEVICES"] = self._gpus[slot % len(self._gpus)]
        with open(log, "ab") as output:
            process = subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=(memory,),
                # Ctrl-C comes to the supervisor alone.
                start_new_session=True,
            )
        handle = os.pidfd_open(process.pid)
        is_far = bool(self._relays)
        self.workers.append(Worker(slot, process, log, handle, memory, is_far=is_far))

    def _forget(self, worker: Worker) -> None:
        self.workers.remove(worker)
        os.close(worker.handle)
        os.close(worker.memory)


def last_words(log: pathlib.Path) -> str:
    """Return the last line of a log as a sentence, "" if there is none."""
    try:
        lines = log.read_text(errors="replace").strip().splitlines()
    except OSError:
        return ""
    return f" It said: {lines[-1].strip()[:300]}" if lines else ""


def _ended(code: int) -> str:
    if code >= 0:
        return f"exited with code {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"
