"""Runs a plan on this machine: starts its tasks, shows their output, ends them together.

    cluster = plan.local_cluster(Shape(workers=2), machine.free_ports(2))
    processes = plan.plan(cluster, ["train.py"], seed=7, gpus=machine.gpus(os.environ))
    sys.exit(local.run(processes, "runs/a"))

When one task fails, and no restart is left, the others are ended at once; a table tells how each
ended, and the last line says which it was, its exit code and its log. Whatever ends the launcher,
SIGKILL included, ends all tasks and their children.
"""

import contextlib
import math
import os
import pathlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import IO, Any

from tfdp.launch.output import STDERR, STDOUT, Screen, printable
from tfdp.launch.plan import TaskProcess
from tfdp.launch.supervisor import SIGNALS, Settings, Supervisor


def run(
    processes: Sequence[TaskProcess],
    log_dir: str | os.PathLike[str],
    *,
    stdout: IO[Any] | None = None,
    stderr: IO[Any] | None = None,
    **settings: Any,
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
      settings: How the tasks are looked after: the fields of supervisor.Settings.

    Returns:
      0 when all went well; else the exit code of the task that failed first; 128 + the signal that
      ended it, or the launcher; 127 or 126 for a program that is not found or not started; 2 for a
      log that cannot be written.
    """
    if threading.current_thread() is not threading.main_thread():
        # A task dies with the thread that started it (PR_SET_PDEATHSIG), and signals come to this.
        raise RuntimeError("run was called in another thread. Call it from the main thread.")
    asked = Settings(**settings)
    screen = Screen(
        _descriptor(stdout, sys.stdout, STDOUT), _descriptor(stderr, sys.stderr, STDERR)
    )
    supervisor: Supervisor | None = None
    try:
        with signals_as_bytes() as wake_fd:
            supervisor = Supervisor(screen, wake_fd, asked)
            try:
                code, reason = supervisor.run(processes, pathlib.Path(log_dir))
            finally:
                supervisor.close()
        if reason:
            screen.write_lines(STDERR, printable(reason))
    finally:
        # A pager that nobody pages may be waited for, but not by one who pressed Ctrl-C.
        is_interrupted = supervisor is not None and supervisor.signal
        screen.close(asked.grace_seconds if is_interrupted else math.inf)
    return code


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


def look_after(
    processes: Sequence[TaskProcess],
    log_dir: str | os.PathLike[str],
    values: Any,
    renew: Callable[[Sequence[TaskProcess]], Sequence[TaskProcess]],
) -> int:
    """Runs the tasks as the flags of `tfdp launch` say; returns the exit code, 130 after Ctrl-C."""
    try:
        return run(
            processes,
            log_dir,
            max_restarts=values.max_restarts,
            min_workers=values.min_workers,
            preempt_seconds=values.preempt_seconds,
            log_bytes=values.log_megabytes << 20,
            logs_kept=values.logs_kept,
            renew=renew,
        )
    except KeyboardInterrupt:
        return 130  # after the tasks have ended, while what they wrote was still printed


@contextlib.contextmanager
def signals_as_bytes(numbers: Sequence[int] = SIGNALS) -> Iterator[int]:
    """Yields a descriptor to which signals that end the launcher come as bytes, without acting."""
    wake_read, wake_write = os.pipe()
    for fd in (wake_read, wake_write):
        os.set_blocking(fd, False)
    # One that is ignored stays so (nohup), and so does one that Python cannot give back (None).
    taken = [number for number in numbers if signal.getsignal(number) not in (signal.SIG_IGN, None)]
    before = [signal.signal(number, lambda *_: None) for number in taken]
    fd_before = signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
    try:
        yield wake_read
    finally:
        signal.set_wakeup_fd(fd_before)
        for number, handler in zip(taken, before, strict=True):
            signal.signal(number, handler)
        os.close(wake_read)
        os.close(wake_write)
