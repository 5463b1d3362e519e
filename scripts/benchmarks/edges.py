"""Time that is lost at the edges: of an epoch, of a validation, of fit.

    python scripts/benchmarks/edges.py                        # about 6 minutes
    python scripts/benchmarks/edges.py --epoch_seconds=60     # long epochs: 15 minutes and more
    python scripts/benchmarks/edges.py --data=off --contestant=tfdp

Stock Keras in one process and tfdp on 2 workers, one core for each process, take turns. A fit is 3
epochs with one validation of 10 batches, after the second. Per fit:

    edge        from the end of an epoch's last step to the end of the next one's first step, less
                a step
    validation  a validation beside its steps
    start, end  of fit, outside of its steps: from the call to the end of the first step, less a
                step; from the end of the last step to the return. The first fit, which traces, is
                not counted

and at last configs/digits.py on 2 workers with `tfdp train`. Shows medians and the worst; exits 1
if a limit is missed.
"""

import argparse
import itertools
import json
import os
import pathlib
import re
import statistics
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__)
ROWS = 32  # of a step for each process
WORKERS = 2
# "off" and "function" are split by tf.distribute, the others by tfdp.
DATA = ("arrays", "dataset", "off", "function")
EDGE_MEDIAN, EDGE_WORST = 0.030, 0.100


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--epoch_seconds", type=float, default=2.0)
    parser.add_argument("--data", choices=DATA, action="append")
    parser.add_argument("--contestant", choices=["keras", "tfdp"], action="append")
    parser.add_argument("--no_train", action="store_true", help="leave out `tfdp train`")
    parser.add_argument("--task", choices=["keras", "tfdp"], help=argparse.SUPPRESS)
    parser.add_argument("--output", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.task:
        _pin()
        _task(options)
        return
    failures: list[str] = []
    for data in options.data or DATA:
        _compare(data, options, failures)
    if not options.no_train:
        _train(options.rounds)
    for failure in failures:
        print(f"MISSED: {failure}")
    sys.exit(bool(failures))


# -- the parent -------------------------------------------------------------------------------


def _compare(data: str, options: argparse.Namespace, failures: list[str]) -> None:
    print(f"\n{data}, epochs of {options.epoch_seconds:g} s: ms at the median (and the worst)")
    print("                      step         edge   validation        start          end")
    worst: dict[str, dict[str, float]] = {}
    median: dict[str, dict[str, float]] = {}
    for task in options.contestant or ["keras", "tfdp"]:
        if task == "keras" and data == "function":
            continue  # stock Keras knows no InputContext
        times = _run(task, data, options)
        median[task] = {name: statistics.median(values) for name, values in times.items()}
        worst[task] = {name: max(values) for name, values in times.items()}
        cells = [
            f"{median[task][name] * 1e3:.0f} ({worst[task][name] * 1e3:.0f})"
            for name in ("step", "edge", "validation", "start", "end")
        ]
        who = {"keras": "Keras, 1 process", "tfdp": f"tfdp, {WORKERS} workers"}[task]
        print(f"  {who:16}" + "".join(f"{cell:>13}" for cell in cells), flush=True)
    if "tfdp" not in median:
        return
    for name in ("edge", "end"):
        limits = ((median, EDGE_MEDIAN, "median"), (worst, EDGE_WORST, "worst"))
        for of, limit, how in limits:
            if of["tfdp"][name] > limit:
                failures.append(f"{data}: {name} {of['tfdp'][name] * 1e3:.0f} ms at the {how}")
        if "keras" in median and median["tfdp"][name] > median["keras"][name] + 0.002:
            failures.append(f"{data}: {name} above that of stock Keras")


def _run(task: str, data: str, options: argparse.Namespace) -> dict[str, list[float]]:
    with tempfile.TemporaryDirectory() as folder:
        output = pathlib.Path(folder) / "times.json"
        own = [
            f"--task={task}", f"--data={data}", f"--rounds={options.rounds}",
            f"--epoch_seconds={options.epoch_seconds}", f"--output={output}",
        ]  # fmt: skip
        command = [sys.executable, str(HERE), *own]
        if task == "tfdp":
            launch = [sys.executable, "-m", "tfdp", "launch", f"--workers={WORKERS}"]
            command = [*launch, f"--log_dir={folder}/logs", "--", str(HERE), *own]
        done = subprocess.run(command, capture_output=True, text=True, timeout=3600)
        if done.returncode:
            sys.exit(done.stdout[-4000:] + done.stderr[-4000:])
        return json.loads(output.read_text())


def _train(rounds: int) -> None:
    """Run configs/digits.py on 2 workers: examples/s, and the time that the command took."""
    rates, seconds, waits = [], [], 0
    for _ in range(min(rounds, 3)):
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "tfdp", "train", "--config=configs/digits.py"]
            command += [f"--workers={WORKERS}", f"--config.run_dir={folder}/run"]
            begin = time.monotonic()
            done = subprocess.run(
                command, capture_output=True, text=True, cwd=HERE.parent.parent.parent
            )
            seconds.append(time.monotonic() - begin)
        text = done.stdout + done.stderr
        if done.returncode:
            sys.exit(text[-4000:])
        rates += [
            float(rate.replace(",", "")) for rate in re.findall(r"([\d,.]+) examples/s", text)
        ]
        waits += len(re.findall(r"waiting for ", text))
    print(f"\ntfdp train --config=configs/digits.py --workers={WORKERS}")
    shown = f"{statistics.median(rates):,.0f} examples/s" if rates else "no rate in the log"
    print(f"  {shown}; {statistics.median(seconds):.1f} s; {waits} lines of waiting")


