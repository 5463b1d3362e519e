"""Cluster and Task: who is in the cluster, and which task this is. TF_CONFIG in and out.

    cluster = Cluster(worker=("a:2222", "b:2222"))
    os.environ["TF_CONFIG"] = cluster.tf_config(Task("worker", 1))

    cluster, task = parse(os.environ["TF_CONFIG"])
    check_strategy(cluster, "multi_worker")

TensorFlow answers most mistakes in a cluster by hanging. Here each is a ClusterError: one line with
what was wanted, what came and what to do, before TensorFlow is imported.
"""

import dataclasses
import difflib
import functools
import json
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from tfdp import address
from tfdp.error import Error

# Names the run to the training tasks and their evaluator, where there is one.
EVALUATOR_VARIABLE = "TFDP_EVALUATOR"

JOBS = ("chief", "worker", "ps", "evaluator")
# Of tf.data service: beside a cluster, in no TF_CONFIG.
DATA = "data"
_STRATEGIES = ("one_device", "mirrored", "multi_worker", "parameter_server")
_EXAMPLE = '{"cluster": {"worker": ["a:2222", "b:2222"]}, "task": {"type": "worker", "index": 0}}'


class ClusterError(Error):
    """A bad cluster setting. The message is one line, whatever the setting held."""


@dataclasses.dataclass(frozen=True)
class Task:
    """One process of a cluster; str(Task("worker", 1)) is "worker:1".

    Attributes:
      type: "chief", "worker", "ps" or "evaluator"; "data" for one of tf.data service, which is in
        no cluster.
      index: Counts from 0 within its type.
    """

    type: str
    index: int

    def __post_init__(self) -> None:
        if self.type not in (*JOBS, DATA):
            raise ClusterError(_unknown_job("task type", self.type))
        if not isinstance(self.index, int) or isinstance(self.index, bool):
            raise ClusterError(
                f"The task index {_show(self.index)} is not a whole number. Use 0, 1, 2, ..."
            )
        if self.index < 0:
            raise ClusterError(
                f"The task index {_show(self.index)} is negative. Count {self.type} tasks from 0."
            )

    def __str__(self) -> str:
        return f"{self.type}:{self.index}"


