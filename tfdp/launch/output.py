"""What tasks write: raw into their logs, line by line with their names on the screen.

    screen = Screen(stdout=1, stderr=2)
    output = TaskOutput(screen, prefix=b"[worker:1] ", log=Log(path), redactor=Redactor(os.environ))
    output.feed(STDOUT, b"hel")
    output.feed(STDOUT, b"lo\n")  # the screen shows "[worker:1] hello"
    output.end()
    screen.close(seconds=10)

Everything is bytes: a task may write any encoding, or none.
"""

import collections
import os
import select
import time

from tfdp.launch.log import Log
from tfdp.launch.redaction import Redactor

STDOUT, STDERR = 1, 2

# A line longer than this is shown in pieces: a task may write gigabytes without a newline.
_LONGEST_LINE = 1 << 20
# What is kept of a task's output, and of the screen, to end with the reason for a failure.
_TAIL_BYTES = 1 << 18
# What may wait for a slow terminal before tasks have to wait for it as well.
_ROOM_BYTES = 1 << 20
# How far back the traceback of a failure may begin: one from long ago was survived. And how many
# lines are taken where there is none.
_LINES_BACK, _LINES_WITHOUT = 200, 20

_TRACEBACK = b"Traceback (most recent call last):"
_CHAINED = (
    b"During handling of the above exception, another exception occurred:",
    b"The above exception was the direct cause of the following exception:",
)


class Screen:
    """The launcher's standard output and error, written without ever waiting for them.

    A terminal that is stopped (Ctrl-S) or a pager that nobody pages must not keep the launcher from
    seeing that a task has died, nor from ending all on Ctrl-C. What cannot be written yet is kept;
    flush() goes on with it when the descriptor blocked_on() can be written to.

    Not with a thread: at the death of a launcher with two, the kernel may kill its tasks
    (PR_SET_PDEATHSIG) before it closes the pipes that kill their children.
    """

    def __init__(self, stdout: int, stderr: int) -> None:
        """Takes the two file descriptors."""
        self._terminals = {s for s, fd in ((STDOUT, stdout), (STDERR, stderr)) if os.isatty(fd)}
        self._fds: dict[int, int] = {STDOUT: stdout, STDERR: stderr}
        self._reopened = [stream for stream in self._terminals if self._reopen(stream)]
        self._broken: set[int] = set()
        self._queue: collections.deque[tuple[int, memoryview]] = collections.deque()
        self._queued_bytes = 0
        self._tail = bytearray()
        self._mid_line = False  # the last line of a terminal has no newline yet

    def is_terminal(self, stream: int) -> bool:
        """Whether somebody may be watching a progress bar there."""
        return stream in self._terminals

    @property
    def is_full(self) -> bool:
        """Whether so much is kept that no more should be read from tasks."""
        return self._queued_bytes > _ROOM_BYTES

    def blocked_on(self) -> int | None:
        """The file descriptor that takes no more for now; None when all is written."""
        return self._fds[self._queue[0][0]] if self._queue else None

    def write_lines(self, stream: int, lines: bytes) -> None:
        """Shows whole lines, never in the middle of somebody else's."""
        if self._mid_line and stream in self._terminals:
            lines = b"\n" + lines
            self._mid_line = False
        self._put(stream, lines)

    def write_raw(self, stream: int, data: bytes) -> None:
        """Shows bytes as they come, half lines and progress bars too."""
        if stream in self._terminals:
            self._mid_line = not data.endswith(b"\n")
        self._put(stream, data)

    def ends_with(self, text: bytes) -> bool:
        """Whether that is what was shown last."""
        return self._tail.endswith(text)

    def flush(self) -> None:
        """Writes what can be written now."""
        while self._queue:
            stream, data = self._queue[0]
            count = len(data) if stream in self._broken else self._write_some(stream, data)
            if count is None:
                return
            self._queued_bytes -= count
            if count < len(data):
                self._queue[0] = (stream, data[count:])
            else:
                self._queue.popleft()

    def close(self, seconds: float) -> None:
        """Writes what is kept, for so long at most, and gives the terminal back."""
        until = time.monotonic() + seconds
        self.flush()
        while (fd := self.blocked_on()) is not None and (left := until - time.monotonic()) > 0:
            _writable(fd, left)
            self.flush()
        for stream in self._reopened:
            os.close(self._fds[stream])
        self._reopened = []

    def _reopen(self, stream: int) -> bool:
        # A terminal says that it has room, but not how much. Only a descriptor that does not block
        # is safe, and it must be one of our own: the shell shares the other.
        try:
            path = os.ttyname(self._fds[stream])
            self._fds[stream] = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY)
        except OSError:  # another user's (su): then it may block
            return False
        return True

    def _put(self, stream: int, data: bytes) -> None:
        _append(self._tail, data)
        self._queue.append((stream, memoryview(data)))
        self._queued_bytes += len(data)
        self.flush()

    def _write_some(self, stream: int, data: memoryview) -> int | None:
        """How many bytes were written; None when it would have had to wait."""
        fd = self._fds[stream]
        try:
            if not _writable(fd, 0):
                return None
            # A pipe that has room has it for this much, and takes it without blocking.
            return os.write(fd, data[: select.PIPE_BUF])
        except BlockingIOError:
            return None
        except OSError:
            # Whoever read this has gone (| head). The training goes on, and so do the logs.
            self._broken.add(stream)
            return len(data)


