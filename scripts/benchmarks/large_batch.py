"""What a batch 16 times as large costs in accuracy, with the learning rate's rule and without it.

    python scripts/benchmarks/large_batch.py                         # about 10 minutes on one core
    python scripts/benchmarks/large_batch.py --figure --docs=docs    # from the last run's numbers

Fashion-MNIST, a small convolutional network with batch normalisation, SGD with momentum, a cosine
to 0, the same number of epochs everywhere. Three seeds of each:

    64                  the learning rate that was found for batches of 64
    1,024, unscaled     the same learning rate
    1,024, scaled       by the linear rule (tfdp.scale_learning_rate), after a warm-up of two epochs
                        (tfdp.schedules.Warmup)

Writes large_batch.json, a table and, where matplotlib is installed, a figure of the accuracy after
each epoch. Exits 1 if the scaled runs are more than 0.5 points from batch 64, or the unscaled ones
less than 1 point worse.
"""

import argparse
import json
import pathlib
import statistics
import sys
import time

BASE, LARGE = 64, 1024
RUNS = {
    "64": (BASE, False),
    "1,024, unscaled": (LARGE, False),
    "1,024, scaled": (LARGE, True),
}
SEEDS = (0, 1, 2)
EPOCHS, WARMUP_EPOCHS, RATE = 12, 2, 0.01
NEAR, FAR = 0.5, 1.0  # points of accuracy


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--rate", type=float, default=RATE)
    parser.add_argument("--seeds", type=int, default=len(SEEDS))
    parser.add_argument("--output", default="large_batch", help="folder of the numbers")
    parser.add_argument("--figure", action="store_true", help="draw what was measured before")
    parser.add_argument("--docs", help="folder of the pages: images/large-batch.svg goes there")
    options = parser.parse_args()
    folder = pathlib.Path(options.output)
    numbers = folder / "large_batch.json"
    if not options.figure:
        folder.mkdir(parents=True, exist_ok=True)
        numbers.write_text(json.dumps(_measure(options), indent=1) + "\n")
    measured = json.loads(numbers.read_text())
    table, failures = _table(measured)
    print(table)
    (folder / "large_batch.md").write_text(table)
    image = pathlib.Path(options.docs, "images") if options.docs else folder
    _draw(measured, image / "large-batch.svg")
    for failure in failures:
        print(failure)
    sys.exit(bool(failures))


def _measure(options: argparse.Namespace) -> dict:
    import keras
    import tensorflow as tf

    import tfdp
    from tfdp.datasets import fashion_mnist

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    found = fashion_mnist.folder()
    x, y, test_x, test_y = (
        fashion_mnist._read(found / f"{part}-{kind}-ubyte.gz", axes)
        for part in ("train", "t10k")
        for kind, axes in (("images-idx3", 3), ("labels-idx1", 1))
    )
    strategy = tfdp.strategy("one_device")

    def once(batch: int, scaled: bool, seed: int) -> list[float]:
        keras.utils.set_random_seed(seed)
        steps = -(-len(x) // batch)
        rate = options.rate
        if scaled:
            rate = tfdp.scale_learning_rate(rate, BASE, batch, "sgd")
        schedule = keras.optimizers.schedules.CosineDecay(rate, options.epochs * steps)
        if scaled:
            schedule = tfdp.schedules.Warmup(schedule, WARMUP_EPOCHS * steps, options.rate)
        with strategy.scope():
            model = keras.Sequential(
                [
                    keras.Input((28, 28), dtype="uint8"),
                    keras.layers.Rescaling(1 / 128, -0.57),
                    keras.layers.Reshape((28, 28, 1)),
                    keras.layers.Conv2D(16, 5, strides=2),
                    keras.layers.BatchNormalization(momentum=0.9),
                    keras.layers.Activation("relu"),
                    keras.layers.Conv2D(32, 3, strides=2),
                    keras.layers.BatchNormalization(momentum=0.9),
                    keras.layers.Activation("relu"),
                    keras.layers.Flatten(),
                    keras.layers.Dense(64),
                    keras.layers.BatchNormalization(momentum=0.9),
                    keras.layers.Activation("relu"),
                    keras.layers.Dense(10, activation="softmax"),
                ]
            )
            optimizer = tfdp.optimizers.SGD(schedule, momentum=0.9)
            model.compile(optimizer, "sparse_categorical_crossentropy", metrics=["accuracy"])
        history = model.fit(
            x,
            y,
            batch_size=batch,
            epochs=options.epochs,
            validation_data=(test_x, test_y),
            validation_batch_size=1000,
            verbose=0,
        )
        return history.history["val_accuracy"]

    curves: dict[str, list[list[float]]] = {name: [] for name in RUNS}
    for seed in SEEDS[: options.seeds]:
        for name, (batch, scaled) in RUNS.items():
            begin = time.perf_counter()
            curves[name].append(once(batch, scaled, seed))
            seconds = time.perf_counter() - begin
            print(f"{name}, seed {seed}: {curves[name][-1][-1]:.4f} in {seconds:.0f} s", flush=True)
    return {"epochs": options.epochs, "rate": options.rate, "test_accuracy": curves}


def _table(measured: dict) -> tuple[str, list[str]]:
    ends = {
        name: [100 * run[-1] for run in runs] for name, runs in measured["test_accuracy"].items()
    }
    means = {name: statistics.mean(values) for name, values in ends.items()}
    rates = {name: measured["rate"] for name in RUNS}
    rates["1,024, scaled"] *= LARGE / BASE
    lines = [
        "| batch | learning rate | test accuracy, mean | each seed |",
        "|---|---|---|---|",
    ]
    for name, values in ends.items():
        each = ", ".join(f"{value:.2f}%" for value in values)
        lines.append(f"| {name} | {rates[name]:g} | {means[name]:.2f}% | {each} |")
    failures = []
    if means["64"] - means["1,024, scaled"] > NEAR:
        failures.append(f"missed: scaled is more than {NEAR} points below batch 64")
    if means["64"] - means["1,024, unscaled"] < FAR:
        failures.append(f"missed: unscaled is less than {FAR} point below batch 64")
    return "\n".join(lines) + "\n", failures


def _draw(measured: dict, path: pathlib.Path) -> None:
    try:
        import matplotlib
    except ImportError:
        print(f"No matplotlib: {path} is not drawn.")
        return
    matplotlib.use("Agg")
    # The same numbers make the same file.
    matplotlib.rcParams["svg.hashsalt"] = "large_batch"
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.2), layout="constrained")
    # Told apart by their lines as well, for a page in black and white.
    styles = {
        "64": ("#0072b2", "-"),
        "1,024, unscaled": ("#d55e00", ":"),
        "1,024, scaled": ("#009e73", "--"),
    }
    for name, runs in measured["test_accuracy"].items():
        epochs = range(1, len(runs[0]) + 1)
        columns = [[100 * value for value in values] for values in zip(*runs, strict=True)]
        color, line = styles[name]
        axes.fill_between(
            epochs, list(map(min, columns)), list(map(max, columns)), color=color, alpha=0.15, lw=0
        )
        means = list(map(statistics.mean, columns))
        axes.plot(epochs, means, line, color=color, lw=2.2, label=f"batch {name}")
    axes.set_xlabel("epochs")
    axes.set_ylabel("test accuracy, %")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, loc="lower right")
    path.parent.mkdir(parents=True, exist_ok=True)
    # White behind it, so that it can be read on a dark page.
    figure.savefig(path, metadata={"Date": None}, facecolor="white")
    pyplot.close(figure)


if __name__ == "__main__":
    main()
