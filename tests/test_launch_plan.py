import pathlib

import pytest

from tfdp.cluster import Cluster, ClusterError, Task
from tfdp.launch import plan
from tfdp.launch.plan import TaskProcess
from tfdp.launch.shape import Shape


def refusal(function, *arguments, **named):
    with pytest.raises(ClusterError) as raised:
        function(*arguments, **named)
    assert len(str(raised.value).splitlines()) == 1
    return str(raised.value)


@pytest.mark.parametrize(
    ("asked", "count"),
    [
        ({"workers": 1}, 1),
        ({"workers": 2}, 2),
        ({"workers": 2, "chief": True}, 3),
        ({"workers": 2, "chief": True, "ps": 3, "evaluator": True}, 7),
        ({"workers": 1, "evaluator": True}, 2),
    ],
)
def test_a_shape_has_its_tasks_in_order(asked, count):
    shape = Shape(**asked)
    assert len(shape) == count
    assert plan.local_cluster(shape, range(2000, 2000 + count)).tasks == shape.tasks
    assert Shape.parse(str(shape)) == shape


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (
            {"workers": 0},
            "--workers=0 is not a whole number from 1 up (the chief and the evaluator come on top)."
            " Use --workers=1 or more.",
        ),
        (
            {"workers": 0, "evaluator": True},
            "--workers=0 is not a whole number from 1 up (the chief and the evaluator come on top)."
            " Use --workers=1 or more.",
        ),
        (
            {"workers": 1, "chief": True, "ps": -1},
            "--ps=-1 is not a whole number from 0 up. Use --ps=0 or more.",
        ),
        (
            {"workers": 2, "ps": 1},
            "--ps=1 needs --chief: the chief coordinates the workers of parameter servers. "
            "Add --chief, or leave out --ps.",
        ),
        (
            {"workers": 10**6},
            "--workers=1000000 --ps=0 makes 1000000 tasks. Use at most 1000.",
        ),
    ],
)
def test_what_cannot_be_launched(asked, message):
    assert refusal(Shape, **asked) == message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "worker=two",
            "'worker=two' does not say how many tasks a cluster has. Write it like "
            "chief=1,worker=2,ps=1,evaluator=1.",
        ),
        ("chief=2,worker=1", "'chief=2,worker=1': a cluster has one chief at most."),
        (
            "ps=1,worker=1",
            "--ps=1 needs --chief: the chief coordinates the workers of parameter servers. "
            "Add --chief, or leave out --ps.",
        ),
    ],
)
def test_a_shape_is_read_from_text(text, message):
    assert refusal(Shape.parse, text) == message


def test_local_cluster():
    shape = Shape(2, chief=True, ps=1, evaluator=True)
    cluster = plan.local_cluster(shape, [1, 2, 3, 4, 5])
    assert cluster == Cluster(
        chief=("127.0.0.1:1",),
        worker=("127.0.0.1:2", "127.0.0.1:3"),
        ps=("127.0.0.1:4",),
        evaluator=("127.0.0.1:5",),
    )


def test_local_cluster_needs_its_ports():
    assert refusal(plan.local_cluster, Shape(2), [1]) == (
        "2 tasks need 2 addresses, but 1 were given."
    )


def test_whole_plan():
    cluster = plan.local_cluster(Shape(2, evaluator=True), [2001, 2002, 2003])
    processes = plan.plan(
        cluster,
        ["train.py", "--name=a b"],
        seed=7,
        gpus=("0", "1", "2", "3"),
        log_dir="runs/a",
        python="/venv/bin/python",
        environ={"HTTP_PROXY": "none", "TFDP_SEED": "8"},
        run="a-17",
    )
    command = ("/venv/bin/python", "-m", "tfdp.run", "train.py", "--name=a b")
    common = {
        "HTTP_PROXY": "none",
        "TFDP_SEED": "7",
        "TFDP_EVALUATOR": "a-17",
        "PYTHONUNBUFFERED": "1",
    }
    workers = '{"cluster": {"worker": ["127.0.0.1:2001", "127.0.0.1:2002"]}, "task": '
    assert processes == [
        TaskProcess(
            Task("worker", 0),
            "127.0.0.1",
            command,
            {
                **common,
                "TF_CONFIG": workers + '{"type": "worker", "index": 0}}',
                "CUDA_VISIBLE_DEVICES": "0,1",
            },
            pathlib.Path("runs/a/worker-0.log"),
        ),
        TaskProcess(
            Task("worker", 1),
            "127.0.0.1",
            command,
            {
                **common,
                "TF_CONFIG": workers + '{"type": "worker", "index": 1}}',
                "CUDA_VISIBLE_DEVICES": "2,3",
            },
            pathlib.Path("runs/a/worker-1.log"),
        ),
        TaskProcess(
            Task("evaluator", 0),
            "127.0.0.1",
            command,
            {
                **common,
                "TF_CONFIG": '{"cluster": {"evaluator": ["127.0.0.1:2003"]}, '
                '"task": {"type": "evaluator", "index": 0}}',
                "CUDA_VISIBLE_DEVICES": "-1",
            },
            pathlib.Path("runs/a/evaluator-0.log"),
        ),
    ]


