"""The configs of published recipes: their `tiny` variants on two workers."""

import pathlib
import re

import pytest

from cluster import processes

pytestmark = pytest.mark.cluster

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"
LINE = "Optimizer sgd, learning rate 0.1 after 1 epoch of warm-up, then along a cosine to 0."


@pytest.mark.exhaustive  # minutes; fit/test_published_models trains a step of each
@pytest.mark.parametrize(
    ("name", "least"),
    [
        ("cifar10_vgg19", 0.95),
        ("cifar10_resnet164", 0.95),
        # Two epochs of made images, in parts that may be of another class, teach them little.
        ("imagenet_resnet50", 0.0),
        ("imagenet_vgg19", 0.0),
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
