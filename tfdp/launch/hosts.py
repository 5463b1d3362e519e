"""Hosts that are named on the command line, and which task runs on which of them. Pure.

found = hosts.parse("a:2,me@b,[fd00::3]:4")       # Host("a", 2), Host("me@b", 1), ...
found = hosts.parse_file("a slots=2  # a comment\\nb\\n")
placed = hosts.place(Shape(2, chief=True), found)  # the host of chief:0, worker:0, worker:1
"""

import dataclasses
import re
from collections import Counter
from collections.abc import Mapping, Sequence

from tfdp import address as address_lib
from tfdp.cluster import Task
from tfdp.error import Error
from tfdp.launch.shape import Shape

# What begins with a dash would be an option of ssh.
_USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


@dataclasses.dataclass(frozen=True)
class Host:
    """A host, as it was named.

    Attributes:
        name: What ssh is given: "b", "me@b"; an IPv6 address without brackets.
        slots: How many tasks it takes.
        address: Where the other hosts reach it; "" for where it is reached from here.
    """

    name: str
    slots: int = 1
    address: str = ""

    def at(self, port: int) -> str:
        """The address of a task on this host, by what is known of it here."""
        return join(self.address or self.name.rpartition("@")[2], port)


def join(host: str, port: int) -> str:
    """Return "host:port", an IPv6 host in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def parse(text: str) -> tuple[Host, ...]:
    """Read --hosts.

    Raises:
        Error: It names no hosts, or one of them twice; one line.
    """
    example = "Write it like --hosts=a:2,me@b,[fd00::3]:4 (host, and how many tasks it takes)."
    return _different(
        [_host(word.strip(), f"--hosts={text!r}", example) for word in text.split(",")], "--hosts"
    )


def parse_file(text: str, name: str = "the file") -> tuple[Host, ...]:
    """Read the lines of a --hostfile: "host slots=2 address=10.0.0.1  # comment".

    Args:
        text: What stands in it.
        name: What it is called.

    Raises:
        Error: A line that is none of these; it is named by its number.
    """
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        where = f"--hostfile: {name}, line {number}"
        example = "Write it like: host slots=2"
        host = _host(words[0], where, example)
        for word in words[1:]:
            key, _, value = word.partition("=")
            if key == "slots" and re.fullmatch("[1-9][0-9]{0,3}", value):
                host = dataclasses.replace(host, slots=int(value))
            elif key == "address" and value:
                host = dataclasses.replace(host, address=_address(value, where))
            else:
                raise Error(f"{where}: {word!r} is not known. {example}")
        found.append(host)
    if not found:
        raise Error(f"--hostfile: {name} names no host. Write one on each line, as: host slots=2")
    return _different(found, f"--hostfile: {name}")


def place(shape: Shape, found: Sequence[Host]) -> tuple[Host, ...]:
    """Return the host of each task, in the order of shape.tasks: hosts are filled one by one.

    Raises:
        Error: There are too few slots; one line.
    """
    slots = [host for host in found for _ in range(host.slots)]
    if len(slots) < len(shape):
        hosts, has = ("host", "has") if len(found) == 1 else ("hosts", "have")
        raise Error(
            f"{len(shape)} tasks ({shape}) need {len(shape)} slots, but {len(found)} {hosts} "
            f"{has} {len(slots)}. Add hosts, or say that they take more: --hosts=a:2,b:2."
        )
    return tuple(slots[: len(shape)])


def share_gpus(
    placed: Mapping[Task, Host],
    computing: Sequence[Task],
    gpus: Mapping[str, Sequence[str]],
    per_task: int = 0,
) -> dict[Task, str]:
    """Return CUDA_VISIBLE_DEVICES of each task; {} where no host has GPUs.

    Args:
        placed: The host of each task.
        computing: The tasks that train: the others get none.
        gpus: The ids of the GPUs of each host, by its name.
        per_task: How many each gets; 0 to divide those of each host.

    Raises:
        Error: There are too few, or tasks would have different numbers; one line.
    """
    tasks = Counter(placed[task].name for task in computing)
    if not per_task:
        if not any(gpus[name] for name in tasks):
            return {}
        counts = {name: divmod(len(gpus[name]), count) for name, count in tasks.items()}
        shares = set(counts.values())
        if len(shares) > 1 or min(shares)[0] < 1 or min(shares)[1]:
            each = "; ".join(
                f"{name} has {len(gpus[name])} for {count} task{'s'[: count > 1]}"
                for name, count in tasks.items()
            )
            # With unequal shares TensorFlow's collectives wait for devices that do not exist.
            raise Error(
                f"The GPUs do not divide evenly over the tasks that train: {each}. Set "
                f"--gpus_per_task, or --env=CUDA_VISIBLE_DEVICES=-1 to train on CPUs."
            )
        per_task = shares.pop()[0]
    for name, count in tasks.items():
        if len(gpus[name]) < count * per_task:
            raise Error(
                f"{name} has too few GPUs: {len(gpus[name])}, and {count} "
                f"{'tasks that train there need' if count > 1 else 'task that trains there needs'} "
                f"{count * per_task} (--gpus_per_task={per_task}). Place fewer tasks there."
            )
    left = {name: iter(ids) for name, ids in gpus.items()}
    # "-1" hides all GPUs. An empty value does too, but something on the way may lose it.
    visible = dict.fromkeys(placed, "-1")
    for task in computing:
        ids = left[placed[task].name]
        visible[task] = ",".join(next(ids) for _ in range(per_task))
    return visible


def _host(word: str, where: str, example: str) -> Host:
    user, at, rest = word.rpartition("@")
    slots = 1
    # "a:2", "[::1]:2", "[::1]", "a"
    bare, colon, count = rest.rpartition(":")
    if colon and not rest.endswith("]"):
        if not re.fullmatch("[1-9][0-9]{0,3}", count):
            raise Error(f"{where}: {word!r} does not say how many tasks. {example}")
        rest, slots = bare, int(count)
    if at and not _USER.fullmatch(user):
        raise Error(f"{where}: {word!r} names no user. {example}")
    try:
        host = address_lib.split(f"{rest}:1")[0]
    except ValueError:
        raise Error(f"{where}: {word!r} names no host. {example}") from None
    return Host(f"{user}@{host}" if at else host, slots)


def _address(text: str, where: str) -> str:
    shown = f"[{text}]" if ":" in text and not text.startswith("[") else text
    try:
        return address_lib.split(f"{shown}:1")[0]
    except ValueError:
        raise Error(f"{where}: address={text!r} is no host. Write it like 10.0.0.1.") from None


def _different(found: list[Host], where: str) -> tuple[Host, ...]:
    for name, count in Counter(host.name for host in found).items():
        if count > 1:
            raise Error(f"{where}: {name} is named {count} times. Name it once, with more slots.")
    return tuple(found)
