"""Planted bottlenecks, and what the bench says of them.

    python scripts/benchmarks/verdicts.py                       # all, 10 runs each: half an hour
    python scripts/benchmarks/verdicts.py --case=input --runs=3
    sudo python scripts/benchmarks/verdicts.py --case=synchronisation   # makes network namespaces

    input               a map of 20 ms for each batch, on 2 workers
    training            convolutions on data that is cached, on 2 workers
    synchronisation     2 hosts with a link of 50 Mbit/s between them (tc tbf)
    straggler           2 workers, of which worker:1 waits 60 ms in each of its steps

Each run measures all anew, and tries the best remedy: predicted beside measured. For the slow
worker the remedy is to leave out its waits. Exits with 1 when a verdict is wrong, or a
predicted gain is off by more than 15% at the median of the runs.
"""

import argparse
import contextlib
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve()
ROOT = HERE.parents[2]
CASES = ("input", "training", "synchronisation", "straggler")
WORKERS = 2
BAND = 0.15
# What worker:1 waits in each step.
WAITS_SECONDS = 0.060
# Filters of each layer, in the cases whose steps compute for a while.
_CONVOLUTIONS = {"training": 48, "straggler": 16}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--case", choices=CASES, action="append")
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--task", choices=CASES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    parser.add_argument("--without", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.task:
        _task(options.task, options.runs, pathlib.Path(options.folder), not options.without)
        return
    failures: list[str] = []
    for case in options.case or CASES:
        _measure(case, options.runs, failures)
    for failure in failures:
        print(f"MISSED: {failure}")
    sys.exit(bool(failures))


def _measure(case: str, runs: int, failures: list[str]) -> None:
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        found = _run(case, runs, pathlib.Path(folder), planted=True)
        gains = [
            (one["trial"]["predicted_gain"], one["trial"]["measured_gain"], one["trial"]["name"])
            for one in found
            if one["trial"]
        ]
        if case == "straggler":  # the remedy: a worker that is as fast as the other
            pathlib.Path(folder, "without").mkdir()
            without = _run(case, 3, pathlib.Path(folder, "without"), planted=False)
            after = statistics.median(one["real_seconds"]["median_seconds"] for one in without)
            gains = [
                (
                    one["remedies"][0]["gain"],
                    one["real_seconds"]["median_seconds"] / after,
                    one["remedies"][0]["name"],
                )
                for one in found
                if one["remedies"]
            ]
    right = sum(one["verdict"] == case for one in found)
    shares = [one["shares"][case] for one in found]
    print(f"\n{case}: {right} of {len(found)} runs, {time.monotonic() - begin:.0f} s")
    print(f"  share of a step {min(shares):.0%} to {max(shares):.0%}")
    print(f"  {found[0]['verdict_text']}")
    if right < len(found) or len(found) < runs:
        failures.append(f"{case}: {[one['verdict'] for one in found]}")
    if not gains:
        print("  no remedy gains anything")
        return
    for name in dict.fromkeys(name for _, _, name in gains):
        pairs = [(predicted, measured) for predicted, measured, of in gains if of == name]
        errors = sorted(measured / predicted - 1 for predicted, measured in pairs)
        middle = statistics.median(errors)
        print(
            f"  {name}, {len(pairs)} times: predicted {statistics.median(p for p, _ in pairs):.2f} "
            f"x, measured {statistics.median(m for _, m in pairs):.2f} x; off by {middle:+.0%} "
            f"({errors[0]:+.0%} to {errors[-1]:+.0%})"
        )
        if abs(middle) > BAND:
            failures.append(f"{case}: {name} off by {middle:+.0%}")


