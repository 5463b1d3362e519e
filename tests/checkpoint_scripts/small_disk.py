"""Training that saves on a disk of 256 KiB, which fills up and becomes read-only.

    unshare --user --map-root-user --mount python small_disk.py FOLDER

The disk is a tmpfs over FOLDER that only this process and its children see.
"""

import logging
import pathlib
import subprocess
import sys

import numpy as np

from tfdp.checkpoints.store import Place, Store
from tfdp.checkpoints.tensors import Spec
from tfdp.error import Error
from tfdp.fit.recovery.writer import Writer

folder = pathlib.Path(sys.argv[1])
logging.basicConfig(stream=sys.stdout, format="%(message)s")
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", folder], check=True)
store = Store(folder / "backup")
store.claim()
writer = Writer(store)


def save(step: int, values: int) -> None:
    array = np.full(values, step, np.float32)
    writer.write(Place(step), {}, [Spec("w", "float32", array.shape)], [array])
    writer.wait()
    print(f"Step {step}: {[place.step for place in Store(store.folder).places()]}")


save(1, 3000)
save(2, 1 << 20)
save(3, 1 << 20)
save(4, 3000)
subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
try:
    for step in (5, 6, 7):
        save(step, 3000)
except Error as error:
    print(error)
newest = Store(store.folder).newest()
assert newest is not None
print(f"Loaded: {set(newest.arrays().read('w').tolist())}")
