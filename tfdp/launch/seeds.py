"""One seed for all tasks of a cluster, for scripts that set none.

    seeds.begin(os.environ)         # in a task of a cluster, before its script runs

Every worker reads the same global batches and keeps its rows. A shuffle without a seed has to draw
the same order everywhere, whoever draws: Python (Keras shuffles a PyDataset by it), NumPy (a
script's permutation, `image_dataset_from_directory`) or TensorFlow.
"""

import hashlib
import random
import sys
import zlib
from collections.abc import Mapping

from tfdp import cluster as cluster_lib
from tfdp.compat import on_import


def shared(environ: Mapping[str, str]) -> int | None:
    """Return the seed that every task of this cluster takes, from 0 to 2**31 - 1.

    Returns:
        TFDP_SEED where a launcher has drawn one, else a number made of the cluster's addresses;
        None without either.
    """
    seed = environ.get("TFDP_SEED", "")
    if seed.isdecimal():
        return int(seed)
    found = cluster_lib.from_environment(environ)
    return None if found is None else zlib.crc32(repr(found.cluster.spec()).encode()) & 0x7FFFFFFF


def begin(environ: Mapping[str, str]) -> None:
    """Seed Python's `random` now, and NumPy as soon as somebody imports it."""
    seed = shared(environ)
    if seed is not None:
        random.seed(seed)
        on_import.call_after("numpy", lambda: _seed_numpy(seed))


def take(seed: int) -> None:
    """Seed Python's `random` and NumPy at once."""
    random.seed(seed)
    if "numpy" in sys.modules:
        _seed_numpy(seed)


def state() -> str:
    """Return a digest of where Python's `random` and NumPy's stand."""
    seen = [repr(random.getstate())]
    if "numpy" in sys.modules:
        now = sys.modules["numpy"].random.get_state()
        seen.append(repr([getattr(part, "tolist", lambda p=part: p)() for part in now]))
    return hashlib.sha256("".join(seen).encode()).hexdigest()


def _seed_numpy(seed: int) -> None:
    sys.modules["numpy"].random.seed(seed)
