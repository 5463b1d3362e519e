"""Which task was lost, out of what TensorFlow says when one is.

    describe(str(error), cluster, task)
    # "worker:1 (b:2222) was lost: it sends no heartbeats any more. It has crashed, was stopped, or
    #  its link is cut."

TensorFlow names a task that was lost in the middle of other text, or only the call that failed.
"""

import re

from tfdp.cluster import Cluster, ClusterError, Task

_UNHEALTHY = re.compile(r"stopped sending heartbeats\):\s*((?:/job:\w+/replica:\d+/task:\d+\s*)+)")
_TASK = re.compile(r"/job:(\w+)/replica:\d+/task:(\d+)")
_REMOTE = re.compile(r"from remote target /job:(\w+)/replica:\d+/task:(\d+)")
_HEARTBEAT = re.compile(r"CoordinationService/(?:Heartbeat|PollForError)")
# Said by fit.transport.
_GLOO = re.compile(r"Gloo lost (\w+):(\d+): ")
_CUT = re.compile(
    r"Socket closed|Connection reset|Connection refused|failed to connect|UNAVAILABLE"
)
_CLOSED = "it closed its connections. It has ended or crashed: look at its own output."


def describe(message: str, cluster: Cluster, task: Task) -> str:
    """Says on one line who was lost and why it may be; "" where the message tells of nobody.

    Args:
      message: What an error of TensorFlow says.
      cluster: Who takes part.
      task: The task that was told.
    """
    if found := _UNHEALTHY.search(message):
        lost = [Task(job, int(index)) for job, index in _TASK.findall(found[1])]
        names = ", ".join(_name(cluster, one) for one in lost if one != task)
        why = "it sends no heartbeats any more. It has crashed, was stopped, or its link is cut."
    elif _HEARTBEAT.search(message):
        # The first task runs the service that all send their heartbeats to.
        names = _name(cluster, cluster.chief_task())
        why = (
            f"it does not answer the heartbeats of {task}. It has crashed, was stopped, or a link "
            f"is cut: its own, or that of {task}."
        )
        if task == cluster.chief_task():
            return ""
    elif (found := _REMOTE.search(message)) and _CUT.search(message):
        names = _name(cluster, Task(found[1], int(found[2])))
        why = _CLOSED
    elif found := _GLOO.search(message):
        names = _name(cluster, Task(found[1], int(found[2])))
        why = _CLOSED
    else:
        return ""
    return f"{names} was lost: {why}" if names else ""


def _name(cluster: Cluster, task: Task) -> str:
    try:
        return f"{task} ({cluster.address(task)})"
    except ClusterError:
        return str(task)
