"""How the tasks of a run ended, and what may have been the cause.

    print("\\n".join(table([Ending(Task("worker", 1), code=137, output=b"step 41\\n")])))
    # task      ended    cause                        last line
    # worker:1  SIGKILL  killed from outside, or ...  step 41

    describe_lost(str(error), cluster, task)
    # "worker:1 (b:2222) was lost: it sends no heartbeats any more. It has crashed, was stopped, or
    #  its link is cut."

The cause is a guess from the exit code, the last lines and the kernel's count of processes that it
ended for want of memory. Everything else in the table is what happened. TensorFlow names a task
that was lost in the middle of other text, or only the call that failed.
"""

import dataclasses
import pathlib
import re
import signal
from collections.abc import Sequence

from tfdp.cluster import Cluster, ClusterError, Task
from tfdp.launch import output as output_lib

# What TensorFlow says when a task was lost.
_UNHEALTHY = re.compile(r"stopped sending heartbeats\):\s*((?:/job:\w+/replica:\d+/task:\d+\s*)+)")
_TASK = re.compile(r"/job:(\w+)/replica:\d+/task:(\d+)")
_REMOTE = re.compile(r"from remote target /job:(\w+)/replica:\d+/task:(\d+)")
_HEARTBEAT = re.compile(r"CoordinationService/(?:Heartbeat|PollForError)")
# Said by fit.transport.
_CARRIER = re.compile(r"(?:Gloo|Shared memory) lost (\w+):(\d+): ")
_CUT = re.compile(
    r"Socket closed|Connection reset|Connection refused|failed to connect|UNAVAILABLE"
)
_CLOSED = "it closed its connections. It has ended or crashed: look at its own output."

_MOST_ROWS = 20
_LONGEST_CELL = 96
_EVENTS = ("/sys/fs/cgroup/memory.events", "/sys/fs/cgroup/memory/memory.oom_control")

_MEMORY = re.compile(
    rb"MemoryError|std::bad_alloc|Cannot allocate memory|OOM when allocating|ResourceExhausted"
    rb"|RESOURCE_EXHAUSTED|CUDA_ERROR_OUT_OF_MEMORY|out of memory",
    re.IGNORECASE,
)
_PORT = re.compile(
    rb"Address already in use|EADDRINUSE|[Ff]ailed to (?:add|bind) (?:port|to)"
    rb"|Could not start gRPC server|is taken by another program"
)
# Said by tfdp.run, from describe_lost.
_WAS_LOST = re.compile(rb"^tfdp: (\S+) \(\S+\) was lost: ", re.MULTILINE)
_PEER = re.compile(
    rb"UnavailableError|UNAVAILABLE|AbortedError|heartbeat|Connection reset by peer|Socket closed"
    rb"|coordination service"
)
# "package.module.ErrorName: text", as the last line of a traceback is written.
_EXCEPTION = re.compile(rb"^([A-Za-z_][\w.]*(?:Error|Exception|Exit|Interrupt|Warning)\b.*)")


@dataclasses.dataclass(frozen=True)
class Ending:
    """How a task ended.

    Attributes:
      task: Which.
      code: Its exit code, 128 + the signal for one that was killed; None while it does not end.
      output: The end of what it wrote.
      dismissed: Why the launcher ended it, in words; empty when it ended by itself.
      out_of_memory: Whether the kernel has ended a process for want of memory at that time.
      is_signal: Whether the code stands for a signal.
      was_stopped: Whether it was stopped (SIGSTOP) when another failed.
      host: Where it ran; empty for this machine.
    """

    task: Task
    code: int | None
    output: bytes = b""
    dismissed: str = ""
    out_of_memory: bool = False
    is_signal: bool = False
    was_stopped: bool = False
    host: str = ""


