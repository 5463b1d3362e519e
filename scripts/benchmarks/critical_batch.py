"""At which global batch the steps to a target stop falling, and what tune-batch recommends.

    python scripts/benchmarks/critical_batch.py                          # about 6 minutes, one core
    python scripts/benchmarks/critical_batch.py --tuned=runs/a/tune_batch.json --figure --docs=docs

The digits, the network and the optimizer of configs/digits.py. For each of five batches, three
seeds and a few learning rates above the rule of its optimizer: the steps until the loss on the
test images, averaged over the last few looks, is below a target. Of each batch the rate with the
fewest steps counts (its mean over the seeds), as McCandlish et al. 2018 do
(https://arxiv.org/abs/1812.06162). To the steps S(B) their law is fitted,

    S(B) = S_min (1 + B_turn / B)

B_turn is where a larger batch turns from saving steps in proportion to saving none. With --tuned,
the recommendation of a `tfdp tune-batch` is compared with it: exits 1 if it is further away than by
a factor of 2.

Writes critical_batch.json, a table and, where matplotlib is installed, a figure.
"""

import argparse
import json
import math
import pathlib
import statistics
import sys
import time

BATCHES = (8, 24, 72, 216, 648)
FACTORS = (1.0, 2.0, 4.0, 8.0)
SEEDS = (0, 1, 2)
TARGET = 0.1
BASE_RATE, BASE_BATCH = 2e-3, 64
MOST_EXAMPLES, LOOKS = 80_000, 3
NEAR = 2.0


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=len(SEEDS))
    parser.add_argument("--target", type=float, default=TARGET)
    parser.add_argument("--output", default="critical_batch", help="folder of the numbers")
    parser.add_argument("--figure", action="store_true", help="draw what was measured before")
    parser.add_argument("--tuned", help="tune_batch.json to compare with")
    parser.add_argument("--docs", help="folder of the pages: images/critical-batch.svg goes there")
    options = parser.parse_args()
    folder = pathlib.Path(options.output)
    numbers = folder / "critical_batch.json"
    if not options.figure:
        folder.mkdir(parents=True, exist_ok=True)
        numbers.write_text(json.dumps(_measure(options), indent=1) + "\n")
    measured = json.loads(numbers.read_text())
    best, (least, turn) = _best(measured), _turn(_best(measured))
    table = _table(best, least, turn)
    print(table)
    (folder / "critical_batch.md").write_text(table)
    image = pathlib.Path(options.docs, "images") if options.docs else folder
    tuned = json.loads(pathlib.Path(options.tuned).read_text()) if options.tuned else None
    _draw(best, least, turn, tuned, image / "critical-batch.svg")
    if tuned is not None:
        found = tuned["recommendation"]["global_batch"]
        factor = max(found / turn, turn / found)
        print(f"Recommended {found}; the steps turn at {turn:.0f}: a factor of {factor:.2f}.")
        if factor > NEAR:
            print(f"missed: further away than by a factor of {NEAR:g}")
            sys.exit(1)


def _measure(options: argparse.Namespace) -> dict:
    import keras
    import numpy as np
    import tensorflow as tf

    import tfdp
    from tfdp.datasets import digits
    from tfdp.models import images

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    train, test = (
        tuple(
            np.array([record[name] for _, record in digits._records(test=which)])
            for name in ("image", "label")
        )
        for which in (False, True)
    )
    strategy = tfdp.strategy("one_device")

    def once(batch: int, rate: float, seed: int) -> int | None:
        """Return the steps to the target; None if it is not reached."""
        keras.utils.set_random_seed(seed)
        with strategy.scope():
            model = images.convnet((8, 8, 1), 10, pixel_max=16.0)
            model.compile(keras.optimizers.Adam(rate), "sparse_categorical_crossentropy")
        order = tf.data.Dataset.from_tensor_slices(train).shuffle(len(train[0]), seed=seed)
        dataset = order.repeat().batch(batch, drop_remainder=True)
        # Some twenty looks on the way, so that the steps are known to a few percent.
        between = max(1, round(1.5 * (64 / batch) ** 0.7))
        looks: list[float] = []
        epochs = MOST_EXAMPLES // (batch * between) if batch < 200 else 300

        class Stop(keras.callbacks.Callback):
            def on_epoch_end(self, epoch: int, logs: dict) -> None:
                looks.append(logs["val_loss"])
                if len(looks) >= LOOKS and statistics.mean(looks[-LOOKS:]) < options.target:
                    self.model.stop_training = True

        model.fit(
            dataset,
            epochs=epochs,
            steps_per_epoch=between,
            validation_data=test,
            validation_batch_size=360,
            callbacks=[Stop()],
            verbose=0,
        )
        reached = statistics.mean(looks[-LOOKS:]) < options.target
        return len(looks) * between if reached else None

    runs = []
    for batch in BATCHES:
        for factor in FACTORS:
            rate = factor * tfdp.scale_learning_rate(BASE_RATE, BASE_BATCH, batch, "adam")
            begin = time.perf_counter()
            steps = [once(batch, rate, seed) for seed in SEEDS[: options.seeds]]
            runs.append({"batch": batch, "factor": factor, "rate": rate, "steps": steps})
            seconds = time.perf_counter() - begin
            print(f"batch {batch}, rate {rate:.2g}: {steps} steps in {seconds:.0f} s", flush=True)
    return {"target": options.target, "runs": runs}


