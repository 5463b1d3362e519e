"""Kills a process that saves step 2 at its first system call, its second, and so on (ptrace).

    python killed.py FOLDER

Prints for each, in JSON: the calls it made, whether it came to its end, and what loads afterwards.
"""

import ctypes
import json
import os
import pathlib
import shutil
import signal
import sys

import numpy as np

from tfdp.checkpoints.store import Place, Store
from tfdp.checkpoints.tensors import Spec

# <sys/ptrace.h>
TRACEME, SYSCALL, SETOPTIONS = 0, 24, 0x4200
TRACESYSGOOD, EXITKILL = 1, 1 << 20
libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]

folder = pathlib.Path(sys.argv[1])


def save(store: Store, step: int) -> None:
    array = np.full(3000, step, np.float32)
    store.save(Place(step), {"step": step}, [Spec("w", "float32", array.shape)], [array])


def trace(most: int) -> tuple[int, bool]:
    """Let a child save step 2, and kill it at system call number `most`."""
    child = os.fork()
    if not child:
        try:
            store = Store(folder / "run")
            store.claim()
            libc.ptrace(TRACEME, 0, None, None)
            os.kill(os.getpid(), signal.SIGSTOP)
            save(store, 2)
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSTOPPED(status), "the child has ended before it saved"
    libc.ptrace(SETOPTIONS, child, None, TRACESYSGOOD | EXITKILL)
    calls = stops = 0
    while True:
        libc.ptrace(SYSCALL, child, None, None)
        _, status = os.waitpid(child, 0)
        if os.WIFEXITED(status):
            return calls, True
        stops += 1  # at the entry of a call, and at its end
        calls = (stops + 1) // 2
        if stops % 2 and calls == most:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return calls, False


first = Store(folder / "first")
first.claim()
save(first, 1)
number, ended = 0, False
while not ended:
    number += 1
    shutil.rmtree(folder / "run", ignore_errors=True)
    shutil.copytree(folder / "first", folder / "run")
    (folder / "run" / "lease.json").unlink()  # of this process, which lives
    calls, ended = trace(number)
    newest = Store(folder / "run").newest()
    assert newest is not None
    step = newest.place.step
    assert set(newest.arrays().read("w")) == {step}
    print(json.dumps({"calls": calls + ended, "ended": ended, "newest": step}), flush=True)
