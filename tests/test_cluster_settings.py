"""Bad cluster settings, as a user makes them: each is a line with the remedy, at once."""

import json
import os
import random
import subprocess
import sys

import pytest

from tfdp import address
from tfdp import cluster as cluster_lib
from tfdp.cluster import Cluster, ClusterError, Task
from tfdp.launch import plan
from tfdp.launch.shape import Shape

# Runs each command line of stdin in this one process, and tells how it ended. "run" stands for
# python -m tfdp.run.
CALLS = """
import contextlib, io, json, os, sys
from tfdp import cli, run
results = []
for argv, environment in json.load(sys.stdin):
    out, err = io.StringIO(), io.StringIO()
    os.environ.update(environment)
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = run.main(argv[1:]) if argv[0] == "run" else cli.main(argv)
        except SystemExit as exit:
            code = exit.code
        except BaseException as error:
            code = repr(error)
    for name in environment:
        os.environ.pop(name, None)
    results.append([code, out.getvalue(), err.getvalue(), "tensorflow" in sys.modules])
print(json.dumps(results))
"""


def config(cluster, task=None, **more):
    task = {"type": "worker", "index": 0} if task is None else task
    return json.dumps({"cluster": cluster, "task": task, **more})


def workers(*addresses):
    return config({"worker": list(addresses)})


def task(kind, index):
    return config({"worker": ["a:1", "b:2"]}, {"type": kind, "index": index})


# The flags of `tfdp launch`, and words that the answer must have.
FLAGS = [
    ("--workers=0", "--workers=0 is not a whole number from 1 up", "Use --workers=1 or more"),
    ("--workers=-3", "--workers=-3", "Use --workers=1 or more"),
    ("--workers=two", "--workers=two", "invalid literal"),
    ("--workers=1.5", "--workers=1.5", "invalid literal"),
    ("--workers=", "--workers=", "invalid literal"),
    ("--workers=1001", "makes 1001 tasks", "Use at most 1000"),
    ("--workers=99999999999999999999", "makes 99999999999999999999 tasks", "Use at most 1000"),
    ("--ps=1", "--ps=1 needs --chief", "Add --chief, or leave out --ps"),
    ("--chief --ps=-1", "--ps=-1 is not a whole number from 0 up", "Use --ps=0 or more"),
    ("--chief --ps=1000", "makes 1002 tasks", "Use at most 1000"),
    ("--chief=maybe", "--chief=maybe", "boolean"),
    ("--evaluator=2", "--evaluator=2", "boolean"),
    ("--chiefs", "Unknown command line flag 'chiefs'", "Did you mean: chief"),
    ("--max-restarts=-1", "--max_restarts=-1", "use 0 or more"),
    ("--min-workers=-1", "--min_workers=-1", "use 0 or more"),
    ("--min-workers=3", "--min_workers=3 is more than --workers", "Use at most that many"),
    ("--max-restart=1", "Unknown command line flag 'max_restart'", "max_restarts"),
    ("--max_restarts=always", "--max_restarts=always", "invalid literal"),
    ("--logs-kept=-1", "--logs_kept=-1", "use 0 or more"),
    ("--log-megabytes=0", "--log_megabytes=0", "use 1 or more"),
    ("--platform=cloud", "--platform=cloud", "one of <local"),
    ("--dryrun", "Unknown command line flag 'dryrun'", "dry_run"),
    ("--isolated", "Unknown command line flag 'isolated'", "isolate"),
]

