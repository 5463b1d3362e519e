"""Hosts that were asked before a run, and what a run makes of what they said.

with reach(shape, values, "/home/me/digits", sys.executable, "train.py") as reached:
reached.problems                # a line for each thing and host; then nothing is run
placed = reached.place(shape)
cluster = reached.cluster(shape, placed)
"""

import contextlib
import dataclasses
import hashlib
import ipaddress
import os
import pathlib
import shlex
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from absl import flags

from tfdp.cluster import Cluster, Task
from tfdp.error import Error
from tfdp.launch import cores as cores_lib
from tfdp.launch import hosts as hosts_lib
from tfdp.launch import plan
from tfdp.launch.platforms import relay, ssh_hosts
from tfdp.launch.shape import Shape
from tfdp.version import VERSION

# How long hosts that have answered once may take: those that train wait.
_AGAIN_SECONDS = 5.0
_PORTS_SECONDS = 3.0
_NOT_INSTALLED = "not installed as a package"


@dataclasses.dataclass
class Reached:
    """Hosts that were asked.

    Attributes:
        ssh: How they are reached.
        named: The hosts that tasks run on.
        facts: What each says, by name; see host_look.look.
        problems: What stands in the way of a run, a line for each thing and host.
        first_port: The port of the first task of each host; 0 for free ones.
        ask: Asks all hosts again, each with changes of its own to the question, by name. Those that
            do not answer are left out.
    """

    ssh: ssh_hosts.Ssh
    named: tuple[hosts_lib.Host, ...]
    facts: dict[str, dict[str, Any]]
    problems: list[str]
    first_port: int
    ask: Callable[[Mapping[str, Mapping[str, Any]]], dict[str, dict[str, Any]]]
    _ports: dict[str, list[int]] = dataclasses.field(default_factory=dict)

    def place(self, shape: Shape, without: Sequence[str] = ()) -> dict[Task, hosts_lib.Host]:
        """Return the host of each task.

        Args:
            shape: The tasks.
            without: Hosts of workers that were given up: each has one slot less.
        """
        fewer = Counter(without)
        left = [
            dataclasses.replace(host, slots=max(0, host.slots - fewer[host.name]))
            for host in self.named
        ]
        return dict(zip(shape.tasks, hosts_lib.place(shape, left), strict=True))

    def cluster(self, shape: Shape, placed: Mapping[Task, hosts_lib.Host]) -> Cluster:
        """Return the cluster, with ports that nobody has used before in this run where it can."""
        if self._ports:
            # What was free at the start may be taken by now. A host that is gone keeps its list.
            for name, answer in self.ask({}).items():
                if len(answer["free_ports"]) == len(self.facts[name]["free_ports"]):
                    self.facts[name] = answer
            self._ports.clear()
        addresses = []
        for host in placed.values():
            facts, ports = self.facts[host.name], self._ports.setdefault(host.name, [])
            free, number = facts["free_ports"], len(ports)
            port = self.first_port + number if self.first_port else free[number % len(free)]
            ports.append(port)
            where = host.address or facts["address"] or host.name.rpartition("@")[2]
            addresses.append(hosts_lib.join(where, port))
        return shape.cluster(addresses)

    def wait_for_ports(self) -> None:
        """Wait until nobody listens on the ports of the cluster any more, for some seconds."""
        waits = {"wait_seconds": _PORTS_SECONDS}
        self.ask({name: {"ports": ports, **waits} for name, ports in self._ports.items()})

    def gpus(
        self,
        cluster: Cluster,
        placed: Mapping[Task, hosts_lib.Host],
        count: int | None,
        per_task: int,
    ) -> dict[Task, str]:
        """Return CUDA_VISIBLE_DEVICES of each task; {} where count is 0, or there are no GPUs."""
        if count == 0:
            return {}
        found = {name: facts["gpus"] for name, facts in self.facts.items()}
        return hosts_lib.share_gpus(placed, plan.computing(cluster), found, per_task)

    def relays(
        self,
        processes: Sequence[plan.TaskProcess],
        placed: Mapping[Task, hosts_lib.Host],
        gpus: Mapping[Task, str],
        divide_cores: bool,
        secrets: frozenset[str] = frozenset(),
    ) -> list[plan.TaskProcess]:
        """Return the processes here that stand for tasks on their hosts.

        Args:
            processes: The tasks, as they run on their hosts.
            placed: The host of each.
            gpus: CUDA_VISIBLE_DEVICES of each.
            divide_cores: Whether those of a host that train on CPUs get cores of their own.
            secrets: Names of variables whose values are never shown.
        """
        cpus = self._cores(placed, gpus) if divide_cores else {}
        relays = []
        for process in processes:
            host, task = placed[process.task], process.task
            there = dataclasses.replace(
                process,
                environment={
                    **process.environment,
                    **({"CUDA_VISIBLE_DEVICES": gpus[task]} if gpus else {}),
                },
                directory=pathlib.Path(self.facts[host.name]["directory"]),
                cpus=cpus.get(task, ()),
            )
            words = self.ssh.agent(host.name, "run")
            relays.append(relay.stand_in(words, host.name, there, secrets))
        return relays

    def _cores(
        self, placed: Mapping[Task, hosts_lib.Host], gpus: Mapping[Task, str]
    ) -> dict[Task, tuple[int, ...]]:
        if gpus:
            return {}
        found: dict[Task, tuple[int, ...]] = {}
        has_servers = any(task.type == "ps" for task in placed)
        for host in self.named:
            mine = [
                task
                for task, where in placed.items()
                if where.name == host.name and plan.trains(task.type, has_servers)
            ]
            shares = cores_lib.divide(self.facts[host.name]["cores"], len(mine))
            found.update(zip(mine, shares, strict=False))
        return found


