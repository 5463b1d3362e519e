"""Which task of which cluster is this process, where a platform has started it? Makes TF_CONFIG.

    discovery.begin(os.environ)     # sets TF_CONFIG where there is none and a platform tells

The first of these counts:

    TF_CONFIG
    TFDP_CLUSTER: the addresses of all tasks by job, as JSON, the same text in every task; and the
        number of this task, in the order chief, workers, parameter servers, evaluator, in
        TFDP_TASK_INDEX or in JOB_COMPLETION_INDEX (an Indexed Job of Kubernetes), to which
        TFDP_FIRST_INDEX is added where a job holds the tasks from that number on
    Slurm's variables of a step of several tasks (see platforms/slurm_step.py); TFDP_TASKS tells how
        many of them are what, as in "chief=1,worker=2,ps=1"; without it all are workers

So one artefact serves all tasks of a cluster.
"""

import json
import os
from collections.abc import Mapping, MutableMapping

from tfdp.cluster import JOBS, Cluster, ClusterError, Place, from_environment
from tfdp.launch import plan
from tfdp.launch.platforms import slurm_step
from tfdp.launch.shape import Shape

CLUSTER_VARIABLE = "TFDP_CLUSTER"
INDEX_VARIABLE = "TFDP_TASK_INDEX"
FIRST_VARIABLE = "TFDP_FIRST_INDEX"
TASKS_VARIABLE = "TFDP_TASKS"
# The number of a task, in the order in which they are looked for.
_INDEX_VARIABLES = (INDEX_VARIABLE, "JOB_COMPLETION_INDEX")


def begin(environ: MutableMapping[str, str]) -> None:
    """Set TF_CONFIG, where there is none and a platform says which task this is.

    Where a platform shows the same GPUs to several tasks, CUDA_VISIBLE_DEVICES becomes the share
    of this one.

    Raises:
        ClusterError: What the platform says makes no cluster, or its GPUs do not divide.
    """
    if "TF_CONFIG" in environ:
        return
    found = find(environ)
    if found is None:
        return
    if not environ.get(CLUSTER_VARIABLE) and (step := _step(environ)) is not None:
        training = {found.cluster.tasks.index(task) for task in plan.computing(found.cluster)}
        gpus = slurm_step.visible_gpus(environ, step, training)
        if gpus is not None:
            environ["CUDA_VISIBLE_DEVICES"] = gpus
    environ["TF_CONFIG"] = found.cluster.tf_config(found.task)


def find(environ: Mapping[str, str]) -> Place | None:
    """Return which task this is by what a platform says, TF_CONFIG aside; None where none does.

    Raises:
        ClusterError: What it says makes no cluster.
    """
    if text := environ.get(CLUSTER_VARIABLE, ""):
        return _of_cluster(text, environ)
    step = _step(environ)
    if step is None:
        return None
    shape = Shape(workers=step.count)
    if text := environ.get(TASKS_VARIABLE, ""):
        shape = Shape.parse(text)
    if len(shape) != step.count:
        raise ClusterError(
            f"{TASKS_VARIABLE}={text} needs {len(shape)} tasks, and the Slurm step has "
            f"{step.count}. Start it with --ntasks={len(shape)}."
        )
    return Place(shape.cluster(step.addresses), shape.tasks[step.index])


def cluster_text(cluster: Cluster) -> str:
    """Return the value of TFDP_CLUSTER: the addresses by job, jobs without tasks left out."""
    jobs = {job: getattr(cluster, job) for job in JOBS}
    return json.dumps({job: addresses for job, addresses in jobs.items() if addresses})


def is_chief(environ: MutableMapping[str, str] = os.environ) -> bool:
    """Say whether this task is the one that writes files: the chief, else worker:0, or alone.

    Raises:
        ClusterError: TF_CONFIG, or what the platform says in its place, is bad.
    """
    begin(environ)
    found = from_environment(environ)
    return found is None or found.is_chief


def _step(environ: Mapping[str, str]) -> slurm_step.Step | None:
    # With TFDP_TASKS even one task is a cluster: that of a launcher.
    return slurm_step.find(environ, always=bool(environ.get(TASKS_VARIABLE)))


def _of_cluster(text: str, environ: Mapping[str, str]) -> Place:
    example = f'{CLUSTER_VARIABLE}=\'{{"worker": ["a:2222", "b:2222"]}}\''
    try:
        jobs = json.loads(text)
        cluster = Cluster(**jobs)
    except (ValueError, TypeError) as error:
        if isinstance(error, ClusterError):
            raise ClusterError(f"{CLUSTER_VARIABLE}: {error}") from None
        raise ClusterError(
            f"{CLUSTER_VARIABLE} does not hold the addresses of a cluster. Write it like {example}."
        ) from None
    for name in _INDEX_VARIABLES:
        if number := environ.get(name, ""):
            break
    else:
        raise ClusterError(
            f"{CLUSTER_VARIABLE} is set, and neither {' nor '.join(_INDEX_VARIABLES)} says which "
            f"task this is. Set {INDEX_VARIABLE} to its number, from 0 to {len(cluster.tasks) - 1} "
            f"(chief, workers, parameter servers, evaluator)."
        )
    first = environ.get(FIRST_VARIABLE, "") or "0"
    total = int(first) + int(number) if first.isdecimal() and number.isdecimal() else -1
    if not 0 <= total < len(cluster.tasks):
        name = name if first == "0" else f"{FIRST_VARIABLE}={first}, {name}"
        raise ClusterError(
            f"{name}={number!r} is not the number of a task: the cluster has {cluster}. Count from "
            f"0 to {len(cluster.tasks) - 1} (chief, workers, parameter servers, evaluator)."
        )
    return Place(cluster, cluster.tasks[total])
