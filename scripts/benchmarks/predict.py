"""How fast `tfdp predict` is, and how much memory it needs.

    python scripts/benchmarks/predict.py                    # speed: about 5 minutes on 2 cores
    python scripts/benchmarks/predict.py --memory           # about half a minute

Speed: a small convolutional network on 32 x 32 images, in rows a second after start-up. A round
runs every contestant once, one after the other, and what is shown is the median over the rounds,
with the ratio taken round by round:

- 1 and 2 workers of one thread each, the first on one core alone;
- a bare loop on one core, in a process with one thread, that calls the signature on batches that
  are in memory;
- keras.Model.predict in one process with two threads.

Memory: the largest resident set among the supervisor and its worker, for 100,000 and 1,000,000
small rows of TFRecord. Exits 1 if a limit is missed.
"""

import argparse
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
BATCH = 64
LIMITS = {
    "2 workers / 1 worker": 1.8,
    "1 worker / bare loop": 0.95,
    "2 workers / Keras's predict": 1.1,
}
MEMORY_MB = 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=64_000)
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--task", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    options = parser.parse_args()
    os.environ.update(CUDA_VISIBLE_DEVICES="-1", TF_CPP_MIN_LOG_LEVEL="2")
    if options.task:
        TASKS[options.task](pathlib.Path(options.folder), options.rows)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        sys.exit(_memory(folder) if options.memory else _speed(folder, options))


def _speed(folder: pathlib.Path, options: argparse.Namespace) -> int:
    _task("make", folder, options.rows)
    contestants = {
        "1 worker": lambda number: _predict(folder, f"one-{number}", 1, ["taskset", "-c", "0"]),
        "2 workers": lambda number: _predict(folder, f"two-{number}", 2, []),
        # Of half the rows: neither has a start or an end to share out.
        "bare loop": lambda _: _task("loop", folder, options.rows // 2, ["taskset", "-c", "0"]),
        "Keras's predict": lambda _: _task("keras", folder, options.rows // 2),
    }
    rates: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(options.rounds):
        for name, run in contestants.items():
            rates[name].append(run(number))
    print(f"{options.rows} rows, batches of {BATCH}; medians of {options.rounds} rounds.")
    for name, values in rates.items():
        print(f"  {name:18} {statistics.median(values):9,.0f} rows/s")
    missed = 0
    for name, limit in LIMITS.items():
        one, other = name.split(" / ")
        ratios = [a / b for a, b in zip(rates[one], rates[other], strict=True)]
        ratio = statistics.median(ratios)
        missed += ratio < limit
        spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
        print(f"  {name}: {ratio:.3f} ({spread}; >= {limit}{', MISSED' * (ratio < limit)})")
    return int(missed > 0)


def _predict(folder: pathlib.Path, output: str, workers: int, before: list[str]) -> float:
    command = [*before, sys.executable, "-m", "tfdp", "predict", "--model=model", "--input=x.npy"]
    command += [f"--output={output}", "--format=npy", f"--workers={workers}", "--threads=1"]
    command += [f"--batch_size={BATCH}"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    return float(re.search(r"([\d,]+) rows/s", done.stdout)[1].replace(",", ""))


def _task(name: str, folder: pathlib.Path, rows: int, before: list[str] | None = None) -> float:
    command = [*(before or []), sys.executable, str(HERE), f"--task={name}", f"--folder={folder}"]
    command.append(f"--rows={rows}")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr[-3000:])
    return json.loads(done.stdout.splitlines()[-1])


def _make(folder: pathlib.Path, rows: int) -> None:
    import keras
    import numpy as np

    from tfdp.serving import export

    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((32, 32, 3), name="image", dtype="uint8"),
            layers.Rescaling(1 / 255),
            layers.Conv2D(32, 3, padding="same", activation="relu"),
            layers.MaxPooling2D(),
            layers.Conv2D(64, 3, padding="same", activation="relu"),
            layers.Conv2D(64, 3, padding="same", activation="relu"),
            layers.GlobalAveragePooling2D(),
            layers.Dense(10, activation="softmax", name="probabilities"),
        ]
    )
    export.export(model, folder / "model")
    model.save(folder / "model.keras")
    images = np.random.default_rng(0).integers(0, 256, (rows, 32, 32, 3), "uint8")
    np.save(folder / "x.npy", images)
    print(0)


def _loop(folder: pathlib.Path, rows: int) -> None:
    import numpy as np
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    loaded = tf.saved_model.load(str(folder / "model" / "1"))
    signature = loaded.signatures["serving_default"]
    images = np.load(folder / "x.npy", mmap_mode="r")[:rows]
    batches = [tf.constant(images[first : first + BATCH]) for first in range(0, rows, BATCH)]
    signature(image=batches[0])
    begin = time.perf_counter()
    outputs = [signature(image=batch)["probabilities"].numpy() for batch in batches]
    seconds = time.perf_counter() - begin
    print(sum(map(len, outputs)) / seconds)


def _keras(folder: pathlib.Path, rows: int) -> None:
    import keras
    import numpy as np
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(2)
    tf.config.threading.set_inter_op_parallelism_threads(2)
    model = keras.models.load_model(folder / "model.keras")
    images = np.load(folder / "x.npy")[:rows]
    model.predict(images[: 2 * BATCH], batch_size=BATCH, verbose=0)
    begin = time.perf_counter()
    model.predict(images, batch_size=BATCH, verbose=0)
    print(rows / (time.perf_counter() - begin))


# -- memory ---------------------------------------------------------------------------------------


def _memory(folder: pathlib.Path) -> int:
    _task("make_small", folder, 1_000_000)
    peaks = {}
    for rows in (100_000, 1_000_000):
        command = [sys.executable, "-m", "tfdp", "predict", "--model=small"]
        command += [f"--input=rows-{rows}.tfrecord", f"--output=out-{rows}", "--workers=1"]
        command += ["--batch_size=256"]
        begin = time.perf_counter()
        process = subprocess.Popen(command, cwd=folder)
        # Of the process and of those that it has waited for: the largest.
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            return process.returncode
        peaks[rows] = usage.ru_maxrss / 1024
        seconds = time.perf_counter() - begin
        print(f"{rows:9,} rows: {peaks[rows]:,.0f} MB at most, {seconds:.0f} s in all")
    more = peaks[1_000_000] - peaks[100_000]
    print(f"{more:+.0f} MB for ten times the rows (<= {MEMORY_MB})")
    return int(more > MEMORY_MB)


def _make_small(folder: pathlib.Path, rows: int) -> None:
    import keras
    import numpy as np
    import tensorflow as tf

    from tfdp.data import tfrecord
    from tfdp.serving import export

    layers = keras.layers
    model = keras.Sequential([keras.Input((8,), name="x"), layers.Dense(4, name="y")])
    export.export(model, folder / "small")
    values = np.random.default_rng(0).normal(size=(rows, 8)).astype("<f4")
    example = tf.train.Example()
    example.features.feature["x"].float_list.value.extend([1.0] * 8)
    before, after = example.SerializeToString().split(np.ones(8, "<f4").tobytes())
    for count in (rows // 10, rows):
        with open(folder / f"rows-{count}.tfrecord", "wb") as file:
            for row in values[:count]:
                file.write(tfrecord.frame(before + row.tobytes() + after))
    print(0)


TASKS = {"make": _make, "loop": _loop, "keras": _keras, "make_small": _make_small}

if __name__ == "__main__":
    main()
