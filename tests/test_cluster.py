import json
import random
import subprocess
import sys

import pytest

from tfdp import cluster as cluster_lib
from tfdp.cluster import Cluster, ClusterError, Task

ALL = Cluster(chief=("c:1",), worker=("w0:2", "w1:3"), ps=("p:4",), evaluator=("e:5",))
EXAMPLE = '{"cluster": {"worker": ["a:2222", "b:2222"]}, "task": {"type": "worker", "index": 0}}'


def text(task_type="worker", index=0, **jobs):
    jobs = jobs or {"worker": ["a:1", "b:2"]}
    return json.dumps({"cluster": jobs, "task": {"type": task_type, "index": index}})


def refusal(function, *arguments, **named):
    with pytest.raises(ClusterError) as raised:
        function(*arguments, **named)
    message = str(raised.value)
    assert len(message.splitlines()) == 1
    return message


def test_tasks_in_order():
    assert [str(task) for task in ALL.tasks] == [
        "chief:0",
        "worker:0",
        "worker:1",
        "ps:0",
        "evaluator:0",
    ]
    assert [ALL.address(task) for task in ALL.tasks] == ["c:1", "w0:2", "w1:3", "p:4", "e:5"]
    assert str(ALL) == "chief + 2 workers + 1 ps + evaluator"


@pytest.mark.parametrize(
    ("task", "config"),
    [
        (
            Task("chief", 0),
            {
                "cluster": {"chief": ["c:1"], "worker": ["w0:2", "w1:3"], "ps": ["p:4"]},
                "task": {"type": "chief", "index": 0},
            },
        ),
        (
            Task("worker", 1),
            {
                "cluster": {"chief": ["c:1"], "worker": ["w0:2", "w1:3"], "ps": ["p:4"]},
                "task": {"type": "worker", "index": 1},
            },
        ),
        (
            Task("ps", 0),
            {
                "cluster": {"chief": ["c:1"], "worker": ["w0:2", "w1:3"], "ps": ["p:4"]},
                "task": {"type": "ps", "index": 0},
            },
        ),
        (
            Task("evaluator", 0),
            {"cluster": {"evaluator": ["e:5"]}, "task": {"type": "evaluator", "index": 0}},
        ),
    ],
)
def test_tf_config_and_back(task, config):
    assert json.loads(ALL.tf_config(task)) == config
    again, same_task = cluster_lib.parse(ALL.tf_config(task))
    assert same_task == task
    assert again.tf_config(task) == ALL.tf_config(task)


@pytest.mark.parametrize(
    ("cluster", "in_sync", "is_parameter_server", "chief"),
    [
        (ALL, 3, True, "chief:0"),
        (Cluster(worker=("a:1", "b:1")), 2, False, "worker:0"),
        (Cluster(chief=("a:1",)), 1, False, "chief:0"),
        (Cluster(worker=("a:1",), evaluator=("b:1",)), 1, False, "worker:0"),
        (Cluster(evaluator=("b:1",)), 0, False, "evaluator:0"),
    ],
)
def test_who_is_what(cluster, in_sync, is_parameter_server, chief):
    assert cluster.num_workers_in_sync == in_sync
    assert cluster.is_parameter_server == is_parameter_server
    assert str(cluster.chief_task()) == chief


def test_host():
    cluster = Cluster(worker=("a:1", "[::1]:2"))
    assert [cluster.host(task) for task in cluster.tasks] == ["a", "::1"]


