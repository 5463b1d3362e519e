"""Two workers that read what a plan gives them."""

import collections
import json
import pathlib
import re

import pytest
import tensorflow_datasets as tfds

from cluster import processes
from tfdp.datasets import digits, fashion_mnist
from tfdp.error import Error

pytestmark = pytest.mark.cluster

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"


def accuracy_in(out):
    return float(re.search(r"^Test accuracy: (\d\.\d{4})$", out, re.MULTILINE)[1])


def prepare(folder, files):
    """The digits in so many files a split."""
    digits.TfdpDigits(data_dir=folder).download_and_prepare(
        download_config=tfds.download.DownloadConfig(num_shards=files)
    )
    return sorted((folder / "tfdp_digits" / "1.0.0").glob("*-train.tfrecord*"))


def test_one_file_gives_two_workers_each_record_once(tmp_path, environment):
    # tf.data's own auto-sharding gives the second worker no file here, and ends in an error.
    (file,) = prepare(tmp_path, 1)
    done = processes.run(
        [
            "train",
            f"--config={CONFIGS}/digits.py:quick",
            "--workers=2",
            "--config.run_dir=run",
            f"--config.data.data_dir={tmp_path}",
            "--config.data.order=shards",
            f"--config.data.ledger={tmp_path}/ids",
        ],
        tmp_path,
        environment,
    )
    assert done.returncode == 0, done.stderr
    assert accuracy_in(done.stdout) >= 0.8
    told = [line for line in done.stderr.splitlines() if line.startswith("tfdp: Input")]
    assert "policy HINT for 2 pipelines, 1 file, 1,437 records" in told[0]
    assert "23 batches of 32 for each pipeline, every record once" in told[1]
    assert "tfdp reshard --shards=4" in told[2]
    # The ledgers prove it: each of 3 epochs has each record once, over both workers.
    times = collections.Counter(
        (batch["epoch"], identity)
        for worker in (0, 1)
        for batch in map(json.loads, open(f"{tmp_path}/ids-{worker}"))
        for identity in batch["ids"]
    )
    assert times == {(epoch, f"{file}:{n}"): 1 for epoch in range(3) for n in range(1437)}


def test_a_damaged_record_of_one_worker_ends_both_and_is_named(tmp_path, environment):
    files = prepare(tmp_path, 2)
    content = bytearray(files[1].read_bytes())
    content[-1] ^= 1  # the checksum of the last record: no header tells
    files[1].write_bytes(content)
    done = processes.run(
        [
            "train",
            f"--config={CONFIGS}/digits.py:quick",
            "--workers=2",
            "--config.run_dir=run",
            f"--config.data.data_dir={tmp_path}",
            "--config.data.order=shards",
        ],
        tmp_path,
        environment,
    )
    assert done.returncode == 2, done.stderr
    assert "Test accuracy" not in done.stdout
    logs = "".join((tmp_path / "run" / "logs" / f"worker-{n}.log").read_text() for n in (0, 1))
    assert re.search(rf"tfdp: {files[1]}: record 718 at byte [\d,]+: its checksum is wrong.", logs)
    # The larger file is worker 0's: 719 records.
    assert "worker:0" in done.stderr.splitlines()[-1]


@pytest.mark.exhaustive  # it takes two minutes
def test_fashion_mnist_on_two_workers(tmp_path, environment):
    try:
        fashion_mnist.folder()
    except Error as error:
        pytest.skip(str(error))
    done = processes.run(
        [
            "train",
            f"--config={CONFIGS}/fashion_mnist.py:quick",
            "--workers=2",
            "--config.run_dir=run",
            f"--config.data.data_dir={tmp_path}",
        ],
        tmp_path,
        environment,
        seconds=400,
    )
    assert done.returncode == 0, done.stderr
    assert "policy FILE for 2 pipelines, 8 files, 60,000 records" in done.stderr
    assert accuracy_in(done.stdout) >= 0.90
