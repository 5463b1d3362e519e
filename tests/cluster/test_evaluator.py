"""The evaluator runs the same script: it evaluates each checkpoint once and ends by itself."""

import pathlib

import pytest

from cluster import processes

pytestmark = pytest.mark.cluster

SCRIPT = str(pathlib.Path(__file__).with_name("scripts") / "evaluated.py")


def test_the_evaluator_sees_each_checkpoint_once(tmp_path, environment):
    words = ["launch", "--chief", "--workers=1", "--ps=1", "--evaluator", "--log_dir=logs"]
    done = processes.run([*words, "--", SCRIPT], tmp_path, environment)
    assert done.returncode == 0, done.stdout + done.stderr
    logs = {
        task: (tmp_path / "logs" / f"{task}-0.log").read_text() for task in ("chief", "evaluator")
    }
    losses = {
        task: [line for line in log.splitlines() if line.startswith("losses")]
        for task, log in logs.items()
    }
    # What the chief has validated at the end of each epoch, in the same order.
    assert losses["evaluator"] == losses["chief"]
    assert len(losses["chief"][0].split()) == 1 + 4
    assert list((tmp_path / "board" / "evaluator").glob("events.out.tfevents.*"))
    assert "was ended" not in done.stderr
