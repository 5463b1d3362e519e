"""A connection to each host, and what the agents there find out.

    with connect(("a", "me@b"), Ssh(("-p", "2222"), "/venv/bin/python")) as (ssh, connections):
        facts, problems = ask(connections, questions, ssh)

One ssh for each host carries all that is done there (ControlMaster): a host is asked once for a
key, whatever runs there. It dies with the launcher, however that ends.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tfdp.error import Error
from tfdp.launch import frames, task_start
from tfdp.launch.platforms import ssh_errors

# Never a question that nobody answers, and never two minutes of silence after a failure. Of what
# ~/.ssh/config may set for a host, ports that are forwarded would be taken by the first of several
# connections, and a terminal or a command would stand between the agent and the launcher.
OPTIONS = (
    *("-o", "BatchMode=yes", "-o", "ConnectTimeout=10"),
    *("-o", "ServerAliveInterval=3", "-o", "ServerAliveCountMax=3"),
    *("-o", "ClearAllForwardings=yes", "-o", "RequestTTY=no", "-o", "RemoteCommand=none"),
)
# To connect, and to start Python on a slow disk. ssh itself gives up after ConnectTimeout.
_ANSWER_SECONDS = 60.0
_POLL_SECONDS = 0.02
# A socket's path has 108 bytes, of which ssh takes some while it makes it.
_LONGEST_FOLDER = 60


@dataclasses.dataclass(frozen=True)
class Ssh:
    """How hosts are reached.

    Attributes:
        arguments: The user's own arguments of ssh: they come first, and the first one counts.
        python: The interpreter on the hosts.
        sockets: The folder of the connections that are shared; "" for none.
    """

    arguments: tuple[str, ...]
    python: str
    sockets: str = ""

    def socket(self, name: str) -> str:
        """Return the path of a host's connection, short whatever the host is called."""
        return f"{self.sockets}/{hashlib.sha256(name.encode()).hexdigest()[:12]}"

    def words(self, name: str, master: str = "no") -> list[str]:
        """Return ssh with its options, without the host."""
        shared = (
            ["-o", f"ControlMaster={master}", "-o", f"ControlPath={self.socket(name)}"]
            if self.sockets
            else []
        )
        return ["ssh", *self.arguments, *OPTIONS, *shared, "-o", "ControlPersist=no"]

    def agent(self, name: str, what: str) -> list[str]:
        """Return the command that runs an agent on a host."""
        command = f"exec {remote_word(self.python)} -m tfdp.launch.agent {what}"
        return [*self.words(name), name, command]


def remote_word(path: str) -> str:
    """Return a path as a word for the shell of another host, which may replace a leading ~/."""
    home = "~/" if path.startswith("~/") else ""
    rest = path.removeprefix(home)
    return home + (shlex.quote(rest) if rest else "")


@dataclasses.dataclass(eq=False)
class Connection:
    """A host.

    Attributes:
        name: Its name.
        process: The ssh that carries all that is done there.
        problem: Why the host is not reached, or does not answer; "" while it does.
    """

    name: str
    process: subprocess.Popen[bytes]
    problem: str = ""


@contextlib.contextmanager
def connect(names: Sequence[str], ssh: Ssh) -> Iterator[tuple[Ssh, list[Connection]]]:
    """Connect to all hosts at once. Those that are not reached have a problem.

    Args:
        names: The hosts, each once.
        ssh: How they are reached.

    Yields:
        The same with a folder for its connections, and a connection to each host.

    Raises:
        Error: There is no ssh here.
    """
    if shutil.which("ssh") is None:
        raise Error("ssh is not installed here. Install OpenSSH's client (openssh-client).")
    folder = tempfile.mkdtemp(prefix="tfdp-ssh-")
    if len(folder) > _LONGEST_FOLDER:
        os.rmdir(folder)
        folder = tempfile.mkdtemp(prefix="tfdp-ssh-", dir="/tmp")
    ssh = dataclasses.replace(ssh, sockets=folder)
    connections: list[Connection] = []
    try:
        for name in names:
            words = [*ssh.words(name, master="yes"), "-N", name]
            connections.append(Connection(name, _start(words)))
        _wait(connections, ssh)
        yield ssh, connections
    finally:
        for connection in connections:
            connection.process.kill()
            connection.process.communicate()
        shutil.rmtree(folder, ignore_errors=True)


def _wait(connections: Sequence[Connection], ssh: Ssh) -> None:
    """Wait until all are connected, which their sockets show, or have failed."""
    until = time.monotonic() + _ANSWER_SECONDS
    waiting = list(connections)
    while waiting:
        for connection in list(waiting):
            code = connection.process.poll()
            is_late = time.monotonic() >= until
            if code is not None or is_late:
                said = b"" if code is None else _rest(connection.process)
                text = said.decode(errors="replace")
                connection.problem = ssh_errors.explain(connection.name, code, text, ssh.python)
            if connection.problem or os.path.exists(ssh.socket(connection.name)):
                waiting.remove(connection)
        time.sleep(_POLL_SECONDS if waiting else 0.0)


