"""Speed on more hosts and another link, predicted from two hosts and two links, then measured.

    sudo python scripts/benchmarks/prediction.py            # makes network namespaces: 10 minutes
    sudo python scripts/benchmarks/prediction.py --folder=runs/prediction      # keeps all records

Hosts are network namespaces of this machine, with links limited by tc tbf. A step computes by
waiting, for a time that grows with its rows: 4 workers then have the same time as one, on any
number of cores. Fitted to 1 host, and to 2 hosts with links of 50 and 200 Mbit/s; predicted are 3
and 4 hosts, and a third link, of 100 Mbit/s. Exits with 1 when the median error exceeds 10%, a
measurement lies outside of its band, or a band is wider than +-25%.
"""

import argparse
import contextlib
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve()
ROOT = HERE.parents[2]
FITTED = [(1, 200), (2, 50), (2, 200)]
PREDICTED = [(2, 100), (3, 50), (3, 100), (3, 200), (4, 50), (4, 100), (4, 200)]
ROWS = 16
MOST_ERROR, MOST_BAND = 0.10, 0.25


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", help="keep the records here; those that are there are used")
    parser.add_argument("--task", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.task:
        _task(options.task)
        return
    with contextlib.ExitStack() as stack:
        made = options.folder or stack.enter_context(tempfile.TemporaryDirectory())
        folder = pathlib.Path(made).resolve()
        sources = [_measured(folder, *one) for one in FITTED]
        sys.exit(_compare(folder, sources))


def _compare(folder: pathlib.Path, sources: list) -> int:
    from tfdp.bench import fitted, predict

    model = fitted.fit(sources)
    print(
        f"fitted: computing {model.fixed_seconds * 1e3:.1f} ms + {model.row_seconds * 1e3:.2f} ms "
        f"a row, {model.gradient_bytes / 1e6:.2f} MB of gradients, latency "
        f"{model.latency_seconds * 1e6:.0f} us a hop, {model.link_efficiency:.0%} of a link, "
        f"overlap {model.overlap:.1f}\n\n"
        "hosts  Mbit/s  predicted   (band)              measured   error   examples/s"
    )
    errors, missed = [], []
    for hosts, rate in PREDICTED:
        found = predict.predict(sources, predict.Wish(hosts=hosts, link=rate * 1e6 / 8))
        record = _measured(folder, hosts, rate).record
        measured = record.examples_per_second
        error = found.examples_per_second / measured - 1
        errors.append(abs(error))
        inside = found.low_examples_per_second <= measured <= found.high_examples_per_second
        print(
            f"{hosts:5}  {rate:6}  {found.examples_per_second:9.1f}   "
            f"({found.low_examples_per_second:.1f} to {found.high_examples_per_second:.1f}, "
            f"+-{found.band:.0%})   {measured:9.1f}   {error:+.1%}"
            f"{'' if inside else '   OUTSIDE'}",
            flush=True,
        )
        if not inside:
            missed.append(f"{hosts} hosts at {rate} Mbit/s are outside of the band")
        if found.band > MOST_BAND:
            missed.append(f"{hosts} hosts at {rate} Mbit/s: a band of +-{found.band:.0%}")
    middle = statistics.median(errors)
    print(f"median error {middle:.1%}, largest {max(errors):.1%}")
    if middle > MOST_ERROR:
        missed.append(f"a median error of {middle:.1%}")
    for one in missed:
        print(f"MISSED: {one}")
    return bool(missed)


def _measured(folder: pathlib.Path, count: int, rate: int):
    """Return the bench of so many hosts with links of a rate in Mbit/s."""
    from tfdp.bench import fitted
    from tfdp.bench.record import FILE, Record

    where = folder / f"{count}-hosts-{rate}-mbit"
    if not (where / FILE).exists():
        begin = time.monotonic()
        where.mkdir(parents=True, exist_ok=True)
        _run(where, count, rate)
        print(f"({count} hosts, {rate} Mbit/s: {time.monotonic() - begin:.0f} s)", flush=True)
    link = rate * 1e6 / 8 if count > 1 else 0.0
    return fitted.Source(Record.read(where / FILE), link)


def _run(folder: pathlib.Path, count: int, rate: int) -> None:
    sys.path.insert(0, str(ROOT / "tests"))
    from cluster import hosts

    from tfdp.cluster import Cluster

    if reason := hosts.missing():
        sys.exit(f"No hosts on this machine: {reason}")
    log = folder / "log"
    # A small burst: else 256 KB of each step's sums pass at once, as over no real link.
    with open(log, "wb") as output, hosts.network(count, f"{rate}mbit", burst="32kb") as network:
        cluster = Cluster(worker=tuple(f"{address}:2222" for address in network.addresses))
        processes = [
            network.start(
                task.index,
                [sys.executable, "-m", "tfdp.run", str(HERE), f"--task={folder}"],
                env={
                    **os.environ,
                    "TF_CONFIG": cluster.tf_config(task),
                    "TFDP_SEED": "1",
                    "TF_NUM_INTEROP_THREADS": "2",
                    "TF_NUM_INTRAOP_THREADS": "1",
                },
                stdout=output,
                stderr=subprocess.STDOUT,
            )
            for task in cluster.tasks
        ]
        codes = [process.wait(timeout=600) for process in processes]
    if any(codes):
        sys.exit(log.read_text(errors="replace")[-6000:])


# -- a task -----------------------------------------------------------------------------------


def _task(folder: str) -> None:
    import keras
    import numpy as np
    import tensorflow as tf

    import tfdp

    class Wait(keras.layers.Layer):
        def call(self, x):
            def wait(rows):
                time.sleep(0.020 + 0.002 * int(rows))
                return np.float32(0)

            waited = tf.numpy_function(wait, [tf.shape(x)[0]], tf.float32)
            return x + tf.ensure_shape(waited, ())

    strategy = tfdp.strategy("multi_worker")
    with strategy.scope():
        # 0.3 million weights, 1.2 MB of gradients.
        body = [keras.Input((1024,)), Wait(), keras.layers.Dense(292, activation="relu")]
        model = keras.Sequential([*body, keras.layers.Dense(1)])
        model.compile("sgd", "mse")
    keras.utils.set_random_seed(0)
    batch = ROWS * strategy.num_replicas_in_sync
    x = np.random.default_rng(0).normal(size=(4 * batch, 1024)).astype("float32")
    data = tf.data.Dataset.from_tensor_slices((x, x[:, :1])).batch(batch, drop_remainder=True)
    bench = tfdp.callbacks.Bench(folder)
    model.fit(data.cache().repeat(), steps_per_epoch=2, verbose=0, callbacks=[bench])


if __name__ == "__main__":
    main()