def guess_cause(ending: Ending) -> str:
    """What may have ended a task, in a few words; empty where there is nothing to explain."""
    if ending.was_stopped:
        return "stopped (SIGSTOP, or a debugger): it answered nobody"
    if ending.dismissed:
        return ending.dismissed
    if not ending.code:
        return "" if ending.code == 0 else "does not end"
    reason = b"\n".join(output_lib.find_reason(ending.output))
    if ending.is_signal and ending.code == 128 + signal.SIGKILL:
        if ending.out_of_memory:
            return "out of memory: the kernel ended it"
        return "killed from outside, or by the kernel for want of memory (see dmesg)"
    if _PORT.search(reason):
        return "port taken: another program listens there"
    if _MEMORY.search(reason):
        return "out of memory"
    if ending.is_signal:
        crash = ending.code - 128 in (signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGABRT)
        return "crash in native code" if crash else "killed from outside"
    if found := _WAS_LOST.search(reason):
        return f"lost the connection to {found[1].decode(errors='backslashreplace')}"
    if _PEER.search(reason):
        return "lost the connection to another task"
    for line in reversed(reason.splitlines()):
        if raised := _EXCEPTION.match(line):
            return f"exception: {raised[1].decode(errors='backslashreplace')}"
    return "ended itself with that code"


def table(endings: Sequence[Ending]) -> list[str]:
    """The lines of the table: a head, and a row for each task, those that failed first."""
    rows = [("task", "ended", "cause", "last line")]
    in_order = sorted(endings, key=lambda ending: bool(ending.dismissed) or not ending.code)
    for ending in in_order[:_MOST_ROWS]:
        rows.append((_who(ending), _how(ending), guess_cause(ending), _last_line(ending.output)))
    rows = [(row[0], row[1], _cell(row[2]), _cell(row[3])) for row in rows]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = [
        "  ".join([cell.ljust(width) for cell, width in zip(row, widths, strict=False)] + [row[3]])
        for row in rows
    ]
    if len(in_order) > _MOST_ROWS:
        lines.append(f"... and {len(in_order) - _MOST_ROWS} more tasks")
    return [line.rstrip() for line in lines]


def oom_kills() -> int:
    """How many processes of this container or machine the kernel has ended for want of memory."""
    for name in _EVENTS:
        try:
            found = re.search(r"^oom_kill (\d+)$", pathlib.Path(name).read_text(), re.MULTILINE)
        except OSError:
            continue
        if found:
            return int(found[1])
    return 0


def _who(ending: Ending) -> str:
    return f"{ending.task} on {ending.host}" if ending.host else str(ending.task)


def _how(ending: Ending) -> str:
    if ending.code is None:
        return "still there"
    if ending.dismissed:
        return "by tfdp"
    if not ending.is_signal:
        return f"code {ending.code}"
    try:
        return signal.Signals(ending.code - 128).name
    except ValueError:
        return f"signal {ending.code - 128}"


def _last_line(output: bytes) -> str:
    lines = [line.strip() for line in re.split(rb"[\r\n]+", output[-4096:])]
    written = [line for line in lines if line]
    return written[-1].decode(errors="backslashreplace") if written else ""


def _cell(text: str) -> str:
    """Text that stays on its line, whatever a task wrote."""
    text = "".join(char if char.isprintable() else " " for char in text)
    return text if len(text) <= _LONGEST_CELL else text[: _LONGEST_CELL - 3] + "..."


def describe_lost(message: str, cluster: Cluster, task: Task) -> str:
    """Says on one line who was lost and why it may be; "" where the message tells of nobody.

    Args:
      message: What an error of TensorFlow says.
      cluster: Who takes part.
      task: The task that was told.
    """
    if found := _UNHEALTHY.search(message):
        lost = [Task(job, int(index)) for job, index in _TASK.findall(found[1])]
        names = ", ".join(_address_of(cluster, one) for one in lost if one != task)
        why = "it sends no heartbeats any more. It has crashed, was stopped, or its link is cut."
    elif _HEARTBEAT.search(message):
        # The first task runs the service that all send their heartbeats to.
        names = _address_of(cluster, cluster.chief_task())
        why = (
            f"it does not answer the heartbeats of {task}. It has crashed, was stopped, or a link "
            f"is cut: its own, or that of {task}."
        )
        if task == cluster.chief_task():
            return ""
    elif (found := _REMOTE.search(message)) and _CUT.search(message):
        names = _address_of(cluster, Task(found[1], int(found[2])))
        why = _CLOSED
    elif found := _CARRIER.search(message):
        names = _address_of(cluster, Task(found[1], int(found[2])))
        why = _CLOSED
    else:
        return ""
    return f"{names} was lost: {why}" if names else ""


def _address_of(cluster: Cluster, task: Task) -> str:
    try:
        return f"{task} ({cluster.address(task)})"
    except ClusterError:
        return str(task)