def _best(measured: dict) -> list[dict]:
    """Return, for each batch, the rate with the fewest steps of those that reach the target."""
    best: dict[int, dict] = {}
    for run in measured["runs"]:
        if None in run["steps"]:
            continue
        run = {**run, "mean": statistics.mean(run["steps"])}
        if run["batch"] not in best or run["mean"] < best[run["batch"]]["mean"]:
            best[run["batch"]] = run
    return list(best.values())


def _turn(best: list[dict]) -> tuple[float, float]:
    """Fit S = S_min (1 + B_turn / B) in relative errors; return S_min and B_turn."""
    # Weighted by 1 / S^2 it is a linear fit of S_min and S_min * B_turn.
    a = b = c = d = e = 0.0
    for run in best:
        x, y, w = 1 / run["batch"], run["mean"], 1 / run["mean"] ** 2
        a, b, c, d, e = a + w, b + w * x, c + w * x * x, d + w * y, e + w * x * y
    determinant = a * c - b * b
    least, slope = (d * c - b * e) / determinant, (a * e - b * d) / determinant
    return least, slope / least if least > 0 else math.inf


def _table(best: list[dict], least: float, turn: float) -> str:
    lines = [
        "| batch | learning rate | steps, mean | each seed | examples | the law |",
        "|---|---|---|---|---|---|",
    ]
    for run in best:
        each = ", ".join(map(str, run["steps"]))
        batch, mean = run["batch"], run["mean"]
        lines.append(
            f"| {batch} | {run['rate']:.2g} | {mean:,.0f} | {each} | {mean * batch:,.0f} | "
            f"{least * (1 + turn / batch):,.0f} |"
        )
    return "\n".join(lines) + f"\n\nS_min = {least:.1f} steps, B_turn = {turn:.0f} examples\n"


def _draw(
    best: list[dict], least: float, turn: float, tuned: dict | None, path: pathlib.Path
) -> None:
    try:
        import matplotlib
    except ImportError:
        print(f"No matplotlib: {path} is not drawn.")
        return
    matplotlib.use("Agg")
    # The same numbers make the same file.
    matplotlib.rcParams["svg.hashsalt"] = "critical_batch"
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.2), layout="constrained")
    batches = [run["batch"] for run in best]
    means = [run["mean"] for run in best]
    spread = [
        [run["mean"] - min(run["steps"]) for run in best],
        [max(run["steps"]) - run["mean"] for run in best],
    ]
    axes.errorbar(
        batches, means, yerr=spread, fmt="o", color="#0072b2", capsize=4, label="measured, 3 seeds"
    )
    fine = [batches[0] * (batches[-1] / batches[0]) ** (i / 60) for i in range(61)]
    law = [least * (1 + turn / batch) for batch in fine]
    axes.plot(fine, law, color="#0072b2", label=f"{least:.0f} (1 + {turn:.0f} / B)")
    axes.axvline(turn, color="#1a1a1a", linestyle=":", label=f"the turn: {turn:.0f}")
    if tuned is not None:
        found = tuned["recommendation"]
        axes.axvspan(found["low"], found["high"], color="#009e73", alpha=0.15, lw=0)
        axes.axvline(
            found["global_batch"],
            color="#009e73",
            linestyle="--",
            label=f"recommended: {found['global_batch']}",
        )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xticks(batches, [str(batch) for batch in batches], minor=False)
    axes.minorticks_off()
    axes.set_xlabel("global batch")
    axes.set_ylabel("steps to the target")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    # White behind it, so that it can be read on a dark page.
    figure.savefig(path, metadata={"Date": None}, facecolor="white")
    pyplot.close(figure)


if __name__ == "__main__":
    main()