def ask(
    connections: Sequence[Connection],
    questions: Mapping[str, Mapping[str, Any]],
    ssh: Ssh,
    seconds: float = _ANSWER_SECONDS,
) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Ask all hosts at once.

    Args:
        connections: The hosts.
        questions: What each is asked, see host_look.look.
        ssh: How they are reached.
        seconds: How long to wait.

    Returns:
        The answers by host; and a line for each host that is not reached, or does not answer.
    """
    running = []
    for connection in connections:
        if not connection.problem:
            question = json.dumps(questions[connection.name]) + "\n"
            process = _start(ssh.agent(connection.name, "look"), question)
            running.append((connection, process))
    answers: dict[str, dict[str, Any]] = {}
    until = time.monotonic() + seconds
    for connection, process in running:
        code = None
        try:
            out, said = process.communicate(timeout=max(0.1, until - time.monotonic()))
            code = process.returncode
        except subprocess.TimeoutExpired:
            process.kill()
            out, said = process.communicate()
        reader = frames.Reader()
        found = [payload for kind, payload in reader.feed(out) if kind == frames.ANSWER]
        if found:
            answers[connection.name] = json.loads(found[-1])
            continue
        shown = said if code == 255 else reader.before + b"\n" + said
        text = shown.decode(errors="replace")
        connection.problem = ssh_errors.explain(connection.name, code, text, ssh.python)
    return answers, [one.problem for one in connections if one.problem]


def _rest(process: subprocess.Popen[bytes]) -> bytes:
    """Return the last of what a process that has ended wrote to standard error."""
    assert process.stderr
    os.set_blocking(process.stderr.fileno(), False)
    with contextlib.suppress(BlockingIOError):
        return os.read(process.stderr.fileno(), 1 << 16)
    return b""


def _start(words: Sequence[str], question: str = "") -> subprocess.Popen[bytes]:
    """Start an ssh that dies with this process, and reads a question from standard input."""
    with tempfile.TemporaryFile() as file:
        file.write(question.encode())
        file.seek(0)
        return subprocess.Popen(
            words,
            stdin=file,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            # Ctrl-C is for the launcher, which ends the tasks over these connections.
            start_new_session=True,
            # It closes all that it inherits: no pipe can kill it.
            preexec_fn=task_start.die_with_parent,
        )


def copy(directory: str, targets: Mapping[str, str], ssh: Ssh) -> list[str]:
    """Copy a folder to hosts by rsync: what .gitignore leaves out stays here, .git and .venv too.

    Args:
        directory: The folder here.
        targets: The folder on each host.
        ssh: How they are reached.

    Returns:
        A line for each host where that failed.

    Raises:
        Error: There is no rsync here.
    """
    if shutil.which("rsync") is None:
        raise Error("--sync: rsync is not installed here. Install it, or use a shared folder.")
    running = []
    for name, target in targets.items():
        said = tempfile.TemporaryFile()
        command = rsync(directory, target, name, ssh)
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=said
        )
        running.append((name, process, said))
    problems = []
    for name, process, said in running:
        code = process.wait()
        said.seek(0)
        lines = said.read().decode(errors="replace").strip().splitlines()
        if code:
            why = next((line for line in lines if "not found" in line), lines[0] if lines else "")
            problems.append(f"{name}: rsync failed with code {code} ({why[:200]}). Is it there?")
        said.close()
    return problems


def rsync(directory: str, target: str, name: str, ssh: Ssh) -> list[str]:
    """Return the command that copies a folder to a host."""
    shell = " ".join(map(_rsync_word, ssh.words(name)))
    user, at, host = name.rpartition("@")
    # It begins in the user's folder, and no shell replaces ~.
    there = target.removeprefix("~/") or "."
    place = f"{user}{at}[{host}]" if ":" in host else name
    return [
        *("rsync", "--archive", "--compress", "--protect-args", "--mkpath"),
        "--filter=:- .gitignore",
        *("--exclude=.git", "--exclude=.venv", "--rsh", shell),
        *(str(pathlib.Path(directory)) + "/", f"{place}:{there}/"),
    ]


def _rsync_word(word: str) -> str:
    """A word of --rsh, which rsync reads itself: quotes keep blanks, and a quote is doubled."""
    is_plain = re.fullmatch(r"[\w@%+=:,./-]+", word, re.ASCII)
    return word if is_plain else "'" + word.replace("'", "''") + "'"
