"""What to run: one TaskProcess for each task of a cluster. Pure: nothing is started or looked up.

    shape = Shape(workers=2)
    cluster = local_cluster(shape, machine.free_ports(len(shape)))
    processes = plan(cluster, ["train.py", "--lr=0.1"], seed=7, gpus=("0", "1"), log_dir="runs/a")
    processes[1].command      # ("/usr/bin/python3", "-m", "tfdp.run", "train.py", "--lr=0.1")
    processes[1].environment  # TF_CONFIG, CUDA_VISIBLE_DEVICES="1", TFDP_SEED="7", ...

A platform (this machine, and others later) starts or renders such a plan and decides nothing of its
own, so that a task is the same wherever it runs.
"""

import dataclasses
import pathlib
import sys
import types
from collections.abc import Mapping, Sequence

from tfdp import batching
from tfdp.cluster import EVALUATOR_VARIABLE, Cluster, ClusterError, Task
from tfdp.launch import cores as cores_lib
from tfdp.launch.shape import Shape


@dataclasses.dataclass(frozen=True)
class TaskProcess:
    """All that is needed to start one task.

    Attributes:
      task: Which task it is.
      host: Where it runs.
      command: The program and its arguments; never put through a shell.
      environment: What is added to the environment that the task finds on its host.
      log: The file that its output is appended to; None for none.
      directory: The folder it runs in; None for the one its platform starts it in.
      cpus: The CPUs of its host that it runs on; () for all that there are.
      secrets: Names of variables of its environment whose values are never shown, beside those
        whose names say so.
    """

    task: Task
    host: str
    command: tuple[str, ...]
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict, hash=False)
    log: pathlib.Path | None = None
    directory: pathlib.Path | None = None
    cpus: tuple[int, ...] = ()
    secrets: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        if not self.command or isinstance(self.command, str):
            raise ValueError(
                f"The command of {self.task} is {self.command!r}. Give a tuple of the program and "
                f"its arguments."
            )
        object.__setattr__(self, "command", tuple(self.command))
        # A copy that cannot be written to: plans are compared and printed long after.
        object.__setattr__(self, "environment", types.MappingProxyType(dict(self.environment)))
        words = (*self.command, *self.environment, *self.environment.values())
        for text in (*words, str(self.directory), str(self.log)):
            if not isinstance(text, str) or "\0" in text or not _is_encodable(text):
                raise ValueError(
                    f"The command, environment or folder of {self.task} holds {text!r}, which no "
                    f"process can be given. Use text without NUL characters."
                )
        for name in self.environment:
            if not name or "=" in name:
                raise ValueError(
                    f"The environment of {self.task} has a variable named {name!r}. Use a name "
                    f"without an equals sign."
                )


def _is_encodable(text: str) -> bool:
    try:
        text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return False
    return True


def local_cluster(shape: Shape, ports: Sequence[int]) -> Cluster:
    """A cluster on this machine, reached over the loopback interface.

    Args:
      shape: How many tasks of each kind.
      ports: One for each task, taken in the order of shape.tasks.

    Raises:
      ClusterError: Too few or too many ports.
    """
    return shape.cluster([f"127.0.0.1:{port}" for port in ports])


