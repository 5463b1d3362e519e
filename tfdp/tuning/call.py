"""`tfdp.tune_batch`: which global batch, for a model and data that functions make.

    def build():
        model = keras.Sequential([...])
        model.compile("adam", "mse")
        return model

    tuned = tfdp.tune_batch(build, (x, y), epochs=10)
    tuned.largest_per_replica, tuned.recommendation.global_batch

`tfdp tune-batch --config=...` is the same for a config.
"""

import functools
import math
import os
import pathlib
import pickle
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

from tfdp.error import Error
from tfdp.launch import notebook
from tfdp.tuning import figure, record, report, settings, trials

# An array's rows are drawn from so many, as by fit's shuffle.
_SHUFFLE = 10_000


def tune_batch(
    build: Callable[[], Any],
    data: Any,
    *,
    batch: int = 64,
    epochs: int = 1,
    workers: int = 0,
    max_batch: int = 0,
    noise_seconds: float = 60.0,
    folder: str | os.PathLike[str] | None = None,
    verbose: bool = True,
) -> record.Tuned:
    """Find the largest batch that fits, and recommend a global batch to train with.

    Each trial runs some steps in processes of its own, so that one that gets no memory ends nothing
    else; at most six. Memory is fitted by a line, and the batch that is found has run. Then a
    training with `batch` gives the gradient noise scale. McCandlish et al. 2018, "An Empirical
    Model of Large-Batch Training", https://arxiv.org/abs/1812.06162.

    Args:
        build: Returns the compiled model; it is called in each process, in the strategy's scope.
        data: Arrays (x, y), or a function that takes a global batch and returns a tf.data.Dataset
            of such batches. The function is called in each process.
        batch: The global batch to begin with, for which the learning rate was found.
        epochs: Of the whole training: the noise scale is that of all of it, if there is time.
        workers: Processes of this machine that train together; 0: one, with all its GPUs.
        max_batch: Rows of a replica to try at most; 0 for any number.
        noise_seconds: How long the training for the noise scale may take; 0 leaves it out.
        folder: Of logs, tune_batch.json and the figure; by default a new one in runs/.
        verbose: Whether progress and the report are printed.

    Returns:
        What was measured: see tfdp/tuning/record.py.

    Raises:
        Error: For a value that cannot be; if a trial fails for another reason than memory; if not
            even one row fits.
    """
    _check(build, data, batch=batch, epochs=epochs, workers=workers, max_batch=max_batch)
    check_seconds(noise_seconds)
    check_alone()
    check_divides(batch, workers)
    where = pathlib.Path(folder or f"runs/tune-batch-{time.strftime('%Y%m%d-%H%M%S')}")
    call = notebook.pickled("tune_batch", "build, data", build, data, epochs)
    tell = functools.partial(print, flush=True) if verbose else lambda line: None
    with tempfile.TemporaryDirectory(prefix="tfdp-tune-") as aside:
        file = pathlib.Path(aside, "call")
        file.write_bytes(call)
        script = ("-m", "tfdp.tuning.call", str(file))
        start = functools.partial(trials.launch, script, workers)
        tuner = trials.Tuner(start, where, workers, batch, max_batch, noise_seconds, tell)
        tuned = tuner.tune()
    finish(tuned, where, tell)
    return tuned


def finish(tuned: record.Tuned, folder: pathlib.Path, tell: Callable[[str], None]) -> None:
    """Tell what was found, and write it and its figure."""
    tell(report.text(tuned))
    written = [tuned.write(folder / record.FILE)]
    try:
        written += figure.write(tuned, folder)[:2]
    except Error as error:
        tell(f"  {error}")
    tell(f"  {', '.join(map(str, written))}")


def check_alone() -> None:
    """Refuse a process that is a task of a cluster.

    Raises:
        Error: If it is one.
    """
    if os.environ.get("TF_CONFIG"):
        raise Error(
            "TF_CONFIG is set: this process is a task of a cluster already, and tune-batch starts "
            "its own. Unset TF_CONFIG."
        )


def check_divides(batch: int, workers: int) -> None:
    """Refuse a global batch of which workers would not get equal shares.

    Raises:
        Error: If it does not divide.
    """
    from tfdp import batching

    batching.Batch(batch, max(1, workers))


def check_seconds(noise_seconds: float) -> None:
    """Refuse what is no time.

    Raises:
        Error: If it is none.
    """
    if not 0 <= noise_seconds < math.inf:
        raise Error(f"noise_seconds={noise_seconds!r}: use 0 (no noise scale) or more seconds.")


def _check(build: Any, data: Any, **counts: Any) -> None:
    least = {"workers": 0, "max_batch": 0}
    for name, value in counts.items():
        lowest = least.get(name, 1)
        if not isinstance(value, int) or isinstance(value, bool) or value < lowest:
            raise Error(f"{name}={value!r} is not a whole number from {lowest} up. Use one.")
    if not callable(build):
        raise Error(
            f"build is a {type(build).__name__}: give a function that returns the compiled model. "
            "Each trial makes its own."
        )
    if callable(data):
        return
    if not isinstance(data, tuple | list) or len(data) not in (2, 3):
        raise Error(
            f"data is a {type(data).__name__}: give arrays (x, y), or a function that takes a "
            "global batch and returns a tf.data.Dataset. A dataset itself cannot be sent."
        )
    lengths = {len(part) for part in data if hasattr(part, "__len__")}
    if len(lengths) != 1 or 0 in lengths:
        raise Error(
            f"data holds arrays of {sorted(lengths)} rows: give as many of each, 1 or more."
        )


def _main(file: str) -> None:
    """Carry out a trial: in each process of it."""
    build, data, epochs = pickle.loads(pathlib.Path(file).read_bytes())  # noqa: S301 # our parent's
    asked = settings.of(os.environ)
    assert asked is not None
    from tfdp import strategies
    from tfdp.tuning import trial

    with strategies.strategy().scope():
        model = build()
    if not getattr(model, "compiled", False):
        raise Error("build returned no compiled keras.Model: let it call compile and return it.")
    dataset, records = _dataset(data, asked.global_batch)
    steps = records // asked.global_batch if records else None
    trial.run(asked, model, dataset.repeat(), records=records, steps_per_epoch=steps, epochs=epochs)


def _dataset(data: Any, batch: int) -> tuple[Any, int | None]:
    """Return a dataset of global batches, and how many rows an epoch has, if that is known."""
    import tensorflow as tf

    if callable(data):
        dataset = data(batch)
        if not isinstance(dataset, tf.data.Dataset):
            raise Error(
                f"data returned a {type(dataset).__name__}: let it return a tf.data.Dataset of "
                "batches."
            )
        batches = int(dataset.cardinality())
        return dataset, batches * batch if batches > 0 else None
    rows = tf.data.Dataset.from_tensor_slices(tuple(data))
    records = len(data[1])
    # Its seed is the same in all tasks, as they read the same batches.
    rows = rows.shuffle(min(records, _SHUFFLE), seed=0)
    return rows.batch(batch, drop_remainder=True), records


if __name__ == "__main__":
    try:
        _main(*sys.argv[1:])
    except Error as error:
        sys.stderr.write(f"tfdp: {error}\n")
        sys.exit(2)
