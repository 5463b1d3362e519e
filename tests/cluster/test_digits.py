"""The main job: `tfdp train` on the digits, alone and on two workers."""

import csv
import pathlib
import re
import subprocess
import sys

import pytest

from cluster import processes

pytestmark = pytest.mark.cluster

ROOT = pathlib.Path(__file__).parents[2]
DIGITS = str(ROOT / "configs" / "digits.py")


def accuracy_in(out):
    return float(re.search(r"^Test accuracy: (\d\.\d{4})$", out, re.MULTILINE)[1])


def test_two_workers_reach_097_and_the_chief_writes_everything_once(tmp_path, environment):
    done = processes.run(
        ["train", f"--config={DIGITS}", "--workers=2", "--config.run_dir=run"],
        tmp_path,
        environment,
    )
    assert done.returncode == 0, done.stderr
    assert accuracy_in(done.stdout) >= 0.97

    run = tmp_path / "run"
    files = sorted(str(path.relative_to(run)) for path in run.rglob("*") if path.is_file())
    assert [re.sub(r"tfevents\..*", "tfevents", name) for name in files] == [
        "command.json",
        "complete",
        "export/digits/1/assets.extra/tf_serving_warmup_requests",
        "export/digits/1/assets/labels.txt",
        "export/digits/1/fingerprint.pb",
        "export/digits/1/manifest.json",
        "export/digits/1/saved_model.pb",
        "export/digits/1/variables/variables.data-00000-of-00001",
        "export/digits/1/variables/variables.index",
        "history.csv",
        "logs/worker-0.log",
        "logs/worker-1.log",
        "model.keras",
        "run.json",
        "tensorboard/train/events.out.tfevents",
        "tensorboard/validation/events.out.tfevents",
    ]
    with open(run / "history.csv") as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == [str(n) for n in range(20)]

    # The chief alone tells, in whole lines without control codes.
    lines = done.stdout.splitlines()
    assert lines[:4] == [
        "2 workers on this machine, seed 0. Logs: run/logs",
        "Global batch 64 = 2 workers x 1 replica x 32 per replica.",
        "tfdp_digits: 1,437 records to train on, 360 to test.",
        "Epoch 1/20",
    ]
    assert [line for line in lines if line.startswith("Epoch")] == [
        f"Epoch {number}/20" for number in range(1, 21)
    ]
    assert not [line for line in lines if line.startswith("[")]
    assert not re.search(r"[\r\x1b\x08]", done.stdout + done.stderr)
    assert not re.search(r"Epoch|accuracy", (run / "logs" / "worker-1.log").read_text())
    assert (
        "tfdp: Input train: policy HINT for 2 pipelines, 8 files, 1,437 records: order 'global': "
        "each pipeline reads all 0.2 MB and decodes its rows of every batch."
        in done.stderr.splitlines()
    )
    assert re.search(r"^Throughput: +[\d,]+ examples/s$", done.stdout, re.MULTILINE)

    served = subprocess.run(
        [sys.executable, ROOT / "scripts" / "classify.py", run / "export" / "digits" / "1"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert len(re.findall(r"^  a \d is taken for a \d", served.stdout, re.MULTILINE)) == 8


@pytest.mark.exhaustive  # two workers reach it
@pytest.mark.parametrize("strategy", ["one_device", "mirrored"])
def test_one_process_reaches_097(strategy, tmp_path, environment):
    done = processes.run(
        ["train", f"--config={DIGITS}", f"--config.strategy={strategy}", "--config.run_dir=run"],
        tmp_path,
        environment,
    )
    assert done.returncode == 0, done.stderr
    assert accuracy_in(done.stdout) >= 0.97
    replicas = {"one_device": "1 replica x 64", "mirrored": "2 replicas x 32"}[strategy]
    assert f"Global batch 64 = 1 worker x {replicas} per replica." in done.stdout.splitlines()
    assert not re.search(r"[\r\x1b\x08]", done.stdout + done.stderr)
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        "command.json",
        "complete",
        "export",
        "history.csv",
        "model.keras",
        "run.json",
        "tensorboard",
    ]


@pytest.mark.exhaustive  # test_exported compares what was trained
def test_the_loss_of_every_epoch_is_that_of_one_device(tmp_path, environment):
    histories = {}
    for name, flag in {
        "1 device": "--config.strategy=one_device",
        "2 replicas": "--config.strategy=mirrored",
        "2 workers": "--workers=2",
    }.items():
        done = processes.run(
            [
                "train",
                f"--config={DIGITS}:quick",
                "--config.model.name=smooth_digits:build",
                "--config.seed=1",
                f"--config.run_dir={name}",
                flag,
            ],
            tmp_path,
            environment,
        )
        assert done.returncode == 0, done.stderr
        with open(tmp_path / name / "history.csv") as file:
            histories[name] = list(csv.DictReader(file))
    one = histories["1 device"]
    assert len(one) == 3
    for name in ("2 replicas", "2 workers"):
        for expected, epoch in zip(one, histories[name], strict=True):
            for metric in ("loss", "val_loss"):
                assert float(epoch[metric]) == pytest.approx(float(expected[metric]), rel=1e-4)
            for metric in ("accuracy", "val_accuracy"):  # counts: a sample more or less
                assert float(epoch[metric]) == pytest.approx(float(expected[metric]), abs=0.003)
