"""fit on parameter servers: what is exact, what is refused, what is saved.

All tasks of the cluster (3 workers, 2 ps) live in one process: see servers.py.
"""

import json
import os
import pathlib
import subprocess
import sys

import pytest
from fit import test_gradient_noise as noisy

from cluster import processes

pytestmark = pytest.mark.cluster

SCRIPT = pathlib.Path(__file__).parent / "servers.py"
# What a batch, a loss, a metric or an optimizer can be, and what partitions make of it.
SYNCHRONOUS = (
    "batches-ragged_last",
    "inputs-sparse",
    "losses-function_per_sample",
    "losses-masked",
    "losses-regularizers",
    "metrics-class_metrics",
    "optimizers-accumulation_clip",
    "optimizers-ema_overwrite",
    "optimizers-global_clipnorm",
    "optimizers-loss_scale_grows",
    "optimizers-tfdp_lars_by_element",
    "precision-overflow",
    "scripts-layer_counts",
    "scripts-layer_overwrites_a_weight",
    "scripts-nothing_to_train_in_own_step",
    "scripts-squares_of_sparse_gradients",
)
# What is one of these once more.
EXHAUSTIVE = (
    "batches-smaller_than_replicas",
    "inputs-ragged",
    "inputs-two_inputs_outputs_dataset",
    "losses-two_outputs_weighted",
    "optimizers-adam",
    "optimizers-clipnorm",
    "optimizers-frozen",
    "optimizers-ftrl",
    "optimizers-tfdp_lars_small",
    "precision-mixed_float16",
    "scripts-dict_metric",
    "scripts-gradients_alone",
    "scripts-layer_counts_of_one_row",
    "scripts-metric_kept_over_epochs",
    "scripts-nothing_to_train",
    "scripts-spectral_normalization",
)


def check_of(item) -> str:
    """Return what a test asks servers.py for: the check of its name, and its case."""
    name = item.originalname.removeprefix("test_")
    if not hasattr(item, "callspec"):
        return name
    case = next(iter(item.callspec.params.values()))
    return f"{name.removesuffix('_training_is_that_of_one_device')} {case}"


