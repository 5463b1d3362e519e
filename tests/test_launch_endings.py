import pytest

from tfdp.cluster import Cluster, Task
from tfdp.launch import endings as endings_lib
from tfdp.launch.endings import Ending

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
    assert endings_lib.guess_cause(ending) == cause


def test_table():
    endings = [
        Ending(
            Task("worker", 0), 137, b"step 1\n", "ended because worker:1 had failed", False, True
        ),
        Ending(W1, 1, TRACEBACK + b"ValueError: a\x1b[2Jb\n\n"),
        Ending(Task("ps", 0), 0),
    ]
    assert endings_lib.table(endings) == [
        "task      ended    cause                              last line",
        "worker:1  code 1   exception: ValueError: a [2Jb      ValueError: a [2Jb",
        "worker:0  by tfdp  ended because worker:1 had failed  step 1",
        "ps:0      code 0",
    ]


def test_a_task_on_another_host_is_named_with_it():
    endings = [Ending(W1, 3, b"bye\n", host="b"), Ending(Task("worker", 0), 0)]
    assert endings_lib.table(endings) == [
        "task           ended   cause                        last line",
        "worker:1 on b  code 3  ended itself with that code  bye",
        "worker:0       code 0",
    ]


def test_a_long_table_is_cut_and_says_so():
    endings = [Ending(Task("worker", n), 1 if n == 99 else 0) for n in range(100)]
    lines = endings_lib.table(endings)
    assert len(lines) == 22
    assert lines[1].startswith("worker:99  code 1")
    assert lines[-1] == "... and 80 more tasks"


def test_one_cell_is_never_longer_than_a_line():
    (_, row) = endings_lib.table([Ending(W1, 1, b"x" * 5000)])
    assert len(row) < 200


def test_the_kernels_count_is_a_number():
    assert endings_lib.oom_kills() >= 0


CLUSTER = Cluster(worker=("a:1", "b:1", "c:1"))
# As TensorFlow 2.21 writes them.
UNHEALTHY = (
    "Collective ops is aborted by: Error reported from /job:worker/task:1: The following tasks are "
    "unhealthy (stopped sending heartbeats):\n/job:worker/replica:0/task:1\nThe tasks have crashed."
    " Check the task logs for an earlier error, or scheduler events to debug further.\n"
)
HEARTBEAT = (
    "Collective ops is aborted by: Deadline Exceeded\n\n"
    "RPC: /tensorflow.CoordinationService/Heartbeat\n"
)
CLOSED = (
    "Collective ops is aborted by: Socket closed\nAdditional GRPC error information from remote "
    "target /job:worker/replica:0/task:0 while calling /tensorflow.WorkerService/RecvBuf:\n"
)
BLAME = "It has crashed, was stopped, or"


@pytest.mark.parametrize(
    ("message", "index", "line"),
    [
        (
            UNHEALTHY,
            0,
            f"worker:1 (b:1) was lost: it sends no heartbeats any more. {BLAME} its link is cut.",
        ),
        (
            HEARTBEAT,
            1,
            f"worker:0 (a:1) was lost: it does not answer the heartbeats of worker:1. {BLAME} a "
            "link is cut: its own, or that of worker:1.",
        ),
        (
            CLOSED,
            2,
            "worker:0 (a:1) was lost: it closed its connections. It has ended or crashed: look at "
            "its own output.",
        ),
        (
            "UnavailableError: Gloo lost worker:1: Connection closed by peer [10.0.0.2]:14.",
            2,
            "worker:1 (b:1) was lost: it closed its connections. It has ended or crashed: look at "
            "its own output.",
        ),
        (
            "UnavailableError: Shared memory lost worker:1: worker 1 has closed its connection",
            2,
            "worker:1 (b:1) was lost: it closed its connections. It has ended or crashed: look at "
            "its own output.",
        ),
        ("UnavailableError: Gloo lost another worker: Connection closed by peer.", 2, ""),
        (UNHEALTHY, 1, ""),
        (HEARTBEAT, 0, ""),
        ("Shape mismatch in the collective instance 100", 0, ""),
        ("", 0, ""),
        (
            UNHEALTHY.replace("task:1\nThe", "task:7\nThe"),
            0,
            f"worker:7 was lost: it sends no heartbeats any more. {BLAME} its link is cut.",
        ),
    ],
)
def test_describe_lost(message, index, line):
    assert endings_lib.describe_lost(message, CLUSTER, Task("worker", index)) == line
