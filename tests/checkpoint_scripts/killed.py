"""Kills a process that saves step 2 at its first system call, its second, and so on.

    python killed.py FOLDER

Prints for each, in JSON: the calls it made, whether it came to its end, and what loads afterwards.
"""

import json
import pathlib
import sys

import traced

from tfdp.checkpoints.store import Store


def saved(store: Store, most: int) -> tuple[int, bool]:
    """Kill the save at its system call number `most`; return the calls and whether it ended."""
    calls = 0
    saving = traced.Saving(store)
    for begins in saving.stops():
        calls += begins
        if begins and calls == most:
            saving.kill()
            return calls, False
    return calls, True


number, ended = 0, False
while not ended:
    number += 1
    store = traced.fresh(pathlib.Path(sys.argv[1]))
    calls, ended = saved(store, number)
    newest = Store(store.folder).newest()
    assert newest is not None
    step = newest.place.step
    assert set(newest.arrays().read("w")) == {step}
    print(json.dumps({"calls": calls + ended, "ended": ended, "newest": step}), flush=True)
