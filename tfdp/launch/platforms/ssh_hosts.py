"""A connection to each host, and what the agents there find out.

    with connect(("a", "me@b"), Ssh(("-p", "2222"), "/venv/bin/python")) as connections:
        facts, problems = ask(connections, question)

One ssh for each host answers questions (tfdp.launch.agent look), and carries all other connections
to that host as well (ControlMaster): a host is asked once for a key, whatever runs there. It ends
when its standard input is closed, which is when the launcher ends, however that comes.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import selectors
import shlex
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import IO, Any

from tfdp.error import Error
from tfdp.launch import frames
from tfdp.launch.platforms import ssh_errors

# Never a question that nobody answers, and never two minutes of silence after a failure. Forwarded
# ports of ~/.ssh/config would be taken by the first of several connections.
OPTIONS = (
    *("-o", "BatchMode=yes", "-o", "ConnectTimeout=10"),
    *("-o", "ServerAliveInterval=3", "-o", "ServerAliveCountMax=3"),
    *("-o", "ClearAllForwardings=yes"),
)
# To connect, and to start Python on a slow disk. ssh itself gives up after ConnectTimeout.
_ANSWER_SECONDS = 60.0
_END_SECONDS = 3.0
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

    def words(self, name: str, master: str = "no") -> list[str]:
        """Return ssh with its options, without the host."""
        shared = (
            ["-o", f"ControlMaster={master}", "-o", f"ControlPath={self.sockets}/{_file(name)}"]
            if self.sockets
            else []
        )
        return ["ssh", *self.arguments, *OPTIONS, *shared, "-o", "ControlPersist=no"]

    def agent(self, name: str, what: str, master: str = "no") -> list[str]:
        """Return the command that runs an agent on a host."""
        command = f"exec {remote_word(self.python)} -m tfdp.launch.agent {what}"
        return [*self.words(name, master), name, command]


def remote_word(path: str) -> str:
    """Return a path as a word for the shell of another host, which may replace a leading ~/."""
    home = "~/" if path.startswith("~/") else ""
    rest = path.removeprefix(home)
    return home + (shlex.quote(rest) if rest else "")


@dataclasses.dataclass(eq=False)
class Connection:
    """A host that is asked.

    Attributes:
        name: The host.
        process: The ssh.
        said: What it writes to standard error.
        reader: What comes back.
        problem: Why it does not answer; "" while it does.
    """

    name: str
    process: subprocess.Popen[bytes]
    said: IO[bytes]
    reader: frames.Reader = dataclasses.field(default_factory=frames.Reader)
    problem: str = ""


@contextlib.contextmanager
def connect(names: Sequence[str], ssh: Ssh) -> Iterator[tuple[Ssh, list[Connection]]]:
    """Connect to all hosts at once. Those that are not reached say so when they are asked.

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
            said = tempfile.TemporaryFile()
            process = subprocess.Popen(
                ssh.agent(name, "look", master="yes"),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=said,
                bufsize=0,
                # Ctrl-C is for the launcher, which ends the tasks over these connections.
                start_new_session=True,
            )
            connections.append(Connection(name, process, said))
        yield ssh, connections
    finally:
        for connection in connections:
            _close(connection)
        shutil.rmtree(folder, ignore_errors=True)


def ask(
    connections: Sequence[Connection],
    questions: Mapping[str, Mapping[str, Any]],
    python: str,
    seconds: float = _ANSWER_SECONDS,
) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Ask all hosts at once.

    Args:
        connections: The hosts.
        questions: What each is asked, see agent.look.
        python: The interpreter there, for what is said about it.
        seconds: How long to wait.

    Returns:
        The answers by host; and a line for each host that does not answer.
    """
    answers: dict[str, dict[str, Any]] = {}
    selector = selectors.DefaultSelector()
    for connection in connections:
        if connection.problem:
            continue
        assert connection.process.stdin
        assert connection.process.stdout
        with contextlib.suppress(OSError):  # it has ended: said below
            line = json.dumps(questions[connection.name]) + "\n"
            connection.process.stdin.write(line.encode())
        selector.register(connection.process.stdout, selectors.EVENT_READ, connection)
    until = time.monotonic() + seconds
    while selector.get_map() and (left := until - time.monotonic()) > 0:
        for key, _ in selector.select(left):
            connection = key.data
            data = os.read(key.fd, 1 << 16)
            found = [text for kind, text in connection.reader.feed(data) if kind == frames.ANSWER]
            if found:
                answers[connection.name] = json.loads(found[-1])
            if found or not data:
                selector.unregister(key.fileobj)
            if not data:
                connection.problem = _explain(connection, python)
    for key in list(selector.get_map().values()):
        key.data.problem = _explain(key.data, python)
    selector.close()
    return answers, [one.problem for one in connections if one.problem]


def _explain(connection: Connection, python: str) -> str:
    code = None
    with contextlib.suppress(subprocess.TimeoutExpired):
        code = connection.process.wait(timeout=1.0)
    connection.said.seek(0)
    said = connection.said.read()[-4096:].decode(errors="replace")
    if code != 255:
        said = connection.reader.before.decode(errors="replace") + "\n" + said
    return ssh_errors.explain(connection.name, code, said, python)


def _close(connection: Connection) -> None:
    assert connection.process.stdin
    with contextlib.suppress(OSError):
        connection.process.stdin.close()
    try:
        connection.process.wait(timeout=_END_SECONDS)
    except subprocess.TimeoutExpired:  # its link is cut, say
        connection.process.kill()
        connection.process.wait()
    assert connection.process.stdout
    connection.process.stdout.close()
    connection.said.close()


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
    # rsync reads these words itself: quotes keep blanks, and a quote is doubled.
    shell = " ".join("'" + word.replace("'", "''") + "'" for word in ssh.words(name))
    user, at, host = name.rpartition("@")
    place = f"{user}{at}[{host}]" if ":" in host else name
    return [
        *("rsync", "--archive", "--compress", "--protect-args", "--filter=:- .gitignore"),
        *("--exclude=.git", "--exclude=.venv", "--rsh", shell),
        *(str(pathlib.Path(directory)) + "/", f"{place}:{target}/"),
    ]


def _file(name: str) -> str:
    """Return a name for the socket of a host, short whatever the host is called."""
    import hashlib

    return hashlib.sha256(name.encode()).hexdigest()[:12]