@pytest.fixture(scope="module")
def outcomes(request, tmp_path_factory):
    """Run, in one cluster, the checks of all tests of this run; return what was found, by name."""
    output = tmp_path_factory.mktemp("servers") / "outcomes.jsonl"
    tests = [item for item in request.session.items if "outcomes" in item.fixturenames]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "2"}
    command = [sys.executable, str(SCRIPT), str(output), "3", "2", *map(check_of, tests)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    return {line["check"]: line for line in lines}


@pytest.fixture
def found(request, outcomes):
    """What the check of the test's name has found."""
    line = outcomes[check_of(request.node)]
    assert "error" not in line, line["error"]
    return line["found"]


@pytest.mark.parametrize(
    "name", [*SYNCHRONOUS, *(pytest.param(n, marks=pytest.mark.exhaustive) for n in EXHAUSTIVE)]
)
def test_synchronous_training_is_that_of_one_device(name, found):
    assert found == {}


def test_counters(found):
    assert found["iterations"] == 300
    assert found["largest"] <= 1e-6


def test_no_lost_updates(found):
    assert found == {"bias": -400.0, "row": [-400.0] * 4, "others": 0.0}


def test_gathered(found):
    # Every gradient is in the weights, or waits for the next update.
    assert found["all"] == pytest.approx(-300.0, abs=1e-2)
    assert found["bias"] == pytest.approx(-100.0, abs=4.0)
    assert found["iterations"] == 100


def test_overflowing(found):
    assert (found["iterations"], found["bias"]) == (180, -180.0)
    # Each of 20 overflows halves the scale, unless it ran beside another.
    assert -5.0 <= found["scale"] < 15.0


def test_bounded_staleness(found):
    unbounded = found.pop("None")
    assert {bound: value for bound, value in found.items() if value > int(bound)} == {}
    assert unbounded >= 2


def test_moving_state(found):
    assert sorted(found) == ["0.0", "0.5"]
    for seen in found.values():
        # Batches of two from a normal distribution around 3.
        assert 0.0 <= seen["variance"]
        assert seen["mean"] < 10.0
        assert seen["counted"] == [150.0, 150.0]


@pytest.mark.exhaustive  # 15 s for three optimizers
def test_near_serial(found):
    assert sorted(found) == ["Adam", "Adamax", "Nadam"]
    for name, (at_once, step_by_step) in found.items():
        assert at_once == pytest.approx(step_by_step, rel=0.5), name


def test_schedule(found):
    # Each step reads how many were applied before it; at most all three workers' at once.
    assert -203.0 <= found["bias"] <= -200.0


@pytest.mark.parametrize(
    "optimizer",
    [
        *("adagrad", "clipnorm", "accumulation"),
        # Others that assign as these do.
        *(
            pytest.param(n, marks=pytest.mark.exhaustive)
            for n in ("sgd", "momentum", "adam", "rmsprop")
        ),
    ],
)
def test_embedding(optimizer, found):
    assert found["partitions"] > 1
    assert found["difference"] <= 1e-5


def test_lazy_rows(found):
    assert found == {"changed": [1, 2, 7, 39]}


def test_saved_and_loaded(found):
    assert found.pop("partitions") > 1
    assert found.pop("steps") == 8
    assert {name: value for name, value in found.items() if not value <= 1e-6} == {}


def test_what_two_servers_save_loads_with_one_and_with_three(tmp_path):
    def run(check: str, servers: int) -> dict[str, float]:
        output = tmp_path / f"{check}-{servers}.jsonl"
        environment = {
            **os.environ,
            "CUDA_VISIBLE_DEVICES": "-1",
            "TF_CPP_MIN_LOG_LEVEL": "2",
            "FOLDER": str(tmp_path),
            "MAX_SHARDS": str(servers),
        }
        command = [sys.executable, str(SCRIPT), str(output), "2", str(servers), check]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        line = json.loads(output.read_text())
        assert "error" not in line, line["error"]
        return line["found"]

    assert run("written", 2) == {"partitions": 2}
    for servers in (1, 3):
        found = run("read", servers)
        assert found.pop("partitions") == servers
        assert "resumed" in found
        assert {name: value for name, value in found.items() if not value <= 1e-6} == {}


def test_processes_that_read_for_themselves(tmp_path, environment):
    script = str(SCRIPT.with_name("scripts") / "reading.py")
    words = ["launch", "--chief", "--workers=2", "--ps=1", "--", script]
    done = processes.run(words, tmp_path, environment)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{")))
    for reading in ("shard", "files", "replicated"):
        steps, seen = found[reading]
        assert (steps, sum(seen)) == (10 * 12, 10 * 48), reading
        assert min(seen) >= 1, reading


def test_evaluate_and_predict(found):
    assert {name: value for name, value in found.items() if not value <= 1e-6} == {}


def test_batch_callbacks(found):
    assert found["begins"] == found["ends"] == list(range(30))
    assert found["logs"] == ["accuracy", "loss"]
    assert found["line"] == "3/3"
    assert 1 < found["ahead"] <= 4 * 3 + 1


def test_own_train_step(found):
    assert found["loss"] == pytest.approx(0.693147, abs=1e-5)
    assert found["twice"] == pytest.approx(2 * 0.693147, abs=1e-5)
    assert found["iterations"] == 4


def test_two_optimizers(found):
    assert found["largest"] <= 1e-6
    assert found["partitions"] > 1
    assert found["iterations"] == [4, 4]
    assert "updates 2 times, and max_staleness=0 sums the gradients of one" in found["refused"]


def test_own_train_step_summed(found):
    assert found["largest"] <= 1e-5
    assert found["partitions"] > 1
    assert found["logs"] == ["accuracy", "again", "loss"]
    assert found["refused"] == [True] * 3
    assert found["rate"] == pytest.approx(1.0, rel=1e-5)


def test_models_of_all_kinds(found):
    assert found.pop("on") == [True] * 3
    assert len(found) == 6
    assert {name: value for name, value in found.items() if not value <= 1e-5} == {}


def test_loaded_again(found):
    assert {name: value for name, value in found.items() if not value <= 1e-5} == {}


def test_callback_that_fails(found):
    assert found["then"] == found["later"] >= 3


def test_worker_reads(found):
    assert found == {"epochs": 2, "iterations": 2 * 12 + 5}


def test_readings(found):
    assert found.pop("orders") == 3
    assert sorted(found) == ["replicated of arrays", "shard of a dataset", "shard of arrays"]
    for seen in found.values():
        assert (seen["epochs"], seen["steps"], seen["seen"]) == (15, 15 * 12, 15.0 * 24)
        # How often a row comes depends on which worker is faster, but each comes.
        assert seen["least"] >= 1


def test_refused(found):
    assert found["generator"].startswith("fit on parameter servers takes no generator: ")
    assert found["PyDataset"].startswith("fit on parameter servers takes no Batches: ")
    assert "give steps_per_epoch=" in found["endless"]
    assert "give steps_per_epoch=" in found["shard: endless"]
    assert found["shard: Python"].startswith("The data goes through Python code ")
    assert found["shard: eager Python"] == found["shard: Python"]
    assert found["shard: empty"] == "The arrays hold no row."
    assert found["shard: list"].startswith("Unrecognized data type")
    assert found["shard: OFF"].startswith("The dataset's auto_shard_policy is OFF, ")
    assert found["shard: few"].startswith("Pipeline 2 of 3 has no batch: ")
    assert found["replicated: dataset"].startswith(
        "reading='replicated' shuffles arrays for each worker; "
    )
    assert found["replicated: order"].startswith("reading='replicated' with shuffle=False ")


def test_step_that_fails(found):
    assert found == {"told": True, "where": True, "goes_on": 1}


def test_assigned_in_steps(found):
    assert found["largest"] <= 0.3 + 1e-6
    assert found["teacher"] > 0.1
    # Halved once by each of 18 steps, however many ran at the same time.
    assert found["rate"] == pytest.approx(1.0, rel=1e-5)
    assert found["sharpness"][-1] < found["sharpness"][0] / 2
    # A vector of length 1 but for the updates since it was normalized.
    assert 0.5 < found["norm"] < 4.0
    assert found["rows"] == [48.0] * 3
    assert found["evaluated"] == 48.0
    assert found["counted"] == [144.0, 144]
    assert found["largest_input"] == 0.0


def test_looked_up(found):
    assert len(found["loss"]) == 1
    assert found["none"] == 0.0


def test_large_table(found):
    # For each partition of 80,000 x 64 floats and two moments.
    assert found["whole"]
    assert "Adam moves every row of" in found["whole"][0]
    assert found["lazy"] == []


def test_refused_optimizers(found):
    for name in ("LARS", "LAMB"):
        assert found[name] == (
            f"{name} follows the norm of each whole variable, which no partition of "
            "sequential/dense/kernel, sequential/dense_1/kernel has. Use no partitions (a larger "
            "min_partition_bytes), name what is cut in exclude_from_layer_adaptation, or take "
            "another optimizer (Adagrad, Adam, ...)."
        )


def test_gradient_noise(found):
    measured, squared, trace = found["ragged"]
    assert measured == 300
    assert squared == pytest.approx(noisy.SQUARED, rel=0.1)
    assert trace == pytest.approx(noisy.TRACE, rel=0.1)
    assert found["ragged: logged"]
    assert found["loss scale"] == pytest.approx(found["plain"], rel=1e-4)
    trace, expected = found["rows"]
    assert trace == pytest.approx(expected, rel=1e-4)
    assert "max_staleness=0" in found["refused"]
    assert "sync_every=4" in found["sync_every"]
