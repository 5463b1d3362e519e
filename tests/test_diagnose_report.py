import json

import pytest

from tfdp.cluster import Cluster
from tfdp.diagnose import probe, report

CLUSTER = Cluster(worker=("a:1", "b:1"))
FACTS = {
    "host": "a",
    "python": "3.11.7",
    "tensorflow": "2.21.0",
    "keras": "3.15.1",
    "tfdp": "0.1.0",
    "gpus": "",
    "driver": "",
    "nccl": "",
    "free_disk_gigabytes": "50.0",
}


def found(**changes):
    named = {"facts": FACTS, "clock_seconds": 0.01, "is_reached": True, "reaches_us": True}
    return {**named, "reason": "", **changes}


def result(index, facts=None, other=None, **more):
    return {
        "task": f"worker:{index}",
        "facts": {**FACTS, **(facts or {})},
        "others": {f"worker:{1 - index}": found(**(other or {}))},
        "shares_directory_with": [f"worker:{1 - index}"],
        "writes": True,
        "tensorflow_gpus": 0,
        **more,
    }


def make(first, second):
    results = {}
    for one in (first, second):
        if one is not None:
            results[one["task"]] = one
    return report.make(CLUSTER, results)


def test_all_is_well():
    row = {"tasks": ["worker:0", "worker:1"], "megabytes": 32, "seconds": 0.05, "by": "TensorFlow"}
    gloo = {**row, "seconds": 0.03, "by": "Gloo"}
    rows = [row, gloo]
    made = make(result(0, all_reduce=rows), result(1, all_reduce=[{**row, "seconds": 0.07}, gloo]))
    assert made.lines() == [
        "2 workers:",
        "  worker:0: a, Python 3.11.7, TensorFlow 2.21.0, Keras 3.15.1, no GPU, 50.0 GB free",
        "  worker:1: a, Python 3.11.7, TensorFlow 2.21.0, Keras 3.15.1, no GPU, 50.0 GB free",
        "ok       Every task reaches every other, in both directions.",
        "ok       TensorFlow, Keras and tfdp are the same everywhere.",
        "ok       Clocks agree within 0.01 s.",
        "ok       TensorFlow sees no GPU per task.",
        "ok       The run's folder can be written, and there is room.",
        "All-reduce, median of 3:",
        "  worker:0 - worker:1       32 MB      70.0 ms  TensorFlow",
        "  worker:0 - worker:1       32 MB      30.0 ms  Gloo",
        "Slowest link: worker:0 - worker:1.",
        "Verdict: ready to train.",
    ]
    assert (made.verdict, made.exit_code) == ("ok", 0)
    data = json.loads(json.dumps(made.json()))
    assert data["verdict"] == "ok"
    assert data["slowest_link"] == ["worker:0", "worker:1"]
    assert data["all_reduce"] == [{**row, "seconds": 0.07}, gloo]


@pytest.mark.parametrize(
    ("first", "second", "line", "exit_code"),
    [
        (
            result(
                0,
                other={
                    "facts": None,
                    "is_reached": False,
                    "reaches_us": False,
                    "reason": "Refused",
                },
            ),
            None,
            "problem  worker:1 does not answer: Refused.",
            1,
        ),
        (
            result(0, other={"is_reached": False, "reason": "Timed out"}),
            None,
            "problem  worker:0 cannot reach worker:1: Timed out. Start it, and open its port to "
            "the others.",
            1,
        ),
        (
            result(0, other={"reaches_us": False}),
            None,
            "problem  worker:1 cannot reach worker:0. Start it, and open its port to the others.",
            1,
        ),
        (
            result(0),
            result(1, {"tensorflow": "2.20.0"}),
            "problem  The version of tensorflow differs: 2.21.0 on worker:0; 2.20.0 on worker:1. "
            "Install the same.",
            1,
        ),
        (
            result(0),
            result(1, {"python": "3.12.1"}),
            "warning  The version of python differs: 3.11.7 on worker:0; 3.12.1 on worker:1. "
            "Install the same.",
            0,
        ),
        (
            result(0, {"tensorflow": ""}),
            result(1, {"tensorflow": ""}),
            "problem  TensorFlow is not installed.",
            1,
        ),
        (
            result(0, other={"clock_seconds": -7.5}),
            result(1),
            "warning  The clocks of worker:0 and worker:1 are 7.5 s apart. Start NTP: logs and "
            "checkpoints are ordered by time.",
            0,
        ),
        (
            result(0, {"gpus": "H100", "driver": "570"}),
            result(1),
            "warning  worker:0 has H100, but TensorFlow sees no GPU there. Look at "
            "CUDA_VISIBLE_DEVICES and the driver (570).",
            0,
        ),
        (
            result(0, tensorflow_gpus=2),
            result(1, tensorflow_gpus=1),
            "problem  The number of GPUs differs: 1 on worker:1; 2 on worker:0. Give all the same.",
            1,
        ),
        (
            result(0, writes="Permission denied"),
            result(1),
            "problem  worker:0 cannot write to the run's folder: Permission denied.",
            1,
        ),
        (
            result(0),
            result(1, {"free_disk_gigabytes": "1.5"}),
            "warning  worker:1 has only 1.5 GB of disk left.",
            0,
        ),
        (
            result(0),
            result(1, shares_directory_with=[]),
            "warning  worker:1 does not see in the run's folder what worker:0 wrote there: "
            "checkpoints of the chief are not found by the others. Use a shared folder.",
            0,
        ),
        (
            result(0),
            result(1, problem="UnavailableError: gone"),
            "problem  worker:1: UnavailableError: gone",
            1,
        ),
    ],
)
def test_what_is_wrong(first, second, line, exit_code):
    made = make(first, second)
    assert line in made.lines()
    assert made.exit_code == exit_code
    assert made.lines()[-1].startswith(
        "Verdict: not ready" if exit_code else "Verdict: ready, with"
    )


def test_the_slowest_of_several_links_is_named():
    cluster = Cluster(worker=("a:1", "b:1", "c:1"))
    seconds = {("worker:0", "worker:1"): 0.1, ("worker:0", "worker:2"): 0.5}
    seconds[("worker:1", "worker:2")] = 0.1
    seconds[("worker:0", "worker:1", "worker:2")] = 9.0
    rows = [
        {"tasks": list(t), "megabytes": 32, "seconds": s, "by": "TensorFlow"}
        for t, s in seconds.items()
    ]
    made = report.make(cluster, {"worker:0": {"facts": FACTS, "all_reduce": rows}})
    assert made.slowest_link == ("worker:0", "worker:2")
    assert (
        "warning  The link worker:0 - worker:2 takes 5.0 times as long as most. Every step waits "
        "for it."
    ) in made.lines()


def test_a_result_is_told_in_short_lines_and_read_again():
    results = [{"task": "worker:0", "text": "a: b" * n, "lines": ["\n"]} for n in (1, 500, 125)]
    lines = [line for one in results for line in ("other", *probe.told(one), "words")]
    assert max(map(len, lines)) < 600
    assert probe.last_told(lines) == results[-1]
    assert probe.last_told(lines[:-3]) == results[1]  # the last one is not whole
    assert probe.last_told(["nothing"]) is None
