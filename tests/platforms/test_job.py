import pytest

from tfdp.error import Error
from tfdp.launch.platforms import job as job_lib
from tfdp.launch.shape import Shape


def test_variables_are_given_or_taken_from_here():
    variables, secrets = job_lib.read_variables(["A=1", "TOKEN", "B=x=y"], {"TOKEN": "s3cret"})
    assert variables == {"A": "1", "TOKEN": "s3cret", "B": "x=y"}
    assert secrets == {"TOKEN"}


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("1A=2", "--env='1A=2': write --env=NAME=VALUE, or --env=NAME."),
        ("TOKEN", "--env=TOKEN: TOKEN is not set here. Set it, or give it a value."),
        ("TF_CONFIG={}", "--env=TF_CONFIG: tfdp sets that itself. Leave it out."),
        ("TFDP_SEED=1", "--env=TFDP_SEED: tfdp sets that itself. Leave it out."),
    ],
)
def test_bad_variables_are_refused(word, message):
    with pytest.raises(Error) as raised:
        job_lib.read_variables([word], {})
    assert str(raised.value) == message


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("train-20260101-120000-77", "train-20260101-120000-77"),
        ("My run!", "my-run"),
        ("20260101", "run-20260101"),
        ("Größe/" + "a" * 60, "gr-e-" + "a" * 35),
        ("***", "run"),
    ],
)
def test_names_are_what_every_platform_takes(text, name):
    assert job_lib.platform_name(text) == name


def test_what_every_task_gets():
    job = job_lib.Job("a", Shape(2, evaluator=True), ("t.py",), 7, "/l", "/d", run="r")
    assert job.task_environment() == {
        "TFDP_SEED": "7",
        "TFDP_EVALUATOR": "r",
        "PYTHONUNBUFFERED": "1",
    }
    assert job.command[1:] == ("-m", "tfdp.run", "t.py")
