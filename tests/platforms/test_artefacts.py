"""Plan x platform x kind of cluster: the whole artefact, as a file that a reader can check.

What is asked for is the same on every platform (`asked.job`), but for what a row says. To write the
files anew after a change, and read them:

    PYTHONPATH=tests python tests/platforms/test_artefacts.py
"""

import dataclasses
import sys

import pytest

from platforms import asked
from tfdp.launch import platforms

SUFFIXES = {"ssh": "sh", "slurm": "sh", "kubernetes": "yaml", "ray": "py.txt"}
IMAGE = "--image=registry/team/digits:1"
GPUS = {"gpus_per_task": 2}
# What a row renders: the kind of cluster, the platform's flags, and what else differs.
TABLE = {
    "ssh": {
        "workers": ("workers", ["--hosts=a:2,b"], {}),
        "workers-gpus": ("workers", ["--hosts=a:2,b:2"], GPUS),
        "servers": (
            "servers",
            [
                *("--hosts=a:2,me@b:2,[fd00::3]:2", "--port=4000"),
                "--ssh_args=-p 2200 -i '/my keys/id'",
            ],
            {},
        ),
        "evaluator": ("evaluator", ["--hosts=a:2,b"], {}),
        "copied": (
            "workers",
            ["--hosts=a:2", "--sync", "--remote_dir=~/my runs", "--remote_python=/my venv/python"],
            {"trust_network": True},
        ),
    },
    "slurm": {
        "workers": ("workers", ["--nodes=2", "--tasks_per_node=1", "--time=1:00:00"], {}),
        "workers-gpus": ("workers", ["--nodes=2"], GPUS),
        "workers-gpus-of-a-node": ("workers", ["--nodes=1", "--gpus_per_node=4"], {}),
        "servers": (
            "servers",
            ["--cpus_per_task=4", "--partition=long", "--account=me", "--slurm_args=--mem=4G"],
            {"script": ("-m", "pkg.train")},
        ),
        "evaluator": ("evaluator", ["--signal=USR1@300"], {"trust_network": True}),
    },
    "kubernetes": {
        "job-workers": ("workers", [IMAGE], {}),
        "job-workers-gpus": (
            "workers",
            [
                *(IMAGE, "--namespace=ml", "--kubernetes_cpu=4", "--kubernetes_memory=8Gi"),
                "--kubernetes_directory=/app",
            ],
            GPUS,
        ),
        "job-evaluator": ("evaluator", [IMAGE], {}),
        "jobset-servers": ("servers", [IMAGE], {}),
        "jobset-servers-gpus": ("servers", [IMAGE], GPUS),
        "jobset-workers": ("workers", [IMAGE, "--kubernetes_kind=jobset"], {}),
        "tfjob-servers": ("servers", [IMAGE, "--kubernetes_kind=tfjob"], {}),
        "trainjob-workers": ("workers", [IMAGE, "--kubernetes_kind=trainjob"], {}),
    },
    "ray": {
        "workers": ("workers", ["--ray_cpus=2"], {"gpus_per_task": 1}),
        "servers": ("servers", ["--ray_cpus=2"], {}),
        "evaluator": ("evaluator", ["--ray_cpus=2"], {}),
    },
}
ROWS = [(platform, name) for platform, rows in TABLE.items() for name in rows]


def path(platform, name):
    return asked.ARTEFACTS / f"{platform}-{name}.{SUFFIXES[platform]}"


def rendered(platform, name):
    shape, words, changes = TABLE[platform][name]
    job = asked.job(asked.SHAPES[shape], **changes)
    return platforms.module(platform).render(job, asked.values(*words))


@pytest.mark.parametrize(("platform", "name"), ROWS)
def test_the_whole_artefact(platform, name):
    text = rendered(platform, name)
    assert text == path(platform, name).read_text()
    assert "s3cret" not in text
    assert "TOKEN" in text


@pytest.mark.parametrize("shape", asked.SHAPES)
@pytest.mark.parametrize("platform", TABLE)
def test_every_platform_runs_every_kind_of_cluster(platform, shape):
    assert shape in {row[0] for row in TABLE[platform].values()}
    job = asked.job(dataclasses.replace(asked.SHAPES[shape], workers=7))
    wide = {"ssh": ["--hosts=a:20"], "kubernetes": [IMAGE]}.get(platform, [])
    text = platforms.module(platform).render(job, asked.values(*wide))
    assert text != rendered(platform, next(iter(TABLE[platform])))


def test_no_file_is_left_that_no_row_has_made():
    made = {path(*row).name for row in ROWS}
    others = {one.name for one in asked.ARTEFACTS.iterdir()} - made
    assert all(name.startswith("slurm-") and name.endswith("-launcher.sh") for name in others)


if __name__ == "__main__":
    for row in ROWS:
        path(*row).write_text(rendered(*row))
    sys.stderr.write(f"{len(ROWS)} files in {asked.ARTEFACTS}\n")
