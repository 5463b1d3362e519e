"""What saving costs a training, and how soon a killed one is back.

    python scripts/benchmarks/checkpoint.py                 # about 20 minutes, 4 GB of disk
    python scripts/benchmarks/checkpoint.py --what=save --megabytes=32

- save: a model of 32 MB and of 1 GB of weights and momentum, one core. How long a save stops
  training, beside a copy of as many bytes in memory; steps with a checkpoint every 50 steps and
  without, in turns; how fast the file is written, beside dd; the most memory of either process.
- resume: ten million records of ArrayRecord, killed in the middle of the first epoch: from the
  start of the command to the first step, beside a start that has nothing to go on from.

Exits 1 if a limit is missed.
"""

import argparse
import itertools
import json
import os
import pathlib
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__)
EVERY = 50
# In the middle of an epoch of 9,766 steps.
SAVED_AT = 4800
FAILURES: list[str] = []
# A dense layer of n x n; as much again for its momentum.
WIDTHS = {32: 2048, 1024: 11585}
STEPS = {32: 400, 1024: 260}


def check(what: str, value: float, limit: float) -> None:
    ok = value <= limit
    print(f"    {what}: {value:.3f} (<= {limit}{'' if ok else ', MISSED'})", flush=True)
    if not ok:
        FAILURES.append(f"{what}: {value:.3f}, wanted <= {limit}")


def run(task: str, *words: str) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        output = pathlib.Path(folder) / "output.json"
        command = [sys.executable, "-m", "tfdp", "launch", "--workers=1", f"--log_dir={folder}/l"]
        command += ["--", str(HERE), f"--task={task}", f"--output={output}", *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=1200)
        if done.returncode:
            sys.exit(done.stdout[-3000:] + done.stderr[-3000:])
        return json.loads(output.read_text())


# -- save ---------------------------------------------------------------------------------------


def save(megabytes: int, rounds: int, folder: str) -> None:
    words = [f"--megabytes={megabytes}", f"--rounds={rounds}", f"--folder={folder}"]
    found = run("save", *words)
    size = found["bytes"] / 1e6
    print(f"\nState of {size:,.0f} MB; a checkpoint every {EVERY} steps, {rounds} rounds")
    median = statistics.median
    copies, stops = found["copy"], found["stop"]
    print(f"  a copy in memory       {median(copies) * 1e3:9.1f} ms")
    print(f"  what a save copies     {median(found['copied']) * 1e3:9.1f} ms")
    print(f"  a save stops training  {median(stops) * 1e3:9.1f} ms")
    check("what a save copies / a copy in memory", median(found["copied"]) / median(copies), 1.2)
    steps = {name: found[name] for name in ("without", "with")}
    for name, times in steps.items():
        times = sorted(itertools.chain(*times))
        at = [times[int(len(times) * part)] * 1e3 for part in (0.5, 0.99)]
        print(f"  steps {name:8} p50 {at[0]:8.2f} ms   p99 {at[1]:8.2f} ms")
    # By rounds: the machine is a fifth faster in some minutes than in others.
    pairs = [median(b) / median(a) for a, b in zip(*steps.values(), strict=True)]
    print(f"    with / without by round: {', '.join(f'{pair:.3f}' for pair in pairs)}")
    check("step p50, with / without, median of the rounds", median(pairs), 1.03)
    rate = found["bytes"] / median(found["write"]) / 1e6
    print(f"  written at {rate:,.0f} MB/s; dd: {dd(folder, found['bytes']):,.0f} MB/s")
    peaks = {kept: run("peak", *words, f"--kept={kept}")["peak"] for kept in (0, 1)}
    more = (peaks[1] - peaks[0]) / found["bytes"]
    print(f"  memory at most {peaks[0] / 1e6:,.0f} MB without, {peaks[1] / 1e6:,.0f} MB with")
    if megabytes > 100:  # two processes differ by about 50 MB anyway
        check("more memory, copies of the state", more, 1.1)


