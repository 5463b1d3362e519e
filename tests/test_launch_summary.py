import pytest

from tfdp.cluster import Task
from tfdp.launch import summary
from tfdp.launch.summary import Ending

W1 = Task("worker", 1)
TRACEBACK = b"Traceback (most recent call last):\n  File 'a.py', line 1\n"


@pytest.mark.parametrize(
    ("ending", "cause"),
    [
        (Ending(W1, 0), ""),
        (Ending(W1, None), "does not end"),
        (Ending(W1, 3), "ended itself with that code"),
        (Ending(W1, 1, TRACEBACK + b"a.b.MyError: x\n"), "exception: a.b.MyError: x"),
        (Ending(W1, 1, TRACEBACK + b"KeyboardInterrupt\n"), "exception: KeyboardInterrupt"),
        (Ending(W1, 1, TRACEBACK + b"MemoryError\n"), "out of memory"),
        (Ending(W1, 1, b"... OOM when allocating tensor with shape[9]\n"), "out of memory"),
        (
            Ending(W1, 1, b"OSError: [Errno 98] Address already in use\n"),
            "port taken: another program listens there",
        ),
        (
            Ending(W1, 1, TRACEBACK + b"tensorflow.errors.UnavailableError: Socket closed\n"),
            "lost the connection to another task",
        ),
        (
            Ending(
                W1, 1, TRACEBACK + b"UnavailableError: x\ntfdp: worker:0 (a:1) was lost: it ...\n"
            ),
            "lost the connection to worker:0",
        ),
        (Ending(W1, 137, is_signal=True, out_of_memory=True), "out of memory: the kernel ended it"),
        (
            Ending(W1, 137, is_signal=True),
            "killed from outside, or by the kernel for want of memory (see dmesg)",
        ),
        # A script may exit with 137 by itself.
        (Ending(W1, 137), "ended itself with that code"),
        (Ending(W1, 139, is_signal=True), "crash in native code"),
        (Ending(W1, 143, is_signal=True), "killed from outside"),
        (
            Ending(W1, 137, dismissed="ended because ps:0 had failed", is_signal=True),
            "ended because ps:0 had failed",
        ),
        (
            Ending(W1, 137, dismissed="ended because ps:0 had failed", was_stopped=True),
            "stopped (SIGSTOP, or a debugger): it answered nobody",
        ),
        # What was survived long ago is no cause.
        (
            Ending(W1, 3, TRACEBACK + b"MemoryError\n" + b"ok\n" * 300),
            "ended itself with that code",
        ),
    ],
)
def test_cause(ending, cause):
    assert summary.guess_cause(ending) == cause


def test_table():
    endings = [
        Ending(
            Task("worker", 0), 137, b"step 1\n", "ended because worker:1 had failed", False, True
        ),
        Ending(W1, 1, TRACEBACK + b"ValueError: a\x1b[2Jb\n\n"),
        Ending(Task("ps", 0), 0),
    ]
    assert summary.table(endings) == [
        "task      ended    cause                              last line",
        "worker:1  code 1   exception: ValueError: a [2Jb      ValueError: a [2Jb",
        "worker:0  by tfdp  ended because worker:1 had failed  step 1",
        "ps:0      code 0",
    ]


def test_a_long_table_is_cut_and_says_so():
    endings = [Ending(Task("worker", n), 1 if n == 99 else 0) for n in range(100)]
    lines = summary.table(endings)
    assert len(lines) == 22
    assert lines[1].startswith("worker:99  code 1")
    assert lines[-1] == "... and 80 more tasks"


def test_one_cell_is_never_longer_than_a_line():
    (_, row) = summary.table([Ending(W1, 1, b"x" * 5000)])
    assert len(row) < 200


def test_the_kernels_count_is_a_number():
    assert summary.oom_kills() >= 0
