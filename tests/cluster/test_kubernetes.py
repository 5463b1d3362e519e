"""The real kubectl against a server for tests, whose pods are processes on hosts of their own.

No real controller is here: see platforms/kubernetes_server.
"""

import os
import pathlib
import signal
import sys
import time

import pytest
from conftest import exhaustive_unless
from platforms import kubernetes_server

from cluster import digits, hosts, kills, processes

REASON = hosts.missing()
pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(bool(REASON), reason=REASON or "permitted"),
]

ROOT = pathlib.Path(__file__).parents[2]
# What an index does at its first start, and at the others: exits with a code, or well.
ENDS = """
import os, pathlib, sys, time
from tfdp.launch import discovery
index = int(os.environ["JOB_COMPLETION_INDEX"]) + int(os.environ.get("TFDP_FIRST_INDEX", 0))
mark = pathlib.Path(f"began-{index}")
first = not mark.exists()
mark.touch()
print("token", len(os.environ["TOKEN"]), "level", os.environ["LEVEL"], flush=True)
code = int(sys.argv[1])
if first and code:
    if index == 0 and code != 143:  # it sees a moment later that the other one is gone
        time.sleep(1)
        sys.exit(138)
    sys.exit(code)
"""
ENDLESS = "import time\nprint('here', flush=True)\ntime.sleep(600)\n"


@pytest.fixture(scope="module")
def network():
    with hosts.network(5) as made:
        yield made


@pytest.fixture
def start(network, tmp_path, environment):
    """Starts an API server for a run, and gives what runs tfdp against it."""
    opened = []

    def make(names, **named):
        manager = kubernetes_server.serve(network, tmp_path, names, **named)
        server = manager.__enter__()
        opened.append(manager)
        return server

    def words(verb, *given):
        python = f"--kubernetes_python={sys.executable}"
        place = [f"--kubernetes_directory={tmp_path}", "--log_dir=logs", "--job_name=run"]
        return [verb, "--platform=kubernetes", "--image=none", python, *place, *given]

    make.words = words
    make.folder = tmp_path
    make.environment = lambda server: {
        **environment,
        # kubectl is beside Python, where pip has put it.
        "PATH": f"{pathlib.Path(sys.executable).parent}:{environment['PATH']}",
        "KUBECONFIG": server.config,
        "TOKEN": "s3cret-value",
    }
    yield make
    for manager in opened:
        manager.__exit__(None, None, None)


def test_the_digits_are_trained_as_here(start, digits_here):
    # Names are known some seconds after the pods have begun, as with a cluster's own DNS.
    server = start(["run-0.run", "run-1.run"], names_after=6.0)
    folder = start.folder
    done = processes.run(
        start.words("train", "--workers=2", *digits.TRAIN, f"--config.run_dir={folder}/run"),
        folder,
        start.environment(server),
        seconds=240,
    )
    assert done.returncode == 0, done.stderr
    assert "worker=2 on Kubernetes as job run, seed 0. Logs: " in done.stdout
    assert "Test accuracy" in done.stdout
    digits.check_losses(folder, digits_here)
    assert sorted(os.listdir(folder / "logs")) == ["worker-0.log", "worker-1.log"]
    assert len(server.started) == 2


@pytest.mark.exhaustive  # the texts of a JobSet are tables
def test_parameter_servers_are_a_jobset_that_ends_with_its_chief(start):
    names = [f"run-{task}.run" for task in ("chief-0-0", "worker-0-0", "worker-0-1")]
    names += [f"run-{task}.run" for task in ("ps-0-0", "ps-0-1")]
    server = start(names)
    cluster = ["--chief", "--workers=2", "--ps=2"]
    done = processes.run(
        start.words("train", *cluster, *digits.TRAIN, f"--config.run_dir={start.folder}/run"),
        start.folder,
        start.environment(server),
        seconds=240,
    )
    assert done.returncode == 0, done.stderr
    assert "Test accuracy" in done.stdout
    assert len(server.started) == 5
    assert server.running() == []
    assert len(digits.losses(start.folder)) == 2


