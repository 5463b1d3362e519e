import pytest

from tfdp.cluster import Task
from tfdp.error import Error
from tfdp.launch import hosts
from tfdp.launch.hosts import Host
from tfdp.launch.shape import Shape


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a", [Host("a")]),
        ("a:2,b", [Host("a", 2), Host("b")]),
        (" me@a:3 , b.example.org ", [Host("me@a", 3), Host("b.example.org")]),
        ("10.0.0.1:2,[fd00::1]:4,me@[fd00::2]", None),
    ],
)
def test_hosts_are_read(text, found):
    if found is None:
        found = [Host("10.0.0.1", 2), Host("fd00::1", 4), Host("me@fd00::2")]
    assert list(hosts.parse(text)) == found


@pytest.mark.parametrize(
    ("text", "begin"),
    [
        ("a:0", "--hosts='a:0': 'a:0' does not say how many tasks."),
        ("a:x", "--hosts='a:x': 'a:x' does not say how many tasks."),
        ("a,,b", "--hosts='a,,b': '' names no host."),
        ("-oProxyCommand=x", "--hosts='-oProxyCommand=x': '-oProxyCommand=x' names no host."),
        ("-o@a", "--hosts='-o@a': '-o@a' names no user."),
        ("a b", "--hosts='a b': 'a b' names no host."),
        ("fd00::1", "--hosts='fd00::1': 'fd00::1' names no host."),
        ("a:1,b,a", "--hosts: a is named 2 times. Name it once, with more slots."),
    ],
)
def test_bad_hosts_are_refused(text, begin):
    with pytest.raises(Error) as raised:
        hosts.parse(text)
    assert str(raised.value).startswith(begin)
    assert "\n" not in str(raised.value)


def test_a_file_of_hosts_is_read():
    text = "# all of rack 1\na slots=2\n\nme@b  # a comment\nc address=10.0.0.3 slots=4\n"
    assert hosts.parse_file(text) == (Host("a", 2), Host("me@b"), Host("c", 4, "10.0.0.3"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "a\nb cpus=2",
            "--hostfile: f, line 2: 'cpus=2' is not known. Write it like: host slots=2",
        ),
        (
            "a slots=none",
            "--hostfile: f, line 1: 'slots=none' is not known. Write it like: host slots=2",
        ),
        (
            "a address=x:y",
            "--hostfile: f, line 1: address='x:y' is no host. Write it like 10.0.0.1.",
        ),
        (
            "# nobody\n",
            "--hostfile: f names no host. Write one on each line, as: host slots=2",
        ),
        ("a\na\n", "--hostfile: f: a is named 2 times. Name it once, with more slots."),
    ],
)
def test_bad_files_are_refused(text, message):
    with pytest.raises(Error) as raised:
        hosts.parse_file(text, "f")
    assert str(raised.value) == message


def test_tasks_are_placed_in_their_order():
    shape = Shape(2, chief=True, ps=1, evaluator=True)
    placed = hosts.place(shape, hosts.parse("a:2,b:1,c:9"))
    assert [host.name for host in placed] == ["a", "a", "b", "c", "c"]


def test_too_few_slots_are_refused():
    with pytest.raises(Error) as raised:
        hosts.place(Shape(2, chief=True), hosts.parse("a,b"))
    assert str(raised.value) == (
        "3 tasks (chief=1,worker=2) need 3 slots, but 2 hosts have 2. Add hosts, or say that they "
        "take more: --hosts=a:2,b:2."
    )


@pytest.mark.parametrize(
    ("host", "where"),
    [
        (Host("me@b"), "b:7"),
        (Host("me@fd00::2"), "[fd00::2]:7"),
        (Host("b", address="10.0.0.9"), "10.0.0.9:7"),
    ],
)
def test_the_address_of_a_task(host, where):
    assert host.at(7) == where


CHIEF, FIRST, SECOND, PS = Task("chief", 0), Task("worker", 0), Task("worker", 1), Task("ps", 0)


@pytest.mark.parametrize(
    ("tasks", "gpus", "per_task", "visible"),
    [
        ({FIRST: "a", SECOND: "b"}, {"a": "", "b": ""}, 0, {}),
        ({FIRST: "a", SECOND: "b"}, {"a": "01", "b": "01"}, 0, {FIRST: "0,1", SECOND: "0,1"}),
        ({FIRST: "a", SECOND: "a"}, {"a": "0123"}, 0, {FIRST: "0,1", SECOND: "2,3"}),
        ({FIRST: "a", SECOND: "a"}, {"a": "0123"}, 1, {FIRST: "0", SECOND: "1"}),
        # The chief of parameter servers, and these, compute nothing.
        (
            {CHIEF: "a", FIRST: "a", SECOND: "b", PS: "b"},
            {"a": "0", "b": "5"},
            0,
            {CHIEF: "-1", FIRST: "0", SECOND: "5", PS: "-1"},
        ),
    ],
)
def test_gpus_of_each_host_are_shared(tasks, gpus, per_task, visible):
    placed = {task: Host(name) for task, name in tasks.items()}
    computing = [task for task in tasks if task.type == "worker"]
    assert hosts.share_gpus(placed, computing, gpus, per_task) == visible


@pytest.mark.parametrize(
    ("gpus", "per_task", "message"),
    [
        (
            {"a": "01", "b": "0"},
            0,
            "The GPUs do not divide evenly over the tasks that train: a has 2 for 1 task; b has 1 "
            "for 1 task. Set --gpus_per_task, or --env=CUDA_VISIBLE_DEVICES=-1 to train on CPUs.",
        ),
        (
            {"a": "0", "b": ""},
            0,
            "The GPUs do not divide evenly over the tasks that train: a has 1 for 1 task; b has 0 "
            "for 1 task. Set --gpus_per_task, or --env=CUDA_VISIBLE_DEVICES=-1 to train on CPUs.",
        ),
        (
            {"a": "01", "b": "0"},
            2,
            "b has too few GPUs: 1, and 1 task that trains there needs 2 (--gpus_per_task=2). "
            "Place fewer tasks there.",
        ),
    ],
)
def test_gpus_that_cannot_be_shared_are_refused(gpus, per_task, message):
    placed = {FIRST: Host("a"), SECOND: Host("b")}
    with pytest.raises(Error) as raised:
        hosts.share_gpus(placed, [FIRST, SECOND], gpus, per_task)
    assert str(raised.value) == message
