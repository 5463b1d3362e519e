"""tfdp doctor, on this machine and as one task of a cluster."""

import json
import os
import socket

import pytest

from cluster import processes
from tfdp.cluster import Cluster, Task
from tfdp.launch import machine

pytestmark = pytest.mark.cluster


def test_two_workers_are_ready(tmp_path, environment):
    done = processes.run(["doctor", "--workers=2", "--json"], tmp_path, environment, seconds=60)
    assert (done.returncode, done.stderr) == (0, "")
    report = json.loads(done.stdout)
    levels = {check["name"]: check["level"] for check in report["checks"]}
    # How much disk is left is this machine's affair.
    assert {**levels, "disk": "ok"} == {
        **dict.fromkeys(("ways", "versions", "clocks", "gpus", "disk"), "ok")
    }
    assert list(report["tasks"]) == ["worker:0", "worker:1"]
    for facts in report["tasks"].values():
        assert facts["host"] == socket.gethostname()
    timed = [(row["by"], row["megabytes"]) for row in report["all_reduce"]]
    ways = ("TensorFlow", "shared memory", "Gloo")
    assert timed == [(by, megabytes) for by in ways for megabytes in (1, 32)]
    assert all(row["tasks"] == ["worker:0", "worker:1"] for row in report["all_reduce"])
    assert all(row["seconds"] > 0 for row in report["all_reduce"])
    assert report["slowest_link"] == ["worker:0", "worker:1"]
    assert os.listdir(tmp_path) == []


def test_a_task_that_is_missing_is_named(tmp_path, environment):
    cluster = Cluster(worker=tuple(f"127.0.0.1:{port}" for port in machine.free_ports(2)))
    environment = {**environment, "TF_CONFIG": cluster.tf_config(Task("worker", 0))}
    done = processes.run(["doctor", "--wait=1"], tmp_path, environment, seconds=30)
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    assert "problem  worker:1 does not answer: Connection refused." in lines
    assert lines[-1] == "Verdict: not ready: 1 problem."


def test_a_public_address_is_refused(tmp_path, environment):
    cluster = Cluster(worker=("127.0.0.1:2222", "8.8.8.8:2222"))
    environment = {**environment, "TF_CONFIG": cluster.tf_config(Task("worker", 0))}
    done = processes.run(["doctor"], tmp_path, environment, seconds=30)
    assert (done.returncode, done.stdout) == (2, "")
    assert "the whole internet may reach" in done.stderr
    assert "--trust-network" in done.stderr
