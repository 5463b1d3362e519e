"""Workers that disagree are told so, all of them, before anything hangs."""

import pathlib
import re

import pytest

from cluster import processes

pytestmark = pytest.mark.cluster

SCRIPT = str(pathlib.Path(__file__).with_name("scripts") / "disagreeing.py")
END = "Every task has to train the same model with the same settings."


def answers(folder, environment, what):
    """What each worker was told: {worker: {case: message}}."""
    done = processes.run(
        ["launch", "--workers=2", "--log_dir=logs", "--", SCRIPT, what], folder, environment
    )
    assert done.returncode == 0, done.stderr
    logs = [(folder / "logs" / f"worker-{n}.log").read_text() for n in (0, 1)]
    return [dict(re.findall(r"^(\w+): (.*)$", log, re.MULTILINE)) for log in logs]


def test_settings(tmp_path, environment):
    first, second = answers(tmp_path, environment, "settings")
    expected = {
        "batch": "data: global batch size differs: worker:0 has 8, worker:1 has 16.",
        "epochs": "epochs differs: worker:0 has 1, worker:1 has 2.",
        "validation": (
            "validation data: split differs: worker:0 has every process reads every batch; each of "
            "2 replicas keeps its rows, worker:1 has none."
        ),
        "seed": "seed differs: worker:0 has 1, worker:1 has 2.",
        "steps": "steps_per_execution differs: worker:0 has 1, worker:1 has 2.",
        "call": "call differs: worker:0 has fit, worker:1 has evaluate.",
    }
    for answer in (first, second):
        told = {case: answer[case] for case in expected}
        assert told == {case: f"AgreementError: {text} {END}" for case, text in expected.items()}
        assert answer["agreed"] == "nothing"


def test_models(tmp_path, environment):
    first, second = answers(tmp_path, environment, "model")
    assert first["model"] == second["model"]
    assert first["model"] == (
        "AgreementError: model: variable 1 differs: worker:0 has kernel float32[4,8], worker:1 has "
        f"kernel float32[4,16]. {END}"
    )
