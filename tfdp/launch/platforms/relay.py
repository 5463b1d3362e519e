"""The process on this machine that stands for a task on another host.

    TaskProcess(task, "b", relay.COMMAND, relay.environment(ssh_words, "b", process))

The launcher looks after it as after a task of its own: it prints what the task prints, passes
signals on to it, and ends as it ends. What the task is given goes over standard input: through the
environment of this process, which no other user can read, and never through an argument list.
"""

import contextlib
import json
import os
import pathlib
import resource
import selectors
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NoReturn

from tfdp.launch import frames, progress, task_start
from tfdp.launch.plan import TaskProcess
from tfdp.launch.platforms import ssh_errors

_COMMAND = (sys.executable, "-m", "tfdp.launch.platforms.relay")
_SPEC_VARIABLE = "TFDP_RELAY"
# What the task is given, under other names: PATH or LD_PRELOAD of the task are not those of ssh.
_PREFIX = "TFDP_SEND_"
_PASSED_ON = ("TFDP_RESTART",)

_LOST_PEER = 138
# From the start of ssh to the first word of the agent.
_CONNECT_SECONDS = 30.0
_READ_BYTES = 1 << 16


def stand_in(
    ssh: Sequence[str], name: str, there: TaskProcess, secrets: Iterable[str] = ()
) -> TaskProcess:
    """Return the process that stands here for a task on another host.

    Args:
        ssh: The command that runs the agent on the host.
        name: What the host is called.
        there: The task, as it is started there.
        secrets: Variables of its environment that hold secrets.
    """
    spec = {
        "ssh": list(ssh),
        "host": name,
        "task": str(there.task),
        "command": list(there.command),
        "directory": os.fspath(there.directory) if there.directory is not None else None,
        "cpus": list(there.cpus),
    }
    sent = {_PREFIX + key: value for key, value in there.environment.items()}
    return TaskProcess(
        there.task,
        name,
        _COMMAND,
        {**sent, _SPEC_VARIABLE: json.dumps(spec)},
        log=there.log,
        secrets=frozenset(_PREFIX + key for key in secrets),
    )


def main() -> NoReturn:
    """Start the task, pass on what it writes, and end as it does."""
    task_start.tie_to_launcher(os.environ)
    spec = json.loads(os.environ.pop(_SPEC_VARIABLE))
    sent = {
        key.removeprefix(_PREFIX): os.environ.pop(key)
        for key in list(os.environ)
        if key.startswith(_PREFIX)
    }
    sent.update({key: os.environ[key] for key in _PASSED_ON if key in os.environ})
    progress_file = os.environ.pop(progress.FILE_VARIABLE, "")
    is_terminal = bool(os.environ.pop(task_start.TERMINAL_VARIABLE, ""))
    line = {
        "command": spec["command"],
        "directory": spec["directory"],
        "cpus": spec["cpus"],
        "environment": sent,
        "terminal": is_terminal,
        "progress": bool(progress_file),
    }
    ssh = subprocess.Popen(
        spec["ssh"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,
        # A signal to this process's group is passed on in words; ssh must live on for that.
        start_new_session=True,
        preexec_fn=task_start.die_with_parent,
    )
    assert ssh.stdin
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda number, _: _tell(ssh, b"signal %d\n" % number))
    _tell(ssh, json.dumps(line).encode() + b"\n")
    # From a thread: the agent hears of this process also while that waits for the screen.
    threading.Thread(target=_beat, args=(ssh,), daemon=True).start()
    code = _pass_on(ssh, spec, progress_file)
    # Its agent has said all that there was. Without ServerAlive it might wait for a link for ever.
    ssh.kill()
    ssh.wait()
    _end_as(code)


