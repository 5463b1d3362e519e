"""Whether the batch that tune-batch calls the largest runs, and 1.25 times as large a one does not.

    python scripts/benchmarks/largest_batch.py                       # RLIMIT_DATA of 2 GB
    python scripts/benchmarks/largest_batch.py --gigabytes=0         # limits as they are (a cgroup)
    python scripts/benchmarks/largest_batch.py --gigabytes=3 --workers=2

A wide network on made rows: half a megabyte for each. tfdp.tune_batch finds the batch; then a
process of its own trains 50 steps with it, and another one with 1.25 times the rows. Exits 1 if the
first fails or the second does not, or if there were more than six trials.
"""

import argparse
import resource
import sys

STEPS, FACTOR = 50, 1.25


def build():
    """Return a model that takes half a megabyte for each row, and little time."""
    import keras

    wide = [keras.layers.Dense(1 << 13, "tanh")]
    wide += [keras.layers.Activation("tanh") for _ in range(15)]
    model = keras.Sequential([keras.Input((4,)), *wide, keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    return model


def data(batch):
    import tensorflow as tf

    rows = tf.random.stateless_uniform((4096, 4), (0, 0))
    return tf.data.Dataset.from_tensor_slices((rows, rows[:, :1])).repeat().batch(batch)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gigabytes", type=float, default=2.0, help="RLIMIT_DATA; 0: none")
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--output", default="largest_batch", help="folder of the logs")
    options = parser.parse_args()
    if options.gigabytes:
        limit = int(options.gigabytes * 1e9)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))

    import tfdp
    from tfdp.launch import notebook
    from tfdp.tuning import settings, trials

    tuned = tfdp.tune_batch(
        build,
        data,
        batch=32 * max(1, options.workers),
        workers=options.workers,
        noise_seconds=0,
        folder=options.output,
    )
    call = notebook.pickled("largest_batch", "build, data", build, data, 1)
    path = f"{options.output}/call"
    with open(path, "wb") as file:
        file.write(call)
    codes = []
    for factor in (1.0, FACTOR):
        rows = int(tuned.largest_per_replica * factor) * tuned.replicas
        folder = f"{options.output}/times-{factor:g}"
        trial = settings.Trial(settings.ROOM, folder, rows, max(1, options.workers), steps=STEPS)
        script = ("-m", "tfdp.tuning.call", path)
        codes.append(trials.launch(script, options.workers, trial))
        print(f"{factor:g} x {tuned.largest_per_replica:,} rows: exit code {codes[-1]}", flush=True)
    is_good = codes[0] == 0 and codes[1] != 0 and len(tuned.attempts) <= 6
    print("as it should be" if is_good else "missed")
    sys.exit(not is_good)


if __name__ == "__main__":
    main()
