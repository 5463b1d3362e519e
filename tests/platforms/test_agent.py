"""The agent and its frames, over pipes alone: what ssh does between two machines."""

import contextlib
import hashlib
import json
import os
import socket
import subprocess
import sys

import pytest
from cluster import processes

from tfdp.launch import frames, host_look

SECONDS = 30
# Starts a child of its own, says who both are, and waits; a signal is told.
WAITS = """
import os, signal, subprocess, sys
signal.signal(signal.SIGTERM, lambda *_: (print("asked to end", flush=True), sys.exit(143)))
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print(os.getpid(), child.pid, flush=True)
signal.pause()
"""


def test_frames_are_found_wherever_they_are_cut():
    data = b"Welcome!\n" + frames.MARKER + frames.encode(b"o", b"a\n") + frames.encode(b"h")
    for size in (1, 2, 7, len(data)):
        reader, found = frames.Reader(), []
        for at in range(0, len(data), size):
            found += reader.feed(data[at : at + size])
        assert found == [(b"o", b"a\n"), (b"h", b"")]
        assert reader.before == b"Welcome!\n"
        assert reader.has_begun


def test_a_shell_that_says_much_is_cut():
    reader = frames.Reader()
    assert reader.feed(b"x" * 100_000) == []
    assert reader.before == b"x" * 4096
    assert reader.feed(frames.MARKER + frames.encode(b"x", b"{}")) == [(b"x", b"{}")]


