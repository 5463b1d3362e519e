"""Runs a plan on this machine: starts its tasks, shows their output, ends them together.

    ports = machine.free_ports(plan.count_tasks(workers=2))
    cluster = plan.local_cluster(workers=2, ports=ports)
    processes = plan.plan(cluster, ["train.py"], seed=7, gpus=machine.gpus(os.environ))
    sys.exit(local.run(processes, "runs/a"))

When one task fails the others are ended at once, and the last line says which it was, its exit code
and its log. Whatever ends the launcher, SIGKILL included, ends all tasks and their children.
"""

import contextlib
import functools
import math
import os
import pathlib
import selectors
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from typing import IO, Any

from tfdp.cluster import Task
from tfdp.launch import process
from tfdp.launch.machine import free_ports, gpus
from tfdp.launch.output import STDERR, STDOUT, Screen, TaskOutput
from tfdp.launch.plan import TaskProcess, log_name

__all__ = ["free_ports", "gpus", "run"]

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_READ_BYTES = 1 << 16
# The most a pipe can hold: what is left in it when its task has ended.
_PIPE_BYTES = 1 << 20
# How often to look for tasks that have ended, where the kernel cannot tell (no pidfd).
_POLL_SECONDS = 0.02
# How long a process may take to end that was killed. One that waits for a dead disk never does.
_KILL_SECONDS = 5.0


def run(
    processes: Sequence[TaskProcess],
    log_dir: str | os.PathLike[str],
    *,
    stdout: IO[Any] | None = None,
    stderr: IO[Any] | None = None,
    grace_seconds: float = 3.0,
    evaluator_seconds: float = 600.0,
) -> int:
    """Runs the tasks until they have ended. Call it from the main thread.

    Parameter servers, and the workers beside them, serve for ever: they are ended as soon as the
    chief has ended. In a program with more threads than this one, what tasks have started in their
    turn may survive a SIGKILL of the launcher (see output.Screen); the tasks themselves never do.

    Args:
      processes: The plan. To each task's environment that of this process is added.
      log_dir: The folder of the logs that the plan does not name; made when absent.
      stdout: Where the tasks' output goes, a file with a descriptor; sys.stdout by default.
      stderr: Where their errors and the launcher's own lines go; sys.stderr by default.
      grace_seconds: From SIGTERM to SIGKILL. TensorFlow ignores SIGTERM: this is waited in full.
      evaluator_seconds: How long the evaluator may go on when the training has ended.

    Returns:
      0 when all went well; else the exit code of the task that failed first; 128 + the signal that
      ended it, or the launcher; 127 or 126 for a program that is not found or not started; 2 for a
      log that cannot be written.
    """
    if threading.current_thread() is not threading.main_thread():
        # A task dies with the thread that started it (PR_SET_PDEATHSIG), and signals come to this.
        raise RuntimeError("run was called in another thread. Call it from the main thread.")
    wake_read, wake_write = os.pipe()
    for fd in (wake_read, wake_write):
        os.set_blocking(fd, False)
    screen = Screen(
        _descriptor(stdout, sys.stdout, STDOUT), _descriptor(stderr, sys.stderr, STDERR)
    )
    supervisor = _Supervisor(screen, wake_read, grace_seconds, evaluator_seconds)
    try:
        with _signals_sent_to(wake_write):
            try:
                code, reason = supervisor.run(processes, pathlib.Path(log_dir))
            finally:
                supervisor.close()
        if reason:
            screen.write_lines(STDERR, reason.encode(errors="backslashreplace") + b"\n")
    finally:
        # A pager that nobody pages may be waited for, but not by one who pressed Ctrl-C.
        screen.close(grace_seconds if supervisor.signal else math.inf)
        os.close(wake_read)
        os.close(wake_write)
    return code