@pytest.mark.parametrize(
    ("jobs", "message"),
    [
        (
            {},
            'The cluster has no task at all. Give it workers, as in {"worker": ["host:port"]}.',
        ),
        (
            {"chief": ("a:1", "b:1")},
            "The cluster has 2 chief tasks, and TensorFlow takes at most one. "
            "Make the others workers.",
        ),
        (
            {"worker": ("a:1",), "evaluator": ("b:1", "c:1")},
            "The cluster has 2 evaluator tasks, and TensorFlow takes at most one. "
            "Make the others workers.",
        ),
        (
            {"ps": ("a:1",)},
            "The cluster has 1 ps and nobody to train. Add a chief and at least one worker.",
        ),
        (
            {"worker": "a:1"},
            "The addresses of worker are 'a:1', not a list. Write [\"host:port\", ...].",
        ),
        (
            {"worker": ("a:1", "b")},
            'worker:1 has the address \'b\', without a port. Write "host:port", as in "host:2222".',
        ),
        (
            {"worker": ("a\nb:1",)},
            "worker:0 has the address 'a\\nb:1', with a space or control character. "
            'Write "host:port".',
        ),
        (
            {"worker": ("a:1", "A.:1")},
            "worker:0 and worker:1 have the same address: the address 'A.:1'. "
            "Give each task a port of its own.",
        ),
        (
            {"worker": ("a:1", "b:1"), "ps": ("b:1",)},
            "worker:1 and ps:0 have the same address: the address 'b:1'. "
            "Give each task a port of its own.",
        ),
        (
            {"worker": ("a:1", "b:1"), "evaluator": ("b:1",)},
            "worker:1 and evaluator:0 have the same address: the address 'b:1'. "
            "The evaluator is no worker: name that address once.",
        ),
    ],
)
def test_a_cluster_that_cannot_be(jobs, message):
    assert refusal(Cluster, **jobs) == message


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("workers", 0),
            "The task type 'workers' is unknown. Did you mean \"worker\"? "
            "Use one of chief, worker, ps, evaluator.",
        ),
        (
            ("banana\n", 0),
            "The task type 'banana\\n' is unknown. Use one of chief, worker, ps, evaluator.",
        ),
        (("master", 0), 'The task type "master" is that of TensorFlow 1. Call it "chief".'),
        ((None, 0), "The task type null is unknown. Use one of chief, worker, ps, evaluator."),
        (("worker", -1), "The task index -1 is negative. Count worker tasks from 0."),
        (("worker", 1.0), "The task index 1.0 is not a whole number. Use 0, 1, 2, ..."),
        (("worker", True), "The task index true is not a whole number. Use 0, 1, 2, ..."),
        (("worker", "one"), "The task index 'one' is not a whole number. Use 0, 1, 2, ..."),
    ],
)
def test_a_task_that_cannot_be(arguments, message):
    assert refusal(Task, *arguments) == message


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("", "TF_CONFIG is empty. Unset it to train on a single machine."),
        (
            "{'cluster': {}}",
            "TF_CONFIG is not JSON: line 1, column 2: "
            f"Expecting property name enclosed in double quotes. Write it like {EXAMPLE}.",
        ),
        (
            '{"cluster":\n  {"worker" ["a:1"]}}',
            f"TF_CONFIG is not JSON: line 2, column 13: Expecting ':' delimiter. "
            f"Write it like {EXAMPLE}.",
        ),
        ("[]", f"TF_CONFIG is a list, not an object. Write it like {EXAMPLE}."),
        ("3", f"TF_CONFIG is 3, not an object. Write it like {EXAMPLE}."),
        ("{}", f"TF_CONFIG holds no cluster. Write it like {EXAMPLE}, or unset it."),
        ("[" * 200_000, f"TF_CONFIG is nested too deeply. Write it like {EXAMPLE}."),
        (
            '{"a": ' + "9" * 5000 + "}",
            f"TF_CONFIG holds an endless number. Write it like {EXAMPLE}.",
        ),
        ('{"a": NaN}', "TF_CONFIG holds NaN, which is not JSON. Write a number."),
        (
            '{"cluster": {"worker": ["a:1"], "worker": ["b:1"]}}',
            "TF_CONFIG has the key 'worker' twice in an object. Keep one.",
        ),
        ('{"clusters": {}}', "TF_CONFIG has the key 'clusters'. Did you mean \"cluster\"?"),
        (
            '{"cluster": {"worker": ["a:1"]}, "Task": {}}',
            "TF_CONFIG has the key 'Task'. Did you mean \"task\"?",
        ),
        (
            '{"cluster": ["a:1"]}',
            f'TF_CONFIG: "cluster" is a list, not an object. Write it like {EXAMPLE}.',
        ),
        (
            text(workers=["a:1"]),
            "TF_CONFIG: The job 'workers' is unknown. Did you mean \"worker\"? "
            "Use one of chief, worker, ps, evaluator.",
        ),
        (
            text(master=["a:1"], worker=["b:1"]),
            'TF_CONFIG: The job "master" is that of TensorFlow 1. Call it "chief".',
        ),
        (
            text(worker="a:1"),
            "TF_CONFIG: The addresses of worker are 'a:1', not a list. Write [\"host:port\", ...].",
        ),
        (
            text(worker={"1": "b:1"}),
            "TF_CONFIG: The worker addresses are an object whose keys are not 0 to 0: "
            "a task is left out. Write a list of all addresses.",
        ),
        (
            '{"cluster": {"worker": ["a:1"]}}',
            'TF_CONFIG: "task" is missing. '
            'Say which task this is: "task": {"type": "worker", "index": 0}.',
        ),
        (
            '{"cluster": {"worker": ["a:1"]}, "task": {"index": 0}}',
            'TF_CONFIG: "task" has no "type". Add it, as in "type": "worker".',
        ),
        (
            '{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker"}}',
            'TF_CONFIG: "task" has no "index". Add it, as in "index": 0.',
        ),
        (text(index=-1), "TF_CONFIG: The task index -1 is negative. Count worker tasks from 0."),
        (text(index="-1"), "TF_CONFIG: The task index -1 is negative. Count worker tasks from 0."),
        (
            text(index=" 1"),
            "TF_CONFIG: The task index ' 1' is not a whole number. Use 0, 1, 2, ...",
        ),
        (
            text(index=2),
            "TF_CONFIG: The task index 2 is out of range: the cluster has 2 worker tasks. "
            "Count from 0 to 1, or add the task's address.",
        ),
        (
            text(index=2, worker=["a:1", "b:1"], evaluator=["c:1"]),
            "TF_CONFIG: The task index 2 is out of range: the cluster has 2 worker tasks "
            "(the evaluator is not counted as a worker). "
            "Count from 0 to 1, or add the task's address.",
        ),
        (
            text("ps"),
            "TF_CONFIG: The task is ps 0, but the cluster has no ps (it has 2 workers). "
            "Add its address, or name a task of the cluster.",
        ),
        (
            text("evaluator", 1),
            "TF_CONFIG: The task is evaluator 1, but the cluster has no evaluator "
            "(it has 2 workers). Add its address, or name a task of the cluster.",
        ),
    ],
)
def test_a_tf_config_that_is_refused(config, message):
    assert refusal(cluster_lib.parse, config) == message


