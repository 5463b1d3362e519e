"""Scripts of users: plain TensorFlow and Keras, started by `tfdp launch`."""

import pathlib
import re

import keras
import pytest

import tfdp.datasets
from cluster import processes

pytestmark = pytest.mark.cluster

README = pathlib.Path(__file__).parents[2] / "README.md"
SCRIPTS = pathlib.Path(__file__).with_name("scripts")
CSV = str(pathlib.Path(tfdp.datasets.__file__).with_name("digits.csv.gz"))


def value(pattern, text):
    (found,) = re.findall(pattern, text, re.MULTILINE)
    return float(found)


def check_tutorial(done, folder, tasks):
    assert done.returncode == 0, done.stderr
    logs = [(folder / "logs" / f"{task}.log").read_text() for task in tasks]
    accuracies = [value(r"^Accuracy on 360 test images: (.*)$", log) for log in logs]
    weights = [value(r"^Sum of the weights: (.*)$", log) for log in logs]
    assert accuracies[0] >= 0.8  # drawn anew in each run: 0.90 to 0.95 is usual
    assert accuracies[0] == accuracies[1]
    assert weights[0] == weights[1]
    # The chief shows progress as it is, and the other task none.
    epochs = [line for line in done.stdout.splitlines() if "Epoch " in line]
    assert epochs == [f"Epoch {number}/8" for number in range(1, 9)]
    model = keras.models.load_model(folder / "model.keras")
    assert sum(abs(w).sum() for w in model.get_weights()) == pytest.approx(weights[0], abs=1e-2)
    assert sorted(path.name for path in folder.iterdir() if path.name != "package") == [
        "logs",
        "model.keras",
    ]


@pytest.mark.exhaustive  # with a chief beside the worker it is the same
def test_a_script_that_knows_nothing_of_tfdp(tmp_path, environment):
    done = processes.run(
        [
            *("launch", "--workers=2", "--log_dir=logs"),
            *("--", str(SCRIPTS / "tutorial.py"), CSV, str(tmp_path)),
        ],
        tmp_path,
        environment,
    )
    check_tutorial(done, tmp_path, ["worker-0", "worker-1"])


def test_a_module_with_a_chief_beside_the_worker(tmp_path, environment):
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__init__.py").write_text("")
    (tmp_path / "package" / "train.py").write_text((SCRIPTS / "tutorial.py").read_text())
    done = processes.run(
        [
            *("launch", "--chief", "--workers=1", "--log_dir=logs"),
            *("--", "-m", "package.train", CSV, str(tmp_path)),
        ],
        tmp_path,
        environment,
    )
    check_tutorial(done, tmp_path, ["chief-0", "worker-0"])


def test_the_example_of_the_readme(tmp_path, environment):
    example, *_ = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert len(example.splitlines()) == 10
    (tmp_path / "script.py").write_text(example)
    command = ["launch", "--workers=2", "--log_dir=logs", "--", "script.py"]
    done = processes.run(command, tmp_path, environment)
    assert done.returncode == 0, done.stderr
    losses = re.findall(r"^16/16 - .* - loss: ([0-9.]+)", done.stdout, re.MULTILINE)
    assert len(losses) == 5
    assert float(losses[-1]) < float(losses[0])


@pytest.mark.exhaustive  # test_exported has a loop of its own, too
def test_a_coordinator_of_parameter_servers(tmp_path, environment):
    with processes.started(
        [
            *("launch", "--chief", "--workers=2", "--ps=1", "--log_dir=logs"),
            *("--", str(SCRIPTS / "coordinator.py")),
        ],
        tmp_path,
        environment,
    ) as launcher:
        with processes.watched(processes.whole_family(launcher, tasks=4)) as handles:
            assert len(handles) == 5
            out, err = launcher.communicate(timeout=60)
            assert processes.left_after(handles, seconds=5) == []
    assert launcher.returncode == 0, err
    for server in ("worker-0", "worker-1", "ps-0"):
        log = (tmp_path / "logs" / f"{server}.log").read_text()
        assert re.search(r"^[a-z]+:\d serves at 127\.0\.0\.1:\d+\.$", log, re.MULTILINE)
    lines = out.splitlines()
    assert "The weights lie on /job:ps/replica:0/task:0/device:CPU:0." in lines
    assert "Weights: 3.000 -2.000" in lines
    assert "Steps: 100" in lines