def plan(
    cluster: Cluster,
    script: Sequence[str],
    *,
    seed: int,
    gpus: Sequence[str] = (),
    log_dir: str | pathlib.Path | None = None,
    python: str = sys.executable,
    directory: str | pathlib.Path | None = None,
    environ: Mapping[str, str] | None = None,
    run: str = "1",
    cores: Sequence[Sequence[int]] = (),
) -> list[TaskProcess]:
    """The processes of a cluster, in the order of cluster.tasks.

    Args:
      cluster: Who takes part.
      script: "SCRIPT.py" or "-m", "MODULE", then its arguments.
      seed: TFDP_SEED of every task, so that shuffles without a seed of their own agree.
      gpus: Ids for CUDA_VISIBLE_DEVICES on the one machine that all tasks share, divided evenly
        over the tasks that compute. Empty: the variable is left as it is.
      log_dir: Where each task has its log file; None for no log files.
      python: The interpreter.
      directory: The folder the tasks run in; None for the one that their platform chooses.
      environ: Variables every task is given besides; those of the plan win.
      run: What the run is called in TFDP_EVALUATOR, where there is an evaluator: another name for
        each launch, the same after a restart.
      cores: The CPUs of each core of the one machine that all tasks share, divided evenly over
        the tasks that compute; the others run on all of them. Empty, or with GPUs: all use all.

    Raises:
      ClusterError: No script, a bad seed, or GPUs that cannot be divided.
    """
    if not script or not script[0]:
        raise ClusterError("There is no script to run. Name one: -- SCRIPT.py ARGS.")
    if script[0] == "-m" and len(script) < 2:
        raise ClusterError("There is no module after -m. Name one: -- -m MODULE ARGS.")
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**31:
        raise ClusterError(f"seed={seed!r} is not a whole number from 0 to {2**31 - 1}. Use one.")
    visible = _divide_gpus(cluster, gpus)
    mine = computing(cluster)
    shares = cores_lib.divide(cores, len(mine)) if not gpus else []
    cpus = dict(zip(mine, shares, strict=False))
    return [
        TaskProcess(
            task=task,
            host=cluster.host(task),
            command=(python, "-m", "tfdp.run", *script),
            environment={
                **(environ or {}),
                "TF_CONFIG": cluster.tf_config(task),
                **({"CUDA_VISIBLE_DEVICES": visible[task]} if visible else {}),
                "TFDP_SEED": str(seed),
                **({EVALUATOR_VARIABLE: run} if cluster.evaluator else {}),
                # Else the last lines before a crash would be lost in a buffer.
                "PYTHONUNBUFFERED": "1",
            },
            log=pathlib.Path(log_dir, log_name(task)) if log_dir is not None else None,
            directory=pathlib.Path(directory) if directory is not None else None,
            cpus=cpus.get(task, ()),
        )
        for task in cluster.tasks
    ]


def gpus_of(process: TaskProcess) -> tuple[str, ...]:
    """The ids of the GPUs that plan gave to a task."""
    ids = process.environment.get("CUDA_VISIBLE_DEVICES", "")
    return () if ids in ("", "-1") else tuple(ids.split(","))


def log_name(task: Task) -> str:
    """The file name of a task's log."""
    return f"{task.type}-{task.index}.log"


def computing(cluster: Cluster) -> list[Task]:
    """The tasks that train."""
    return [task for task in cluster.tasks if trains(task.type, cluster.is_parameter_server)]


def trains(job: str, has_servers: bool) -> bool:
    """Whether tasks of a type train: the chief of parameter servers only coordinates."""
    return job == "worker" or (job == "chief" and not has_servers)


def _divide_gpus(cluster: Cluster, gpus: Sequence[str]) -> dict[Task, str]:
    """CUDA_VISIBLE_DEVICES for each task; nothing where there are no GPUs."""
    if not gpus:
        return {}
    mine = computing(cluster)
    shown, tasks = ",".join(gpus), len(mine)
    if len(gpus) < tasks:
        raise ClusterError(
            f"{tasks} training tasks need a GPU each, but there are {len(gpus)} ({shown}). "
            f"Start fewer tasks, or set CUDA_VISIBLE_DEVICES=-1 to train on the CPU."
        )
    if len(gpus) % tasks:
        # With unequal shares TensorFlow's collectives wait for devices that do not exist.
        fitting = ",".join(gpus[: len(gpus) // tasks * tasks])
        raise ClusterError(
            f"{len(gpus)} GPUs ({shown}) do not divide over {tasks} training tasks. "
            f"Set CUDA_VISIBLE_DEVICES={fitting}, or change the number of tasks."
        )
    # "-1" hides all GPUs. An empty value does too, but a scheduler on the way may lose it.
    visible = dict.fromkeys(cluster.tasks, "-1")
    left = iter(gpus)
    for task, share in zip(mine, batching.split(len(gpus), tasks), strict=True):
        visible[task] = ",".join(next(left) for _ in range(share))
    return visible
