"""Lets each system call of a save that has to do with files fail once.

    python failing.py FOLDER EIO

Prints for each, in JSON: the call, whether the save said that it failed, and what loads
afterwards, before and after the next save. For x86-64.
"""

import errno
import json
import pathlib
import platform
import sys

import traced

from tfdp.checkpoints.store import Store

assert platform.machine() == "x86_64", "the registers and calls below are those of x86-64"
# <sys/user.h>: rax and orig_rax in struct user_regs_struct.
RESULT, NUMBER = 10 * 8, 15 * 8
CALLS = {
    0: "read",
    1: "write",
    5: "fstat",
    8: "lseek",
    72: "fcntl",
    73: "flock",
    74: "fsync",
    75: "fdatasync",
    77: "ftruncate",
    82: "rename",
    83: "mkdir",
    87: "unlink",
    217: "getdents64",
    257: "openat",
    262: "newfstatat",
    263: "unlinkat",
    264: "renameat",
}


def failed(store: Store, most: int, error: int) -> tuple[str, int | None]:
    """Let call number `most` of those fail; return its name ("" behind the last) and the code."""
    calls, name = 0, ""
    saving = traced.Saving(store)
    for begins in saving.stops():
        if begins and (found := CALLS.get(saving.read(NUMBER))):
            calls += 1
            if calls == most:
                name = found
                saving.write(NUMBER, -1)  # no such call: nothing happens
        elif not begins and name and calls == most:
            saving.write(RESULT, -error)
            most = 0
    return name, saving.code


def loaded(store: Store) -> int:
    newest = Store(store.folder).newest()
    assert newest is not None
    assert set(newest.arrays().read("w")) == {newest.place.step}
    return newest.place.step


number, name = 0, "first"
while name:
    number += 1
    store = traced.fresh(pathlib.Path(sys.argv[1]))
    name, code = failed(store, number, getattr(errno, sys.argv[2]))
    before = loaded(store)
    again = Store(store.folder)
    again.claim()
    traced.save(again, 3)
    report = {"call": name, "code": code, "newest": before, "next": loaded(store)}
    print(json.dumps(report), flush=True)