@contextlib.contextmanager
def reach(
    shape: Shape,
    values: flags.FlagValues,
    directory: str,
    python: str,
    script: str = "",
    mark: str = "",
) -> Iterator[Reached]:
    """Connect to the hosts of a run, copy the folder there where that is asked for, and look.

    Args:
        shape: The tasks.
        values: The flags.
        directory: The folder here.
        python: The interpreter here.
        script: The file that is run, "" for none.
        mark: A file in it that is seen where the folder is shared, "" for none.

    Raises:
        Error: The flags name no hosts, or too few; or there is no ssh here.
    """
    placed = hosts_lib.place(shape, named(values))
    tasks = Counter(host.name for host in placed)
    hosts = tuple(dict.fromkeys(placed))
    ssh = ssh_hosts.Ssh(arguments(values), values.remote_python or python)
    question: dict[str, Any] = {
        "directory": values.remote_dir or directory,
        "make_directory": values.sync,
        "script": script,
        "mark": mark,
        "wait_seconds": 0.0,
    }
    questions = {
        name: {
            **question,
            "ports": [values.port + n for n in range(count)] if values.port else [],
            "free_ports": count,
        }
        for name, count in tasks.items()
    }
    with ssh_hosts.connect(list(tasks), ssh) as (ssh, connections):

        def ask(changes: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
            asked = {name: {**one, **changes.get(name, {})} for name, one in questions.items()}
            return ssh_hosts.ask(connections, asked, ssh, seconds=_AGAIN_SECONDS)[0]

        facts, problems = ssh_hosts.ask(connections, questions, ssh)
        if values.sync and not problems:
            targets = {name: answer["directory"] for name, answer in facts.items()}
            problems = ssh_hosts.copy(directory, targets, ssh)
            facts = {**facts, **({} if problems else ask({}))}
        problems += find_problems(facts, tasks, directory, script)
        yield Reached(ssh, hosts, facts, problems, values.port, ask)


def find_problems(
    facts: Mapping[str, Mapping[str, Any]], tasks: Mapping[str, int], directory: str, script: str
) -> list[str]:
    """Return what stands in the way of a run, a line for each thing and host. Reads the script.

    Args:
        facts: What each host that answers says; see host_look.look.
        tasks: How many tasks each has.
        directory: The folder here.
        script: The file that is run, "" for none.
    """
    lines = []
    here = pathlib.Path(directory, script)
    digest = hashlib.sha256(here.read_bytes()).hexdigest() if script else ""
    first = next(iter(facts.values()), {})
    others = "Share the folder with the hosts, copy it with --sync, or name another: --remote_dir."
    for name, found in facts.items():

        def say(text: str, name: str = name) -> None:
            lines.append(f"{name}: {text}")

        if found["tfdp"] != VERSION:
            say(f"tfdp {found['tfdp']} is there, and {VERSION} is here. Install the same.")
        if _minor(found["python"]) != _minor(first["python"]):
            say(
                f"Python {found['python']} is there, and {first['python']} on {next(iter(facts))}. "
                f"Use the same everywhere (--remote_python)."
            )
        for key, package in (("tensorflow", "TensorFlow"), ("keras", "Keras")):
            if found[key] == _NOT_INSTALLED:
                say(f"{package} is not installed there. Install it, or see --remote_python.")
            elif found[key] != first[key]:
                say(
                    f"{package} {found[key]} is there, and {first[key]} on {next(iter(facts))}. "
                    f"Install the same."
                )
        where = shlex.quote(found["directory"])
        if not found["has_directory"]:
            say(f"there is no folder {where}. {others}")
        elif script and not found["script_digest"]:
            say(f"there is no {shlex.quote(script)} in {where}. {others}")
        elif script and found["script_digest"] != digest:
            say(f"{shlex.quote(script)} in {where} is not the same as here. {others}")
        for port in found["taken_ports"]:
            say(f"port {port} is taken by another program there. Choose others with --port.")
        if len(found["free_ports"]) < tasks[name]:
            say(f"{tasks[name]} ports are needed, and so many are not free there.")
        if len(tasks) > 1 and _is_loopback(found["address"]):
            say(
                f"it was reached at {found['address']}, where no other host reaches it. Name it by "
                f"an address that they reach."
            )
    return lines


def _minor(version: str) -> list[str]:
    return version.split(".")[:2]


def _is_loopback(text: str) -> bool:
    try:
        return ipaddress.ip_address(text.partition("%")[0]).is_loopback
    except ValueError:
        return False


def named(values: flags.FlagValues) -> tuple[hosts_lib.Host, ...]:
    """Return the hosts of the flags.

    Raises:
        Error: There are none, or the file cannot be read.
    """
    if bool(values.hosts) == bool(values.hostfile):
        what = "names no hosts" if not values.hosts else "has both --hosts and --hostfile"
        raise Error(f"--platform=ssh {what}. Write --hosts=a:2,b, or --hostfile=FILE.")
    if values.hosts:
        return hosts_lib.parse(values.hosts)
    try:
        text = pathlib.Path(values.hostfile).read_text()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no text"
        raise Error(f"--hostfile={values.hostfile}: {why}.") from None
    return hosts_lib.parse_file(text, os.path.basename(values.hostfile))


def arguments(values: flags.FlagValues) -> tuple[str, ...]:
    """Return ssh's own arguments of the flags, and check the port.

    Raises:
        Error: One of them is bad.
    """
    if values.port and not 1024 <= values.port <= 65000:
        raise Error(f"--port={values.port}: use a number from 1024 to 65000, or 0 for free ones.")
    try:
        return tuple(shlex.split(values.ssh_args))
    except ValueError as error:
        raise Error(f"--ssh_args={values.ssh_args!r}: {error}.") from None
