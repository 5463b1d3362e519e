"""What a slow link costs where replicas meet at each step, and where they meet every 8 steps.

    sudo python scripts/benchmarks/sync_every.py            # makes network namespaces: 4 minutes
    sudo python scripts/benchmarks/sync_every.py --rate=1gbit --implementation=ring

Two hosts, network namespaces of this machine with a link limited by tc tbf, train the digits: two
hidden layers of 512 units, SGD with momentum, 20 passes of global batches of 64. Three seeds of

    1                       every step sums the gradients
    8                       replicas train by themselves for 8 steps, then take the mean
    8, 46 steps together    the same, after the first two passes step by step (sync_after)
    8, outer                an outer SGD takes the difference (rate 0.7, momentum 0.9, Nesterov)

and one device, whose accuracy the first must have. Prints examples/s of all passes but the first
four, and the test accuracy. Exits 1 where 8 is not 3 times as fast as 1, or 1 point less accurate.
"""

import argparse
import contextlib
import csv
import gzip
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
RUNS = {
    "1": {"sync_every": 1},
    "8": {"sync_every": 8},
    "8, 46 steps together": {"sync_every": 8, "sync_after": 46},
    "8, outer": {"sync_every": 8, "outer": (0.7, 0.9)},
}
SEEDS = (0, 1, 2)
BATCH, PASSES, EPOCHS, WIDTH, RATE = 64, 4, 5, 512, 0.05
FASTER, NEAR = 3.0, 1.0  # times; points of accuracy


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rate", default="200mbit", help="of each link, as tc writes it")
    parser.add_argument("--implementation", default="gloo", choices=("gloo", "ring"))
    parser.add_argument("--task", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.task:
        _task(pathlib.Path(options.task), options.implementation)
        return
    with contextlib.ExitStack() as stack:
        folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
        measured = _on_hosts(folder, options, stack)
    measured["one device"] = _alone()
    sys.exit(_table(measured, options))


def _on_hosts(folder: pathlib.Path, options, stack: contextlib.ExitStack) -> dict:
    """Train on a worker of each of two hosts; return what the chief has measured."""
    sys.path.insert(0, str(ROOT / "tests"))
    from cluster import hosts

    from tfdp.cluster import Cluster

    if reason := hosts.missing():
        sys.exit(f"No hosts on this machine: {reason}")
    network = stack.enter_context(hosts.network(2, rate=options.rate))
    cluster = Cluster(worker=tuple(f"{address}:2222" for address in network.addresses))
    command = [str(HERE), f"--task={folder}", f"--implementation={options.implementation}"]
    log = stack.enter_context(open(folder / "log", "wb"))
    processes = [
        network.start(
            task.index,
            [sys.executable, "-m", "tfdp.run", *command],
            env={**os.environ, "TF_CONFIG": cluster.tf_config(task), "TFDP_SEED": "1"},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        for task in cluster.tasks
    ]
    if any([process.wait(timeout=1200) for process in processes]):
        sys.exit((folder / "log").read_text(errors="replace")[-6000:])
    return json.loads((folder / "measured.json").read_text())


def _table(measured: dict, options) -> int:
    print(
        f"Two hosts, {options.rate}, {options.implementation}: {len(SEEDS)} seeds\n\n"
        "| meet every | examples/s | accuracy | of each seed |\n|---|---|---|---|"
    )
    speeds, accuracies = {}, {}
    for name, runs in measured.items():
        speeds[name] = statistics.median(run["speed"] for run in runs)
        accuracies[name] = statistics.mean(run["accuracy"] for run in runs) * 100
        each = ", ".join(f"{run['accuracy']:.1%}" for run in runs)
        print(f"| {name} | {speeds[name]:,.0f} | {accuracies[name]:.1f}% | {each} |")
    faster, worse = speeds["8"] / speeds["1"], accuracies["1"] - accuracies["8"]
    print(f"\nEvery 8 steps: {faster:.1f} times as fast, {worse:+.1f} points less accurate.")
    return int(faster < FASTER or worse > NEAR)


# -- a task -----------------------------------------------------------------------------------


def _task(folder: pathlib.Path, implementation: str) -> None:
    import keras

    import tfdp

    strategy = tfdp.strategy("multi_worker")
    measured: dict[str, list] = {}
    for name, settings in RUNS.items():
        settings = dict(settings)
        if outer := settings.pop("outer", None):
            rate, momentum = outer
            settings["outer"] = keras.optimizers.SGD(rate, momentum=momentum, nesterov=True)
        tfdp.enable(tfdp.Communication(implementation=implementation, **settings))
        measured[name] = [_train(strategy, seed) for seed in SEEDS]
    if tfdp.is_chief():
        (folder / "measured.json").write_text(json.dumps(measured))


def _alone() -> list:
    import tfdp

    strategy = tfdp.strategy("one_device")
    return [_train(strategy, seed) for seed in SEEDS]


def _train(strategy, seed: int) -> dict:
    """Train once; return examples/s and the accuracy on the test images."""
    import keras
    import tensorflow as tf

    class Times(keras.callbacks.Callback):
        """When each epoch has begun to take steps, and has ended."""

        def __init__(self):
            super().__init__()
            self.seconds = []

        def on_epoch_begin(self, epoch, logs=None):
            self._begin = time.perf_counter()

        def on_epoch_end(self, epoch, logs=None):
            self.seconds.append(time.perf_counter() - self._begin)

    (x, y), test = _digits()
    keras.utils.set_random_seed(seed)
    with strategy.scope():
        hidden = [keras.layers.Dense(WIDTH, "relu") for _ in range(2)]
        model = keras.Sequential([keras.Input((64,)), *hidden, keras.layers.Dense(10, "softmax")])
        sgd = keras.optimizers.SGD(RATE, momentum=0.9)
        model.compile(sgd, "sparse_categorical_crossentropy", metrics=["accuracy"])
    data = tf.data.Dataset.from_tensor_slices((x, y)).shuffle(len(x), seed=seed)
    data = data.batch(BATCH).repeat(PASSES)
    times = Times()
    model.fit(data, epochs=EPOCHS, callbacks=[times], verbose=0)
    accuracy = model.evaluate(*test, batch_size=360, verbose=0, return_dict=True)["accuracy"]
    speed = len(x) * PASSES * (EPOCHS - 1) / sum(times.seconds[1:])
    return {"speed": speed, "accuracy": accuracy}


def _digits():
    """Return the images and labels to train on, and those to test."""
    import numpy as np

    with gzip.open(ROOT / "tfdp" / "datasets" / "digits.csv.gz", "rt", newline="") as rows:
        table = np.array([[int(value) for value in row] for row in csv.reader(rows)])
    x, y = table[:, :-1].astype("float32") / 16, table[:, -1]
    tests = np.arange(len(x)) % 5 == 0
    return (x[~tests], y[~tests]), (x[tests], y[tests])


if __name__ == "__main__":
    main()
