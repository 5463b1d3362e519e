import pytest

from tfdp.cluster import Cluster, Task
from tfdp.launch import lost

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
def test_describe(message, index, line):
    assert lost.describe(message, CLUSTER, Task("worker", index)) == line