class TaskOutput:
    """What one task writes, on its way to the screen and into its log."""

    def __init__(
        self, screen: Screen, *, prefix: bytes, log: Log | None, redactor: Redactor | None = None
    ) -> None:
        """Takes the log over, and closes it in the end.

        Args:
          screen: Where it is shown.
          prefix: What each line shown begins with. Empty for the chief, whose output is shown as it
            is, and on a terminal byte by byte, so that progress bars move.
          log: None for no log.
          redactor: What keeps secrets from the screen and the log; None for nothing.
        """
        self._screen = screen
        self._prefix = prefix
        self._log = log
        self._lines_begun = {STDOUT: bytearray(), STDERR: bytearray()}
        self._tail = bytearray()
        # One for each: what is cut in one stream does not go on in the other.
        redactor = redactor or Redactor()
        self._redacted = {STDOUT: redactor.stream(), STDERR: redactor.stream()}

    @property
    def tail(self) -> bytes:
        """The end of what was shown of this task."""
        return bytes(self._tail)

    def is_raw(self, stream: int) -> bool:
        """Whether it is shown byte by byte, on a terminal."""
        return not self._prefix and self._screen.is_terminal(stream)

    def feed(self, stream: int, data: bytes) -> None:
        """Takes what the task wrote to STDOUT or STDERR."""
        self._take(stream, self._redacted[stream].feed(data))

    def begin_again(self, line: bytes) -> None:
        """The task is started again: says so in the log, and forgets what went before."""
        self._write_log(line + b"\n")
        self._tail.clear()

    def ended(self) -> None:
        """The task has ended: shows what it left without a newline. It may be started again."""
        for stream, begun in self._lines_begun.items():
            self._take(stream, self._redacted[stream].end())
            if begun:
                self._show(stream, [bytes(begun)])
                begun.clear()

    def end(self) -> None:
        """The task has ended for good: closes the log as well."""
        self.ended()
        self._close_log()

    def _write_log(self, data: bytes) -> None:
        if self._log is not None:
            try:
                self._log.write(data)
            except OSError as error:
                # A full disk is no reason to end a training that may need none of it.
                self._close_log()
                reason = (error.strerror or "").encode()
                self._show(STDERR, [b"(tfdp: no more of this is logged: " + reason + b")"])

    def _take(self, stream: int, data: bytes) -> None:
        if not data:
            return
        self._write_log(data)
        if self.is_raw(stream):
            self._screen.write_raw(stream, data)
            _append(self._tail, data)
            return
        begun = self._lines_begun[stream]
        ended, newline, rest = data.rpartition(b"\n")
        if newline:
            lines = (bytes(begun) + ended).split(b"\n")
            begun[:] = rest
            self._show(stream, lines)
        else:
            begun += data
        if len(begun) > _LONGEST_LINE:
            self._show(stream, [bytes(begun)])
            begun.clear()

    def repeat_reason(self) -> None:
        """Shows why the task failed, as far as it said so, unless that is what was shown last."""
        reason = find_reason(bytes(self._tail))
        if reason and not self._screen.ends_with(self._with_prefix(reason)):
            self._screen.write_lines(STDERR, self._with_prefix(shorten(reason)))

    def _show(self, stream: int, lines: list[bytes]) -> None:
        if self._prefix:
            # What a terminal would show of a progress bar: the part after the last carriage return,
            # which would otherwise wipe out the prefix.
            lines = [
                line.rstrip(b"\r").rpartition(b"\r")[2] if b"\r" in line else line for line in lines
            ]
        self._screen.write_lines(stream, self._with_prefix(lines))
        _append(self._tail, b"\n".join(lines) + b"\n")

    def _with_prefix(self, lines: list[bytes]) -> bytes:
        return b"".join([self._prefix + line + b"\n" for line in lines])

    def _close_log(self) -> None:
        if self._log is not None:
            self._log.close()
            self._log = None


def find_reason(output: bytes) -> list[bytes]:
    """The lines that say why a task failed: its last traceback and all that follows, else the last.

    Args:
      output: What the task wrote, or the end of it.
    """
    lines = output.removesuffix(b"\n").split(b"\n")[-_LINES_BACK:]
    begins = [index for index, line in enumerate(lines) if _TRACEBACK in line]
    if not begins:
        return [] if not output else lines[-_LINES_WITHOUT:]
    begin = begins.pop()
    # An exception raised while another was handled comes with the traceback of that other.
    while begins and any(line in _CHAINED for line in lines[max(begin - 3, 0) : begin]):
        begin = begins.pop()
    return lines[begin:]


def shorten(
    lines: list[bytes], *, first: int = 40, last: int = 80, longest: int = 1000
) -> list[bytes]:
    """Leaves out the middle of many lines and the end of long ones: the log has them."""
    if len(lines) > first + last:
        left_out = f"... {len(lines) - first - last} more lines in the log ...".encode()
        lines = [*lines[:first], left_out, *lines[-last:]]
    return [line if len(line) <= longest else line[:longest] + b" ..." for line in lines]


def printable(line: str) -> bytes:
    """A line of the launcher's own, for a terminal: whatever a path or a name in it holds."""
    shown = (
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in line
    )
    return "".join(shown).encode(errors="backslashreplace") + b"\n"


def _writable(fd: int, seconds: float) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    return bool(poll.poll(min(seconds, 3600.0) * 1000))


def _append(tail: bytearray, data: bytes) -> None:
    tail += data[-_TAIL_BYTES:]
    # Cut now and then, not always: cutting moves all that is kept.
    if len(tail) > 2 * _TAIL_BYTES:
        del tail[:-_TAIL_BYTES]
