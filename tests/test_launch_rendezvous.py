"""Tasks meet, as threads of this process: nothing of it needs TensorFlow."""

import contextlib
import re
import socket
import threading
import time

import pytest

from tfdp.cluster import Cluster, ClusterError, Task
from tfdp.launch import machine, meeting, rendezvous
from tfdp.launch.rendezvous import MissingError


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(meeting, "_LINGER_SECONDS", 0.5)
    monkeypatch.setattr(meeting, "_FOLLOW_SECONDS", 0.1)


FACTS = {"tensorflow": "2.21.0", "seed": "7"}


def cluster_of(workers, **more):
    ports = machine.free_ports(workers)
    return Cluster(worker=tuple(f"127.0.0.1:{port}" for port in ports), **more)


def meet_all(tasks, **named):
    """Meets as several tasks at once: {name: (cluster, facts)}; returns {name: what came of it}."""
    results = {}
    lines = {name: [] for name in tasks}

    def one(name, cluster, facts):
        kind, index = name.split()[0].split(":")
        begin = time.monotonic()
        try:
            rendezvous.meet(cluster, Task(kind, int(index)), facts, say=lines[name].append, **named)
            results[name] = None
        except ClusterError as error:
            results[name] = error
        assert time.monotonic() - begin < 10

    threads = [threading.Thread(target=one, args=(name, *tasks[name])) for name in tasks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
        assert not thread.is_alive()
    return results, lines


def connect_unless(name, connect=meeting.Meeting._connect):
    """Meeting._connect, for all tasks but one."""

    def _connect(self, peer, now):
        if str(self._task) == name:
            peer.try_at = now + 60.0
        else:
            connect(self, peer, now)

    return _connect


@pytest.mark.parametrize("workers", [2, 3, 12])
def test_all_are_there(workers):
    cluster = cluster_of(workers)
    names = [str(task) for task in cluster.tasks]
    results, lines = meet_all({name: (cluster, FACTS) for name in names})
    assert results == dict.fromkeys(names)
    assert lines == {name: [] for name in names}
    # The ports are free again, for TensorFlow.
    for task in cluster.tasks:
        socket.create_server(("127.0.0.1", cluster.port(task))).close()


@pytest.mark.parametrize(
    ("one", "other", "message"),
    [
        (
            {},
            {"tensorflow": "2.20.0"},
            "tensorflow differs: worker:0 has 2.21.0, worker:1 has 2.20.0. "
            "Start all tasks with the same.",
        ),
        (
            {},
            {"seed": "8\x1b[2J"},
            "seed differs: worker:0 has 7, worker:1 has 8 [2J. Start all tasks with the same.",
        ),
        (
            {"more": "x"},
            {"seed": "8"},
            "more differs: worker:0 has x, worker:1 has none; seed differs: worker:0 has 7, "
            "worker:1 has 8. Start all tasks with the same.",
        ),
    ],
)
def test_a_difference_is_named_on_both(one, other, message):
    cluster = cluster_of(2)
    tasks = {"worker:0": (cluster, {**FACTS, **one}), "worker:1": (cluster, {**FACTS, **other})}
    results, _ = meet_all(tasks)
    assert {name: type(error) for name, error in results.items()} == dict.fromkeys(
        tasks, ClusterError
    )
    assert {str(error) for error in results.values()} == {message}


def test_a_difference_of_one_is_named_on_all():
    cluster = cluster_of(4)
    tasks = {f"worker:{n}": (cluster, FACTS) for n in range(4)}
    tasks["worker:2"] = (cluster, {**FACTS, "seed": "8"})
    results, _ = meet_all(tasks)
    for name, error in results.items():
        assert type(error) is ClusterError, name
        assert "worker:2 has 8" in str(error)
        assert "has 7" in str(error)


def test_clusters_of_different_size():
    small = cluster_of(2)
    large = Cluster(worker=(*small.worker, f"127.0.0.1:{machine.free_ports(1)[0]}"))
    results, _ = meet_all({"worker:0": (small, FACTS), "worker:1": (large, FACTS)})
    for error in results.values():
        assert str(error) == (
            "cluster differs: worker:0 has 2 workers, worker:1 has 3 workers. "
            "Start all tasks with the same."
        )


def test_addresses_in_another_order():
    cluster = cluster_of(3)
    # worker:2 has the first two the other way round.
    other = Cluster(worker=(cluster.worker[1], cluster.worker[0], cluster.worker[2]))
    tasks = {"worker:0": (cluster, FACTS), "worker:1": (cluster, FACTS), "worker:2": (other, FACTS)}
    results, _ = meet_all(tasks, timeout_seconds=5)
    error = results["worker:2"]
    assert type(error) is ClusterError
    assert re.search("by its own account, but worker:|Give all tasks the same", str(error))


def test_addresses_in_another_order_of_a_task_that_comes_last(monkeypatch):
    # The others come to it before it has tried any address of its own.
    cluster = cluster_of(3)
    other = Cluster(worker=(cluster.worker[1], cluster.worker[0], cluster.worker[2]))
    monkeypatch.setattr(meeting.Meeting, "_connect", connect_unless("worker:2"))
    monkeypatch.setattr(meeting, "_LINGER_SECONDS", 60.0)  # until all know of it
    tasks = {"worker:0": (cluster, FACTS), "worker:1": (cluster, FACTS), "worker:2": (other, FACTS)}
    results, _ = meet_all(tasks, timeout_seconds=5)
    first, second, _ = cluster.worker
    # Each speaks of what it shares with worker:2; worker:2 of what it shares with the first.
    with_first = (
        f"The address {second} is that of worker:1 for worker:0, that of worker:0 for worker:2. "
        "Give all tasks the same cluster."
    )
    with_second = (
        f"The address {first} is that of worker:0 for worker:1, that of worker:1 for worker:2. "
        "Give all tasks the same cluster."
    )
    assert {name: str(error) for name, error in results.items()} == {
        "worker:0": with_first,
        "worker:1": with_second,
        "worker:2": with_first,
    }


def test_tasks_that_know_themselves_as_localhost():
    first, second = machine.free_ports(2)
    clusters = {
        "worker:0": Cluster(worker=(f"localhost:{first}", f"127.0.0.1:{second}")),
        "worker:1": Cluster(worker=(f"127.0.0.1:{first}", f"localhost:{second}")),
    }
    results, _ = meet_all({name: (cluster, FACTS) for name, cluster in clusters.items()})
    assert results == dict.fromkeys(clusters)


def test_an_address_that_leads_to_oneself():
    (port,) = machine.free_ports(1)
    cluster = Cluster(worker=(f"127.0.0.1:{port}", f"localhost:{port}"))
    results, _ = meet_all({"worker:0": (cluster, FACTS)}, timeout_seconds=5)
    assert str(results["worker:0"]) == (
        f"The address of worker:1 (localhost:{port}) leads to this task, worker:0. "
        f"Give each task its own address, and the index that belongs to it."
    )


def test_the_same_task_twice():
    cluster = cluster_of(2)
    results, _ = meet_all(
        {"worker:0": (cluster, FACTS), "worker:0 again": (cluster, FACTS)}, timeout_seconds=0.5
    )
    messages = sorted(str(error) for error in results.values())
    port = cluster.port(Task("worker", 0))
    assert messages[0] == (
        f"Port {port} of worker:0 is taken by another program, or by another task that was started "
        f"as worker:0. Free it, or give the task another port."
    )
    assert messages[1].startswith(f"worker:1 ({cluster.worker[1]}) did not come within 0 s (")


def test_a_missing_task_is_waited_for_and_named():
    cluster = cluster_of(3)
    tasks = {f"worker:{n}": (cluster, FACTS) for n in (0, 2)}
    results, lines = meet_all(tasks, timeout_seconds=2, report_seconds=0.9)
    for name in tasks:
        address = cluster.worker[1]
        assert lines[name] == [
            f"waiting for worker:1 ({address}), 1 of 2 s",
            f"waiting for worker:1 ({address}), 2 of 2 s",
        ]
        assert isinstance(results[name], MissingError)
        assert str(results[name]) == (
            f"worker:1 ({address}) did not come within 2 s (Connection refused). Start all tasks "
            f"of the cluster, and let their ports through the firewall; TFDP_START_TIMEOUT is the "
            f"time to wait, in seconds."
        )


def test_one_that_comes_late_is_met():
    cluster = cluster_of(2)
    waits = threading.Event()
    done = []

    def first():
        rendezvous.meet(
            cluster, Task("worker", 0), FACTS, report_seconds=0.2, say=lambda line: waits.set()
        )
        done.append(0)

    thread = threading.Thread(target=first)
    thread.start()
    assert waits.wait(timeout=30)
    rendezvous.meet(cluster, Task("worker", 1), FACTS)
    thread.join(timeout=30)
    assert done == [0]


@contextlib.contextmanager
def answering(port, answer):
    """A server that is none of ours: it sends its answer, and reads until the other side closes."""
    server = socket.create_server(("127.0.0.1", port))

    def serve():
        with contextlib.suppress(OSError):
            while True:
                sock, _ = server.accept()
                sock.sendall(answer)
                while answer and sock.recv(1 << 16):
                    pass
                sock.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield
    finally:
        server.shutdown(socket.SHUT_RDWR)
        server.close()
        thread.join(timeout=30)


@pytest.mark.parametrize(
    "answer",
    [
        b"\x00\x00\x12\x04\x00\x00\x00\x00\x00\n",  # how HTTP/2, and so gRPC, begins
        b"{}\n",
        b'{"task": 1, "facts": 2, "nonce": 3}\n',
        b'{"task": "worker:1", "facts": {"a": {}}, "nonce"\n',
        b"[" * 5000 + b"\n",
        b"\n",
        b"",
    ],
)
def test_a_task_that_does_not_compare_is_let_be(answer):
    cluster = cluster_of(2)
    with answering(cluster.port(Task("worker", 1)), answer):
        results, lines = meet_all({"worker:0": (cluster, FACTS)})
    assert results == {"worker:0": None}
    assert lines["worker:0"] == [
        f"worker:1 ({cluster.worker[1]}) is there, but does not compare its settings: it was not "
        f"started by tfdp, or runs already."
    ]


def test_those_who_knock_do_not_disturb():
    cluster = cluster_of(2)
    address = ("127.0.0.1", cluster.port(Task("worker", 0)))
    waits = threading.Event()
    result = []

    def first():
        rendezvous.meet(
            cluster, Task("worker", 0), FACTS, report_seconds=0.2, say=lambda line: waits.set()
        )
        result.append(True)

    thread = threading.Thread(target=first)
    thread.start()
    assert waits.wait(timeout=30)
    socket.create_connection(address).close()  # a probe of a platform
    for data in (b"GET / HTTP/1.1\r\n\r\n", b"\xff" * 5000 + b"\n", b'{"task": "x:9"}\n'):
        with socket.create_connection(address) as sock:
            sock.sendall(data)
    rendezvous.meet(cluster, Task("worker", 1), FACTS)
    thread.join(timeout=30)
    assert result == [True]


@pytest.mark.parametrize(
    ("cluster", "task"),
    [
        (Cluster(worker=("127.0.0.1:1",)), Task("worker", 0)),
        (Cluster(worker=("127.0.0.1:1",), evaluator=("127.0.0.1:2",)), Task("worker", 0)),
        (Cluster(worker=("127.0.0.1:1", "127.0.0.1:3")), Task("evaluator", 0)),
    ],
)
def test_who_has_nobody_to_meet(cluster, task):
    rendezvous.meet(cluster, task, FACTS)


@pytest.mark.parametrize(
    ("host", "is_refused"),
    [
        *((host, True) for host in ("8.8.8.8", "[2a00:1450:4001::8a]", "1.1.1.1")),
        *((host, False) for host in ("10.1.2.3", "192.168.1.1", "127.0.0.1", "[fd00::1]")),
        *((host, False) for host in ("100.64.1.1", "169.254.1.1", "[fe80::1]", "no.such.test")),
    ],
)
def test_public_addresses_are_refused(host, is_refused):
    port = machine.free_ports(1)[0]
    cluster = Cluster(worker=(f"127.0.0.1:{port}", f"{host}:2222"))
    with pytest.raises(ClusterError) as raised:
        rendezvous.meet(cluster, Task("worker", 0), FACTS, timeout_seconds=0.01)
    if is_refused:
        assert str(raised.value) == (
            f"worker:1 has the address {host}:2222, which the whole internet may reach, and "
            f"TensorFlow's server asks for no password. Use addresses of a private network; or, "
            f"where a firewall keeps others out, give --trust-network (TFDP_TRUST_NETWORK=1)."
        )
    else:
        assert isinstance(raised.value, MissingError)


def test_public_addresses_are_refused_also_where_nobody_is_met():
    config = Cluster(worker=("8.8.8.8:1", "127.0.0.1:2")).tf_config(Task("worker", 1))
    environ = {"TF_CONFIG": config, "TFDP_START_TIMEOUT": "0"}
    with pytest.raises(ClusterError, match="the whole internet may reach"):
        rendezvous.join(environ)
    rendezvous.join({**environ, "TFDP_TRUST_NETWORK": "1"})


def test_public_addresses_may_be_trusted():
    port = machine.free_ports(1)[0]
    cluster = Cluster(worker=(f"127.0.0.1:{port}", "8.8.8.8:2222"))
    with pytest.raises(MissingError):
        rendezvous.meet(cluster, Task("worker", 0), FACTS, timeout_seconds=0.01, trust_network=True)


def test_a_server_goes_on_alone(monkeypatch):
    # Started again, long after the others have met.
    monkeypatch.setattr(meeting, "_SERVER_SECONDS", 0.2)
    chief, worker, ps = (f"127.0.0.1:{port}" for port in machine.free_ports(3))
    cluster = Cluster(chief=(chief,), worker=(worker,), ps=(ps,))
    results, lines = meet_all({"worker:0": (cluster, FACTS)}, report_seconds=0.1)
    assert results == {"worker:0": None}
    assert lines == {"worker:0": []}


@pytest.mark.parametrize("text", ["soon", "-1", "1e3", "nan", "9" * 5000])
def test_a_bad_time_to_wait(text):
    with pytest.raises(ClusterError, match="is no number of seconds"):
        rendezvous.join({"TFDP_START_TIMEOUT": text})


def test_nobody_is_met_without_a_cluster_or_with_no_time():
    config = Cluster(worker=("127.0.0.1:1", "127.0.0.1:2")).tf_config(Task("worker", 0))
    rendezvous.join({})
    rendezvous.join({"TF_CONFIG": config, "TFDP_START_TIMEOUT": "0"})
