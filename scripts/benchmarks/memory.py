"""What it brings that tasks keep the memory that they free: see tfdp/launch/memory.py.

    python scripts/benchmarks/memory.py             # about 3 minutes

Processes that keep it and processes that give it back take turns; each trains on all cores, and on
one. Shows milliseconds and page faults of a step, at the median over the rounds.
"""

import argparse
import json
import os
import pathlib
import resource
import statistics
import subprocess
import sys

HERE = pathlib.Path(__file__)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--task", choices=["keeps", "gives back"], help=argparse.SUPPRESS)
    parser.add_argument("--model", help=argparse.SUPPRESS)
    parser.add_argument("--cores", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.task:
        _task(options)
        return
    count = len(os.sched_getaffinity(0))
    for model in ("mlp", "cnn"):
        for cores in sorted({1, count}):
            found: dict[str, list[tuple[float, float]]] = {"keeps": [], "gives back": []}
            for _ in range(options.rounds):
                for task, values in found.items():
                    own = [f"--task={task}", f"--model={model}", f"--cores={cores}"]
                    done = subprocess.run(
                        [sys.executable, str(HERE), *own], capture_output=True, text=True
                    )
                    if done.returncode:
                        sys.exit(done.stderr[-3000:])
                    values.append(json.loads(done.stdout.splitlines()[-1]))
            ratios = [k[0] / g[0] for k, g in zip(*found.values(), strict=True)]
            print(f"{model}, {cores} cores: ratio {statistics.median(ratios):.2f}")
            for task, values in found.items():
                seconds, faults = (
                    statistics.median(column) for column in zip(*values, strict=True)
                )
                print(f"  {task:10} {seconds * 1e3:7.1f} ms, {faults:8,.0f} page faults a step")


def _task(options: argparse.Namespace) -> None:
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.cores])
    os.environ["TF_NUM_INTRAOP_THREADS"] = os.environ["OMP_NUM_THREADS"] = str(options.cores)
    if options.task == "keeps":
        from tfdp.launch import memory

        if not memory.keep_freed(os.environ):
            sys.exit("This system's malloc cannot be told to keep memory.")
    import keras
    import sync_step
    import tensorflow as tf

    import tfdp

    tfdp.enable()
    with tf.distribute.OneDeviceStrategy("cpu:0").scope():
        model = sync_step._compiled(keras, options.model)
    run = sync_step._fit_contestant(keras, model, sync_step._dataset(options.model, 1))
    run()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    seconds = statistics.median(run() for _ in range(3))
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    # A run is two epochs.
    print(json.dumps([seconds, faults / (6 * sync_step.STEPS)]))


if __name__ == "__main__":
    main()