@dataclasses.dataclass(frozen=True)
class Cluster:
    """The addresses of all tasks, each "host:port", an IPv6 host in brackets: "[::1]:2222".

    Attributes:
      chief: None or one. It trains too, unless there are parameter servers: then it coordinates.
      worker: The tasks that train.
      ps: Parameter servers.
      evaluator: None or one. It never counts as a worker.
    """

    chief: tuple[str, ...] = ()
    worker: tuple[str, ...] = ()
    ps: tuple[str, ...] = ()
    evaluator: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for job in JOBS:
            addresses = getattr(self, job)
            if not isinstance(addresses, tuple | list):
                raise ClusterError(
                    f"The addresses of {job} are {_show(addresses)}, not a list. "
                    f'Write ["host:port", ...].'
                )
            object.__setattr__(self, job, tuple(addresses))
        for job in ("chief", "evaluator"):
            if len(getattr(self, job)) > 1:
                raise ClusterError(
                    f"The cluster has {len(getattr(self, job))} {job} tasks, and TensorFlow takes "
                    f"at most one. Make the others workers."
                )
        if not self.tasks:
            raise ClusterError(
                'The cluster has no task at all. Give it workers, as in {"worker": ["host:port"]}.'
            )
        if self.ps and not self.num_workers_in_sync:
            raise ClusterError(
                f"The cluster has {self} and nobody to train. Add a chief and at least one worker."
            )
        self._check_addresses()

    def _check_addresses(self) -> None:
        seen: dict[tuple[str, int], Task] = {}
        for task in self.tasks:
            came = f"the address {_show(self.address(task))}"
            try:
                host, port = address.split(self.address(task))
            except ValueError as error:
                raise ClusterError(f"{task} has {came}, {error}") from None
            first = seen.setdefault((host.lower().rstrip("."), port), task)
            if first == task:
                continue
            remedy = "Give each task a port of its own."
            if task.type == "evaluator":
                remedy = f"The evaluator is no {first.type}: name that address once."
            raise ClusterError(f"{first} and {task} have the same address: {came}. {remedy}")

    def __str__(self) -> str:
        """The cluster in words: "chief + 2 workers + 1 ps + evaluator"."""
        parts = ["chief"] if self.chief else []
        if self.worker:
            parts.append(_count(len(self.worker), "worker"))
        if self.ps:
            parts.append(f"{len(self.ps)} ps")
        if self.evaluator:
            parts.append("evaluator")
        return " + ".join(parts)

    @property
    def tasks(self) -> tuple[Task, ...]:
        """All tasks: chief, workers, parameter servers, evaluator."""
        return tuple(Task(job, index) for job in JOBS for index in range(len(getattr(self, job))))

    @property
    def num_workers_in_sync(self) -> int:
        """How many tasks train together under multi_worker: the chief and the workers."""
        return len(self.chief) + len(self.worker)

    @property
    def is_parameter_server(self) -> bool:
        """Whether there are parameter servers: workers then serve, and the chief coordinates."""
        return bool(self.ps)

    def only_serves(self, task: Task) -> bool:
        """Whether a task serves and runs no script: a ps, or a worker beside one."""
        return task.type == "ps" or (task.type == "worker" and self.is_parameter_server)

    def chief_task(self) -> Task:
        """The task that writes files and reports: the chief, else worker:0.

        In a cluster that is only an evaluator, the evaluator.
        """
        return self.tasks[0]

    def address(self, task: Task) -> str:
        """The "host:port" of a task.

        Raises:
          ClusterError: The cluster has no such task.
        """
        addresses = getattr(self, task.type)
        if task.index < len(addresses):
            return addresses[task.index]
        if not addresses:
            raise ClusterError(
                f"The task is {task.type} {_show(task.index)}, but the cluster has no {task.type} "
                f"(it has {self}). Add its address, or name a task of the cluster."
            )
        aside = " (the evaluator is not counted as a worker)" if self.evaluator else ""
        raise ClusterError(
            f"The task index {_show(task.index)} is out of range: the cluster has "
            f"{_count(len(addresses), f'{task.type} task')}{aside}. "
            f"Count from 0 to {len(addresses) - 1}, or add the task's address."
        )

    def host(self, task: Task) -> str:
        """The host of a task, an IPv6 one without its brackets."""
        return address.split(self.address(task))[0]

    def port(self, task: Task) -> int:
        """The port of a task."""
        return address.split(self.address(task))[1]

    def spec(self, task: Task | None = None) -> dict[str, list[str]]:
        """The cluster as TensorFlow takes it: addresses by job, jobs without tasks left out.

        The evaluator is a cluster of its own. Were it named to the training tasks, the coordinator
        of parameter servers would connect to it and wait. Were they named to the evaluator, it
        would end with an error as soon as they have ended ("cluster check alive failed").

        Args:
          task: Whose view. By default that of the training tasks.
        """
        jobs = ("evaluator",) if task and task.type == "evaluator" else ("chief", "worker", "ps")
        return {job: list(getattr(self, job)) for job in jobs if getattr(self, job)}

    def tf_config(self, task: Task) -> str:
        """The JSON text of TF_CONFIG for one task.

        Raises:
          ClusterError: The cluster has no such task.
        """
        self.address(task)
        return json.dumps(
            {"cluster": self.spec(task), "task": {"type": task.type, "index": task.index}}
        )


def check_strategy(cluster: Cluster, strategy: str, task: Task | None = None) -> None:
    """Checks that a strategy can run on a cluster, and on one task of it when given.

    Args:
      cluster: Who takes part.
      strategy: "one_device", "mirrored", "multi_worker" or "parameter_server".
      task: The task that asks. The evaluator takes no part in training: it may have only
        "one_device" or "mirrored".

    Raises:
      ClusterError: It cannot; the message says which can.
    """
    if strategy not in _STRATEGIES:
        raise ClusterError(
            f"strategy={_show(strategy)} is unknown.{_did_you_mean(strategy, _STRATEGIES)} "
            f"Use one of {', '.join(_STRATEGIES)}."
        )
    local = strategy in ("one_device", "mirrored")
    if task is not None and task.type == "evaluator":
        if not local:
            raise ClusterError(
                f"strategy={strategy} was asked for by evaluator:0, which is not counted as a "
                f"worker: it takes no part in training. Use one_device or mirrored there."
            )
    elif local and cluster.num_workers_in_sync + len(cluster.ps) > 1:
        fitting = "parameter_server" if cluster.ps else "multi_worker"
        raise ClusterError(
            f"strategy={strategy} trains in one process, but the cluster has {cluster}. "
            f"Use strategy={fitting}, or unset TF_CONFIG."
        )
    elif strategy == "multi_worker" and cluster.ps:
        raise ClusterError(
            f"strategy=multi_worker has no parameter servers, but the cluster has {cluster}. "
            f"Use strategy=parameter_server, or take ps out of the cluster."
        )
    elif strategy == "multi_worker" and not cluster.num_workers_in_sync:
        raise ClusterError(
            f"strategy=multi_worker needs workers, but the cluster has {cluster}. Add workers."
        )
    elif strategy == "parameter_server":
        missing = [job for job in ("chief", "worker", "ps") if not getattr(cluster, job)]
        if missing:
            raise ClusterError(
                f"strategy=parameter_server needs a chief, a worker and a ps, but the cluster has "
                f"{cluster}. Add {' and '.join(missing)}, or use strategy=multi_worker without ps."
            )