def _run(case: str, runs: int, folder: pathlib.Path, planted: bool) -> list[dict]:
    command = [str(HERE), f"--task={case}", f"--runs={runs}", f"--folder={folder}"]
    command += [] if planted else ["--without"]
    log = folder / "log"
    with contextlib.ExitStack() as stack:
        output = stack.enter_context(open(log, "wb"))
        if case == "synchronisation":
            processes = _on_hosts(command, output, stack)
        else:
            launch = [sys.executable, "-m", "tfdp", "launch", f"--workers={WORKERS}"]
            launch += [f"--log_dir={folder}/logs", "--", *command]
            processes = [subprocess.Popen(launch, stdout=output, stderr=subprocess.STDOUT)]
            stack.callback(_end, processes)
        codes = [process.wait(timeout=3600) for process in processes]
    if any(codes):
        sys.exit(log.read_text(errors="replace")[-6000:])
    return [json.loads(path.read_text()) for path in sorted(folder.glob("run-*/bench.json"))]


def _end(processes: list[subprocess.Popen]) -> None:
    for process in processes:
        process.kill()
        process.wait()


def _on_hosts(command: list[str], output, stack: contextlib.ExitStack) -> list[subprocess.Popen]:
    """Start a worker on each of two hosts that 50 Mbit/s connect."""
    sys.path.insert(0, str(ROOT / "tests"))
    from cluster import hosts

    from tfdp.cluster import Cluster

    if reason := hosts.missing():
        sys.exit(f"synchronisation: no hosts on this machine: {reason}")
    network = stack.enter_context(hosts.network(WORKERS, rate="50mbit"))
    cluster = Cluster(worker=tuple(f"{address}:2222" for address in network.addresses))
    return [
        network.start(
            task.index,
            [sys.executable, "-m", "tfdp.run", *command],
            env={**os.environ, "TF_CONFIG": cluster.tf_config(task), "TFDP_SEED": "1"},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        for task in cluster.tasks
    ]


# -- a task -----------------------------------------------------------------------------------


def _task(case: str, runs: int, folder: pathlib.Path, planted: bool) -> None:
    import keras

    import tfdp

    strategy = tfdp.strategy("multi_worker")
    with strategy.scope():
        task = json.loads(os.environ["TF_CONFIG"])["task"]["index"]
        model = _model(case, waits=case == "straggler" and planted and task == 1)
        model.compile("sgd", "mse")
    for run in range(runs):
        keras.utils.set_random_seed(run)
        bench = tfdp.callbacks.Bench(folder / f"run-{run:02d}", apply=True)
        model.fit(_data(case), steps_per_epoch=2, verbose=0, callbacks=[bench])


def _model(case: str, waits: bool):
    import keras
    import numpy as np
    import tensorflow as tf

    class Wait(keras.layers.Layer):
        def call(self, x):
            def wait():
                time.sleep(WAITS_SECONDS)
                return np.float32(0)

            if not waits:
                return x
            return x + tf.ensure_shape(tf.numpy_function(wait, [], tf.float32), ())

    layers = keras.layers
    if case in _CONVOLUTIONS:
        filters = _CONVOLUTIONS[case]
        body = [
            keras.Input((32, 32, 3)),
            Wait(),
            *[layers.Conv2D(filters, 3, padding="same", activation="relu") for _ in range(3)],
            layers.GlobalAveragePooling2D(),
        ]
    else:
        # 0.2 M weights, 0.8 MB of gradients; on the slow link 0.6 M.
        units = 200 if case == "synchronisation" else 64
        body = [keras.Input((3072,)), layers.Dense(units, activation="relu")]
    return keras.Sequential([*body, layers.Dense(1)])


def _data(case: str):
    import numpy as np
    import tensorflow as tf

    random = np.random.default_rng(0)
    rows, batch = 1024, 64
    shape = (32, 32, 3) if case in _CONVOLUTIONS else (3072,)
    x = random.normal(size=(rows, *shape)).astype("float32")
    data = tf.data.Dataset.from_tensor_slices((x, x.reshape(rows, -1)[:, :1]))
    data = data.batch(batch, drop_remainder=True)
    if case == "input":
        data = data.map(_slow)
    return data.repeat() if case == "input" else data.cache().repeat()


def _slow(x, y):
    import tensorflow as tf

    def wait(x):
        time.sleep(0.020)
        return x

    waited = tf.numpy_function(wait, [x], x.dtype)
    waited.set_shape(x.shape)
    return waited, y


if __name__ == "__main__":
    main()
