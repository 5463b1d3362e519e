import contextlib
import os
import tty

import pytest

from tfdp.launch.log import Log
from tfdp.launch.output import (
    STDERR,
    STDOUT,
    Screen,
    TaskOutput,
    find_reason,
    shorten,
)

HEADER = b"Traceback (most recent call last):"
HANDLING = b"During handling of the above exception, another exception occurred:"
CAUSE = b"The above exception was the direct cause of the following exception:"


def show(tmp_path, feeds, *, prefix=b"[worker:1] "):
    """What stands on stdout, on stderr and in the log when a task has written the feeds."""
    log = tmp_path / "logs" / "task.log"
    with open(tmp_path / "out", "wb") as out, open(tmp_path / "err", "wb") as err:
        screen = Screen(out.fileno(), err.fileno())
        output = TaskOutput(screen, prefix=prefix, log=Log(log))
        for stream, data in feeds:
            output.feed(stream, data)
        output.end()
        screen.close(seconds=30)
    return (tmp_path / "out").read_bytes(), (tmp_path / "err").read_bytes(), log.read_bytes()


@pytest.mark.parametrize(
    ("feeds", "shown"),
    [
        ([b"a\nb\n"], b"[worker:1] a\n[worker:1] b\n"),
        ([b"a", b"b", b"\nc"], b"[worker:1] ab\n[worker:1] c\n"),
        ([b"\n\n"], b"[worker:1] \n[worker:1] \n"),
        ([b"\xff\xfe\x00\n"], b"[worker:1] \xff\xfe\x00\n"),
        # What a terminal would show of a progress bar, and of a line with a Windows ending.
        ([b"1/3\r2/3\r", b"3/3\nx\r\n"], b"[worker:1] 3/3\n[worker:1] x\n"),
        (
            [b"x" * (1 << 20), b"y", b"z\n"],
            b"[worker:1] " + b"x" * (1 << 20) + b"y\n[worker:1] z\n",
        ),
        ([], b""),
    ],
)
def test_lines_with_a_prefix(tmp_path, feeds, shown):
    out, err, log = show(tmp_path, [(STDOUT, data) for data in feeds])
    assert (out, err, log) == (shown, b"", b"".join(feeds))


def test_the_chief_is_shown_as_it_is(tmp_path):
    feeds = [(STDOUT, b"1/3\r2"), (STDERR, b"warning\n"), (STDOUT, b"/3\r\nend")]
    assert show(tmp_path, feeds, prefix=b"") == (
        b"1/3\r2/3\r\nend\n",
        b"warning\n",
        b"1/3\r2warning\n/3\r\nend",
    )


def test_a_log_is_appended_to(tmp_path):
    show(tmp_path, [(STDOUT, b"first run\n")])
    assert show(tmp_path, [(STDOUT, b"second run\n")])[2] == b"first run\nsecond run\n"


def test_a_full_disk_ends_the_log_and_says_so(tmp_path):
    with open(tmp_path / "out", "wb") as out:
        screen = Screen(out.fileno(), out.fileno())
        output = TaskOutput(screen, prefix=b"[worker:1] ", log=Log(tmp_path / "log"))
        full = os.open("/dev/full", os.O_WRONLY)
        os.dup2(full, output._log._fd)
        os.close(full)
        output.feed(STDOUT, b"a\n")
        output.feed(STDOUT, b"b\n")
        output.end()
        screen.close(seconds=30)
    assert (tmp_path / "out").read_bytes() == (
        b"[worker:1] (tfdp: no more of this is logged: No space left on device)\n"
        b"[worker:1] a\n"
        b"[worker:1] b\n"
    )


def test_a_reader_that_has_gone_is_no_error(tmp_path):
    read_end, write_end = os.pipe()
    os.close(read_end)
    with open(tmp_path / "err", "wb") as err:
        screen = Screen(write_end, err.fileno())
        screen.write_lines(STDOUT, b"lost\n")
        screen.write_lines(STDERR, b"kept\n")
        screen.close(seconds=30)
    os.close(write_end)
    assert (tmp_path / "err").read_bytes() == b"kept\n"