# The text of TF_CONFIG, and words that the answer must have.
CONFIGS = [
    ("", "is empty", "Unset it"),
    ("   ", "is empty", "Unset it"),
    ("worker:0", "is not JSON: line 1, column 1", "Write it like"),
    ('{"cluster": {"worker": ["a:1"]}', "is not JSON", "Write it like"),
    ("{'cluster': {}}", "is not JSON", "Write it like"),
    ("[]", "a list, not an object", "Write it like"),
    ("null", "null, not an object", "Write it like"),
    ("3", "3, not an object", "Write it like"),
    ("NaN", "NaN, which is not JSON", "Write a number"),
    ("[" * 100_000, "nested too deeply", "Write it like"),
    ("9" * 5000, "holds an endless number", "Write it like"),
    ('{"clusters": {"worker": ["a:1"]}}', "the key 'clusters'", 'Did you mean "cluster"?'),
    ('{"cluster": {"worker": ["a:1"]}, "tasks": 1}', "the key 'tasks'", 'Did you mean "task"?'),
    ('{"cluster": {"worker": ["a:1"], "worker": ["b:1"]}}', "'worker' twice", "Keep one"),
    (config(["a:1"]), '"cluster" is a list', "Write it like"),
    (config({"workers": ["a:1"]}), "'workers' is unknown", 'Did you mean "worker"?'),
    (config({"master": ["a:1"]}), '"master" is that of TensorFlow 1', 'Call it "chief"'),
    (config({"trainer": ["a:1"]}), "'trainer' is unknown", "Use one of chief, worker"),
    (config({"worker": "a:1"}), "are 'a:1', not a list", 'Write ["host:port", ...]'),
    (config({"worker": 2}), "are 2, not a list", 'Write ["host:port", ...]'),
    (config({"worker": {"0": "a:1", "2": "b:1"}}), "a task is left out", "Write a list"),
    (config({"worker": [], "ps": []}), "no task at all", "Give it workers"),
    (config({"ps": ["a:1"]}), "nobody to train", "Add a chief"),
    (config({"chief": ["a:1", "b:1"]}), "2 chief tasks", "Make the others workers"),
    (config({"worker": ["a:1"], "evaluator": ["b:1", "c:1"]}), "2 evaluator tasks", "at most one"),
    (workers("a"), "without a port", 'as in "host:2222"'),
    (workers("a:"), "without a port", 'as in "host:2222"'),
    (workers(":1"), "without a host", 'as in "localhost:2222"'),
    (workers("a:0"), "out of range", "Use 1 to 65535"),
    (workers("a:65536"), "out of range", "Use 1 to 65535"),
    (workers("a:-1"), "not a number", "Use 1 to 65535"),
    (workers("a:http"), "not a number", "Use 1 to 65535"),
    (workers("a:\u0661"), "not a number", "Use 1 to 65535"),
    (workers("a:1:2"), "several colons", 'IPv6 like "[::1]:2222"'),
    (workers("::1:2222"), "several colons", 'IPv6 like "[::1]:2222"'),
    (workers("[::1:2222"), "no IPv6 address", 'Write it like "[::1]:2222"'),
    (workers("[a]:2222"), "no IPv6 address", 'Write it like "[::1]:2222"'),
    (workers("http://a:1"), "with a scheme", 'Write only "host:port"'),
    (workers("a b:1"), "with a space", 'Write "host:port"'),
    (workers("a:1\n"), "with a space or control character", 'Write "host:port"'),
    (workers("-oProxyCommand=touch:22"), "no host name", "Use letters, digits"),
    (workers("$(touch pwned):22"), "space", 'Write "host:port"'),
    (workers("`id`:22"), "no host name", "Use letters, digits"),
    (workers("a;id:22"), "no host name", "Use letters, digits"),
    (workers("user@a:22"), "no host name", "Use letters, digits"),
    (workers("a" * 300 + ":22"), "no host name", "Use letters, digits"),
    (workers(5), "not text", 'Write "host:port"'),
    (workers(None), "not text", 'Write "host:port"'),
    (workers("a:1", "a:1"), "have the same address", "Give each task a port of its own"),
    (workers("a:1", "A.:1"), "have the same address", "Give each task a port of its own"),
    (config({"worker": ["a:1"], "evaluator": ["a:1"]}), "same address", "name that address once"),
    (workers("8.8.8.8:1", "10.0.0.1:1"), "the whole internet may reach", "give --trust-network"),
    ('{"cluster": {"worker": ["a:1"]}}', '"task" is missing', "Say which task this is"),
    (config({"worker": ["a:1"]}, "worker"), "'worker', not an object", "Say which task this is"),
    (config({"worker": ["a:1"]}, {"type": "worker"}), 'has no "index"', "Add it"),
    (config({"worker": ["a:1"]}, {"index": 0}), 'has no "type"', "Add it"),
    (task("workers", 0), "'workers' is unknown", 'Did you mean "worker"?'),
    (task("master", 0), '"master" is that of TensorFlow 1', 'Call it "chief"'),
    (task(None, 0), "null is unknown", "Use one of"),
    (task("worker", -1), "is negative", "from 0"),
    (task("worker", 2), "out of range", "Count from 0 to 1"),
    (task("worker", "first"), "not a whole number", "Use 0, 1, 2"),
    (task("worker", 0.5), "not a whole number", "Use 0, 1, 2"),
    (task("worker", True), "not a whole number", "Use 0, 1, 2"),
    (task("ps", 0), "the cluster has no ps", "Add its address"),
    (task("chief", 0), "the cluster has no chief", "Add its address"),
    (task("evaluator", 1), "the cluster has no evaluator", "Add its address"),
]