def _pass_on(ssh: subprocess.Popen[bytes], spec: Mapping[str, Any], progress_file: str) -> int:
    """Return how the task ended, as subprocess counts: a negative number for a signal."""
    assert ssh.stdout
    assert ssh.stderr
    reader = frames.Reader()
    said = bytearray()
    selector = selectors.DefaultSelector()
    selector.register(ssh.stdout, selectors.EVENT_READ)
    selector.register(ssh.stderr, selectors.EVENT_READ)
    began = heard = time.monotonic()
    while True:
        # Only the time that is spent here counts as silence: a screen that takes no more of what
        # the task writes may hold this process for long.
        for key, _ in selector.select(frames.BEAT_SECONDS):
            data = os.read(key.fd, _READ_BYTES)
            if key.fileobj is ssh.stderr:
                said += data
                del said[:-4096]
                if not data:
                    selector.unregister(ssh.stderr)
                continue
            if not data:
                return _has_ended(ssh, spec, reader, bytes(said))
            for kind, payload in reader.feed(data):
                if kind == frames.STDOUT:
                    _write(1, payload)
                elif kind == frames.STDERR:
                    _write(2, payload)
                elif kind == frames.PROGRESS:
                    _keep(progress_file, payload)
                elif kind == frames.ENDED:
                    return int(json.loads(payload)["code"])
            heard = time.monotonic()
        now = time.monotonic()
        if reader.has_begun and now - heard >= frames.SILENCE_SECONDS:
            why = f"no sign of life for {frames.SILENCE_SECONDS:g} s"
            return _say(ssh_errors.lost(spec["task"], spec["host"], why))
        if not reader.has_begun and now - began >= _CONNECT_SECONDS:
            why = f"its agent has not begun after {_CONNECT_SECONDS:g} s"
            return _say(ssh_errors.lost(spec["task"], spec["host"], why))


def _has_ended(
    ssh: subprocess.Popen[bytes], spec: Mapping[str, Any], reader: frames.Reader, said: bytes
) -> int:
    """The agent is silent for good, and has not told how the task ended."""
    assert ssh.stderr
    code = None
    with contextlib.suppress(subprocess.TimeoutExpired):
        code = ssh.wait(timeout=frames.BEAT_SECONDS)
        os.set_blocking(ssh.stderr.fileno(), False)
        with contextlib.suppress(BlockingIOError):
            said += os.read(ssh.stderr.fileno(), _READ_BYTES)
    text = said.decode(errors="replace")
    if not reader.has_begun and code:
        shown = text + "\n" + reader.before.decode(errors="replace") if code != 255 else text
        return _say("tfdp: " + ssh_errors.explain(spec["host"], code, shown, spec["command"][0]))
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    how = f" ({lines[-1][:200].rstrip('.')})" if lines else ""
    why = f"its connection has ended{how}"
    return _say(ssh_errors.lost(spec["task"], spec["host"], why))


def _say(line: str) -> int:
    _write(2, line.encode(errors="replace") + b"\n")
    return _LOST_PEER


def _beat(ssh: subprocess.Popen[bytes]) -> None:
    while True:
        time.sleep(frames.BEAT_SECONDS)
        _tell(ssh, b"beat\n")


def _tell(ssh: subprocess.Popen[bytes], line: bytes) -> None:
    assert ssh.stdin
    # One that has ended is seen where its output is read.
    with contextlib.suppress(OSError):
        while line:
            line = line[os.write(ssh.stdin.fileno(), line) :]


def _write(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]


def _keep(path: str, text: bytes) -> None:
    """Hand on how far the task is; a full disk is no reason to end a training."""
    with contextlib.suppress(OSError):
        pathlib.Path(path).write_bytes(text)


def _end_as(code: int) -> NoReturn:
    if code < 0:
        # As the task was ended, so that the launcher can tell a killed task from one that exits.
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        with contextlib.suppress(OSError, ValueError):
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
        time.sleep(1)  # a signal that does not end this process, such as SIGCHLD
        code = 128 - code
    os._exit(code)


if __name__ == "__main__":
    main()
