"""What --platform=ssh decides before it connects."""

import json
import os
import subprocess
import sys
import time

import pytest
from absl import flags

from platforms import test_artefacts
from tfdp import cli
from tfdp.cluster import Task
from tfdp.error import Error
from tfdp.launch import frames, hosts
from tfdp.launch.plan import TaskProcess
from tfdp.launch.platforms import relay, ssh, ssh_errors, ssh_hosts, ssh_reach
from tfdp.launch.platforms.job import Job
from tfdp.launch.shape import Shape
from tfdp.version import VERSION


def values(*words):
    """The flags of ssh."""
    found = flags.FlagValues()
    ssh.define(lambda define, name, default, text: define(name, default, text, flag_values=found))
    found(["tfdp", *words])
    return found


def job(shape, script=("train.py", "--lr=0.1"), **more):
    fixed = dict(seed=7, log_dir="/shared/runs/a", directory="/shared/digits", run="r")
    return Job("digits", shape, script, **{**fixed, "python": "/venv/bin/python", **more})


@pytest.mark.parametrize("name", test_artefacts.TABLE["ssh"])
def test_what_is_written_is_a_script(name):
    text = test_artefacts.rendered("ssh", name)
    subprocess.run(["bash", "-n"], input=text, text=True, check=True, timeout=30)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "--platform=ssh names no hosts. Write --hosts=a:2,b, or --hostfile=FILE."),
        (
            ["--hosts=a", "--hostfile=b"],
            "--platform=ssh has both --hosts and --hostfile. Write --hosts=a:2,b, or "
            "--hostfile=FILE.",
        ),
        (["--hostfile=/no/file"], "--hostfile=/no/file: No such file or directory."),
        (["--hosts=a", "--port=80"], "--port=80: use a number from 1024 to 65000, or 0 for free"),
        (["--hosts=a", "--ssh_args=-i 'x"], '--ssh_args="-i \'x": No closing quotation.'),
    ],
)
def test_bad_flags_are_refused(words, message):
    with pytest.raises(Error) as raised:
        ssh.render(job(Shape(1)), values(*words))
    assert str(raised.value).startswith(message)


def test_the_hosts_of_a_file_are_used(tmp_path):
    file = tmp_path / "hosts"
    file.write_text("a address=10.0.0.1\nb slots=2\n")
    text = ssh.render(job(Shape(3)), values(f"--hostfile={file}"))
    assert '{"worker": ["10.0.0.1:2222", "b:2222", "b:2223"]}' in text