# -- a task -----------------------------------------------------------------------------------


def _task_index() -> int:
    return int(json.loads(os.environ.get("TF_CONFIG", "{}")).get("task", {}).get("index", 0))


def _pin() -> None:
    """Keep this process on a core of its own."""
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[_task_index() % len(cores)]})


def _task(options: argparse.Namespace) -> None:
    import contextlib

    import keras
    import numpy as np

    scope: contextlib.AbstractContextManager = contextlib.nullcontext()
    workers = 1
    if options.task == "tfdp":
        import tfdp

        strategy = tfdp.strategy("multi_worker")
        scope, workers = strategy.scope(), WORKERS
    with scope:
        layers = [keras.Input((28, 28, 1))]
        layers += [keras.layers.Conv2D(n, 3, activation="relu") for n in (32, 32)]
        layers += [keras.layers.MaxPooling2D(), keras.layers.Flatten()]
        layers += [keras.layers.Dense(100, "relu"), keras.layers.Dense(10)]
        model = keras.Sequential(layers)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.SGD(0.01), loss, metrics=["accuracy"])
    rows = ROWS * workers
    random = np.random.default_rng(0)

    def arrays(steps: int):
        x = random.normal(size=(rows * steps, 28, 28, 1)).astype("float32")
        return x, random.integers(0, 10, rows * steps)

    clock = _clock(keras)
    x, y = arrays(8)
    model.fit(x, y, batch_size=rows, verbose=0, callbacks=[clock])
    model.fit(x, y, batch_size=rows, verbose=0, callbacks=[clock])
    steps = max(10, round(options.epoch_seconds / statistics.median(clock.steps())))
    if options.task == "tfdp":
        steps = max(2, round(_same(strategy, float(steps))))
    training = _data(options.data[0], *arrays(steps), rows)
    validation = _data(options.data[0], *arrays(10), rows)
    if options.data[0] == "off":
        training |= {"steps_per_epoch": steps}
        validation |= {"validation_steps": 10}
    times: dict[str, list[float]] = {n: [] for n in ("step", "edge", "validation", "start", "end")}
    for number in range(options.rounds + 1):
        clock = _clock(keras)
        begin = time.perf_counter()
        model.fit(
            **training, **validation, epochs=3, validation_freq=[2], verbose=0, callbacks=[clock],
        )  # fmt: skip
        end = time.perf_counter()
        if number:
            for name, values in clock.parts(begin, end).items():
                times[name] += values
    if _task_index() == 0:
        pathlib.Path(options.output).write_text(json.dumps(times))


def _same(strategy, value: float) -> float:
    """Return the mean of all workers' values."""
    import tensorflow as tf

    @tf.function
    def mean():
        context = lambda: tf.distribute.get_replica_context()  # noqa: E731
        return strategy.run(lambda: context().all_reduce("MEAN", tf.constant(value)))

    return float(strategy.experimental_local_results(mean())[0])


def _data(kind: str, x, y, rows: int) -> dict:
    import tensorflow as tf

    name = "validation_data" if len(x) == rows * 10 and kind != "arrays" else "x"
    if kind == "arrays":
        if len(x) == rows * 10:
            return {"validation_data": (x, y), "validation_batch_size": rows}
        return {"x": x, "y": y, "batch_size": rows}
    if kind == "function":

        def function(context):
            own = context.get_per_replica_batch_size(rows)
            whole = tf.data.Dataset.from_tensor_slices((x, y))
            mine = whole.shard(context.num_input_pipelines, context.input_pipeline_id)
            return mine.shuffle(len(x)).batch(own).prefetch(2)

        return {name: function}
    data = tf.data.Dataset.from_tensor_slices((x, y)).shuffle(len(x)).batch(rows)
    if kind == "off":
        options = tf.data.Options()
        off = tf.data.experimental.AutoShardPolicy.OFF
        options.experimental_distribute.auto_shard_policy = off
        return {name: data.repeat().prefetch(2).with_options(options)}
    return {name: data.prefetch(2)}


def _clock(keras):
    class Clock(keras.callbacks.Callback):
        """Notes when steps and validations end."""

        def __init__(self):
            super().__init__()
            self.train: list[list[float]] = []  # ends of the steps of each epoch
            self.test: list[float] = []  # ends of the steps of the validation

        def on_epoch_begin(self, epoch, logs=None):
            self.train.append([])

        def on_train_batch_end(self, batch, logs=None):
            self.train[-1].append(time.perf_counter())

        def on_test_batch_end(self, batch, logs=None):
            self.test.append(time.perf_counter())

        def steps(self) -> list[float]:
            return [b - a for ends in self.train for a, b in itertools.pairwise(ends)]

        def parts(self, begin: float, end: float) -> dict[str, list[float]]:
            """Return what a fit of 3 epochs took besides its steps, in seconds."""
            step = statistics.median(self.steps())
            ends = self.test
            test = statistics.median(b - a for a, b in itertools.pairwise(ends))
            first, second, third = self.train
            whole = third[0] - second[-1] - step
            validation = whole - (len(ends) * test)
            return {
                "step": [step],
                "edge": [max(0.0, second[0] - first[-1] - step)],
                "validation": [max(0.0, validation)],
                "start": [max(0.0, first[0] - begin - step)],
                "end": [max(0.0, end - third[-1])],
            }

    return Clock()


if __name__ == "__main__":
    main()
