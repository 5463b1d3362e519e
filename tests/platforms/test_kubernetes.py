"""What is made on Kubernetes, as text and against the API's schemas; how mistakes are answered."""

import json
import sys

import kubernetes_validate
import pytest
import yaml
from kubeflow_trainer_api import models

from platforms import asked, test_artefacts
from tfdp.error import Error
from tfdp.launch.platforms import kubernetes, yaml_text
from tfdp.launch.platforms import kubernetes_objects as objects_lib

IMAGE = test_artefacts.IMAGE
TABLE = test_artefacts.TABLE["kubernetes"]


def rendered(name):
    return test_artefacts.rendered("kubernetes", name)


@pytest.mark.parametrize("name", [name for name in TABLE if name.startswith("job-")])
def test_the_schemas_of_kubernetes_take_it(name):
    for one in yaml.safe_load_all(rendered(name)):
        kubernetes_validate.validate(one, "1.33", strict=True)


@pytest.mark.parametrize("name", TABLE)
def test_what_is_read_is_what_was_meant(name):
    shape, words, changes = TABLE[name]
    job = asked.job(asked.SHAPES[shape], **changes)
    pod, kind = kubernetes._read(job, asked.values(*words))
    assert list(yaml.safe_load_all(rendered(name))) == json.loads(
        json.dumps(objects_lib.objects(job, pod, kind))
    )


@pytest.mark.parametrize("name", TABLE)
def test_templates_of_pods_are_whole_in_every_kind(name):
    """A pod's template is Kubernetes's own in each kind: it is checked as a Pod."""

    def templates(value):
        if isinstance(value, dict):
            if {"containers"} <= value.keys():
                yield value
            for part in value.values():
                yield from templates(part)
        elif isinstance(value, list):
            for part in value:
                yield from templates(part)

    found = [spec for one in yaml.safe_load_all(rendered(name)) for spec in templates(one)]
    assert found
    for spec in found:
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}, "spec": spec}
        kubernetes_validate.validate(pod, "1.33", strict=True)


@pytest.mark.parametrize(
    "value",
    [
        {"a": "null", "b": "1", "c": "it's", "d": 'say "no"', "e": "two\nlines", "f": "", "g": "-"},
        {"on": ["yes", 1, 1.5, True, None, {}, [], {"x": []}], "list": [["a", "b"], [{"c": "d"}]]},
        {"1e3": "0x1F", "~": "~", "umlaut": "für", "colon": "a: b", "hash": "a #b", "n": "N"},
    ],
)
def test_yaml_is_read_as_it_was_written(value):
    assert yaml.safe_load(yaml_text.documents([value])) == value


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            [],
            "--platform=kubernetes needs --image: the image of the containers, in which tfdp and "
            "the script are installed.",
        ),
        (
            [IMAGE, "--kubernetes_kind=pod"],
            "--kubernetes_kind=pod: use one of auto, job, jobset, tfjob, trainjob.",
        ),
        (
            [IMAGE, "--kubernetes_memory=8 GB"],
            "--kubernetes_memory=8 GB: write a number like 4, 500m or 8Gi.",
        ),
        (
            [IMAGE, "--namespace=My_Team"],
            "--namespace=My_Team: use small letters, digits and dashes.",
        ),
        (
            [IMAGE, "--kubernetes_kind=trainjob"],
            "--kubernetes_kind=trainjob runs workers alone: a TrainJob has nodes of one kind. Use "
            "--kubernetes_kind=jobset for a chief, parameter servers or an evaluator.",
        ),
    ],
)
def test_a_bad_flag_is_one_line(words, message):
    with pytest.raises(Error) as raised:
        kubernetes.render(asked.job(asked.SHAPES["servers"]), asked.values(*words))
    assert str(raised.value) == message


def test_without_kubectl_the_remedy_is_said(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Error) as raised:
        kubernetes.launch(asked.job(asked.SHAPES["workers"]), asked.values(IMAGE, "--detach"))
    assert str(raised.value) == (
        "--platform=kubernetes needs the program kubectl, which is not on PATH. Install it "
        "(kubernetes.io/docs/tasks/tools), or write the objects with --output=FILE."
    )


def test_the_secret_holds_the_values_and_nothing_else_does():
    job = asked.job(asked.SHAPES["workers"])
    made = objects_lib.secret(job, objects_lib.Pod("i"))
    kubernetes_validate.validate(made, "1.33", strict=True)
    assert made["stringData"] == {"TOKEN": "s3cret-value"}
    assert objects_lib.secret(asked.job(asked.SHAPES["workers"], secrets=frozenset()), None) is None
    assert "kubernetes" not in sys.modules  # kubectl is the only client


MODELS = {
    "JobSet": models.JobsetV1alpha2JobSet,
    "TrainingRuntime": models.TrainerV1alpha1TrainingRuntime,
    "TrainJob": models.TrainerV1alpha1TrainJob,
}


def test_the_models_of_jobset_and_trainer_know_every_field():
    seen = set()
    for name in TABLE:
        for one in yaml.safe_load_all(rendered(name)):
            model = MODELS.get(one["kind"])
            if model is None:
                continue
            seen.add(one["kind"])
            # What they do not know they leave out.
            assert model.from_dict(one).to_dict() == one
    assert seen == MODELS.keys()
