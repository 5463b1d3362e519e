"""Run by test_exactness.py in each of two workers: every case against one device.

    python -m tfdp.run exactness.py OUTPUT [GROUP ...]

Without a GROUP: all cases. Each worker writes OUTPUT-0 or OUTPUT-1, with a line
for each of its cases: the name and the differences, or the error. CASES=NAME,NAME in the
environment chooses cases by their names, IMPLEMENTATION=gloo what carries the sums, and REFERENCES
is the folder in which what one device trains is kept (references.py).
"""

import json
import os
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

import tensorflow as tf
from fit import cases

import tfdp

# One case for each thing that crosses processes.
MECHANISMS = {
    "batches": ("ragged_last", "all_but_one_empty"),
    "inputs": ("dataset_unknown", "generator", "sparse", "ragged", "unbuilt", "train_shuffled"),
    "losses": ("masked_weighted", "two_outputs_weighted"),
    "optimizers": ("global_clipnorm", "accumulation", "ema_overwrite"),
    "metrics": ("class_metrics", "layer_metric"),
    "execution": ("steps_per_execution_unknown", "run_eagerly", "train_step_ragged"),
    "precision": ("mixed_float16_jit", "overflow_executions"),
    "scripts": (
        "spectral_normalization",
        "layer_counts",
        "accumulation_by_hand",
        "optimizers_everywhere",
        "metric_kept_over_epochs",
        "sparse_gradients_in_one_execution",
    ),
}


def main(output: str, groups: list[str]) -> None:
    carried = tfdp.Communication(implementation=os.environ.get("IMPLEMENTATION", "auto"))
    strategy = tfdp.strategy("multi_worker", communication=carried)
    one_device = tf.distribute.OneDeviceStrategy("cpu:0")
    worker = strategy.cluster_resolver.task_id
    only = set(filter(None, os.environ.get("CASES", "").split(",")))
    todo = [
        (group, case)
        for group in groups or cases.TABLES
        for case in cases.TABLES[group]()
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


def run(case, strategy) -> tuple[object, str]:
    """Return what a case gives under a strategy, or the error."""
    try:
        if isinstance(strategy, tf.distribute.OneDeviceStrategy):
            return cases.reference(case, strategy), ""
        tfdp.enable()
        return cases.run(case, strategy), ""
    except Exception as error:
        return None, f"{type(error).__name__}: {error}"[:2000]


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