@pytest.mark.parametrize(
    ("code", "restarts", "expected", "pods"),
    [
        (138, 1, 0, 4),
        (2, 3, 2, None),
        *(
            pytest.param(*others, marks=exhaustive_unless(False))
            for others in ((143, 0, 0, 4), (1, 0, 1, None))
        ),
    ],
)
def test_exit_codes_decide_whether_it_starts_again(start, code, restarts, expected, pods):
    server = start(["run-0.run", "run-1.run"])
    (start.folder / "ends.py").write_text(ENDS)
    flags = ["--workers=2", f"--max_restarts={restarts}", "--env=TOKEN", "--env=LEVEL=a $(b)"]
    done = processes.run(
        start.words("launch", *flags, "--", "ends.py", str(code)),
        start.folder,
        start.environment(server),
        seconds=90,
    )
    assert done.returncode == expected, done.stderr
    # The run stays, with its pods; what it needed is gone, whatever came of it.
    assert [key for key in server.objects if key[0] != "pods"] == [("jobs", "run")]
    if pods:
        assert len(server.started) == pods
        assert "token 12 level a $(b)" in done.stdout
    else:
        assert done.stderr.splitlines()[-1] == (
            f"tfdp: worker:1 exited with code {code}. Log: {start.folder}/logs/worker-1.log"
        )
        assert f"tfdp: worker:1 (pod {server.started[1]}) ended with code {code} (Error)." in (
            done.stderr
        )
    shown = done.stdout + done.stderr
    assert "s3cret" not in shown


def test_ctrl_c_removes_everything(start):
    server = start(["run-0.run", "run-1.run"])
    (start.folder / "endless.py").write_text(ENDLESS)
    words = start.words("launch", "--workers=2", "--env=TOKEN", "--", "endless.py")
    with processes.started(words, start.folder, start.environment(server)) as launcher:
        processes.wait_for_text(start.folder / "logs" / "worker-1.log", "here", 60, launcher)
        second = processes.run(words, start.folder, start.environment(server))
        assert (second.returncode, second.stdout) == (2, "")
        assert second.stderr == (
            "tfdp: There is a run named run already. Choose another --job_name, or remove it: "
            "kubectl delete job.batch run\n"
        )
        os.killpg(launcher.pid, signal.SIGINT)
        launcher.communicate(timeout=30)
    assert launcher.returncode == 130
    until = time.monotonic() + 10
    while server.running() and time.monotonic() < until:
        time.sleep(0.1)
    assert server.running() == []
    assert [key for key in server.objects if key[0] != "pods"] == []


@pytest.mark.exhaustive  # as with it
def test_what_was_made_goes_on_without_the_launcher(start):
    server = start(["run-0.run", "run-1.run"])
    (start.folder / "ends.py").write_text(ENDS)
    words = start.words("launch", "--workers=2", "--detach", "--env=TOKEN", "--env=LEVEL=1")
    done = processes.run([*words, "--", "ends.py", "0"], start.folder, start.environment(server))
    assert done.returncode == 0, done.stderr
    assert (
        "To end it: kubectl delete -l app.kubernetes.io/instance=run job,service,secret\n"
    ) in done.stdout
    until = time.monotonic() + 60
    while "status" not in server.objects["jobs", "run"] and time.monotonic() < until:
        time.sleep(0.1)
    assert server.objects["jobs", "run"]["status"]["conditions"][0]["type"] == "Complete"


@pytest.mark.exhaustive  # as on other platforms
def test_the_doctor_finds_pods_ready(start):
    server = start(["run-0.run", "run-1.run"])
    verb, *given = start.words("doctor", "--workers=2", "--json", "--dir=.")
    words = [verb, *(word for word in given if not word.startswith("--log_dir"))]
    done = processes.run(words, start.folder, start.environment(server), seconds=120)
    processes.check_doctor(done, hosts=None)


def test_predict_says_what_it_needs(start, predicted):
    server = start([])
    kills.give(predicted, start.folder)
    verb, *given = kills.words("there")
    words = [verb, "--platform=kubernetes", "--image=none", *given]
    done = processes.run(words, start.folder, start.environment(server))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("tfdp: --platform=kubernetes: the pods of a run share no folder")
    assert len(done.stderr.splitlines()) == 1
