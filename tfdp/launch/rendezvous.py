"""The tasks of a cluster meet before TensorFlow starts: who is missing, and do all agree?

    facts = {"tensorflow": "2.21.0", "seed": "7"}
    rendezvous.meet(cluster, task, facts)    # returns when all are there and have the same facts

TensorFlow answers a task that is missing, or that was given another cluster, by waiting. Here each
task listens at its own address, which TensorFlow's server takes afterwards, and exchanges a line of
JSON with every other: its name, the cluster it was told of, its facts. As each pair compares, a
difference is known to both sides of it, whatever else they disagree about.
"""

import contextlib
import importlib.metadata
import re
import sys
from collections.abc import Callable, Mapping

from tfdp.cluster import Cluster, ClusterError, Task, from_environment
from tfdp.launch import network
from tfdp.launch.meeting import TIMEOUT_VARIABLE, Found, Meeting, MissingError

__all__ = ["TIMEOUT_VARIABLE", "Found", "MissingError", "join", "meet", "survey"]

_PACKAGES = {
    "tensorflow": ("tensorflow", "tensorflow-cpu", "tf-nightly"),
    "keras": ("keras", "keras-nightly"),
    "tfdp": ("tfdp",),
}
_has_joined = False


def join(environ: Mapping[str, str]) -> None:
    """Meets the other tasks of TF_CONFIG, once in this process; see meet.

    Compared are the versions of TensorFlow, Keras and tfdp and the seed of the launcher.
    TFDP_START_TIMEOUT is the time to wait for those that are missing, 300 s by default; with 0
    nobody is met.
    """
    global _has_joined
    found = from_environment(environ)
    timeout = seconds(environ)
    trusts = network.is_trusted(environ)
    if found is None or _has_joined:
        return
    if not trusts and len(found.cluster.tasks) > 1:
        network.refuse_public(found.cluster)
    if not timeout:
        return
    facts = versions()
    facts["seed of the launcher (TFDP_SEED)"] = environ.get("TFDP_SEED") or "none"
    meet(*found, facts, timeout_seconds=timeout, trust_network=trusts)
    _has_joined = True


def seconds(environ: Mapping[str, str]) -> float:
    """How long to wait for tasks that are missing, in seconds; 0: without looking and without end.

    Raises:
      ClusterError: TFDP_START_TIMEOUT is no such number.
    """
    text = environ.get(TIMEOUT_VARIABLE) or "300"
    if not re.fullmatch(r"[0-9]{1,9}(\.[0-9]+)?", text):
        raise ClusterError(f"{TIMEOUT_VARIABLE}={text!r} is no number of seconds. Use 300, say.")
    return float(text)


def meet(
    cluster: Cluster,
    task: Task,
    facts: Mapping[str, str],
    *,
    timeout_seconds: float = 300.0,
    report_seconds: float = 10.0,
    trust_network: bool = False,
    say: Callable[[str], None] | None = None,
) -> None:
    """Waits for all other tasks, and compares with each.

    The evaluator meets nobody. A task that serves a coordinator waits ten seconds for the others
    and then goes on: it may have been started again, long after they have met. Memory and time
    grow with the square of the number of tasks; 64 tasks exchange some 2,000 lines.

    Args:
      cluster: Who takes part.
      task: Who asks.
      facts: What must be the same everywhere, by name; the cluster is compared besides.
      timeout_seconds: How long to wait for those that are missing.
      report_seconds: How often to say who is missing.
      trust_network: Whether addresses that anybody in the internet can reach are allowed.
      say: Takes lines to show; by default they go to stderr.

    Raises:
      ClusterError: A difference: its name, both values and both tasks.
      MissingError: The time is over; or the own port is taken.
      ClusterError: An address is public and trust_network is not given.
    """
    if task.type == "evaluator" or cluster.num_workers_in_sync + len(cluster.ps) < 2:
        return
    if not trust_network:
        network.refuse_public(cluster)
    Meeting(cluster, task, facts, report_seconds, trust_network, say or _say).run(timeout_seconds)


def survey(
    cluster: Cluster, task: Task, facts: Mapping[str, str], *, timeout_seconds: float
) -> dict[Task, Found]:
    """Asks every other task for its facts, and tries the way to it in both directions.

    All tasks of the cluster call it at about the same time. Nothing is compared.

    Raises:
      MissingError: The own port is taken.
    """
    meeting = Meeting(cluster, task, facts, float("inf"), True, _say, both_ways=True)
    return meeting.survey(timeout_seconds)


def versions() -> dict[str, str]:
    """What is installed here of TensorFlow, Keras and tfdp, found without importing them."""
    return {name: _version(names) for name, names in _PACKAGES.items()}


def _version(names: tuple[str, ...]) -> str:
    for name in names:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.version(name)
    return "not installed as a package"


def _say(line: str) -> None:
    sys.stderr.write(f"tfdp: {line}\n")
    sys.stderr.flush()