ROWS = [
    *(({}, ["launch", *flags.split(), "--", "script.py"], *wanted) for flags, *wanted in FLAGS),
    *(({"TF_CONFIG": text}, ["run", "script.py"], *wanted) for text, *wanted in CONFIGS),
]


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("settings")
    (folder / "script.py").write_text("raise AssertionError('was run')\n")
    environment = {name: value for name, value in os.environ.items() if name != "TF_CONFIG"}
    done = subprocess.run(
        [sys.executable, "-c", CALLS],
        input=json.dumps([[argv, environ] for environ, argv, *_ in ROWS]),
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert os.listdir(folder) == ["script.py"]
    return json.loads(done.stdout)


def test_there_are_enough_kinds():
    assert len(ROWS) >= 60
    assert len({str(row[:2]) for row in ROWS}) == len(ROWS)


@pytest.mark.parametrize("number", range(len(ROWS)))
def test_a_bad_setting_is_one_line_with_the_remedy(answers, number):
    _, _, problem, remedy = ROWS[number]
    code, out, err, has_tensorflow = answers[number]
    assert (code, out, has_tensorflow) == (2, "", False)
    assert len(err.splitlines()) == 1
    assert err.endswith("\n")
    assert len(err) < 600
    assert problem in err
    assert remedy in err
    assert "Traceback" not in err


@pytest.mark.parametrize("number", [0, 7, len(FLAGS), len(FLAGS) + 25])
def test_in_a_process_of_its_own(number, answers, tmp_path):
    environ, argv, *_ = ROWS[number]
    (tmp_path / "script.py").write_text("")
    module = "tfdp.run" if argv[0] == "run" else "tfdp"
    done = subprocess.run(
        [sys.executable, "-m", module, *(argv[1:] if argv[0] == "run" else argv)],
        cwd=tmp_path,
        env={**{name: v for name, v in os.environ.items() if name != "TF_CONFIG"}, **environ},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (2, "", answers[number][2])


# -- generated ------------------------------------------------------------------------------------

BAD_HOSTS = ["", "-a", "a b", "a\n", "a/b", "$(x)", "a;b", "user@a", "a,b", "'a'", "é", "\0", "a\\"]
BAD_PORTS = ["", "0", "65536", "-1", "x", "1.5", "1 ", "\u0662", "99999999999", "0x10", "+1"]
BAD_VALUES = [None, True, 3, 1.5, {"a": 1}, "text"]


def break_address(draw, good):
    host, _, port = good.rpartition(":")
    bad = [
        draw.choice(BAD_HOSTS) + ":" + port,
        host + ":" + draw.choice(BAD_PORTS),
        host,
        good + ":1",
        "http://" + good,
        "[" + good,
        draw.choice(BAD_VALUES[:5]),
    ]
    return draw.choice(bad)


def broken_config(draw):
    """A TF_CONFIG with exactly one fault, each of a kind that no cluster can have."""
    count = draw.randint(1, 5)
    addresses = [f"host{n}:{draw.randint(1, 65535)}" for n in range(count)]
    cluster = {"worker": addresses}
    if draw.random() < 0.5:
        cluster["chief"] = ["first:1"]
        if draw.random() < 0.5:
            cluster["ps"] = [f"ps{n}:7" for n in range(draw.randint(1, 3))]
    if draw.random() < 0.3:
        cluster["evaluator"] = ["last:1"]
    which = {"type": "worker", "index": draw.randrange(count)}
    whole = {"cluster": cluster, "task": which}
    fault = draw.randrange(12)
    if fault <= 3:
        job = draw.choice(list(cluster))
        at = draw.randrange(len(cluster[job]))
        cluster[job][at] = break_address(draw, cluster[job][at])
    elif fault == 4:
        cluster["worker"].append(draw.choice([a for job in cluster.values() for a in job]))
    elif fault == 5:
        cluster[draw.choice(list(cluster))] = draw.choice(BAD_VALUES)
    elif fault == 6:
        cluster[draw.choice(["workers", "Worker", "master", "", "x" * 500, "\n"])] = ["z:1"]
    elif fault == 7:
        which["index"] = draw.choice([-1, count, 10**30, "x", "", None, True, 0.5, [], {}])
    elif fault == 8:
        which["type"] = draw.choice(["master", "Worker", "", None, 0, [], "gpu", "worker "])
    elif fault == 9:
        whole.pop(draw.choice(["task"]))
    elif fault == 10:
        cluster[draw.choice(["chief", "evaluator"])] = ["x:1", "y:1"]
    else:
        text = json.dumps(whole)
        return text[: draw.randint(0, len(text) - 1)]
    return json.dumps(whole)


def broken_flags(draw):
    """Arguments of a local cluster with a fault."""
    flags = {"workers": draw.randint(1, 9), "chief": True, "ps": draw.randint(0, 4)}
    fault = draw.randrange(5)
    if fault == 0:
        flags["workers"] = draw.choice([0, -1, -(10**20), None, "2", 1.5, True, 10**9])
    elif fault == 1:
        flags["ps"] = draw.choice([-1, -(10**20), None, "2", 1.5, True, 10**9])
    elif fault == 2:
        flags.update(chief=False, ps=draw.randint(1, 10**6))
    else:
        flags["ports"] = range(2000, 2000 + draw.randint(0, 3))
        flags["workers"] += 5
    return flags


def made_of_flags(flags):
    shape = {name: value for name, value in flags.items() if name != "ports"}
    return plan.local_cluster(Shape(**shape), flags["ports"])


def test_ten_thousand_bad_settings_are_each_refused_by_name():
    draw = random.Random(20251)
    messages = set()
    for number in range(10_000):
        if number % 5:
            call, setting = cluster_lib.parse, broken_config(draw)
        else:
            setting = {"ports": [], **broken_flags(draw)}
            call = made_of_flags
        try:
            call(setting)
        except ClusterError as error:
            message = str(error)
            assert len(message.splitlines()) == 1, setting
            assert len(message) < 600, setting
            message.encode()
            messages.add(message)
        else:
            raise AssertionError(f"taken: {setting}")
    # Not all refused for the same reason.
    assert len(messages) > 1000


def test_the_generator_breaks_what_would_be_taken():
    assert cluster_lib.parse(task("worker", 1)) == (
        Cluster(worker=("a:1", "b:2")),
        Task("worker", 1),
    )
    assert address.split("host0:65535") == ("host0", 65535)
