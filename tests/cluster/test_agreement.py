"""Workers that disagree are told so, all of them, before anything hangs."""

import pathlib
import re

import pytest

from cluster import processes

pytestmark = pytest.mark.cluster

SCRIPT = str(pathlib.Path(__file__).with_name("scripts") / "disagreeing.py")
END = "Every task has to train the same model with the same settings."


@pytest.fixture(scope="module")
def told(tmp_path_factory, environment):
    """What each worker was told, as {part: {case: message}}; and the log of the chief."""
    folder = tmp_path_factory.mktemp("agreement")
    done = processes.run(
        ["launch", "--workers=2", "--log_dir=logs", "--", SCRIPT], folder, environment, seconds=180
    )
    assert done.returncode == 0, done.stderr
    logs = [(folder / "logs" / f"worker-{n}.log").read_text() for n in (0, 1)]
    found = []
    for log in logs:
        _, *parts = re.split(r"^part: (\w+)$", log, flags=re.MULTILINE)
        texts = dict(zip(parts[::2], parts[1::2], strict=True))
        found.append(
            {
                part: dict(re.findall(r"^(\w+): (.*)$", text, re.MULTILINE))
                for part, text in texts.items()
            }
        )
    return *found, logs[0]


def test_settings(told):
    first, second = (answers["settings"] for answers in told[:2])
    expected = {
        "batch": "data: global batch size differs: worker:0 has 8, worker:1 has 16.",
        "epochs": "epochs differs: worker:0 has 1, worker:1 has 2.",
        "validation": (
            "validation data: split differs: worker:0 has every process reads every batch; each of "
            "2 replicas keeps its rows, worker:1 has none."
        ),
        "seed": "seed differs: worker:0 has 1, worker:1 has 2.",
        "steps": "steps_per_execution differs: worker:0 has 1, worker:1 has 2.",
        "eager": "run_eagerly differs: worker:0 has False, worker:1 has True.",
        "frequency": "validation_freq differs: worker:0 has 1, worker:1 has 2.",
        "start": "initial_epoch differs: worker:0 has 0, worker:1 has 1.",
        "call": "call differs: worker:0 has fit, worker:1 has evaluate.",
    }
    for answer in (first, second):
        for case, text in expected.items():
            assert answer[case] == f"AgreementError: {text} {END}"
        assert "callbacks differs: worker:0 has EarlyStopping, worker:1 has" in answer["callbacks"]
        assert "worker:0 has a callback with save_freq=1, worker:1 has none" in answer["save"]
        # What only writes may be the chief's alone.
        assert answer["writers"] == answer["agreed"] == "nothing"


def test_rows(told):
    first, second = (answers["rows"] for answers in told[:2])
    # Python and NumPy draw alike, so that shuffles which they make agree.
    assert first["drawn"] == second["drawn"]
    same = ("pydataset", "permuted", "augmented", "own_cache", "off", "agreed")
    assert {case: first[case] for case in same} == dict.fromkeys(same, "nothing")
    for case in ("slices", "labels_alone", "validation", "predict"):
        of = "validation data" if case == "validation" else "data"
        assert first[case].startswith(
            f"AgreementError: {of}: worker:1 reads other rows than worker:0."
        )
    assert "shard() differs: worker:0 has 2, 0, worker:1 has 2, 1. tfdp gives" in first["shard"]
    assert "worker:0 and worker:1 write to one file" in first["cache"]
    assert {**first, "tfdp": ""} == {**second, "tfdp": ""}
    # Said, as inputs alone differ, and once.
    assert told[2].count("the same labels beside different inputs") == 1


def test_a_task_that_has_ended_is_named(told):
    assert told[0]["ended"]["alone"].startswith(
        "AgreementError: worker:1 has ended and does not call predict"
    )


def test_models(told):
    first, second = (answers["ended"]["model"] for answers in told[:2])
    assert first == second
    # Variables are counted from the first that the process has made.
    text = r"AgreementError: model: variable \d+ differs: worker:0 has (.*), worker:1 has (.*)\. "
    found = re.fullmatch(text + re.escape(END), first)
    assert found.groups() == ("kernel float32[4,8]", "kernel float32[4,16]")
