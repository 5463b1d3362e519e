"""What a task does first: it ties its life to that of its launcher.

    child.tie_to_launcher(os.environ)  # before anything slow is imported

A launcher that is killed with SIGKILL can end nobody. So the kernel does it: the task asks for a
SIGKILL at the death of its parent, and the launcher has armed a pipe that kills the whole process
group of the task (local.py). Without a launcher this does nothing.
"""

import ctypes
import os
import select
import signal
import sys
import threading
from collections.abc import MutableMapping

# Set by local.py: the process id of the launcher, and the number of the inherited read end of a
# pipe whose write end only the launcher holds.
PID_VARIABLE = "TFDP_LAUNCHER_PID"
FD_VARIABLE = "TFDP_LAUNCHER_FD"
# Set for the task whose output is shown as it is, when that is on a terminal.
TERMINAL_VARIABLE = "TFDP_TERMINAL"

_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
# Loaded here: between fork and exec nothing should be.
_LIBC = ctypes.CDLL(None)


def tie_to_launcher(environ: MutableMapping[str, str]) -> bool:
    """Makes this process end when the launcher that started it does; ends it if that is gone.

    Call it from the main thread, once. The two variables are removed from environ: a launcher
    started by this task is another one.

    Returns:
      Whether there is a launcher.
    """
    pid = environ.pop(PID_VARIABLE, "")
    fd = _pipe_end(environ.pop(FD_VARIABLE, ""))
    if not pid.isdecimal():
        return False
    # For every other signal a busy interpreter, or TensorFlow, could stand in the way.
    die_with_parent()
    # The launcher may have died before prctl: no signal will come then. A parent that is not the
    # launcher can also be a wrapper, such as a profiler: then the pipe knows whether it lives.
    if os.getppid() != int(pid) and (fd is None or _is_hung_up(fd)):
        sys.stderr.write(f"The launcher of this task (process {pid}) is gone: ending.\n")
        sys.stderr.flush()
        os._exit(1)
    if fd is not None:
        os.set_inheritable(fd, False)
        if sys.platform != "linux":
            # Not on Linux: the kernel does it there, and a thread would make every fork of the
            # user's script one of a process with several threads.
            threading.Thread(target=_watch, args=(fd,), daemon=True).start()
    return True


def die_with_parent(number: int = signal.SIGKILL) -> None:
    """Makes the kernel send this process a signal when the one that started it ends (on Linux).

    It can be the preexec_fn of a subprocess, for a program that closes what it inherits, as ssh
    does. Call it in a process with one thread.
    """
    if sys.platform == "linux":
        _LIBC.prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0)


def claim_terminal(environ: MutableMapping[str, str]) -> None:
    """Lets sys.stdout say that it is a terminal where the launcher shows it on one.

    It is a pipe, but one that is passed on byte by byte: progress bars may move.
    """
    if environ.pop(TERMINAL_VARIABLE, "") and sys.stdout is not None:
        sys.stdout.isatty = lambda: True  # type: ignore[method-assign]


def _pipe_end(text: str) -> int | None:
    """The file descriptor, if it is one that is open."""
    try:
        os.fstat(int(text))
    except (OSError, ValueError, OverflowError):
        return None
    return int(text)


def _is_hung_up(fd: int) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(0))


def _watch(fd: int) -> None:
    """Kills this process group, grandchildren with it, when the pipe's other end is closed."""
    os.read(fd, 1)
    os.killpg(os.getpgrp(), signal.SIGKILL)
