"""Run by test_exactness.py in each of two workers: every case against one device.

    python -m tfdp.run exactness.py OUTPUT.jsonl [GROUP ...]

The chief writes a line for each case: its name and the differences, or the error.
"""

import json
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

import tensorflow as tf
from fit import cases

import tfdp


def main(output: str, groups: list[str]) -> None:
    strategy = tfdp.strategy("multi_worker")
    one_device = tf.distribute.OneDeviceStrategy("cpu:0")
    chief = strategy.cluster_resolver.task_id == 0
    with open(output, "a") if chief else open("/dev/null", "w") as file:
        for group in groups or cases.TABLES:
            for case in cases.TABLES[group]():
                line = {"group": group, "case": case.name, "tolerance": case.tolerance}
                try:
                    line["differences"] = compare(case, strategy, one_device, chief)
                except Exception as error:
                    line["error"] = f"{type(error).__name__}: {error}"[:2000]
                file.write(json.dumps(line) + "\n")
                file.flush()


def compare(case, strategy, one_device, chief) -> dict[str, float]:
    expected = None
    if chief:
        tfdp.disable()
        if case.reference == "keras":
            expected = cases.run(case)
        else:
            tfdp.enable()
            expected = cases.run(case, one_device)
    tfdp.enable()
    outcome = cases.run(case, strategy)
    return cases.differences(expected, outcome) if chief else {}


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
