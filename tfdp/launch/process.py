"""One task as a process of this machine: how it is started, signalled and read.

    running = start(plan, output)
    os.read(running.pipes[STDOUT].fileno(), 65536)  # BlockingIOError when there is nothing yet
    running.send(signal.SIGTERM)                    # to the task and to what it has started
    exit_code(running.process.wait())               # 143, "exited with code 143 (killed by ...)"

Each task has a session and a process group of its own, and a pipe from the launcher that kills the
group when the launcher dies.
"""

import contextlib
import dataclasses
import fcntl
import os
import pathlib
import signal
import subprocess
from collections.abc import Mapping, Sequence
from typing import IO

from tfdp.cluster import Task
from tfdp.launch import task_start
from tfdp.launch.output import STDERR, STDOUT, TaskOutput
from tfdp.launch.plan import TaskProcess


@dataclasses.dataclass(eq=False)
class Running:
    """A task that was started and not yet waited for.

    Attributes:
      task: Which.
      process: Its process.
      output: Where what it writes is to go.
      pipes: What it writes to STDOUT and STDERR, without blocking.
      lifeline: The write end of the pipe whose closing kills the task.
      pidfd: A descriptor that is readable when the process has ended; None where there is no such.
      dismissed: Why it was told to end: how it does so is no news. Empty when it was not.
    """

    task: Task
    process: subprocess.Popen[bytes]
    output: TaskOutput
    pipes: dict[int, IO[bytes]]
    lifeline: int
    pidfd: int | None
    dismissed: str = ""

    @property
    def is_stopped(self) -> bool:
        """Whether it does not run, for all that it has not ended (SIGSTOP, a debugger)."""
        try:
            stat = pathlib.Path(f"/proc/{self.process.pid}/stat").read_bytes()
        except OSError:
            return False
        return stat.rpartition(b")")[2].split()[0] in (b"T", b"t")

    def send(self, number: int) -> None:
        """Signals the task and what it has started."""
        # Only before the process is waited for: until then its number is no other group's.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, number)

    def release(self) -> None:
        """Closes what the launcher holds of it, its pipes excepted."""
        if self.pidfd is not None:
            os.close(self.pidfd)
        os.close(self.lifeline)
        self.output.ended()


def start(plan: TaskProcess, output: TaskOutput, *, on_terminal: bool = False) -> Running:
    """Starts a task. Call it from the main thread: the task dies with the thread (task_start.py).

    Args:
      plan: What to start.
      output: Where what it writes is to go.
      on_terminal: Whether its stdout is shown on a terminal, byte by byte.

    Raises:
      OSError: It cannot be started.
    """
    process, lifeline = spawn(
        plan.command,
        directory=plan.directory,
        environment=plan.environment,
        cpus=plan.cpus,
        on_terminal=on_terminal,
    )
    assert process.stdout
    assert process.stderr
    pipes: dict[int, IO[bytes]] = {STDOUT: process.stdout, STDERR: process.stderr}
    for pipe in pipes.values():
        os.set_blocking(pipe.fileno(), False)
    return Running(plan.task, process, output, pipes, lifeline, _open_pidfd(process.pid))


def spawn(
    command: Sequence[str],
    *,
    directory: str | os.PathLike[str] | None,
    environment: Mapping[str, str],
    cpus: Sequence[int] = (),
    on_terminal: bool = False,
) -> tuple[subprocess.Popen[bytes], int]:
    """Starts a program whose whole group dies with this process; see start.

    Returns:
      The process, with pipes for what it writes; and the descriptor whose closing kills it.

    Raises:
      OSError: It cannot be started.
    """
    lifeline_end, lifeline = os.pipe()
    try:
        process = subprocess.Popen(
            command,
            cwd=directory,
            env={
                **os.environ,
                **environment,
                task_start.PID_VARIABLE: str(os.getpid()),
                task_start.FD_VARIABLE: str(lifeline_end),
                task_start.TERMINAL_VARIABLE: "1" if on_terminal else "",
            },
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            # So that what the task starts is ended with it, and so that Ctrl-C comes to the
            # launcher alone, which ends the tasks and says so.
            start_new_session=True,
            # The write end stays here: held by another task, it would outlive the launcher.
            pass_fds=(lifeline_end,),
        )
        _kill_group_when_closed(lifeline_end, process.pid)
        if cpus:
            # At once, so that every thread that it starts inherits it. It may have ended by now.
            with contextlib.suppress(ProcessLookupError):
                os.sched_setaffinity(process.pid, cpus)
    except OSError:
        os.close(lifeline)
        raise
    finally:
        os.close(lifeline_end)
    return process, lifeline


def exit_code(returncode: int) -> tuple[int, str]:
    """The exit code as a shell counts it (128 + the signal), and in words."""
    if returncode >= 0:
        return returncode, f"exited with code {returncode}"
    try:
        name = signal.Signals(-returncode).name
    except ValueError:
        name = f"signal {-returncode}"
    return 128 - returncode, f"exited with code {128 - returncode} (killed by {name})"


def not_started(plan: TaskProcess, error: OSError) -> tuple[int, str]:
    """The exit code of a shell for a program that it could not start, and the reason in words."""
    program = plan.command[0]
    if plan.directory is not None and error.filename == os.fspath(plan.directory):
        return 126, f"{plan.task} could not be started in {plan.directory}: {error.strerror}."
    if isinstance(error, FileNotFoundError):
        return 127, f"{plan.task} could not be started: {program} was not found. Is it installed?"
    return 126, f"{plan.task} could not be started: {program}: {error.strerror}."


def _kill_group_when_closed(fd: int, group: int) -> None:
    """Has the kernel kill a process group when the other end of the pipe is closed.

    That is closed by the death of the launcher, however it comes. No code of the task has to run
    for this: it holds for tasks that hang, and for their children.
    """
    if hasattr(fcntl, "F_SETSIG"):  # Linux
        # The task may have ended by now, and a sandbox may know nothing of this.
        with contextlib.suppress(OSError):
            fcntl.fcntl(fd, fcntl.F_SETOWN, -group)
            fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGKILL)
            fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_ASYNC)


def _open_pidfd(pid: int) -> int | None:
    try:
        return os.pidfd_open(pid)
    except (AttributeError, OSError):  # not Linux, or one older than 5.3
        return None