@pytest.mark.parametrize("evaluator", [False, True])
def test_all_tasks_hear_of_an_evaluator(evaluator):
    ports = range(2000, 2002 + evaluator)
    cluster = plan.local_cluster(Shape(2, evaluator=evaluator), ports)
    processes = plan.plan(cluster, ["train.py"], seed=7)
    heard = [process.environment.get("TFDP_EVALUATOR") for process in processes]
    assert heard == (["1"] * 3 if evaluator else [None] * 2)


@pytest.mark.parametrize(
    ("asked", "gpus", "visible"),
    [
        ({"workers": 2}, (), [None, None]),
        ({"workers": 2}, ("0", "1"), ["0", "1"]),
        ({"workers": 1}, ("2", "5"), ["2,5"]),
        ({"workers": 1, "chief": True}, ("0", "1"), ["0", "1"]),
        # The chief of parameter servers computes nothing.
        (
            {"workers": 2, "chief": True, "ps": 1, "evaluator": True},
            ("0", "1"),
            ["-1", "0", "1", "-1", "-1"],
        ),
        ({"workers": 2}, ("GPU-a", "GPU-b"), ["GPU-a", "GPU-b"]),
    ],
)
def test_gpus(asked, gpus, visible):
    cluster = plan.local_cluster(Shape(**asked), range(2000, 2000 + len(visible)))
    processes = plan.plan(cluster, ["a.py"], seed=0, gpus=gpus)
    assert [p.environment.get("CUDA_VISIBLE_DEVICES") for p in processes] == visible
    assert [gpu for p in processes for gpu in plan.gpus_of(p)] == list(gpus)
    assert [p.log for p in processes] == [None] * len(visible)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"gpus": ("0",)},
            "2 training tasks need a GPU each, but there are 1 (0). "
            "Start fewer tasks, or set CUDA_VISIBLE_DEVICES=-1 to train on the CPU.",
        ),
        (
            {"gpus": ("0", "1", "2")},
            "3 GPUs (0,1,2) do not divide over 2 training tasks. "
            "Set CUDA_VISIBLE_DEVICES=0,1, or change the number of tasks.",
        ),
        ({"script": []}, "There is no script to run. Name one: -- SCRIPT.py ARGS."),
        ({"script": ["-m"]}, "There is no module after -m. Name one: -- -m MODULE ARGS."),
        ({"seed": -1}, "seed=-1 is not a whole number from 0 to 2147483647. Use one."),
        ({"seed": 2**31}, "seed=2147483648 is not a whole number from 0 to 2147483647. Use one."),
        ({"seed": None}, "seed=None is not a whole number from 0 to 2147483647. Use one."),
    ],
)
def test_what_cannot_be_planned(arguments, message):
    cluster = plan.local_cluster(Shape(2), [1, 2])
    assert refusal(plan.plan, cluster, **{"script": ["a.py"], "seed": 0, **arguments}) == message


def test_a_task_process_cannot_be_changed():
    environment = {"A": "1"}
    process = TaskProcess(Task("worker", 0), "a", ("x",), environment)
    environment["A"] = "2"
    assert process.environment == {"A": "1"}
    with pytest.raises(TypeError):
        process.environment["A"] = "2"
    assert len({process, process}) == 1


@pytest.mark.parametrize(
    ("command", "environment"),
    [
        ((), {}),
        ("x", {}),
        (("x\0",), {}),
        ((1,), {}),
        (("x",), {"A": "\0"}),
        (("x",), {"A": None}),
        (("x",), {"A=B": "1"}),
        (("x",), {"": "1"}),
        (("x",), {"A": "\ud800"}),
    ],
)
def test_what_no_process_can_be_given(command, environment):
    with pytest.raises(ValueError):
        TaskProcess(Task("worker", 0), "a", command, environment)