@pytest.mark.parametrize("is_blocking", [True, False])
def test_a_full_pipe_is_not_waited_for(is_blocking):
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, is_blocking)
    data = os.urandom(3 << 19)
    screen = Screen(write_end, write_end)
    assert screen.blocked_on() is None
    screen.write_lines(STDOUT, data)
    assert screen.blocked_on() == write_end
    assert screen.is_full
    screen.close(seconds=0)
    assert screen.blocked_on() == write_end
    received = b""
    with open(read_end, "rb", buffering=0) as reader:
        while screen.blocked_on() is not None:
            received += reader.read(1 << 16)
            screen.flush()
        assert not screen.is_full
        received += reader.read(1 << 16)
    os.close(write_end)
    assert received == data


def test_a_terminal_that_is_stopped_is_not_waited_for():
    terminal, program_side = os.openpty()
    tty.setraw(program_side)
    screen = Screen(program_side, program_side)
    screen.write_lines(STDOUT, b"x" * (1 << 20))
    assert screen.blocked_on() is not None
    # The descriptor that the shell shares is as it was.
    assert os.get_blocking(program_side)
    screen.close(seconds=0)
    os.close(program_side)
    os.close(terminal)


def test_a_line_ends_the_progress_bar_of_the_chief():
    terminal, program_side = os.openpty()
    # Raw: what is read is what was written.
    tty.setraw(program_side)
    screen = Screen(program_side, program_side)
    chief = TaskOutput(screen, prefix=b"", log=None)
    worker = TaskOutput(screen, prefix=b"[worker:1] ", log=None)
    chief.feed(STDOUT, b"1/3\r")
    chief.feed(STDOUT, b"2/3")
    worker.feed(STDERR, b"hello\n")
    chief.feed(STDOUT, b"\r3/3\n")
    worker.feed(STDERR, b"hello\n")
    screen.close(seconds=30)
    os.close(program_side)
    shown = b""
    # A terminal gives what was written in pieces, and an error when nobody can write any more.
    with contextlib.suppress(OSError):
        while piece := os.read(terminal, 1000):
            shown += piece
    os.close(terminal)
    assert shown == b"1/3\r2/3\n[worker:1] hello\n\r3/3\n[worker:1] hello\n"


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        ([], []),
        ([b"a", b"b"], [b"a", b"b"]),
        ([b"%d" % n for n in range(30)], [b"%d" % n for n in range(10, 30)]),
        ([b"a", HEADER, b"  x", b"E: y"], [HEADER, b"  x", b"E: y"]),
        # Of two, the last.
        ([HEADER, b"E: 1", b"a", HEADER, b"E: 2"], [HEADER, b"E: 2"]),
        # Of two that hang together, both.
        (
            [b"a", HEADER, b"E: 1", b"", HANDLING, b"", HEADER, b"E: 2"],
            [HEADER, b"E: 1", b"", HANDLING, b"", HEADER, b"E: 2"],
        ),
        (
            [HEADER, b"E: 0", HEADER, b"E: 1", b"", CAUSE, b"", HEADER, b"E: 2"],
            [HEADER, b"E: 1", b"", CAUSE, b"", HEADER, b"E: 2"],
        ),
        # One from long ago was survived.
        ([HEADER, b"E: 1", *[b"ok"] * 200], [b"ok"] * 20),
    ],
)
def test_find_reason(lines, reason):
    assert find_reason(b"".join(line + b"\n" for line in lines)) == reason


def test_shorten():
    assert shorten([b"a", b"b"], first=1, last=1) == [b"a", b"b"]
    assert shorten([b"a", b"b", b"c", b"d"], first=1, last=1) == [
        b"a",
        b"... 2 more lines in the log ...",
        b"d",
    ]
    assert shorten([b"12345"], longest=3) == [b"123 ..."]


def test_the_reason_is_repeated_only_after_something_else(tmp_path):
    with open(tmp_path / "err", "wb") as err:
        screen = Screen(err.fileno(), err.fileno())
        failed = TaskOutput(screen, prefix=b"[worker:1] ", log=None)
        other = TaskOutput(screen, prefix=b"", log=None)
        failed.feed(STDERR, HEADER + b"\nE: y\n")
        failed.repeat_reason()
        other.feed(STDERR, b"noise\n")
        failed.repeat_reason()
        screen.close(seconds=30)
    assert (tmp_path / "err").read_bytes().splitlines() == [
        b"[worker:1] " + HEADER,
        b"[worker:1] E: y",
        b"noise",
        b"[worker:1] " + HEADER,
        b"[worker:1] E: y",
    ]