@pytest.mark.parametrize(
    ("config", "cluster", "task"),
    [
        (text(index="1"), Cluster(worker=("a:1", "b:2")), Task("worker", 1)),
        (
            text(worker={"1": "b:1", "0": "a:1"}),
            Cluster(worker=("a:1", "b:1")),
            Task("worker", 0),
        ),
        (text(worker=["a:1"], ps=[]), Cluster(worker=("a:1",)), Task("worker", 0)),
        # As Kubeflow starts an evaluator: no cluster names it.
        (text("evaluator", 0, worker=["a:1"]), Cluster(worker=("a:1",)), Task("evaluator", 0)),
        (
            '{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 0, "trial": ""},'
            ' "environment": "cloud", "rpc_layer": "grpc"}',
            Cluster(worker=("a:1",)),
            Task("worker", 0),
        ),
    ],
)
def test_a_tf_config_that_is_taken(config, cluster, task):
    assert cluster_lib.parse(config) == (cluster, task)
    assert cluster_lib.from_environment({"TF_CONFIG": config}) == (cluster, task)


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"TF_CONFIG": "{}"},
        {"TF_CONFIG": '{"cluster": {}}'},
        {"TF_CONFIG": '{"task": {"type": "worker", "index": 0}}'},
    ],
)
def test_an_environment_without_a_cluster(environ):
    assert cluster_lib.from_environment(environ) is None


