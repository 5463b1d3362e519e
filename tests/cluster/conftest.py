"""What every real run needs: the digits prepared once, no GPUs, Ctrl-C as in a terminal."""

import os
import pathlib
import signal

import pytest
import references
from conftest import INSTALLED

from cluster import digits, kills, processes

SCRIPTS = pathlib.Path(__file__).with_name("scripts")


@pytest.fixture(scope="session")
def environment(tmp_path_factory):
    """The environment of a user's shell on a machine without GPUs."""
    kept = {n: v for n, v in os.environ.items() if not n.startswith(("TF_CONFIG", "TFDP_"))}
    data = tmp_path_factory.mktemp("tensorflow_datasets")
    return {**kept, "TFDS_DATA_DIR": str(data), "CUDA_VISIBLE_DEVICES": "-1"}


@pytest.fixture(scope="session")
def drawing(environment):
    """The same, with what draws figures: pip install 'tfdp[bench]'."""
    paths = environment["PYTHONPATH"].split(os.pathsep)
    return {**environment, "PYTHONPATH": os.pathsep.join(p for p in paths if p != str(INSTALLED))}


@pytest.fixture(scope="session")
def digits_here(environment):
    """The losses of digits.TRAIN, trained by two workers of the local launcher."""

    def train(folder):
        folder.mkdir()
        done = processes.run(["train", "--workers=2", *digits.TRAIN], folder, environment)
        assert done.returncode == 0, done.stderr

    return digits.losses(references.kept("digits", train))


@pytest.fixture(scope="session")
def predicted(environment):
    """A folder with a model, its input, and in quiet/ the output of a job left alone."""
    return references.kept("predicted", lambda folder: kills.predict(folder, environment))


@pytest.fixture(scope="session", autouse=True)
def ctrl_c():
    """Where the tests run in the background SIGINT is ignored, and children inherit that."""
    before = signal.getsignal(signal.SIGINT)
    if before == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
