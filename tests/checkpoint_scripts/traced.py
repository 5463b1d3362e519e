"""Saves of a checkpoint in a child process that is stopped at each of its system calls (ptrace)."""

import ctypes
import os
import pathlib
import shutil
import signal
from collections.abc import Iterator

import numpy as np

from tfdp.checkpoints import disk
from tfdp.checkpoints.store import Place, Store
from tfdp.checkpoints.tensors import Spec

# <sys/ptrace.h>
_TRACEME, _PEEKUSER, _POKEUSER, _SYSCALL, _SETOPTIONS = 0, 3, 6, 24, 0x4200
_TRACESYSGOOD, _EXITKILL = 1, 1 << 20
_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.restype = ctypes.c_long
_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]


# More than what a file past the page cache collects before it writes.
_VALUES = (disk._BUFFER_BYTES + 12_000) // 4


def save(store: Store, step: int) -> None:
    array = np.full(_VALUES, step, np.float32)
    store.save(Place(step), {"step": step}, [Spec("w", "float32", array.shape)], [array])


def fresh(folder: pathlib.Path) -> Store:
    """Return a folder that holds step 1, the same each time."""
    if not (folder / "first").exists():
        first = Store(folder / "first")
        first.claim()
        save(first, 1)
    shutil.rmtree(folder / "run", ignore_errors=True)
    shutil.copytree(folder / "first", folder / "run")
    (folder / "run" / "lease.json").unlink()  # of this process, which lives
    return Store(folder / "run")


class Saving:
    """A child that saves step 2, and stops at the entry and at the end of each system call.

    saving = Saving(store)
    for begins in saving.stops():    # True at the entry of a call, False at its end
        ...
    saving.code                      # 0: it was saved; 3: an OSError came out of the save
    """

    def __init__(self, store: Store):
        self.code: int | None = None
        self.pid = os.fork()
        if not self.pid:
            code = 1
            try:
                store.claim()
                _libc.ptrace(_TRACEME, 0, None, None)
                os.kill(os.getpid(), signal.SIGSTOP)
                try:
                    save(store, 2)
                    code = 0
                except OSError:
                    code = 3
            finally:
                os._exit(code)
        _, status = os.waitpid(self.pid, 0)
        assert os.WIFSTOPPED(status), "the child has ended before it saved"
        _libc.ptrace(_SETOPTIONS, self.pid, None, _TRACESYSGOOD | _EXITKILL)

    def stops(self) -> Iterator[bool]:
        """Yield whether a call begins: True at its entry, False at its end."""
        begins = False
        while True:
            _libc.ptrace(_SYSCALL, self.pid, None, None)
            _, status = os.waitpid(self.pid, 0)
            if os.WIFEXITED(status):
                self.code = os.WEXITSTATUS(status)
                return
            begins = not begins
            yield begins

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)

    def read(self, register: int) -> int:
        """Return a word of the child's registers, by its place in struct user."""
        return _libc.ptrace(_PEEKUSER, self.pid, register, None)

    def write(self, register: int, value: int) -> None:
        """Set a word of the child's registers."""
        _libc.ptrace(_POKEUSER, self.pid, register, value & (2**64 - 1))
