"""How much memory a process may take, and how much it takes. Linux; plain Python.

    for limit in limits(tasks=2): print(limit.source, limit.bytes)
    with Peaks() as peaks: ...
    peaks.of(DATA)

Three kinds of memory are limited by different things. What is resident and belongs to no file is
limited by cgroups (versions 1 and 2) and by the machine: beyond it a process is killed. Data, which
are the pages that a process may write, touched or not, are limited by RLIMIT_DATA; the whole
address space by RLIMIT_AS. Beyond these an allocation fails, which few libraries survive.
"""

import dataclasses
import os
import pathlib
import resource
import threading
from types import TracebackType

from tfdp.launch import memory

RESIDENT, DATA, ADDRESS = "resident", "data", "address space"
_SECONDS = 0.005
# glibc's, where RLIMIT_STACK sets none.
_STACK = 2 << 20
# Version 1 of cgroups has no word for "no limit", but a number that no machine reaches.
_NO_LIMIT = 1 << 60
_STATUS = {RESIDENT: ("RssAnon", "RssShmem"), DATA: ("VmData",), ADDRESS: ("VmSize",)}


@dataclasses.dataclass(frozen=True)
class Limit:
    """What this process may take of a kind of memory.

    Attributes:
        kind: RESIDENT, DATA or ADDRESS.
        bytes: How much, with what it has already.
        source: Who says so.
    """

    kind: str
    bytes: int
    source: str


def used(status: str = "") -> dict[str, int]:
    """Return the bytes that this process has now, by kind.

    Args:
        status: /proc/self/status; read where it is not given.
    """
    status = status or pathlib.Path("/proc/self/status").read_text()
    fields = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
    return {
        kind: sum(int(fields[name].split()[0]) << 10 for name in names if name in fields)
        for kind, names in _STATUS.items()
    }


def limits(tasks: int = 1, root: str | os.PathLike[str] = "/") -> list[Limit]:
    """Return the limits that are in force for this process.

    What several processes share is divided: each gets a share of what others have left.

    Args:
        tasks: How many processes like this one run on this machine.
        root: Of the files of the kernel, for tests.
    """
    found = []
    for kind, number, name in (
        (DATA, resource.RLIMIT_DATA, "RLIMIT_DATA (ulimit -d)"),
        (ADDRESS, resource.RLIMIT_AS, "RLIMIT_AS (ulimit -v)"),
    ):
        soft, _ = resource.getrlimit(number)
        if soft != resource.RLIM_INFINITY:
            found.append(Limit(kind, soft, name))
    mine = used()[RESIDENT] * tasks
    for limit, taken in _cgroups(pathlib.Path(root)):
        room = max(0, limit - max(0, taken - mine))
        found.append(Limit(RESIDENT, room // tasks, "the memory limit of the cgroup"))
    free = _meminfo(pathlib.Path(root)).get("MemAvailable")
    if free:
        found.append(Limit(RESIDENT, (free + mine) // tasks, "the free memory of this machine"))
    return found


def _meminfo(root: pathlib.Path) -> dict[str, int]:
    try:
        lines = (root / "proc/meminfo").read_text().splitlines()
    except OSError:
        return {}
    return {line.split(":")[0]: int(line.split()[1]) << 10 for line in lines if ":" in line}


def _cgroups(root: pathlib.Path) -> list[tuple[int, int]]:
    """Return (limit, what is taken that no file backs) of each cgroup around this process."""
    try:
        groups = (root / "proc/self/cgroup").read_text().splitlines()
        mounts = (root / "proc/self/mountinfo").read_text().splitlines()
    except OSError:
        return []
    found = []
    for line in groups:
        number, controllers, path = line.split(":", 2)
        if number == "0" and not controllers:
            names = ("memory.max", "memory.current", ("inactive_file", "active_file"))
            where = _mounted(mounts, "cgroup2", "")
        elif "memory" in controllers.split(","):
            files = ("total_inactive_file", "total_active_file")
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", files)
            where = _mounted(mounts, "cgroup", "memory")
        else:
            continue
        if where is None:
            continue
        outside, point = where
        inside = path.removeprefix(outside.rstrip("/")) if path.startswith(outside) else "/"
        folder = root / point.lstrip("/")
        at = folder / inside.strip("/")
        while True:
            if (one := _cgroup(at, *names)) is not None:
                found.append(one)
            if at == folder or folder not in at.parents:
                break
            at = at.parent
    return found


def _mounted(mounts: list[str], kind: str, controller: str) -> tuple[str, str] | None:
    """Return (the cgroup that is mounted, where) of a hierarchy; None where there is none."""
    for line in mounts:
        before, _, after = line.partition(" - ")
        _, _, _, outside, point, *_ = before.split()
        found, _, options = after.split(maxsplit=2)
        if found == kind and (not controller or controller in options.split(",")):
            return outside, point
    return None


def _cgroup(
    folder: pathlib.Path, limit: str, usage: str, files: tuple[str, ...]
) -> tuple[int, int] | None:
    try:
        text = (folder / limit).read_text().strip()
        if text == "max" or int(text) >= _NO_LIMIT:
            return None
        taken = int((folder / usage).read_text())
        stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):  # the root has no limit
        return None
    # The kernel gives up what files hold before it kills.
    return int(text), taken - sum(int(stat.get(name, 0)) for name in files)


class Peaks:
    """The most memory of each kind that this process needed since `with` began.

    The kernel remembers no such peaks: a thread looks every 5 ms. Data and address space count as
    the sum of what was resident at most, the stacks of the most threads, and what else is mapped
    beside it at least: the heap keeps pages that nobody has touched, which are used before it
    grows. It grows by 128 MiB at once (launch/memory.py), which have to be left.
    """

    def __init__(self) -> None:
        # What the C library gives a thread: libraries rarely ask for another size.
        soft, _ = resource.getrlimit(resource.RLIMIT_STACK)
        self._stack = _STACK if soft == resource.RLIM_INFINITY else soft
        self._resident = self._threads = 0
        self._beside: dict[str, int] = {}
        self._look()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="tfdp-memory", daemon=True)

    def of(self, kind: str) -> int:
        """Return the peak of a kind in bytes."""
        if kind == RESIDENT:
            return self._resident
        stacks = self._threads * self._stack
        return self._resident + self._beside[kind] + stacks + memory.GROWS_BY_BYTES

    def __enter__(self) -> "Peaks":
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(_SECONDS):
            self._look()

    def _look(self) -> None:
        status = pathlib.Path("/proc/self/status").read_text()
        now, threads = used(status), int(status.partition("Threads:")[2].split()[0])
        self._resident = max(self._resident, now[RESIDENT])
        self._threads = max(self._threads, threads)
        for kind in (DATA, ADDRESS):
            beside = now[kind] - now[RESIDENT] - threads * self._stack
            self._beside[kind] = min(self._beside.get(kind, beside), beside)