def test_an_environment_with_a_bad_one():
    assert refusal(cluster_lib.from_environment, {"TF_CONFIG": " "}) == (
        "TF_CONFIG is empty. Unset it to train on a single machine."
    )


@pytest.mark.parametrize(
    ("config", "variable", "run"),
    [
        (None, None, None),
        (text(), None, None),
        (text(), "", None),
        # What the launcher says: it names no evaluator in the cluster of those who train.
        (text(), "a-17", "a-17"),
        (None, "a-17", "a-17"),
        # Clusters that are made by hand.
        (text(worker=["a:1"], evaluator=["e:1"]), None, ""),
        (text(worker=["a:1"], evaluator=["e:1"]), "a-17", "a-17"),
        (text("evaluator", evaluator=["e:1"]), None, ""),
        (text("evaluator", worker=["a:1"]), None, ""),
    ],
)
def test_whether_there_is_an_evaluator(config, variable, run):
    environ = {"TF_CONFIG": config, "TFDP_EVALUATOR": variable}
    environ = {name: value for name, value in environ.items() if value is not None}
    assert cluster_lib.evaluated_run(environ) == run


WORKERS = Cluster(worker=("a:1", "b:1"))


@pytest.mark.parametrize(
    ("cluster", "strategy", "task"),
    [
        (WORKERS, "multi_worker", None),
        (WORKERS, "multi_worker", Task("worker", 1)),
        (Cluster(chief=("a:1",)), "multi_worker", None),
        (ALL, "parameter_server", Task("chief", 0)),
        (ALL, "one_device", Task("evaluator", 0)),
        (ALL, "mirrored", Task("evaluator", 0)),
        (Cluster(worker=("a:1",)), "one_device", None),
        (Cluster(worker=("a:1",), evaluator=("b:1",)), "mirrored", None),
    ],
)
def test_a_strategy_that_fits(cluster, strategy, task):
    cluster_lib.check_strategy(cluster, strategy, task)


@pytest.mark.parametrize(
    ("cluster", "strategy", "task", "message"),
    [
        (
            ALL,
            "multi_worker",
            None,
            "strategy=multi_worker has no parameter servers, but the cluster has chief + 2 workers "
            "+ 1 ps + evaluator. Use strategy=parameter_server, or take ps out of the cluster.",
        ),
        (
            Cluster(evaluator=("a:1",)),
            "multi_worker",
            None,
            "strategy=multi_worker needs workers, but the cluster has evaluator. Add workers.",
        ),
        (
            WORKERS,
            "parameter_server",
            None,
            "strategy=parameter_server needs a chief, a worker and a ps, but the cluster has "
            "2 workers. Add chief and ps, or use strategy=multi_worker without ps.",
        ),
        (
            Cluster(chief=("a:1",), ps=("b:1",)),
            "parameter_server",
            None,
            "strategy=parameter_server needs a chief, a worker and a ps, but the cluster has "
            "chief + 1 ps. Add worker, or use strategy=multi_worker without ps.",
        ),
        (
            WORKERS,
            "one_device",
            None,
            "strategy=one_device trains in one process, but the cluster has 2 workers. "
            "Use strategy=multi_worker, or unset TF_CONFIG.",
        ),
        (
            ALL,
            "mirrored",
            Task("worker", 0),
            "strategy=mirrored trains in one process, but the cluster has chief + 2 workers + 1 ps "
            "+ evaluator. Use strategy=parameter_server, or unset TF_CONFIG.",
        ),
        (
            ALL,
            "multi_worker",
            Task("evaluator", 0),
            "strategy=multi_worker was asked for by evaluator:0, which is not counted as a worker: "
            "it takes no part in training. Use one_device or mirrored there.",
        ),
        (
            WORKERS,
            "multiworker",
            None,
            "strategy='multiworker' is unknown. Did you mean \"multi_worker\"? "
            "Use one of one_device, mirrored, multi_worker, parameter_server.",
        ),
    ],
)
def test_a_strategy_that_does_not_fit(cluster, strategy, task, message):
    assert refusal(cluster_lib.check_strategy, cluster, strategy, task) == message