def dd(folder: str, size: int) -> float:
    """Return how fast dd writes as much, MB/s."""
    path = os.path.join(folder, "dd")
    count = max(1, size >> 22)
    begin = time.perf_counter()
    subprocess.run(
        ["dd", "if=/dev/zero", f"of={path}", "bs=4M", f"count={count}", "conv=fsync"],
        check=True,
        capture_output=True,
    )
    seconds = time.perf_counter() - begin
    os.unlink(path)
    return count * (4 << 20) / seconds / 1e6


def build(megabytes: int):
    import keras
    import numpy as np
    import tensorflow as tf

    import tfdp

    tfdp.enable()
    width = WIDTHS[megabytes]
    with tfdp.strategy("one_device").scope():
        model = keras.Sequential([keras.Input((width,)), keras.layers.Dense(width, use_bias=False)])
        model.compile(keras.optimizers.SGD(0.01, momentum=0.9), "mse")
    x = np.ones((8, width), "float32")
    data = tf.data.Dataset.from_tensors((x, x)).cache().repeat()
    return model, data


def fit(model, data, steps: int, folder: str, saves: bool, epochs: int = 1) -> list[float]:
    """Return the seconds of each step but the first ones."""
    import keras

    import tfdp

    class Clock(keras.callbacks.Callback):
        def __init__(self):
            super().__init__()
            self.at: list[float] = []

        def on_train_batch_begin(self, batch, logs=None):
            self.at.append(time.perf_counter())

    clock = Clock()
    callbacks: list[keras.callbacks.Callback] = [clock]
    if saves:
        callbacks.append(tfdp.callbacks.BackupAndRestore(folder, save_freq=EVERY))
    model.fit(data, epochs=epochs, steps_per_epoch=steps, verbose=0, callbacks=callbacks)
    return [b - a for a, b in zip(clock.at[5:-1], clock.at[6:], strict=True)]


def save_task(options: argparse.Namespace) -> dict:
    import numpy as np

    from tfdp.checkpoints import store
    from tfdp.fit.recovery import backup

    model, data = build(options.megabytes)
    steps = STEPS[options.megabytes]
    folder = os.path.join(options.folder, "backup")
    stops: list[float] = []
    copied: list[float] = []
    writes: list[float] = []
    own_save, own_write = backup.Backup._save, store.Store.save
    own_copy = backup.Copies.__call__

    def stopped(self, steps, waits=False):
        copied.append(0.0)
        begin = time.perf_counter()
        own_save(self, steps, waits)
        stops.append(time.perf_counter() - begin)

    def one_copy(self, name, value):
        begin = time.perf_counter()
        result = own_copy(self, name, value)
        copied[-1] += time.perf_counter() - begin
        return result

    def written(self, *arguments):
        begin = time.perf_counter()
        path = own_write(self, *arguments)
        writes.append(time.perf_counter() - begin)
        return path

    fit(model, data, 8, folder, saves=False)
    backup.Backup._save, store.Store.save = stopped, written
    backup.Copies.__call__ = one_copy
    found: dict[str, list[list[float]]] = {"without": [], "with": []}
    for _ in range(options.rounds):
        found["without"].append(fit(model, data, steps, folder, saves=False))
        found["with"].append(fit(model, data, steps, folder, saves=True))
    state = [np.asarray(v) for v in [*model.variables, *model.optimizer.variables]]
    copies = [np.empty_like(array) for array in state]
    seconds = []
    for _ in range(6):
        begin = time.perf_counter()
        for copy, array in zip(copies, state, strict=True):
            np.copyto(copy, array)
        seconds.append(time.perf_counter() - begin)
    size = sum(array.nbytes for array in state)
    return {
        **found,
        "stop": stops,
        "copied": [one for one in copied if one],  # 0: left out, the last was still being written
        "write": writes,
        "copy": seconds[1:],
        "bytes": size,
    }


