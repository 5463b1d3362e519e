"""What servers.py checks: each function returns what a test compares."""

import time
import traceback
from collections.abc import Iterator

import tensorflow as tf
from fit import cases

import tfdp
from tfdp import fit

STRATEGY = tfdp.strategy("parameter_server", min_shard_bytes=64, max_shards=3)
ONE_DEVICE = tf.distribute.OneDeviceStrategy("/job:chief/replica:0/task:0/device:CPU:0")
SYNCHRONOUS = fit.ServerOptions(max_staleness=0)


def run(names) -> Iterator[dict]:
    for group in cases.TABLES:
        for case in cases.TABLES[group]():
            name = f"{group}-{case.name}"
            if names and not any(n in name for n in names):
                continue
            line = {"check": name, "tolerance": case.tolerance}
            begin = time.perf_counter()
            try:
                line["differences"] = synchronous(case)
            except Exception as error:
                line["error"] = f"{type(error).__name__}: {error}"[:2000]
                traceback.print_exc()
            yield {**line, "seconds": round(time.perf_counter() - begin, 1)}


def synchronous(case) -> dict[str, float]:
    """Compare synchronous training with one device."""
    fit.disable()
    if case.reference == "keras":
        expected = cases.run(case)
    else:
        fit.enable()
        expected = cases.run(case, ONE_DEVICE)
    fit.enable()
    fit.set_server_options(STRATEGY, SYNCHRONOUS)
    outcome = cases.run(case, STRATEGY, logical=True)
    return cases.differences(expected, outcome)