class Place(NamedTuple):
    """A cluster, and the place of this process in it: what a TF_CONFIG says."""

    cluster: Cluster
    task: Task

    @property
    def is_chief(self) -> bool:
        """Whether this task writes the files: the chief, else worker:0."""
        return self.task == self.cluster.chief_task()

    @property
    def is_evaluator(self) -> bool:
        """Whether this task evaluates checkpoints, and takes no part in training."""
        return self.task.type == "evaluator"


def parse(text: str) -> Place:
    """Reads the text of a TF_CONFIG.

    Taken as TensorFlow takes it: an index that is a decimal string ("1"); a job written as an
    object from index to address, when it leaves no task out; other keys beside "cluster" and
    "task"; and an evaluator that its own cluster does not name.

    Raises:
      ClusterError: For every other text, and for one that names no cluster.
    """
    result = _read(text)
    if result is None:
        raise ClusterError(f"TF_CONFIG holds no cluster. Write it like {_EXAMPLE}, or unset it.")
    return result


def from_environment(environ: Mapping[str, str]) -> Place | None:
    """Reads TF_CONFIG where there is one.

    Returns:
      None without TF_CONFIG, or when it names no cluster ({} or an empty cluster), which TensorFlow
      takes as a single machine.

    Raises:
      ClusterError: TF_CONFIG is there and bad.
    """
    text = environ.get("TF_CONFIG")
    return None if text is None else _read(text)


def removed(environ: Mapping[str, str]) -> str:
    """Says what it means that a script has taken TF_CONFIG from the environment of its task.

    Returns:
      "" where it is still there, or this process was not started with one (see `begin`).
    """
    found = from_environment(environ)
    if found is not None or _begun is None or _begun.cluster.num_workers_in_sync < 2:
        return ""
    others = _begun.cluster.num_workers_in_sync - 1
    return (
        f"This script has removed TF_CONFIG: {_begun.task} knows nothing of the other {others} and "
        "trains a model of its own. Leave out the line that removes it (os.environ.pop), so that "
        "all of them train one."
    )


def begin(found: Place | None) -> None:
    """Remembers what this process was started as."""
    global _begun
    _begun = found


_begun: Place | None = None


def evaluated_run(environ: Mapping[str, str]) -> str | None:
    """Says whether checkpoints of this run are evaluated by a task of their own.

    The launcher names no evaluator to the training tasks (see Cluster.spec): it sets TFDP_EVALUATOR
    to a name of the run, for all tasks. So may whoever starts tasks by hand. Without it a cluster
    that names an evaluator tells the same.

    Returns:
      The name of the run, "" for one without a name; None when there is no evaluator.

    Raises:
      ClusterError: TF_CONFIG is there and bad.
    """
    if name := environ.get(EVALUATOR_VARIABLE, ""):
        return name
    found = from_environment(environ)
    if found is None or not (found.cluster.evaluator or found.is_evaluator):
        return None
    return ""


@functools.lru_cache(maxsize=8)  # a task asks many times
def _read(text: str) -> Place | None:
    config = _load(text)
    if not isinstance(config, dict):
        raise ClusterError(
            f"TF_CONFIG is {_show(config)}, not an object. Write it like {_EXAMPLE}."
        )
    for key in ("cluster", "task"):
        _refuse_misspelled(key, config)
    if config.get("cluster", {}) == {}:
        return None
    try:
        cluster = _cluster(config["cluster"])
        task = _task(config.get("task"))
        # TensorFlow allows an evaluator that no cluster names, and Kubeflow starts it like that.
        if task != Task("evaluator", 0) or cluster.evaluator:
            cluster.address(task)
    except ClusterError as error:
        raise ClusterError(f"TF_CONFIG: {error}") from None
    return Place(cluster, task)