def peak_task(options: argparse.Namespace) -> dict:
    model, data = build(options.megabytes)
    folder = os.path.join(options.folder, "backup")
    fit(model, data, 2 * EVERY + 20, folder, saves=bool(options.kept))
    status = pathlib.Path("/proc/self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return {"peak": int(line.split()[1]) * 1024}


# -- resume -------------------------------------------------------------------------------------


def resume(folder: str) -> None:
    import input as records  # the ten million records of the other benchmark

    pattern = records.tiny(pathlib.Path(folder))
    print(f"\n{records.TINY:,} records of ArrayRecord, one worker")
    seconds: dict[str, list[float]] = {"start": [], "resume": []}
    for number in range(3):
        target = os.path.join(folder, f"backup-{number}")
        for kind in seconds:
            begin = time.time()
            words = [f"--pattern={pattern}", f"--folder={target}"]
            command = [sys.executable, "-m", "tfdp", "launch", "--workers=1"]
            command += [f"--log_dir={target}-{kind}", "--", str(HERE), "--task=resume", *words]
            done = subprocess.run(command, capture_output=True, text=True, timeout=600)
            # Killed by its own hand behind the first checkpoint.
            if done.returncode != 128 + signal.SIGKILL:
                sys.exit(done.stdout[-3000:] + done.stderr[-3000:])
            line = next(line for line in done.stdout.splitlines() if line.startswith("begins"))
            _, step, at = line.split()
            if int(step) != (0 if kind == "start" else SAVED_AT):
                sys.exit(f"It began at step {step}: {done.stderr[-2000:]}")
            seconds[kind].append(float(at) - begin)
    start, again = (statistics.median(seconds[kind]) for kind in seconds)
    print(f"  to the first step: a plain start {start:.1f} s, one that goes on {again:.1f} s")
    check("seconds more", again - start, 5.0)


def resume_task(options: argparse.Namespace) -> None:
    import input as records
    import keras

    import tfdp
    from tfdp.config import Data
    from tfdp.data import inputs, source

    source.open_source = lambda data: records.open_tiny(options.pattern)
    opened = inputs.open_inputs(
        Data(source="array_record", global_batch_size=1024), seed=0, epochs=4, pipelines=1
    )
    with tfdp.strategy().scope():
        number = keras.Input((), dtype="int64")
        x = keras.ops.cast(number, "float32")[:, None] / records.TINY
        model = keras.Model(number, keras.layers.Dense(1)(x))
        model.compile(keras.optimizers.SGD(0.0), "mse")

    class Die(keras.callbacks.Callback):
        began = False

        def on_train_batch_begin(self, batch, logs=None):
            if not self.began:
                print(f"begins {batch} {time.time()}", flush=True)
                self.began = True
                if batch:
                    os.kill(os.getpid(), signal.SIGKILL)
            if batch == SAVED_AT + 20:
                while not list(pathlib.Path(options.folder).glob("step-*")):
                    time.sleep(0.01)
                os.kill(os.getpid(), signal.SIGKILL)

    saves = tfdp.callbacks.BackupAndRestore(options.folder, save_freq=SAVED_AT)
    model.fit(
        opened.training, steps_per_epoch=opened.steps, epochs=4, verbose=0, callbacks=[saves, Die()]
    )


TASKS = {"save": save_task, "peak": peak_task, "resume": resume_task}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--what", choices=["save", "resume"], action="append")
    parser.add_argument("--megabytes", type=int, choices=list(WIDTHS), action="append")
    parser.add_argument("--rounds", type=int, default=5)
    for hidden in ("--task", "--output", "--folder", "--pattern", "--kept"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.task:
        options.megabytes = (options.megabytes or [0])[0]
        options.kept = int(options.kept or 0)
        result = TASKS[options.task](options)
        pathlib.Path(options.output).write_text(json.dumps(result))
        return
    folder = tempfile.mkdtemp(prefix="tfdp-checkpoint-")
    try:
        for what in options.what or ["save", "resume"]:
            if what == "save":
                for megabytes in options.megabytes or WIDTHS:
                    save(megabytes, options.rounds, folder)
            else:
                resume(folder)
    finally:
        shutil.rmtree(folder)
    for failure in FAILURES:
        print(f"MISSED: {failure}")
    sys.exit(bool(FAILURES))


if __name__ == "__main__":
    main()
