"""Saves step 1, and step 2 where files may have no more than 64 KiB: the write comes short."""

import resource
import signal
import sys

import numpy as np

from tfdp.checkpoints.store import Place, Store
from tfdp.checkpoints.tensors import Spec

store = Store(sys.argv[1])
store.claim()


def save(step: int, values: int) -> None:
    array = np.full(values, step, np.float32)
    store.save(Place(step), {"step": step}, [Spec("w", "float32", array.shape)], [array])


save(1, 3000)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))
try:
    save(2, 1 << 20)
except OSError as error:
    print(error.strerror)