def _load(text: str) -> Any:
    if not text.strip():
        raise ClusterError("TF_CONFIG is empty. Unset it to train on a single machine.")
    try:
        return json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse_constant)
    except ClusterError:
        raise
    except json.JSONDecodeError as error:
        came = f"is not JSON: line {error.lineno}, column {error.colno}: {error.msg}"
    except RecursionError:
        came = "is nested too deeply"
    except ValueError:
        # Python reads no number of more than 4,300 digits.
        came = "holds an endless number"
    raise ClusterError(f"TF_CONFIG {came}. Write it like {_EXAMPLE}.")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # json keeps the last of several, silently: half the cluster would be gone.
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise ClusterError(f"TF_CONFIG has the key {_show(key)} twice in an object. Keep one.")
        result[key] = value
    return result


def _refuse_constant(name: str) -> Any:
    raise ClusterError(f"TF_CONFIG holds {name}, which is not JSON. Write a number.")


def _refuse_misspelled(key: str, config: dict[str, Any]) -> None:
    # Other keys are none of our business, but with "clusters" read as no cluster, every task would
    # train alone, silently.
    for other in config if key not in config else ():
        if difflib.SequenceMatcher(None, other[:16].lower(), key).ratio() > 0.75:
            raise ClusterError(f'TF_CONFIG has the key {_show(other)}. Did you mean "{key}"?')


def _cluster(jobs: Any) -> Cluster:
    if not isinstance(jobs, dict):
        raise ClusterError(f'"cluster" is {_show(jobs)}, not an object. Write it like {_EXAMPLE}.')
    for job in jobs:
        if job not in JOBS:
            raise ClusterError(_unknown_job("job", job))
    return Cluster(**{job: _dense(job, addresses) for job, addresses in jobs.items()})


def _dense(job: str, addresses: Any) -> Any:
    """A job's addresses as a list, also when they came as {"0": address, ...}."""
    if not isinstance(addresses, dict):
        return addresses
    indices = [str(index) for index in range(len(addresses))]
    if set(indices) != set(addresses):
        raise ClusterError(
            f"The {job} addresses are an object whose keys are not 0 to {len(addresses) - 1}: "
            f"a task is left out. Write a list of all addresses."
        )
    return [addresses[index] for index in indices]


def _task(task: Any) -> Task:
    if not isinstance(task, dict):
        came = "is missing" if task is None else f"is {_show(task)}, not an object"
        raise ClusterError(
            f'"task" {came}. Say which task this is: "task": {{"type": "worker", "index": 0}}.'
        )
    for key, example in (("type", '"worker"'), ("index", "0")):
        if key not in task:
            raise ClusterError(f'"task" has no "{key}". Add it, as in "{key}": {example}.')
    index = task["index"]
    # Platforms that fill in a template write the index as text, and TensorFlow reads it with int().
    if isinstance(index, str) and re.fullmatch("-?[0-9]{1,9}", index):
        index = int(index)
    return Task(task["type"], index)


def _unknown_job(what: str, name: Any) -> str:
    if name == "master":
        return f'The {what} "master" is that of TensorFlow 1. Call it "chief".'
    return (
        f"The {what} {_show(name)} is unknown.{_did_you_mean(name, JOBS)} "
        f"Use one of {', '.join(JOBS)}."
    )


def _did_you_mean(name: Any, choices: tuple[str, ...]) -> str:
    if not isinstance(name, str):
        return ""
    # Cut: comparing takes the square of the length, and the name may be megabytes.
    matches = difflib.get_close_matches(name[:32].lower(), choices, n=1)
    return f' Did you mean "{matches[0]}"?' if matches else ""


def _show(value: Any) -> str:
    """A value in a few words of one line, whatever it is and however long."""
    if isinstance(value, str):
        return repr(value) if len(value) <= 60 else repr(value[:60]) + "..."
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 10**18:
        return "of more than 18 digits"
    if value is None or isinstance(value, int | float):
        return json.dumps(value)
    return {"dict": "an object", "list": "a list"}.get(type(value).__name__, "of the wrong type")


def _count(count: int, noun: str) -> str:
    return f"{count} {noun}" + ("" if count == 1 else "s")