PIECES = [
    *'{}[]",:\\\n\t0-',
    *("null", "true", "NaN", "1e999", "-1", "1.5", '"master"', "\ud800", '"\\ud800"', "\u2028"),
    *("\\u0000", "[" * 5000, '{"a":' * 5000, "9" * 5000, "a" * 5000, '"worker"', '"cluster"'),
]
VALUES = [
    *(None, True, -1, 0, 1, 10**30, 1.5, float("nan"), float("inf"), "", "0", "1", "-1", "\n"),
    *("a:1", "a:2", "b:3", "[::1]:4", "a", ":1", "a:0", "\ud800:1", "a\u2028:1", "x" * 5000),
    *([], {}, ["a:1"], ["a:1", "b:2"], ["c:3"], ["d:4", 5], {"0": "a:1"}, {"1": "a:1"}, [[]]),
    *("chief", "worker", "ps", "evaluator", "master", "workers"),
]


def edited_text(draw):
    """A good TF_CONFIG with a few pieces of its text replaced."""
    config = draw.choice([ALL.tf_config(task) for task in ALL.tasks] + [text(index="1")])
    for _ in range(draw.randint(1, 3)):
        start = draw.randint(0, len(config))
        end = min(len(config), start + draw.choice((0, 0, 1, 2, 8, 30)))
        config = config[:start] + draw.choice((*PIECES, "")) + config[end:]
    return config


def edited_object(draw):
    """A good TF_CONFIG with a few of its keys and values replaced."""
    config = {
        "cluster": {"worker": ["w:1", "w:2"], "ps": ["p:1"], "chief": ["c:1"]},
        "task": {"type": draw.choice(("worker", "ps", "chief", "evaluator")), "index": 0},
    }
    for _ in range(draw.randint(1, 3)):
        place = draw.choice((config, config["cluster"], config["cluster"], config["task"]))
        if not isinstance(place, dict):
            break
        key = draw.choice((*place, "worker", "evaluator", "workers", "index", "\n"))
        place.pop(key, None)
        if draw.random() < 0.8:
            place[key] = draw.choice(VALUES)
        if not {"cluster", "task"} <= set(config):
            break
    return json.dumps(config)


@pytest.mark.parametrize("edited", [edited_text, edited_object])
def test_any_text_is_taken_or_refused_in_one_line(edited):
    draw = random.Random(20250)
    taken = 0
    for _ in range(20_000):
        config = edited(draw)
        try:
            cluster, task = cluster_lib.parse(config)
        except ClusterError as error:
            message = str(error)
            assert len(message.splitlines()) == 1, config
            assert len(message) < 500, config
            message.encode()
        else:
            taken += 1
            assert isinstance(cluster, Cluster), config
            assert isinstance(task, Task), config
    # Were all refused at the first character, nothing would have been tried.
    assert taken > 200


def test_no_tensorflow_is_imported():
    program = (
        "import sys, tfdp.cluster, tfdp.batching, tfdp.launch.plan, tfdp.launch.local, "
        "tfdp.launch.task_start; "
        "print([m for m in ('tensorflow', 'keras', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "[]\n"
