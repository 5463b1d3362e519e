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

from tfdp.launch.machine import free_ports, gpus
from tfdp.launch.output import STDERR, STDOUT, Screen, printable
from tfdp.launch.plan import TaskProcess
from tfdp.launch.supervisor import SIGNALS, Settings, Supervisor

__all__ = ["free_ports", "gpus", "run"]


def run(
    processes: Sequence[TaskProcess],
    log_dir: str | os.PathLike[str],
    *,
    stdout: IO[Any] | None = None,
    stderr: IO[Any] | None = None,
    grace_seconds: float = 3.0,
    evaluator_seconds: float = 600.0,
    max_restarts: int = 0,
    restart_delay_seconds: float = 1.0,
    log_bytes: int = 100 << 20,
    logs_kept: int = 3,
    renew: Callable[[Sequence[TaskProcess]], Sequence[TaskProcess]] | None = None,
    preempt_seconds: float = 25.0,
    min_workers: int = 0,
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
      max_restarts: How many failures without progress (see progress, restarts) are followed by a
        restart: of all tasks that train; of the worker alone where there are parameter servers; of
        the evaluator alone.
      restart_delay_seconds: The wait before the first restart; doubled with each failure that came
        without progress, up to a minute.
      log_bytes: How large a log may grow before it is continued in a new one; 0 for any size.
      logs_kept: How many full logs of a task are kept.
      renew: Gives the plan for a restart of all, on ports that are free then, without the workers
        whose plans it is given (see min_workers); None for the same plan again.
      preempt_seconds: From SIGTERM to SIGKILL where this process got SIGTERM: a training saves what
        it has.
      min_workers: Where a worker has used up its restarts, the others that train together start
        again without it, as long as so many are left; 0 for all or none. Needs renew. The workers
        of parameter servers go on by themselves, as long as so many are left, and one is.

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
    settings = Settings(
        grace_seconds,
        evaluator_seconds,
        max_restarts,
        restart_delay_seconds,
        log_bytes,
        logs_kept,
        renew,
        preempt_seconds,
        min_workers,
    )
    supervisor = Supervisor(screen, wake_read, settings)
    try:
        with signals_sent_to(wake_write):
            try:
                code, reason = supervisor.run(processes, pathlib.Path(log_dir))
            finally:
                supervisor.close()
        if reason:
            screen.write_lines(STDERR, printable(reason))
    finally:
        # A pager that nobody pages may be waited for, but not by one who pressed Ctrl-C.
        screen.close(grace_seconds if supervisor.signal else math.inf)
        os.close(wake_read)
        os.close(wake_write)
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


@contextlib.contextmanager
def signals_sent_to(fd: int, numbers: Sequence[int] = SIGNALS) -> Iterator[None]:
    """Has the signals that end the launcher written to a pipe, as bytes, in place of acting."""
    # One that is ignored stays so (nohup), and so does one that Python cannot give back (None).
    taken = [number for number in numbers if signal.getsignal(number) not in (signal.SIG_IGN, None)]
    before = [signal.signal(number, lambda *_: None) for number in taken]
    fd_before = signal.set_wakeup_fd(fd, warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(fd_before)
        for number, handler in zip(taken, before, strict=True):
            signal.signal(number, handler)
