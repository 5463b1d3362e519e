"""What runs on another host for a launcher that reaches it over a pair of pipes, as ssh gives them.

    ssh HOST python -m tfdp.launch.agent look     # answers a question about the host
    ssh HOST python -m tfdp.launch.agent run      # starts one task, and passes on what it writes

What is to be done comes as a line of JSON on standard input, and never in the argument list: any
user of the host can read that one. See frames for what goes back. Nothing is left behind: when
standard input is closed, or the launcher is silent for ten seconds, the task and all that it has
started are ended. They die with the agent as well, however that ends.
"""

import contextlib
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from typing import Any

from tfdp.launch import endings, frames, host_look, process, progress

# From SIGTERM to SIGKILL where the launcher is lost: what a script does at its end may take that.
_GRACE_SECONDS = 2.0
# Above, what the task writes is left in its pipes: it has to wait, as for a stopped terminal.
_ROOM_BYTES = 1 << 20
_READ_BYTES = 1 << 16
_LOOK_SECONDS = 60
# The most a pipe can hold: what is left in it when its task has ended.
_PIPE_BYTES = 1 << 20


def main(argv: list[str]) -> None:
    """Answer a question ("look"), or run a task ("run")."""
    os.write(1, frames.MARKER)
    if argv == ["look"]:
        signal.alarm(_LOOK_SECONDS)  # nobody waits longer: a disk hangs, or the link is cut
        answer = json.dumps(host_look.look(json.loads(_first_line()), os.environ))
        os.write(1, frames.encode(frames.ANSWER, answer.encode()))
    else:
        _Agent(json.loads(_first_line())).run()


def _first_line() -> bytes:
    """Read a line, and nothing of what follows."""
    line = bytearray()
    while not line.endswith(b"\n"):
        if not (byte := os.read(0, 1)):
            os._exit(1)  # the launcher is gone
        line += byte
    return bytes(line)


