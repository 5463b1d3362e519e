"""--platform=ssh on hosts with a real sshd each, in network namespaces of their own."""

import json
import os
import pathlib
import re
import shutil
import signal
import sys
import time

import pytest

from cluster import digits, kills, processes, ssh_hosts, test_predict

REASON = ssh_hosts.missing()
pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(bool(REASON), reason=REASON or "permitted"),
]

SCRIPTS = pathlib.Path(__file__).with_name("scripts")
TRAIN = digits.TRAIN
# The most that a loss may take until it is named, and nothing is left: a requirement.
SECONDS = 15


@pytest.fixture(scope="module")
def network(tmp_path_factory, environment):
    with ssh_hosts.network(tmp_path_factory.mktemp("ssh"), 3, environment) as made:
        yield made


@pytest.fixture
def project(tmp_path):
    """A folder whose name needs quotes, with a script whose name does."""
    folder = tmp_path / "a b\n'c'"
    folder.mkdir()
    shutil.copy(SCRIPTS / "ssh_task.py", folder / "the 'task'.py")
    return folder


def rows(text):
    """What the tasks told."""
    found = re.findall(r"^(?:\[\S+\] )?(\[.*\])$", text, re.MULTILINE)
    return sorted(map(json.loads, found))


def test_digits_train_as_with_the_local_launcher(network, tmp_path, digits_here):
    words = [network.hosts(1, 1, 1), "--workers=3", *TRAIN]
    done = network.run(network.words("train", *words), tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"worker=3 on {', '.join(network.addresses[:3])}, seed " in done.stdout
    logs = tmp_path / "run" / "logs"
    assert sorted(path.name for path in logs.glob("*.log")) == [f"worker-{n}.log" for n in range(3)]
    digits.check_losses(tmp_path, digits_here)


def test_the_script_runs_without_the_launcher(network, tmp_path):
    words = [network.hosts(1, 1, 1), "--workers=3", "--log_dir=logs", "--output=run.sh", "--"]
    words += [str(SCRIPTS / "ssh_task.py"), "tell"]
    done = network.run(network.words("launch", *words), tmp_path)
    assert (done.returncode, done.stdout) == (0, "")
    done = network.run(["bash", "run.sh"], tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    logs = "".join(path.read_text() for path in (tmp_path / "logs").glob("*.log"))
    told = rows(logs)
    assert [row[0] for row in told] == [f"worker:{n}" for n in range(3)]
    assert [row[2].rpartition(":")[0] for row in told] == network.addresses[:3]


@pytest.mark.exhaustive  # only the shape differs
def test_parameter_servers_on_three_hosts(network, tmp_path):
    words = [network.hosts(2, 2, 1), "--chief", "--workers=2", "--ps=2", "--port=4000"]
    words += [TRAIN[0], "--config.strategy=parameter_server", "--config.training.epochs=1"]
    done = network.run(network.words("train", *words, "--config.run_dir=run"), tmp_path)
    bind = "import socket; socket.create_server(('', 4000)); socket.create_server(('', 4001))"
    taking = [network.start(host, [sys.executable, "-c", bind]) for host in range(3)]
    assert done.returncode == 0, done.stderr
    placed = {"worker:0": (0, 4001), "worker:1": (1, 4000), "ps:0": (1, 4001), "ps:1": (2, 4000)}
    for task, (host, port) in placed.items():
        assert f"[{task}] {task} serves at {network.addresses[host]}:{port}." in done.stdout
    assert "Test accuracy:" in done.stdout
    # The servers are ended with the training, on their hosts too: their ports are free at once.
    assert [process.wait(timeout=30) for process in taking] == [0, 0, 0]
    assert network.left_after(SECONDS) == {}


def start_endless(network, folder):
    """A run without an end on two hosts; returns the context of its launcher."""
    endless = str(SCRIPTS / "endless.py")
    words = [network.hosts(1, 1), "--workers=2", "--log_dir=logs", "--", endless]
    return network.started(network.words("launch", *words), folder)


def of_task(network, word, host):
    """The process of the second host's task with that word in its command, on a host."""
    (pid,) = [
        pid
        for pid, index in network.processes(word).items()
        if index == host and (host < 3 or network.addresses[1].encode() in processes_command(pid))
    ]
    return pid


def processes_command(pid):
    return pathlib.Path("/proc", str(pid), "cmdline").read_bytes()


@pytest.mark.parametrize(
    "what",
    [
        "link",
        "task",
        *(pytest.param(one, marks=pytest.mark.exhaustive) for one in ("ssh", "agent")),
    ],
)
def test_what_is_lost_is_named_and_nothing_is_left(what, network, tmp_path):
    address = network.addresses[1]
    with start_endless(network, tmp_path) as launcher:
        log = tmp_path / "logs" / "worker-0.log"
        processes.wait_for_text(log, "Epoch 3 has ended.", 90, launcher)
        victims = {
            "ssh": lambda: of_task(network, "tfdp.launch.agent run", 3),
            "agent": lambda: of_task(network, "tfdp.launch.agent\0run", 1),
            "task": lambda: of_task(network, "tfdp.run", 1),
        }
        with processes.watched(network.processes("tfdp")) as handles:
            if what == "link":
                network.cut(1)
            else:
                os.kill(victims[what](), signal.SIGKILL)
            try:
                assert processes.left_after(handles, SECONDS) == []
            finally:
                if what == "link":
                    network.mend(1)
        _, err = launcher.communicate(timeout=30)
    lines = err.splitlines()
    (head,) = [at for at, line in enumerate(lines) if line.startswith("task ")]
    table = {line.split(" on ")[0]: line for line in lines[head + 1 : -1]}
    assert next(iter(table)) in ("worker:0", "worker:1")
    assert f"worker:1 on {address}" in table["worker:1"]
    if what == "task":
        assert launcher.returncode == 137
        assert f"worker:1 on {address} exited with code 137 (killed by SIGKILL)." in lines[-1]
        return
    assert launcher.returncode == 138
    if what == "link":  # whoever sees it first names it
        assert "lost the connection to worker:1" in next(iter(table.values()))
        assert re.search(rf"worker:1 \({re.escape(address)}\S*\) was lost: ", err)
    else:
        assert "lost the connection to worker:1" in table["worker:1"]
        assert f"worker:1 on {address} exited with code 138." in lines[-1]


@pytest.mark.exhaustive
def test_a_host_that_is_back_takes_part_again(network, tmp_path):
    words = ["--max_restarts=1", "--log_dir=logs", "--", str(SCRIPTS / "endless.py")]
    command = network.words("launch", network.hosts(1, 1), "--workers=2", *words)
    with open(tmp_path / "said", "wb") as said:
        launcher = network.start(3, command, cwd=tmp_path, env=network.environment, stderr=said)
    log = tmp_path / "logs" / "worker-1.log"
    processes.wait_for_text(log, "Epoch 3 has ended.", 90, launcher)
    network.cut(1)
    try:
        processes.wait_for_text(tmp_path / "said", "All tasks start again in 1 s", 60, launcher)
    finally:
        network.mend(1)
    processes.wait_for_text(log, "(tfdp: restart 1)", 60, launcher)
    begin = len(log.read_text())
    until = time.monotonic() + 90
    while "Epoch 1 has ended." not in log.read_text()[begin:]:
        assert launcher.poll() is None, (tmp_path / "said").read_text()
        assert time.monotonic() < until, log.read_text()
        time.sleep(0.05)
    launcher.send_signal(signal.SIGINT)
    assert launcher.wait(timeout=60) == 130
    assert network.left_after(SECONDS) == {}


def test_nothing_is_left_when_the_launcher_is_killed(network, tmp_path):
    with start_endless(network, tmp_path) as launcher:
        log = tmp_path / "logs" / "worker-0.log"
        processes.wait_for_text(log, "Epoch 1 has ended.", 90, launcher)
        # On the launcher's host: itself, a connection and a relay with its ssh for each host.
        found = network.processes("tfdp")
        assert sorted(found.values()).count(3) == 1 + 2 + 2 + 2
        with processes.watched(found) as handles:
            launcher.kill()
            assert processes.left_after(handles, SECONDS) == []


def test_paths_and_values_arrive_as_they_are_and_secrets_stay_hidden(network, project):
    greeting = 'it\'s\n"two" $lines'
    words = [network.hosts(1, 2), "--workers=3", f"--env=GREETING={greeting}", "--env=MY_THING"]
    words += ["--log_dir=my logs", "--", "the 'task'.py", "tell", "a 'b\n", "--x=$HOME"]
    secret = "s3cret of\nthree 'words'"
    done = network.run(network.words("launch", *words), project, MY_THING=secret)
    assert done.returncode == 0, done.stderr
    logs = {path.name: path.read_text() for path in (project / "my logs").glob("*.log")}
    assert sorted(logs) == ["worker-0.log", "worker-1.log", "worker-2.log"]
    for text in (done.stdout, done.stderr, *logs.values()):
        assert not any(line in text for line in secret.splitlines())
    told = rows(done.stdout)
    assert [row[:2] for row in told] == [[f"worker:{n}", str(project)] for n in range(3)]
    hosts = [row[2].rpartition(":")[0] for row in told]
    assert hosts == [network.addresses[n] for n in (0, 1, 1)]
    assert len({row[2] for row in told}) == 3
    for *_, given, rest in told:
        assert given["GREETING"] == greeting
        assert given["MY_THING"] != secret  # blotted out on its way to the screen
        assert rest == ["a 'b\n", "--x=$HOME"]


def test_the_secret_is_in_no_argument_list(network, tmp_path):
    words = [network.hosts(1, 1), "--workers=2", "--env=MY_THING", "--log_dir=logs", "--"]
    words += [str(SCRIPTS / "ssh_task.py"), "wait"]
    command = network.words("launch", *words)
    with network.started(command, tmp_path, MY_THING="s3cret-value") as launcher:
        for index in range(2):
            processes.wait_for_text(tmp_path / f"ready-{index}", "", 60, launcher)
        found = network.processes("tfdp")
        assert sorted(set(found.values())) == [0, 1, 3]
        assert not any(b"s3cret-value" in processes_command(pid) for pid in found)
        # A task has it, and gets the time to save what it has.
        task = of_task(network, "tfdp.run", 1)
        assert b"MY_THING=s3cret-value" in pathlib.Path(f"/proc/{task}/environ").read_bytes()
        with processes.watched(found) as handles:
            launcher.send_signal(signal.SIGTERM)
            assert processes.left_after(handles, SECONDS) == []
        launcher.communicate(timeout=30)
    assert launcher.returncode == 143
    assert (tmp_path / "saved-0").exists()
    assert (tmp_path / "saved-1").exists()


def test_a_failure_is_followed_by_a_restart_and_its_code_is_returned(network, tmp_path):
    script = str(SCRIPTS / "ssh_task.py")
    words = [network.hosts(1, 1), "--workers=2", "--max_restarts=1", "--log_dir=logs", "--", script]
    done = network.run(network.words("launch", *words, "fail", "3"), tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines() == [
        f"worker:1 on {network.addresses[1]} exited with code 3, epoch 0, step 10: ended itself "
        f"with that code. All tasks start again in 1 s (there was progress: the budget is not "
        f"touched).",
        f"worker:1 on {network.addresses[1]} exited with code 3, epoch 0, step 11: ended itself "
        f"with that code. All tasks start again in 1 s (there was progress: the budget is not "
        f"touched).",
        "All went well after 2 restarts.",
    ]
    assert "worker:0 in restart 2" in done.stdout
    given_up = [network.hosts(1, 1, 1), "--workers=3", "--max_restarts=1", "--min_workers=2"]
    done = network.run(network.words("launch", *given_up, "--", script, "fewer"), tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[-1] == (
        "All went well after 2 restarts, without 1 of the workers."
    )
    assert "[worker:1] worker:1 of 2" in done.stdout.splitlines()
    done = network.run(network.words("launch", *words[:2], *words[3:], "fail", "3"), tmp_path)
    assert done.returncode == 3
    assert done.stderr.splitlines()[-1] == (
        f"worker:1 on {network.addresses[1]} exited with code 3. Log: {tmp_path}/logs/worker-1.log"
    )


@pytest.mark.exhaustive  # a limit of sshd's
def test_more_tasks_on_a_host_than_a_connection_carries(network, tmp_path):
    # sshd allows ten sessions on a connection (MaxSessions): the others connect by themselves.
    words = [network.hosts(11), "--workers=11", "--", str(SCRIPTS / "ssh_task.py"), "tell"]
    done = network.run(network.words("launch", *words), tmp_path)
    assert done.returncode == 0, done.stderr
    assert len({row[0] for row in rows(done.stdout)}) == 11


def test_the_doctor_finds_hosts_ready(network, tmp_path):
    words = network.words("doctor", network.hosts(1, 1), "--workers=2", "--json")
    done = network.run(words, tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    report = json.loads(done.stdout)
    levels = {check["name"]: check["level"] for check in report["checks"]}
    # How much disk is left is this machine's affair.
    assert {**levels, "disk": "ok"} == dict.fromkeys(
        ("hosts", "shared_folder", "ways", "versions", "clocks", "gpus", "disk"), "ok"
    )
    names = [facts["host"].split()[0] for facts in report["tasks"].values()]
    assert names == network.addresses[:2]
    assert {tuple(row["tasks"]) for row in report["all_reduce"]} == {("worker:0", "worker:1")}
    assert list(tmp_path.iterdir()) == []


def test_predict_on_two_hosts_is_that_of_one_whatever_dies(network, tmp_path, predicted):
    kills.give(predicted, tmp_path)
    verb, *words = kills.words("far")
    command = network.words(verb, network.hosts(1, 1), *words)
    with network.started(command, tmp_path) as launcher:
        test_predict.wait_for_parts(tmp_path, "far", 4, launcher)
        agents = network.processes("tfdp.launch.agent\0run")
        assert sorted(agents.values()) == [0, 1]
        (victim,) = [pid for pid, host in agents.items() if host == 1]
        os.kill(victim, signal.SIGKILL)
        out, err = launcher.communicate(timeout=120)
    assert launcher.returncode == 0, err
    assert out.startswith("633 rows: 630 predicted, 3 in errors.jsonl. 20 parts in far.")
    assert kills.content(tmp_path / "far") == kills.content(predicted / "quiet")
    assert network.left_after(SECONDS) == {}


@pytest.fixture(scope="module")
def broken(tmp_path_factory, environment):
    """Hosts of which the first takes a task. The others have a fault each; the last, no files."""
    folder = tmp_path_factory.mktemp("faults")
    python = folder / "my python"
    python.write_text(f"#!/bin/sh\nexec '{sys.executable}' \"$@\"\n")
    python.chmod(0o755)
    for name, text in {
        "old": '#!/bin/sh\nexec /usr/bin/env -u PYTHONPATH /usr/bin/python3 -S "$@"\n',
        "none": "#!/no/such/interpreter\n",
    }.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    (folder / "project").mkdir()
    (folder / "empty").mkdir()
    (folder / "copy").mkdir()
    (folder / "project" / "a.py").write_text("print(1)\n")
    with ssh_hosts.network(folder / "ssh", 8, environment, sshd=False) as made:
        made.start_sshd(0)
        made.start_sshd(1, keys="nobody")
        # Nobody listens on host 2.
        made.start_sshd(3, before=f"mount --bind '{folder}/old' '{python}'")
        made.start_sshd(4, before=f"mount --bind '{folder}/none' '{python}'")
        made.start_sshd(5, before=f"mount --bind '{folder}/empty' '{folder}/project'")
        made.start_sshd(6)
        said = folder / "server.log"
        with open(said, "wb") as log:
            server = made.start(6, [sys.executable, "-um", "http.server", "4000"], stdout=log)
        processes.wait_for_text(said, "Serving HTTP", 30, server)
        made.start_sshd(7, before=f"mount --bind '{folder}/copy' '{folder}/project'")
        made.python = python
        made.project = folder / "project"
        yield made


def test_each_host_with_a_fault_is_one_line(broken):
    words = [broken.hosts(1, 1, 1, 1, 1, 1, 1), "--workers=7", f"--remote_python={broken.python}"]
    done = broken.run(
        broken.words("launch", *words, "--port=4000", "--", "a.py"), broken.project, seconds=60
    )
    assert (done.returncode, done.stdout) == (2, "")
    lines = sorted(done.stderr.splitlines())
    at = broken.addresses
    expected = [
        f"tfdp: {at[1]}: ssh is refused (",
        f"tfdp: {at[2]}: the host is not reached by ssh (",
        f"tfdp: {at[3]}: '{broken.python}' has no tfdp (",
        f"tfdp: {at[4]}: there is no Python '{broken.python}' (",
        f"tfdp: {at[5]}: there is no a.py in {broken.project}. Share the folder",
        f"tfdp: {at[6]}: port 4000 is taken by another program there. Choose others",
    ]
    assert len(lines) == len(expected), done.stderr
    for line, begin in zip(lines, expected, strict=True):
        assert line.startswith(begin)
    assert broken.left_after(SECONDS) == {}
    # The doctor says the same, and starts nothing either.
    words = broken.words("doctor", *words, "--json")
    done = broken.run(words, broken.project, seconds=60)
    assert done.returncode == 1, done.stderr
    report = json.loads(done.stdout)
    problems = [c["text"] for c in report["checks"] if c["level"] == "problem"]
    assert sorted(text.split(": ")[0] for text in problems) == at[1:5]
    unseen = [c["text"] for c in report["checks"] if c["name"] == "shared_folder"]
    assert unseen[0].startswith(f"{at[5]} does not see what this machine wrote")


@pytest.mark.skipif(shutil.which("rsync") is None, reason="rsync is not installed")
def test_the_folder_is_copied_where_it_is_not_shared(broken):
    folder = broken.project
    shutil.copy(SCRIPTS / "ssh_task.py", folder)
    (folder / "data.txt").write_text("kept\n")
    (folder / "big.bin").write_text("left out\n")
    (folder / ".gitignore").write_text("*.bin\nruns/\n")
    for name in (".git", ".venv"):
        (folder / name).mkdir()
        (folder / name / "x").touch()
    host = f"--hosts={broken.addresses[7]}:2"
    words = [host, "--workers=2", "--sync", "--", "ssh_task.py", "tell"]
    done = broken.run(broken.words("launch", *words), folder, seconds=60)
    assert done.returncode == 0, done.stderr
    assert len(rows(done.stdout)) == 2
    # What that host sees as the project is this folder.
    there = sorted(path.name for path in (folder.parent / "copy").iterdir())
    assert there == [".gitignore", "a.py", "data.txt", "ssh_task.py"]
