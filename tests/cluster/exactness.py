"""Run by test_exactness.py in each of two workers: every case against one device.

    python -m tfdp.run exactness.py OUTPUT [GROUP ...]

Without a GROUP: all that `on_workers` chooses. Each worker writes OUTPUT-0 or OUTPUT-1, with a line
for each of its cases: the name and the differences, or the error. CASES=NAME,NAME in the
environment chooses cases by their names, IMPLEMENTATION=gloo what carries the sums.
"""

import json
import os
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

import tensorflow as tf
from fit import cases

import tfdp


def main(output: str, groups: list[str]) -> None:
    carried = tfdp.Communication(implementation=os.environ.get("IMPLEMENTATION", "auto"))
    strategy = tfdp.strategy("multi_worker", communication=carried)
    one_device = tf.distribute.OneDeviceStrategy("cpu:0")
    worker = strategy.cluster_resolver.task_id
    only = set(filter(None, os.environ.get("CASES", "").split(",")))
    todo = [
        (group, case)
        for group in groups or cases.TABLES
        for case in (cases.TABLES[group]() if groups or only else on_workers(group))
        if not only or case.name in only
    ]
    with open(f"{output}-{worker}", "w") as file:
        # Two at a time: each worker trains one of them on one device, at the same time, and
        # compares it with what the two then train together.
        for number in range(0, len(todo), 2):
            pair = todo[number : number + 2]
            own = [run(c, one_device) if at == worker else None for at, (_, c) in enumerate(pair)]
            together = [run(c, strategy) for _, c in pair]
            for at, (group, case) in enumerate(pair):
                if at != worker:
                    continue
                line = {"group": group, "case": case.name, "tolerance": case.tolerance}
                errors = [error for _, error in (own[at], together[at]) if error]
                if errors:
                    line["error"] = errors[0]
                else:
                    line["differences"] = cases.differences(own[at][0], together[at][0])
                file.write(json.dumps(line) + "\n")
                file.flush()


def on_workers(group: str) -> list:
    """Return the cases of a group that the suite runs on two workers.

    All of them run on 2 and 3 replicas of one process. How losses and optimizers compute is the
    same there; some of them show that what they sum crosses processes too.
    """
    table = cases.TABLES[group]()
    if group in ("losses", "optimizers"):
        return table[::3]
    return [case for case in table if not case.name.endswith("_of_one_row")]


def run(case, strategy) -> tuple[object, str]:
    """Return what a case gives under a strategy, or the error."""
    one_device = isinstance(strategy, tf.distribute.OneDeviceStrategy)
    try:
        if one_device and case.reference == "keras":
            tfdp.disable()
            return cases.run(case), ""
        tfdp.enable()
        return cases.run(case, strategy), ""
    except Exception as error:
        return None, f"{type(error).__name__}: {error}"[:2000]


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