class _Agent:
    """One task, from its start to its end.

    Args:
        spec: command, directory, environment, cpus, terminal: see plan.TaskProcess; progress:
            whether the launcher asks how far the task is.
    """

    def __init__(self, spec: Mapping[str, Any]) -> None:
        self._spec = spec
        self._selector = selectors.DefaultSelector()
        self._out = bytearray(frames.encode(frames.ALIVE))
        self._line = bytearray()
        self._heard = self._beat_at = time.monotonic()
        self._kill_at: float | None = None
        self._pipes: dict[int, bytes] = {}
        self._is_reading = True
        self._is_lost = False  # the launcher
        self._progress_fd = os.memfd_create("tfdp-progress") if spec["progress"] else None
        self._progress = b""
        self._process: subprocess.Popen[bytes] | None = None
        self._oom_kills = endings.oom_kills()

    def run(self) -> None:
        environment = dict(self._spec["environment"])
        if self._progress_fd is not None:
            # It has no name on the disk, and is gone with this process.
            path = f"/proc/{os.getpid()}/fd/{self._progress_fd}"
            environment[progress.FILE_VARIABLE] = path
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        # The host is shut down, say: the task saves what it has.
        signal.signal(signal.SIGTERM, lambda number, _: self._send(number))
        try:
            self._process, lifeline = process.spawn(
                self._spec["command"],
                directory=self._spec["directory"],
                environment=environment,
                cpus=self._spec["cpus"],
                on_terminal=self._spec["terminal"],
            )
        except OSError as error:
            code = 127 if isinstance(error, FileNotFoundError) else 126
            what = error.filename or self._spec["command"][0]
            self._say(f"{what}: {error.strerror} (on {socket.gethostname()})")
            self._finish(code)
            return
        assert self._process.stdout
        assert self._process.stderr
        self._pipes = {
            self._process.stdout.fileno(): frames.STDOUT,
            self._process.stderr.fileno(): frames.STDERR,
        }
        for fd, kind in self._pipes.items():
            self._selector.register(fd, selectors.EVENT_READ, kind)
        for fd in (0, 1, *self._pipes):
            os.set_blocking(fd, False)
        self._selector.register(0, selectors.EVENT_READ, "launcher")
        ended = os.pidfd_open(self._process.pid)
        self._selector.register(ended, selectors.EVENT_READ, "ended")
        while not self._step():
            pass
        self._send(signal.SIGKILL)  # what it has started
        code = self._process.wait()
        os.close(lifeline)
        for fd, kind in list(self._pipes.items()):
            # To the end, which does not come while somebody outside the group holds the pipe.
            for _ in range(_PIPE_BYTES // _READ_BYTES):
                if not self._read(fd, kind):
                    break
        self._look_at_progress()
        if endings.oom_kills() > self._oom_kills:
            self._say("out of memory: the kernel of this host has ended a process")
        self._finish(code)

    def _step(self) -> bool:
        """Wait for what comes next, and do it; return whether the task has ended."""
        now = time.monotonic()
        until = min(self._beat_at, self._kill_at or self._heard + frames.SILENCE_SECONDS)
        is_over = False
        for key, events in self._selector.select(max(0.0, until - now)):
            if key.data == "ended":
                is_over = True
            elif key.data == "launcher":
                self._hear()
            elif events & selectors.EVENT_READ and key.fd in self._pipes:
                self._read(key.fd, key.data)
        self._write()
        self._make_room()
        now = time.monotonic()
        if self._kill_at is None and now >= self._heard + frames.SILENCE_SECONDS:
            self._lose(signal.SIGTERM)
            self._kill_at = now + _GRACE_SECONDS
        elif self._kill_at is not None and now >= self._kill_at:
            self._send(signal.SIGKILL)
            self._kill_at = now + 60
        if now >= self._beat_at:
            self._beat_at = now + frames.BEAT_SECONDS
            self._look_at_progress()
            if len(self._out) < _ROOM_BYTES:
                self._out += frames.encode(frames.ALIVE)
                self._write()
        return is_over

    def _hear(self) -> None:
        try:
            data = os.read(0, _READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            # The launcher is gone, or has ended this task for good after its grace.
            self._selector.unregister(0)
            self._lose(signal.SIGKILL)
            return
        self._heard = time.monotonic()
        self._line += data
        *lines, rest = self._line.split(b"\n")
        self._line[:] = rest
        for line in lines:
            if line.startswith(b"signal "):
                self._send(int(line.split()[1]))

    def _read(self, fd: int, kind: bytes) -> bool:
        """Pass on what the task wrote; return whether there was something."""
        try:
            data = os.read(fd, _READ_BYTES)
        except (BlockingIOError, OSError):
            return False
        if data:
            self._out += frames.encode(kind, data)
        else:
            del self._pipes[fd]
            if self._is_reading:
                self._selector.unregister(fd)
        return bool(data)

    def _write(self) -> None:
        try:
            while self._out:
                del self._out[: os.write(1, self._out[:_READ_BYTES])]
        except BlockingIOError:
            pass
        except OSError:
            self._lose(signal.SIGKILL)  # nobody reads it

    def _make_room(self) -> None:
        """Read no more of the task while the launcher takes no more."""
        if self._is_reading != (len(self._out) <= _ROOM_BYTES):
            self._is_reading = not self._is_reading
            for fd, kind in self._pipes.items():
                if self._is_reading:
                    self._selector.register(fd, selectors.EVENT_READ, kind)
                else:
                    self._selector.unregister(fd)
        if bool(self._out) != (1 in self._selector.get_map()):
            if self._out:
                self._selector.register(1, selectors.EVENT_WRITE, "room")
            else:
                self._selector.unregister(1)

    def _lose(self, number: int) -> None:
        """The launcher is gone: end the task, and tell nobody."""
        self._is_lost = True
        self._out.clear()
        self._send(number)

    def _send(self, number: int) -> None:
        # Only before it is waited for: until then its number is no other group's.
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, number)

    def _look_at_progress(self) -> None:
        if self._progress_fd is not None:
            text = os.pread(self._progress_fd, _READ_BYTES, 0)
            if text != self._progress:
                self._progress = text
                self._out += frames.encode(frames.PROGRESS, text)

    def _say(self, text: str) -> None:
        self._out += frames.encode(frames.STDERR, f"tfdp: {text}\n".encode(errors="replace"))

    def _finish(self, code: int) -> None:
        """Tell how it ended, for as long as somebody is there."""
        self._out += frames.encode(frames.ENDED, json.dumps({"code": code}).encode())
        until = time.monotonic() + frames.SILENCE_SECONDS
        os.set_blocking(1, False)
        while self._out and not self._is_lost and (left := until - time.monotonic()) > 0:
            poll = selectors.DefaultSelector()
            poll.register(1, selectors.EVENT_WRITE)
            poll.select(left)
            self._write()


if __name__ == "__main__":
    main(sys.argv[1:])
