"""The configs of published recipes: their `tiny` variants on two workers."""

import pathlib
import re

import pytest
from conftest import exhaustive_unless

from cluster import processes

pytestmark = pytest.mark.cluster

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"
LINE = "Optimizer sgd, learning rate 0.1 after 1 epoch of warm-up, then along a cosine to 0."


@pytest.mark.parametrize(
    ("name", "least"),
    [
        pytest.param("cifar10_vgg19", 0.95, marks=exhaustive_unless(True)),
        pytest.param("cifar10_resnet164", 0.95, marks=exhaustive_unless(False)),
        # Two epochs of made images, in parts that may be of another class, teach them little.
        pytest.param("imagenet_resnet50", 0.0, marks=exhaustive_unless(False)),
        pytest.param("imagenet_vgg19", 0.0, marks=exhaustive_unless(False)),
    ],
)
def test_tiny_on_two_workers(name, least, tmp_path, environment):
    done = processes.run(
        ["train", f"--config={CONFIGS / name}.py:tiny", "--workers=2", "--config.run_dir=run",
         f"--config.data.data_dir={tmp_path / 'data'}"],
        tmp_path, environment, seconds=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert LINE in done.stdout.splitlines()
    accuracy = re.search(r"^Test accuracy: (\d\.\d{4})$", done.stdout, re.MULTILINE)[1]
    assert float(accuracy) >= least
    assert (tmp_path / "run" / "model.keras").exists()