class _Supervisor:
    """The state of one run, and its loop."""

    def __init__(
        self, screen: Screen, wake_fd: int, grace_seconds: float, evaluator_seconds: float
    ) -> None:
        self.signal: int | None = None  # the first one that came
        self._screen = screen
        self._grace_seconds = grace_seconds
        self._evaluator_seconds = evaluator_seconds
        self._selector = selectors.DefaultSelector()
        self._selector.register(
            wake_fd, selectors.EVENT_READ, functools.partial(self._wake, wake_fd)
        )
        self._outputs: dict[Task, TaskOutput] = {}
        self._alive: dict[Task, process.Running] = {}
        self._servers: tuple[str, ...] = ()
        self._failed: process.Running | None = None
        self._is_reading = True
        self._blocked_on: int | None = None
        # Times of time.monotonic(), each set when what it waits for has begun.
        self._kill_at: float | None = None
        self._give_up_at = math.inf
        self._evaluator_until: float | None = None

    def run(self, processes: Sequence[TaskProcess], log_dir: pathlib.Path) -> tuple[int, str]:
        """Returns the exit code and the last line, empty when there is nothing to say."""
        logs = {plan.task: plan.log or log_dir / log_name(plan.task) for plan in processes}
        if not logs or len(logs) < len(processes):
            raise ValueError("A plan needs tasks, and each task once.")
        chief = min(logs, key=lambda task: (task.type != "chief", task != Task("worker", 0)))
        self._servers = ("ps", "worker") if chief.type == "chief" else ("ps",)
        if not any(task.type == "ps" for task in logs):
            self._servers = ()
        for task, log in logs.items():
            prefix = b"" if task == chief else f"[{task}] ".encode()
            try:
                self._outputs[task] = TaskOutput(self._screen, prefix=prefix, log=log)
            except OSError as error:
                return 2, f"The log {log} cannot be written: {error.strerror}. Choose another."
        for plan in processes:
            try:
                self._start(plan)
            except OSError as error:
                self._end_all(grace_seconds=0.0)
                self._loop()
                return process.not_started(plan, error)
        self._loop()
        if self._failed:
            self._failed.output.repeat_reason()
            code, how = process.exit_code(self._failed.process.returncode)
            return code, f"{self._failed.task} {how}. Log: {logs[self._failed.task]}"
        if self.signal:
            name = signal.Signals(self.signal).name
            name += " (Ctrl-C)" if self.signal == signal.SIGINT else ""
            return 128 + self.signal, f"Interrupted by {name}: all tasks ended. Logs: {log_dir}"
        return 0, ""

    def close(self) -> None:
        """Ends what runs, which is nothing unless the launcher itself has failed."""
        for running in list(self._alive.values()):
            running.send(signal.SIGKILL)
            self._reap(running)
        for output in self._outputs.values():
            output.end()
        self._selector.close()

    def _start(self, plan: TaskProcess) -> None:
        output = self._outputs[plan.task]
        running = process.start(plan, output, on_terminal=output.is_raw(STDOUT))
        self._alive[plan.task] = running
        if running.pidfd is not None:
            # The selector (epoll) gives events in the order in which they came: of two tasks that
            # ended between two looks, the one that ended first is the first seen.
            self._register(running.pidfd, functools.partial(self._reap, running))
        for stream, pipe in running.pipes.items():
            self._register(pipe.fileno(), functools.partial(self._read, running, stream))

    def _loop(self) -> None:
        while self._alive:
            self._decide()
            for key, _ in self._selector.select(self._timeout()):
                # An event before this one may have closed the descriptor.
                if self._selector.get_map().get(key.fd) == key:
                    key.data()
            for running in list(self._alive.values()):
                if running.pidfd is None and running.process.poll() is not None:
                    self._reap(running)
            self._follow_screen()

    def _timeout(self) -> float | None:
        times = [self._give_up_at]
        times += [at for at in (self._kill_at, self._evaluator_until) if at is not None]
        seconds = max(0.0, min(times) - time.monotonic())
        if any(running.pidfd is None for running in self._alive.values()):
            seconds = min(seconds, _POLL_SECONDS)
        return None if seconds == math.inf else seconds

    def _decide(self) -> None:
        """What is to be done now, given what has happened."""
        now = time.monotonic()
        if self._kill_at is None:
            if self._failed or self.signal:
                self._end_all(self._grace_seconds)
            elif not any(self._must_finish(task) for task in self._alive):
                self._training_has_ended(now)
        elif now >= self._kill_at:
            self._kill_at, self._give_up_at = math.inf, now + _KILL_SECONDS
            for running in self._alive.values():
                running.send(signal.SIGKILL)
        elif now >= self._give_up_at:
            for running in list(self._alive.values()):
                self._say(f"{running.task} does not end (process {running.process.pid}).")
                self._release(running)

    def _must_finish(self, task: Task) -> bool:
        return task.type not in (*self._servers, "evaluator")

    def _training_has_ended(self, now: float) -> None:
        for running in self._alive.values():
            if running.task.type in self._servers and not running.is_dismissed:
                running.is_dismissed = True
                running.send(signal.SIGKILL)
        if self._evaluator_until is None:
            self._evaluator_until = now + self._evaluator_seconds
        elif now >= self._evaluator_until:
            self._say(
                f"The evaluator was ended {self._evaluator_seconds:g} s after the training. "
                f"It should return when it has seen the last checkpoint."
            )
            self._end_all(self._grace_seconds)

    def _end_all(self, grace_seconds: float) -> None:
        self._evaluator_until = None
        self._kill_at = time.monotonic() + grace_seconds
        for running in self._alive.values():
            running.is_dismissed = True
            running.send(signal.SIGTERM)

    def _wake(self, fd: int) -> None:
        for number in os.read(fd, 4096):
            # The others are somebody else's, who gets them as well.
            if number in _SIGNALS:
                if self._kill_at is not None and self._kill_at < math.inf:
                    self._kill_at = 0.0  # the second Ctrl-C: at once
                self.signal = self.signal or number

    def _read(self, running: process.Running, stream: int) -> None:
        try:
            data = os.read(running.pipes[stream].fileno(), _READ_BYTES)
        except BlockingIOError:
            return
        if data:
            running.output.feed(stream, data)
        else:
            self._close_pipe(running, stream)

    def _reap(self, running: process.Running) -> None:
        """The task has ended; so does what it started, and what they wrote last is shown."""
        running.send(signal.SIGKILL)
        code = running.process.wait()
        for stream, pipe in list(running.pipes.items()):
            # To the end, which does not come while somebody outside the group holds the pipe.
            with contextlib.suppress(BlockingIOError):
                for _ in range(_PIPE_BYTES // _READ_BYTES):
                    if data := os.read(pipe.fileno(), _READ_BYTES):
                        running.output.feed(stream, data)
        self._release(running)
        if running.is_dismissed:
            return
        if code:
            self._failed = self._failed or running
            for other in self._alive.values():
                other.is_dismissed = True
        elif running.task.type in self._servers:
            self._say(f"{running.task} ended with code 0 before the chief did.")

    def _release(self, running: process.Running) -> None:
        for stream in list(running.pipes):
            self._close_pipe(running, stream)
        if running.pidfd is not None:
            self._selector.unregister(running.pidfd)
        running.release()
        del self._alive[running.task]

    def _close_pipe(self, running: process.Running, stream: int) -> None:
        pipe = running.pipes.pop(stream)
        if self._is_reading:
            self._selector.unregister(pipe.fileno())
        pipe.close()

    def _follow_screen(self) -> None:
        """Waits for the screen to take more, and lets tasks that write wait, as without us."""
        if self._screen.blocked_on() != self._blocked_on:
            if self._blocked_on is not None:
                self._selector.unregister(self._blocked_on)
            self._blocked_on = self._screen.blocked_on()
            if self._blocked_on is not None:
                flush = self._screen.flush
                self._selector.register(self._blocked_on, selectors.EVENT_WRITE, flush)
        if self._is_reading != self._screen.is_full:
            return
        self._is_reading = not self._is_reading
        for running in self._alive.values():
            for stream, pipe in running.pipes.items():
                if self._is_reading:
                    self._register(pipe.fileno(), functools.partial(self._read, running, stream))
                else:
                    self._selector.unregister(pipe.fileno())

    def _register(self, fd: int, callback: Any) -> None:
        self._selector.register(fd, selectors.EVENT_READ, callback)

    def _say(self, line: str) -> None:
        self._screen.write_lines(STDERR, f"{line}\n".encode())


def _descriptor(given: IO[Any] | None, default: IO[str] | None, number: int) -> int:
    file = given if given is not None else default
    try:
        assert file is not None
        file.flush()
        return file.fileno()
    except (AssertionError, AttributeError, OSError, ValueError):
        # A notebook's stdout, or none at all, has no descriptor.
        if given is not None:
            raise
        return number


@contextlib.contextmanager
def _signals_sent_to(fd: int) -> Iterator[None]:
    """Has the signals that end the launcher written to a pipe, as bytes, in place of acting."""
    # One that is ignored stays so (nohup), and so does one that Python cannot give back (None).
    taken = [
        number for number in _SIGNALS if signal.getsignal(number) not in (signal.SIG_IGN, None)
    ]
    before = [signal.signal(number, lambda *_: None) for number in taken]
    fd_before = signal.set_wakeup_fd(fd, warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(fd_before)
        for number, handler in zip(taken, before, strict=True):
            signal.signal(number, handler)
