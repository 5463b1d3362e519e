import json

import pytest

from tfdp.cluster import ClusterError, Task, parse
from tfdp.launch import discovery

CLUSTER = json.dumps(
    {"chief": ["a:1"], "worker": ["b:1", "c:1"], "ps": ["d:1"], "evaluator": ["e:1"]}
)


@pytest.mark.parametrize(
    ("number", "task"),
    [
        ("0", Task("chief", 0)),
        ("2", Task("worker", 1)),
        ("3", Task("ps", 0)),
        ("4", Task("evaluator", 0)),
    ],
)
def test_one_text_serves_all_tasks(number, task):
    for name in ("TFDP_TASK_INDEX", "JOB_COMPLETION_INDEX"):
        environ = {"TFDP_CLUSTER": CLUSTER, name: number}
        discovery.begin(environ)
        found = parse(environ["TF_CONFIG"])
        assert found.task == task
        if task.type != "evaluator":
            assert found.cluster.num_workers_in_sync == 3


def test_the_own_index_counts_before_that_of_kubernetes():
    # A pod of a JobSet's replicated job has an index that is counted within its own job.
    environ = {"TFDP_CLUSTER": CLUSTER, "TFDP_TASK_INDEX": "3", "JOB_COMPLETION_INDEX": "0"}
    assert discovery.find(environ).task == Task("ps", 0)


def test_a_tf_config_is_left_as_it_is():
    environ = {"TF_CONFIG": "{}", "TFDP_CLUSTER": CLUSTER, "TFDP_TASK_INDEX": "0"}
    discovery.begin(environ)
    assert environ["TF_CONFIG"] == "{}"


def test_without_a_platform_nothing_is_set():
    environ = {"JOB_COMPLETION_INDEX": "0", "SLURM_JOB_ID": "7"}
    discovery.begin(environ)
    assert "TF_CONFIG" not in environ
    assert discovery.is_chief(environ)


def test_the_chief_is_known_before_a_strategy():
    assert discovery.is_chief({"TFDP_CLUSTER": CLUSTER, "TFDP_TASK_INDEX": "0"})
    assert not discovery.is_chief({"TFDP_CLUSTER": CLUSTER, "TFDP_TASK_INDEX": "1"})


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        (
            {"TFDP_CLUSTER": "worker", "TFDP_TASK_INDEX": "0"},
            "TFDP_CLUSTER does not hold the addresses of a cluster. Write it like "
            'TFDP_CLUSTER=\'{"worker": ["a:2222", "b:2222"]}\'.',
        ),
        (
            {"TFDP_CLUSTER": '{"wroker": ["a:1"]}', "TFDP_TASK_INDEX": "0"},
            "TFDP_CLUSTER does not hold the addresses of a cluster. Write it like "
            'TFDP_CLUSTER=\'{"worker": ["a:2222", "b:2222"]}\'.',
        ),
        (
            {"TFDP_CLUSTER": '{"worker": ["a:1", "a:1"]}', "TFDP_TASK_INDEX": "0"},
            "TFDP_CLUSTER: worker:0 and worker:1 have the same address: the address 'a:1'. Give "
            "each task a port of its own.",
        ),
        (
            {"TFDP_CLUSTER": CLUSTER},
            "TFDP_CLUSTER is set, and neither TFDP_TASK_INDEX nor JOB_COMPLETION_INDEX says which "
            "task this is. Set TFDP_TASK_INDEX to its number, from 0 to 4 (chief, workers, "
            "parameter servers, evaluator).",
        ),
        (
            {"TFDP_CLUSTER": CLUSTER, "TFDP_TASK_INDEX": "5"},
            "TFDP_TASK_INDEX='5' is not the number of a task: the cluster has chief + 2 workers + "
            "1 ps + evaluator. Count from 0 to 4 (chief, workers, parameter servers, evaluator).",
        ),
    ],
)
def test_what_makes_no_cluster_is_one_line(environ, message):
    with pytest.raises(ClusterError) as raised:
        discovery.begin(environ)
    assert str(raised.value) == message