def test_a_time_to_wait_reaches_the_tasks(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TF_CONFIG", raising=False)
    monkeypatch.setenv("TFDP_START_TIMEOUT", "45")
    (tmp_path / "a.py").touch()
    with pytest.raises(SystemExit) as ended:
        cli.main(["launch", "--platform=ssh", "--hosts=a", "--dry-run", "--", "a.py"])
    assert ended.value.code == 0
    assert "export TFDP_START_TIMEOUT=45\n" in capsys.readouterr().out


def facts(**different):
    """What a host says."""
    same = {
        "host": "vm",
        "address": "10.0.0.1",
        "python": "3.11.7",
        "tfdp": VERSION,
        "tensorflow": "2.21.0",
        "keras": "3.15.1",
        "gpus": [],
        "cores": [(0,), (1,), (2,), (3,)],
        "free_ports": [10001, 10002],
        "taken_ports": [],
        "directory": "/d",
        "has_directory": True,
        "script_digest": "",
        "sees_mark": True,
    }
    return {**same, **different}


REMEDY = "Share the folder with the hosts, copy it with --sync, or name another: --remote_dir."


@pytest.mark.parametrize(
    ("different", "line"),
    [
        ({}, None),
        ({"python": "3.11.2"}, None),
        ({"tfdp": "0.0.1"}, f"b: tfdp 0.0.1 is there, and {VERSION} is here. Install the same."),
        (
            {"python": "3.12.1"},
            "b: Python 3.12.1 is there, and 3.11.7 on a. Use the same everywhere "
            "(--remote_python).",
        ),
        (
            {"tensorflow": "2.20.0"},
            "b: TensorFlow 2.20.0 is there, and 2.21.0 on a. Install the same.",
        ),
        (
            {"keras": "not installed as a package"},
            "b: Keras is not installed there. Install it, or see --remote_python.",
        ),
        (
            {"has_directory": False, "directory": "/a b"},
            f"b: there is no folder '/a b'. {REMEDY}",
        ),
        ({"script_digest": ""}, f"b: there is no 't n.py' in /d. {REMEDY}"),
        ({"script_digest": "0"}, f"b: 't n.py' in /d is not the same as here. {REMEDY}"),
        (
            {"taken_ports": [4000]},
            "b: port 4000 is taken by another program there. Choose others with --port.",
        ),
        ({"free_ports": []}, "b: 1 ports are needed, and so many are not free there."),
        (
            {"address": "::1"},
            "b: it was reached at ::1, where no other host reaches it. Name it by an address that "
            "they reach.",
        ),
    ],
)
def test_what_stands_in_the_way_of_a_run(different, line, tmp_path):
    (tmp_path / "t n.py").write_text("x")
    here = "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"
    found = {"a": facts(script_digest=here), "b": facts(**{"script_digest": here, **different})}
    lines = ssh_reach.find_problems(found, {"a": 1, "b": 1}, str(tmp_path), "t n.py")
    assert lines == ([line] if line else [])


@pytest.mark.parametrize(
    ("code", "said", "line"),
    [
        (
            255,
            "Warning: x\nme@b: Permission denied (publickey).\r\n",
            "b: ssh is refused (me@b: Permission denied (publickey)). Put your public key into "
            "~/.ssh/authorized_keys there (ssh-copy-id b), or start ssh-agent. Passwords are never "
            "asked for.",
        ),
        (
            255,
            "Host key verification failed.",
            "b: the key of the host is not known here, or is another one (Host key verification "
            "failed). Connect once by hand and compare it: ssh b.",
        ),
        (
            255,
            "ssh: connect to host b port 22: Connection timed out",
            "b: the host is not reached by ssh (ssh: connect to host b port 22: Connection timed "
            "out). Is it up, does sshd run there, and does a firewall let you through.",
        ),
        (
            255,
            "ssh: Could not resolve hostname b: Name or service not known",
            "b: there is no such host (ssh: Could not resolve hostname b: Name or service not "
            "known). Look at its name, or ~/.ssh/config.",
        ),
        (
            127,
            "bash: line 1: /a b/python: No such file or directory",
            "b: there is no Python '/a b/python' (bash: line 1: /a b/python: No such file or "
            "directory). Name one that is there with --remote_python.",
        ),
        (
            1,
            "/a b/python: Error while finding module specification for 'tfdp.launch.agent' "
            "(ModuleNotFoundError: No module named 'tfdp')",
            "b: '/a b/python' has no tfdp (/a b/python: Error while finding module specification "
            "for 'tfdp.launch.agent' (ModuleNotFoundError: No module named 'tfdp')). Install it "
            "there, or name another interpreter with --remote_python.",
        ),
        (
            1,
            "SyntaxError: \x1b[1minvalid syntax",
            "b: '/a b/python' -m tfdp.launch.agent failed with code 1 (SyntaxError:  [1minvalid "
            "syntax). It needs Python 3.11 or later, and tfdp.",
        ),
        (
            None,
            "",
            "b: no answer. Is it overloaded, or does its login shell wait for something?",
        ),
        (255, "", "b: ssh failed (it says nothing). Try by hand: ssh b true"),
    ],
)
def test_what_an_ssh_that_failed_means(code, said, line):
    assert ssh_errors.explain("b", code, said, "/a b/python") == line


def test_no_secret_is_in_an_argument_list():
    process = TaskProcess(Task("worker", 0), "b", ("python", "-m", "a"), {"HF_TOKEN": "hf_secret"})
    words = ssh_hosts.Ssh((), "/a 'b/python").agent("me@b", "run")
    assert words[-2:] == ["me@b", "exec '/a '\"'\"'b/python' -m tfdp.launch.agent run"]
    given = relay.stand_in(words, "me@b", process, ["HF_TOKEN"])
    assert [given.environment[name] for name in given.secrets] == ["hf_secret"]
    assert "hf_secret" not in " ".join([*words, *given.command])


def test_rsync_is_told_which_ssh(tmp_path):
    shell = ssh_hosts.Ssh(("-i", "/my 'keys"), "python")
    words = ssh_hosts.rsync("/a b", "/c d", "me@fd00::1", shell)
    assert words[-2:] == ["/a b/", "me@[fd00::1]:/c d/"]
    shell = words[words.index("--rsh") + 1]
    assert shell.startswith("ssh -i '/my ''keys' -o BatchMode=yes -o ConnectTimeout=10 ")


@pytest.mark.parametrize(
    ("path", "word"),
    [
        ("/venv/bin/python", "/venv/bin/python"),
        ("~/my venv/python", "~/'my venv/python'"),
        ("~other/python", "'~other/python'"),
        ("$(id)", "'$(id)'"),
    ],
)
def test_paths_there_are_quoted(path, word):
    assert ssh_hosts.remote_word(path) == word


def test_a_relay_that_is_given_no_agent_says_what_ssh_said():
    process = TaskProcess(Task("worker", 0), "b", ("python", "-m", "a"))
    given = relay.stand_in(["sh", "-c", "echo gone >&2; exit 255"], "b", process)
    done = subprocess.run(
        given.command,
        env={**os.environ, **given.environment},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (138, "")
    assert done.stderr == "tfdp: b: ssh failed (gone). Try by hand: ssh b true\n"


@pytest.mark.exhaustive
def test_a_screen_that_is_stopped_costs_no_task():
    program = "import time; print('x' * (4 << 20), flush=True); time.sleep(1); print('end')"
    command = (sys.executable, "-c", program)
    process = TaskProcess(Task("worker", 0), "b", command)
    agent = [sys.executable, "-m", "tfdp.launch.agent", "run"]
    given = relay.stand_in(agent, "b", process)
    with subprocess.Popen(
        given.command, env={**os.environ, **given.environment}, stdout=subprocess.PIPE, text=True
    ) as running:
        # Longer than the agent waits for a launcher that is silent.
        time.sleep(frames.SILENCE_SECONDS + 3)
        out, _ = running.communicate(timeout=60)
    assert running.returncode == 0
    assert out == "x" * (4 << 20) + "\nend\n"


def reached(first_port=0, **different):
    return ssh_reach.Reached(
        ssh_hosts.Ssh((), "/venv/bin/python"),
        hosts.parse("a:2,me@b:1"),
        {"a": facts(), "me@b": facts(address="10.0.0.2", free_ports=[20001], **different)},
        [],
        first_port,
        # Of b there is no answer, or one that helps nobody.
        lambda changes: {"a": facts(free_ports=[10007, 10008]), "me@b": facts(free_ports=[])},
    )


def test_a_cluster_has_the_addresses_that_hosts_were_reached_at():
    shape = Shape(3)
    found = reached()
    placed = found.place(shape)
    assert found.cluster(shape, placed).worker == (
        "10.0.0.1:10001",
        "10.0.0.1:10002",
        "10.0.0.2:20001",
    )
    # Later, where b is gone: a has other ports, and b keeps what it had.
    assert found.cluster(shape, placed).worker == (
        "10.0.0.1:10007",
        "10.0.0.1:10008",
        "10.0.0.2:20001",
    )
    fixed = reached(first_port=4000)
    assert fixed.cluster(shape, placed).worker == (
        "10.0.0.1:4000",
        "10.0.0.1:4001",
        "10.0.0.2:4000",
    )


def test_workers_that_were_given_up_free_no_slot():
    placed = reached().place(Shape(2), without=["a"])
    assert [host.name for host in placed.values()] == ["a", "me@b"]
    with pytest.raises(Error, match="need 2 slots, but 2 hosts have 1"):
        reached().place(Shape(2), without=["a", "me@b"])


def test_each_task_has_its_cores_and_gpus():
    shape = Shape(3)
    found = reached()
    placed = found.place(shape)
    tasks = [TaskProcess(task, "x", ("python",)) for task in shape.tasks]

    def given(gpus):
        relays = found.relays(tasks, placed, gpus, True, frozenset({"A"}))
        assert [one.host for one in relays] == ["a", "a", "me@b"]
        assert all(one.secrets == {"TFDP_SEND_A"} for one in relays)
        return [one.environment for one in relays]

    cpus = [json.loads(one["TFDP_RELAY"])["cpus"] for one in given({})]
    assert cpus == [[0, 1], [2, 3], []]
    gpus = dict(zip(shape.tasks, ("0", "1", "0"), strict=True))
    with_gpus = given(gpus)
    assert [one["TFDP_SEND_CUDA_VISIBLE_DEVICES"] for one in with_gpus] == ["0", "1", "0"]
    assert [json.loads(one["TFDP_RELAY"])["cpus"] for one in with_gpus] == [[], [], []]
