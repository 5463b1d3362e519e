"""Callbacks, file sharding, statistics, random layers and predictions across two workers."""

import itertools
import json
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest
from fit import cases

from tfdp import fit

pytestmark = pytest.mark.cluster

SCRIPT = pathlib.Path(__file__).parent / "behaviour.py"


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> tuple[pathlib.Path, list[dict]]:
    """Run behaviour.py on two workers; return its folder and what each worker saw."""
    folder = tmp_path_factory.mktemp("behaviour")
    command = [sys.executable, "-m", "tfdp", "launch", "--workers=2", f"--log_dir={folder}"]
    done = subprocess.run(
        [*command, "--", str(SCRIPT), str(folder)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return folder, [json.loads((folder / f"worker-{i}.json").read_text()) for i in (0, 1)]


def one_device(*hidden, **fit_arguments) -> tuple[keras.Model, keras.callbacks.History]:
    """Train the script's model here, without a strategy; `hidden` make its layers."""
    fit.disable()
    keras.utils.set_random_seed(7)
    model = cases.classifier(*[make() for make in hidden])
    return model, model.fit(shuffle=False, verbose=0, **fit_arguments)


def assert_weights(got, model, tolerance=1e-5):
    for a, b in zip(got, model.get_weights(), strict=True):
        np.testing.assert_allclose(np.array(a), b, atol=tolerance)


def test_uneven_files_lose_nothing(run):
    (chief, worker) = run[1]
    assert chief["file_sharding"] == worker["file_sharding"]
    # Worker 0 reads records 0 to 8 and 13 to 17, worker 1 reads 9 to 12, two a step each.
    rows = [0, 1, 9, 10, 2, 3, 11, 12, 4, 5, 6, 7, 8, 13, 14, 15, 16, 17]
    sizes = [4, 4, 2, 2, 2, 2, 2]
    x, y = (part[rows] for part in cases.arrays(18))
    ends = np.cumsum([0, *sizes])
    parts = [(x[a:b], y[a:b]) for a, b in itertools.pairwise(ends)]
    model, _ = one_device(x=iter_dataset(parts), epochs=2)
    got = chief["file_sharding"]
    assert got["steps"] == 14
    assert_weights(got["weights"], model)
    test = model.evaluate(x, y, verbose=0, return_dict=True)
    assert got["test"] == pytest.approx(test, abs=1e-5)


@pytest.mark.parametrize(
    ("name", "sizes"),
    [("even", (8, 8, 6)), ("uneven", (8, 5, 4)), ("unknown", (8, 5, 4)), ("eager", (8, 5, 4))],
)
def test_shards_by_a_function(name, sizes, run):
    got = run[1][0]["shards_by_function"][name]
    assert got == run[1][1]["shards_by_function"][name]
    # Of each step worker 0 has 4 of the first 12 rows, worker 1 the rest.
    rows, second = [], 12
    for step, size in enumerate(sizes):
        rows += [*range(4 * step, 4 * step + 4), *range(second, second + size - 4)]
        second += size - 4
    x, y = (part[rows] for part in cases.arrays(22))
    ends = np.cumsum([0, *sizes])
    parts = [(x[a:b], y[a:b]) for a, b in itertools.pairwise(ends)]
    data = iter_dataset(parts)
    model, history = one_device(x=data, validation_data=data, epochs=2)
    assert got["steps"] == 6
    assert_weights(got["weights"], model)
    losses = history.history["loss"] + history.history["val_loss"]
    assert got["losses"] == pytest.approx(losses, abs=1e-5)
    np.testing.assert_allclose(got["predicted"], model.predict(x, verbose=0), atol=1e-5)


def iter_dataset(parts):
    import tensorflow as tf

    spec = (
        tf.TensorSpec((None, cases.FEATURES), tf.float32),
        tf.TensorSpec((None,), tf.int64),
    )
    dataset = tf.data.Dataset.from_generator(lambda: iter(parts), output_signature=spec)
    return dataset.apply(tf.data.experimental.assert_cardinality(len(parts)))


def test_workers_decide_alike_and_the_chief_writes(run):
    folder, (chief, worker) = run
    assert chief["callbacks"] == worker["callbacks"]
    got = chief["callbacks"]
    assert got["seen"] == got["history"]["loss"]
    assert 0 < got["stopped"] < 19
    assert got["rate"] < 3.0
    # Of the callbacks' files there is one each, and they can be read.
    names = ["all.keras", "best.keras", "board", "chief.keras", "last.weights.h5", "log.csv"]
    assert sorted(p.name for p in (folder / "callbacks").iterdir()) == names
    assert len((folder / "callbacks" / "log.csv").read_text().splitlines()) == 1 + len(got["seen"])
    events = list((folder / "callbacks" / "board").rglob("events*"))
    assert sorted(p.parent.name for p in events) == ["train", "validation"]
    best = keras.models.load_model(folder / "callbacks" / "best.keras")
    x, y = cases.arrays(9)
    assert best.evaluate(x, y, verbose=0)[0] == pytest.approx(
        min(got["history"]["val_loss"]), abs=1e-5
    )


def test_one_worker_stops_all_at_the_same_step(run):
    stopped = [worker["stop_on_one_worker"] for worker in run[1]]
    assert stopped[0] == stopped[1] == {"steps": 16, "epochs": [0]}


def test_all_go_on_from_the_chiefs_backup(run):
    got = [worker["backup_and_restore"] for worker in run[1]]
    assert got[0] == got[1]
    assert got[0]["epochs"] == [0, 1, 2, 3]
    for a, b in zip(got[0]["resumed"], got[0]["unbroken"], strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_batch_normalization(run):
    """Both workers hold the same averages; synchronised they are those of one device."""
    got = [worker["batch_normalization"] for worker in run[1]]
    assert got[0] == got[1]
    layers = keras.layers
    model, _ = one_device(lambda: layers.Dense(8), layers.BatchNormalization, **cases.array_fit()())
    assert_weights(got[0]["True"], model, 2e-5)
    with pytest.raises(AssertionError):
        assert_weights(got[0]["False"], model, 2e-5)


def test_workers_draw_different_masks_from_equal_seeds(run):
    got = [worker["dropout"] for worker in run[1]]
    assert got[0]["seed"] == got[1]["seed"]
    assert got[0]["mask"] != got[1]["mask"]


def test_every_worker_gets_all_predictions_in_order(run):
    for worker in run[1]:
        assert worker["predict"] == {
            "id": list(range(11)),
            "name": [str(i) for i in range(11)],
            "list": [list(range(i % 3)) for i in range(11)],
        }
