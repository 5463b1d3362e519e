"""Several workers on one machine against one process with as many threads.

    python scripts/benchmarks/cores.py                    # about 10 minutes
    python scripts/benchmarks/cores.py --rounds=3 --no_train

The model of configs/fashion_mnist.py on arrays of its shape, global batch 128, takes turns in one
process (stock Keras, and tfdp without a cluster) and on one worker for each core of `tfdp launch`.
Each round is a new process; what is shown is the median over the rounds. Then the whole command
`tfdp train --config=configs/fashion_mnist.py` with one epoch, in one process and on the workers:
examples/s and seconds from the command to its last line. Exits 1 if a limit is missed:

    arrays          >= 0.97 x the examples/s of one process
    tfdp train      >= 0.95 x in steps, <= 1.1 x the whole time
"""

import argparse
import os
import pathlib
import re
import statistics
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__)
ROOT = HERE.parent.parent.parent
ROWS, STEPS = 128, 40


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no_train", action="store_true", help="leave out `tfdp train`")
    parser.add_argument("--task", choices=["keras", "tfdp"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.task:
        _task(options.task)
        return
    cores = len(os.sched_getaffinity(0))
    missed = _arrays(cores, options.rounds)
    if not options.no_train:
        missed += _train(cores, options.rounds)
    for line in missed:
        print(f"MISSED: {line}")
    sys.exit(bool(missed))


def _arrays(cores: int, rounds: int) -> list[str]:
    launch = [sys.executable, "-m", "tfdp", "launch", f"--workers={cores}"]
    commands = {
        "stock Keras, one process": [sys.executable, str(HERE), "--task=keras"],
        "tfdp, one process": [sys.executable, str(HERE), "--task=tfdp"],
        f"tfdp, {cores} workers": [*launch, "--", str(HERE), "--task=tfdp"],
        f"tfdp, {cores} workers, --cores=all": [
            *launch,
            "--cores=all",
            "--",
            str(HERE),
            "--task=tfdp",
        ],
    }
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(rounds):
            for name, command in commands.items():
                done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
                found = re.search(r"seconds a step: (\S+)", done.stdout)
                if found is None:
                    sys.exit(done.stdout[-2000:] + done.stderr[-2000:])
                seconds[name].append(float(found[1]))
    print(f"arrays, global batch {ROWS}, {cores} cores; medians of {rounds} rounds")
    for name, values in seconds.items():
        median = statistics.median(values)
        print(f"  {name:34} {median * 1e3:8.1f} ms a step  {ROWS / median:9,.0f} examples/s")
    _, one, many, _ = seconds.values()
    ratio = statistics.median(a / b for a, b in zip(one, many, strict=True))
    print(f"    examples/s of {cores} workers / one process: {ratio:.3f} (>= 0.97)")
    return [f"arrays: {ratio:.3f}, wanted >= 0.97"] if ratio < 0.97 else []


def _train(cores: int, rounds: int) -> list[str]:
    rates: dict[int, list[float]] = {0: [], cores: []}
    seconds: dict[int, list[float]] = {0: [], cores: []}
    for _ in range(rounds):
        for workers in rates:
            with tempfile.TemporaryDirectory() as folder:
                command = [sys.executable, "-m", "tfdp", "train"]
                command += ["--config=configs/fashion_mnist.py", "--config.training.epochs=1"]
                command += [f"--config.run_dir={folder}/run"]
                command += [f"--workers={workers}"] if workers else ["--config.strategy=one_device"]
                begin = time.monotonic()
                done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
                seconds[workers].append(time.monotonic() - begin)
                found = re.findall(r"([\d,.]+) examples/s", done.stdout + done.stderr)
                if done.returncode or not found:
                    sys.exit(done.stdout[-2000:] + done.stderr[-2000:])
                rates[workers].append(float(found[-1].replace(",", "")))
    print("tfdp train --config=configs/fashion_mnist.py, one epoch")
    for workers in rates:
        rate, whole = statistics.median(rates[workers]), statistics.median(seconds[workers])
        who = f"{workers} workers" if workers else "one process"
        print(f"  {who:34} {rate:9,.0f} examples/s  {whole:6.1f} s")
    in_steps = statistics.median(b / a for a, b in zip(rates[0], rates[cores], strict=True))
    whole = statistics.median(b / a for a, b in zip(seconds[0], seconds[cores], strict=True))
    print(f"    in steps {in_steps:.3f} (>= 0.95), whole time {whole:.3f} (<= 1.1)")
    missed = []
    if in_steps < 0.95:
        missed.append(f"tfdp train, in steps: {in_steps:.3f}, wanted >= 0.95")
    if whole > 1.1:
        missed.append(f"tfdp train, whole time: {whole:.3f}, wanted <= 1.1")
    return missed


def _task(kind: str) -> None:
    import contextlib

    import keras
    import numpy as np

    scope: contextlib.AbstractContextManager = contextlib.nullcontext()
    if kind == "tfdp":
        import tfdp

        scope = tfdp.strategy().scope()
    from tfdp.models import images

    random = np.random.default_rng(0)
    x = random.integers(0, 256, (ROWS * STEPS, 28, 28, 1)).astype("uint8")
    y = random.integers(0, 10, ROWS * STEPS)
    with scope:
        model = images.convnet((28, 28, 1), 10, pixel_max=255.0, dropout=0.25)
        loss = "sparse_categorical_crossentropy"
        model.compile("adam", loss, metrics=["accuracy"])

    class Clock(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            self.begin = time.perf_counter()

        def on_epoch_end(self, epoch, logs=None):
            self.seconds = time.perf_counter() - self.begin

    clock = Clock()
    model.fit(x, y, batch_size=ROWS, epochs=3, verbose=0, callbacks=[clock])
    if kind == "keras" or tfdp.is_chief():
        print(f"seconds a step: {clock.seconds / STEPS:.6f}", flush=True)


if __name__ == "__main__":
    main()
