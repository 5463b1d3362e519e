import os
import sys

import pytest

from tfdp.cluster import Cluster, Task
from tfdp.launch import cores, dry_run, local, machine, plan
from tfdp.launch.plan import TaskProcess
from tfdp.launch.redaction import Redactor

FOUR = [(0, 4), (1, 5), (2, 6), (3, 7)]


@pytest.mark.parametrize(
    ("given", "tasks", "shares"),
    [
        (FOUR, 2, [(0, 4, 1, 5), (2, 6, 3, 7)]),
        (FOUR, 3, [(0, 4), (1, 5), (2, 6, 3, 7)]),
        (FOUR, 4, [(0, 4), (1, 5), (2, 6), (3, 7)]),
        # More tasks than cores: then siblings are parted.
        (FOUR, 5, [(0,), (4, 1), (5,), (2, 6), (3, 7)]),
        ([(2,), (3,)], 2, [(2,), (3,)]),
        # Nothing to divide.
        (FOUR, 1, []),
        (FOUR, 9, []),
        ([], 2, []),
    ],
)
def test_divide(given, tasks, shares):
    assert cores.divide(given, tasks) == shares


@pytest.mark.parametrize(
    ("cpus", "words"), [((3,), "3"), ((0, 4, 1, 5), "0-1,4-5"), ((2, 1, 0, 8), "0-2,8")]
)
def test_in_words(cpus, words):
    assert cores.in_words(cpus) == words


@pytest.mark.parametrize(
    ("tree", "expected"),
    [
        # (socket, last-level cache, core) of each CPU; None: no such file.
        ({0: (0, 0, 0), 1: (0, 0, 1), 2: (0, 0, 0), 3: (0, 0, 1)}, [(0, 2), (1, 3)]),
        ({0: (0, 0, 0), 1: (1, 1, 0), 2: (0, 0, 1), 3: (1, 1, 1)}, [(0,), (2,), (1,), (3,)]),
        ({0: (0, 1, 0), 1: (0, 0, 1), 2: (0, 0, 2)}, [(1,), (2,), (0,)]),
        ({0: (None, None, None), 1: (None, None, None)}, [(0,), (1,)]),
    ],
)
def test_cores_stand_beside_their_neighbours(tree, expected, tmp_path, monkeypatch):
    names = ("topology/physical_package_id", "cache/index3/id", "topology/core_id")
    for cpu, place in tree.items():
        for name, number in zip(names, place, strict=True):
            path = tmp_path / f"cpu{cpu}" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if number is not None:
                path.write_text(f"{number}\n")
    monkeypatch.setattr(machine, "_TOPOLOGY", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(tree))
    assert machine.cores() == expected


def test_this_machine_has_the_cores_that_it_lets_us_use():
    found = sorted(cpu for core in machine.cores() for cpu in core)
    assert found == sorted(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("cluster", "named", "expected"),
    [
        ({"worker": 2}, {}, {"worker:0": (0, 4, 1, 5), "worker:1": (2, 6, 3, 7)}),
        ({"chief": 1, "worker": 1}, {}, {"chief:0": (0, 4, 1, 5), "worker:0": (2, 6, 3, 7)}),
        # What only serves or coordinates runs where there is room.
        (
            {"chief": 1, "worker": 2, "ps": 1, "evaluator": 1},
            {},
            {"worker:0": (0, 4, 1, 5), "worker:1": (2, 6, 3, 7)},
        ),
        ({"worker": 1}, {}, {}),
        # Which cores are near to which GPU is not known here.
        ({"worker": 2}, {"gpus": ("0", "1")}, {}),
    ],
)
def test_the_plan_gives_cores_to_the_tasks_that_train(cluster, named, expected):
    addresses = {
        job: tuple(f"127.0.0.1:{2000 + 100 * n + i}" for i in range(count))
        for n, (job, count) in enumerate(cluster.items())
    }
    made = plan.plan(Cluster(**addresses), ["a.py"], seed=1, cores=FOUR, **named)
    assert {str(one.task): one.cpus for one in made if one.cpus} == expected


def test_a_dry_run_shows_the_cores():
    task = TaskProcess(Task("worker", 0), "127.0.0.1", ("a", "b"), {"C": "d"}, cpus=(1, 2, 5))
    assert dry_run.command_line(task, Redactor()) == "C=d taskset --cpu-list 1-2,5 a b"


def test_a_task_runs_on_its_cores_alone(tmp_path):
    cpu = max(os.sched_getaffinity(0))
    show = "import os; print(os.sched_getaffinity(0), flush=True)"
    task = TaskProcess(Task("worker", 0), "127.0.0.1", (sys.executable, "-c", show), cpus=(cpu,))
    with open(tmp_path / "out", "wb") as out:
        assert local.run([task], tmp_path / "logs", stdout=out, stderr=out) == 0
    assert (tmp_path / "out").read_text() == f"{{{cpu}}}\n"