@contextlib.contextmanager
def running(*command, directory=None, environment=None, is_asked=False):
    """An agent that runs a command."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tfdp.launch.agent", "run"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        bufsize=0,
    )
    spec = {
        "command": command,
        "directory": directory,
        "environment": environment or {},
        "cpus": [],
        "terminal": False,
        "progress": is_asked,
    }
    process.stdin.write(json.dumps(spec).encode() + b"\n")
    try:
        yield process
    finally:
        process.kill()
        process.wait(timeout=SECONDS)
        process.stdin.close()
        process.stdout.close()


def read(process, line=None):
    """The frames up to the end of the task, or to a line that it writes; signs of life left out."""
    reader, found = frames.Reader(), []
    ends = (lambda: frames.ENDED in dict(found)) if line is None else (lambda: line in text(found))
    while not ends():
        data = os.read(process.stdout.fileno(), 1 << 16)
        assert data, found
        found += [frame for frame in reader.feed(data) if frame[0] != frames.ALIVE]
    return found


def text(found):
    """What the task wrote to its standard output."""
    return b"".join(payload for kind, payload in found if kind == frames.STDOUT)


@pytest.mark.parametrize(
    ("code", "ended"), [("sys.exit(3)", 3), ("os.kill(os.getpid(), 9)", -9), ("", 0)]
)
def test_what_a_task_writes_and_how_it_ends_comes_back(code, ended, tmp_path):
    environment = {"A": "x y\n'z' \"$HOME\""}
    program = (
        "import os, sys; print(os.getcwd(), os.environ['A'], flush=True); "
        "sys.stderr.write('err'); sys.stderr.flush(); " + code
    )
    folder = tmp_path / "a b\n'c'"
    folder.mkdir()
    command = (sys.executable, "-c", program)
    with running(*command, directory=str(folder), environment=environment) as process:
        found = read(process)
    by_kind = {kind: b"".join(p for k, p in found if k == kind) for kind, _ in found}
    assert by_kind == {
        frames.STDOUT: f"{folder} {environment['A']}\n".encode(),
        frames.STDERR: b"err",
        frames.ENDED: json.dumps({"code": ended}).encode(),
    }


@pytest.mark.parametrize(
    ("command", "directory", "code", "said"),
    [
        (("/no/program",), None, 127, b"tfdp: /no/program: No such file or directory"),
        ((sys.executable,), "/no/folder", 127, b"tfdp: /no/folder: No such file or directory"),
        (("/",), None, 126, b"tfdp: /: Permission denied"),
    ],
)
def test_what_cannot_be_started_is_said(command, directory, code, said):
    with running(*command, directory=directory) as process:
        (_, why), (_, ended) = read(process)
    assert why.startswith(said)
    assert json.loads(ended) == {"code": code}


def test_signals_are_passed_on():
    with running(sys.executable, "-c", WAITS) as process:
        read(process, b"\n")
        process.stdin.write(b"beat\nsignal 15\n")
        rest = b""
        while data := os.read(process.stdout.fileno(), 1 << 16):
            rest += data
    assert frames.encode(frames.ENDED, b'{"code": 143}') in rest
    assert b"asked to end" in rest


@pytest.mark.parametrize("how", ["the launcher", "the agent"])
def test_nothing_is_left_when_the_launcher_or_the_agent_is_gone(how):
    with running(sys.executable, "-c", WAITS) as process:
        pids = [int(word) for word in text(read(process, b"\n")).split()]
        watched = pids if how == "the agent" else [*pids, process.pid]
        with processes.watched(watched) as handles:
            if how == "the agent":
                process.kill()
            else:
                process.stdin.close()
            assert processes.left_after(handles, SECONDS) == []


def test_progress_comes_back():
    program = "import tfdp; tfdp.report_progress(step=30, epoch=2)"
    with running(sys.executable, "-c", program, is_asked=True) as process:
        found = dict(read(process))
    assert found[frames.PROGRESS].split() == [b"2", b"30"]


def test_a_host_says_what_it_is_like(tmp_path):
    (tmp_path / "a.py").write_bytes(b"print(1)\n")
    (tmp_path / "mark").touch()
    question = {
        "directory": str(tmp_path / "."),
        "make_directory": False,
        "script": "a.py",
        "ports": [],
        "free_ports": 2,
        "mark": "mark",
        "wait_seconds": 0.0,
    }
    environ = {"SSH_CONNECTION": "10.0.0.9 40000 10.0.0.1 22", "CUDA_VISIBLE_DEVICES": "0,3"}
    answer = host_look.look(question, environ)
    assert (answer["address"], answer["gpus"]) == ("10.0.0.1", ["0", "3"])
    assert (answer["has_directory"], answer["sees_mark"]) == (True, True)
    assert answer["script_digest"] == hashlib.sha256(b"print(1)\n").hexdigest()
    assert len(set(answer["free_ports"])) == 2
    other = host_look.look({**question, "directory": str(tmp_path / "no"), "mark": "no"}, {})
    assert (other["has_directory"], other["script_digest"], other["sees_mark"]) == (
        False,
        "",
        False,
    )
    made = host_look.look({**question, "directory": f"{tmp_path}/no", "make_directory": True}, {})
    assert made["has_directory"]


def test_a_port_that_is_taken_is_told(tmp_path):
    question = dict.fromkeys(("script", "mark"), "") | {"directory": str(tmp_path)}
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        question |= {"make_directory": False, "ports": [port], "free_ports": 0}
        question |= {"wait_seconds": 0.0}
        assert host_look.look(question, {})["taken_ports"] == [port]
    assert host_look.look(question, {})["taken_ports"] == []


def test_a_task_is_asked_first_where_the_launcher_is_silent(tmp_path):
    # SIGTERM, and then SIGKILL: the task may tidy up, and the agent tells nobody.
    told = tmp_path / "told"
    program = (
        "import os, pathlib, signal, time\n"
        f"signal.signal(signal.SIGTERM, lambda *_: pathlib.Path({str(told)!r}).touch())\n"
        "print(os.getpid(), flush=True)\n"
        "while True: time.sleep(600)\n"
    )
    with running(sys.executable, "-c", program) as process:
        pid = int(text(read(process, b"\n")))
        with processes.watched([pid]) as handles:
            assert process.wait(timeout=SECONDS) == 0
            assert processes.left_after(handles, SECONDS) == []
    assert told.exists()
