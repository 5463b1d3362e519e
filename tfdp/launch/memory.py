"""Lets a process that trains keep the memory that it frees.

    memory.keep_freed(os.environ)       # before TensorFlow is imported

A step on CPUs allocates its gradients and activations anew. glibc gives large blocks back to the
kernel when they are free, and the next step pays for every page again. How many depends on what
lies beside them: for a model of 8 million weights 10 to 3,000 page faults a step where it is alone
in its process (scripts/benchmarks/memory.py), and 16,300, half of the step's time, beside another.
"""

import ctypes
import sys
from collections.abc import Mapping

# <malloc.h>
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -2, -3, -8
# What a process keeps at most beyond what it uses.
_KEPT_BYTES = 1 << 30
# What its heap grows by at once: where that is more than it may have, an allocation fails.
GROWS_BY_BYTES = 128 << 20
# The most that glibc allows: larger blocks are the kernel's as before.
_LARGEST_BYTES = 32 << 20
_ANOTHER = ("jemalloc", "tcmalloc", "mimalloc")


def keep_freed(environ: Mapping[str, str]) -> bool:
    """Tell glibc to keep freed memory, unless the environment sets its malloc, or another one.

    Call it before TensorFlow is imported: with threads come arenas, which cannot hold large blocks.

    Returns:
        Whether it does so now.
    """
    set_by_user = any(name.startswith("MALLOC_") for name in environ) or "malloc" in environ.get(
        "GLIBC_TUNABLES", ""
    )
    replaced = any(name in environ.get("LD_PRELOAD", "") for name in _ANOTHER)
    if set_by_user or replaced or "tensorflow" in sys.modules or sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # musl has none
        return False
    settings = {
        # Memory of one thread is that of all: a step's threads free what others have allocated.
        _M_ARENA_MAX: 1,
        _M_MMAP_THRESHOLD: _LARGEST_BYTES,
        _M_TRIM_THRESHOLD: _KEPT_BYTES,
        _M_TOP_PAD: GROWS_BY_BYTES,
    }
    return all([bool(mallopt(name, value)) for name, value in settings.items()])
