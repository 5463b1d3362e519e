"""The program that --platform=ray writes, and how mistakes are answered."""

import ast

import pytest

from platforms import asked, test_artefacts
from tfdp.error import Error
from tfdp.launch.platforms import ray

NODE = {"Alive": True, "Resources": {"CPU": 4.0, "GPU": 1.0}}


@pytest.mark.parametrize("name", test_artefacts.TABLE["ray"])
def test_what_is_written_is_a_program(name):
    ast.parse(test_artefacts.rendered("ray", name))


class Cluster:
    """Plays Ray, as far as its nodes go."""

    def __init__(self, *nodes):
        self._nodes = nodes

    def nodes(self):
        return self._nodes


@pytest.mark.parametrize(
    ("shape", "words", "nodes", "message"),
    [
        (
            "workers",
            ["--ray_cpus=8"],
            [NODE, NODE],
            "worker=2 asks Ray for 16 CPUs (2 tasks with up to 8 each), and the cluster has 8 on 2 "
            "nodes. Ask for less (--workers, --ray_cpus, --gpus_per_task), or add nodes.",
        ),
        (  # 8 CPUs in all, but none that has 3 for each of three
            "evaluator",
            ["--ray_cpus=2.5"],
            [NODE, NODE],
            "worker=2,evaluator=1 asks Ray for 7.5 CPUs (3 tasks with up to 2.5 each), and the "
            "cluster has 8 on 2 nodes. Ask for less (--workers, --ray_cpus, --gpus_per_task), or "
            "add nodes.",
        ),
        (
            "servers",
            ["--ray_cpus=0.5", "--gpus_per_task=1"],
            [NODE, {**NODE, "Alive": False}],
            "chief=1,worker=2,ps=2 asks Ray for 2 GPUs (2 tasks with up to 1 each), and the "
            "cluster has 1 on 1 node. Ask for less (--workers, --ray_cpus, --gpus_per_task), or "
            "add nodes.",
        ),
    ],
)
def test_a_placement_that_cannot_be_met_is_one_line(shape, words, nodes, message):
    values = asked.values(*words)
    job = asked.job(asked.SHAPES[shape], gpus_per_task=values.gpus_per_task)
    with pytest.raises(Error) as raised:
        ray._check_room(Cluster(*nodes), job, ray.resources(job, values))
    assert str(raised.value) == message


def test_what_fits_is_not_refused():
    job = asked.job(asked.SHAPES["servers"], gpus_per_task=1)
    values = asked.values("--ray_cpus=1")
    ray._check_room(Cluster(NODE, NODE), job, ray.resources(job, values))


def test_no_cpus_are_refused():
    with pytest.raises(Error) as raised:
        ray.render(asked.job(asked.SHAPES["workers"]), asked.values("--ray_cpus=0"))
    assert str(raised.value) == "--ray_cpus=0.0: use a number above 0."
