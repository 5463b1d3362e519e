"""A step on parameter servers: tfdp, keras.layers.Embedding under tfdp, and tf_keras.

    python scripts/benchmarks/parameter_server.py            # the table of step times, 3 minutes
    python scripts/benchmarks/parameter_server.py --memory   # a 1 GB table over 2 servers, 1 minute

One chief, 2 workers, 2 ps as processes of this machine. A step takes 256 rows of 20 ids, looks them
up in a table of width 64, averages, and trains a dense layer on top with SGD. The contestants train
in turns, in the same processes, worker i and ps i on core i. A time is the median over the rounds
of time / steps: with two workers two steps run at a time. For tf_keras:
pip install "tf_keras>=2.20,<2.22".
"""

import argparse
import json
import logging
import os
import pathlib
import re
import statistics
import subprocess
import sys
import tempfile
import time

BATCH, IDS, WIDTH = 256, 20, 64
ROUNDS, STEPS = 5, 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--memory", action="store_true", help="measure memory, not time")
    parser.add_argument("--only-tfdp", action="store_true", help="leave the others out")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--steps", type=int, default=STEPS)
    arguments = parser.parse_args()
    if os.environ.get("TF_CONFIG"):
        chief(arguments)
        return
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "tfdp", "launch", "--chief", "--workers=2", "--ps=2"]
        command += [f"--log_dir={folder}", "--", __file__, *sys.argv[1:]]
        environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "-1"}
        code = subprocess.run(command, env=environment, check=False).returncode
    sys.exit(code)


def chief(arguments: argparse.Namespace) -> None:
    import tfdp

    strategy = tfdp.strategy("parameter_server", min_partition_bytes=1 << 20)
    logging.getLogger("tfdp").setLevel(logging.WARNING)  # it says each epoch's staleness
    if arguments.memory:
        memory(strategy)
    else:
        times(strategy, arguments)


def data(rows: int):
    """Return a function of InputContext: random ids, made on the worker, without end."""
    import tensorflow as tf

    def of(context):
        del context
        seeds = tf.data.Dataset.range(64).map(lambda n: tf.stack([n, 7]))
        batches = seeds.map(
            lambda seed: (
                tf.random.stateless_uniform((BATCH, IDS), seed, 0, rows, tf.int64),
                tf.random.stateless_uniform((BATCH, 1), seed),
            )
        )
        return batches.cache().repeat().prefetch(4)

    return of


def model_of(strategy, keras, embedding, rows: int):
    with strategy.scope():
        model = keras.Sequential(
            [
                keras.Input((IDS,), dtype="int64"),
                embedding(rows, WIDTH),
                keras.layers.GlobalAveragePooling1D(),
                keras.layers.Dense(1),
            ]
        )
        model.compile(keras.optimizers.SGD(0.01), "mse")
    return model


def times(strategy, arguments: argparse.Namespace) -> None:
    import keras

    import tfdp

    rounds, steps = arguments.rounds, arguments.steps
    contestants = {}
    for rows in (20_000, 200_000, 2_000_000):
        model = model_of(strategy, keras, tfdp.layers.Embedding, rows)
        contestants["tfdp", rows] = runner(model, data(rows), steps)
    if not arguments.only_tfdp:
        model = model_of(strategy, keras, keras.layers.Embedding, 200_000)
        contestants["keras.layers.Embedding", 200_000] = runner(model, data(200_000), steps)
        try:
            import tf_keras
        except ImportError:
            print("tf_keras is not installed: left out.")
        else:
            model = model_of(strategy, tf_keras, tf_keras.layers.Embedding, 200_000)
            source = tf_keras.utils.experimental.DatasetCreator(data(200_000))
            contestants["tf_keras", 200_000] = runner(model, source, steps)
    found = {name: [] for name in contestants}
    for run in contestants.values():
        run()  # traces
    pin()
    for _ in range(rounds):
        for name, run in contestants.items():
            begin = time.perf_counter()
            run()
            found[name].append((time.perf_counter() - begin) / steps * 1e3)
    medians = {name: statistics.median(values) for name, values in found.items()}
    print(
        f"{os.cpu_count()} cores; chief + 2 workers + 2 ps; ms a step, median of {rounds} rounds."
    )
    for (name, rows), value in medians.items():
        low, high = min(found[name, rows]), max(found[name, rows])
        print(f"{name:24} {rows:>9,} rows  {value:7.2f}   ({low:.2f} to {high:.2f})")
    ratio = medians["tfdp", 2_000_000] / medians["tfdp", 20_000]
    print(f"2,000,000 rows against 20,000:          {ratio:.2f}  (wanted: 1.25 at most)")
    small = medians["tfdp", 200_000]
    for name, most in (("keras.layers.Embedding", 0.4), ("tf_keras", 0.5)):
        if (name, 200_000) in medians:
            against = f"tfdp against {name}:"
            ratio = small / medians[name, 200_000]
            print(f"{against:39} {ratio:.2f}  (wanted: {most} at most)")


def runner(model, source, steps: int):
    return lambda: model.fit(source, steps_per_epoch=steps, epochs=1, verbose=0)


def memory(strategy) -> None:
    """Train a table of 1 GB; print what each process has held at most, with and without it."""
    import keras

    import tfdp

    small = model_of(strategy, keras, tfdp.layers.Embedding, 1_000)
    small.fit(data(1_000), steps_per_epoch=20, verbose=0)
    base = peaks()
    rows = (1 << 30) // (4 * WIDTH)
    large = model_of(strategy, keras, tfdp.layers.Embedding, rows)
    large.fit(data(rows), steps_per_epoch=50, verbose=0)
    peak = peaks()
    print(
        f"A table of {rows:,} x {WIDTH} float32 (1 GB) over 2 ps; peak of the resident memory, MB:"
    )
    for task in peak:
        print(
            f"{task:10} {base[task]:6,.0f} before, {peak[task]:6,.0f} with it: "
            f"+{peak[task] - base[task]:,.0f}"
        )


def peaks() -> dict[str, float]:
    """Return the peak resident memory of this cluster's processes in MB, by task."""
    found = {}
    for (job, index), process in sorted(tasks().items()):
        peak = re.search(r"VmHWM:\s+(\d+) kB", (process / "status").read_text())
        found[f"{job}:{index}"] = int(peak[1]) / 1024 if peak else 0.0
    return found


def pin() -> None:
    """Keep worker i and ps i on core i: two workers on one core are half as fast."""
    cores = sorted(os.sched_getaffinity(0))
    for (job, index), process in tasks().items():
        if job != "chief":
            for thread in (process / "task").iterdir():
                os.sched_setaffinity(int(thread.name), {cores[index % len(cores)]})


def tasks() -> dict[tuple[str, int], pathlib.Path]:
    """Return the folder in /proc of each task of this cluster, by type and index."""
    found = {}
    parent = os.getppid()
    for entry in pathlib.Path("/proc").iterdir():
        try:
            status = (entry / "status").read_text()
            environment = (entry / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        config = [v for v in environment if v.startswith(b"TF_CONFIG=")]
        if f"PPid:\t{parent}\n" in status and config:
            task = json.loads(config[0].partition(b"=")[2])["task"]
            found[task["type"], task["index"]] = entry
    return found


if __name__ == "__main__":
    main()
