"""What a task of a Slurm step sees of it: which task it is, and where the others are.

step = slurm_step.find(os.environ)      # None outside of a step of several tasks
step.index, step.addresses

Tasks are numbered over the hosts in the order of their list, and on each host by SLURM_LOCALID.
That is not SLURM_PROCID: with --distribution=cyclic a task cannot tell from the number of another
on which host that is.
"""

import dataclasses
from collections.abc import Collection, Mapping

from tfdp.cluster import ClusterError
from tfdp.launch.platforms import hostlist

# Above the ports that Linux hands out to programs that ask for any (32768 to 60999). A job has a
# window of 64 of them, so that jobs that share a host have ports of their own.
_FIRST_PORT = 61440
_WINDOW = 64
_WINDOWS = 63
# The steps of Slurm's own, such as that of a batch script, have numbers from here on.
_FIRST_SPECIAL_STEP = 0xFFFFFFF0


@dataclasses.dataclass(frozen=True)
class Step:
    """The place of a task in a step.

    Attributes:
        index: Its number, counted over the hosts in their order, then on each host.
        addresses: "host:port" of every task, in the order of their numbers.
        local_id: Its number among the tasks of its host.
        local_count: How many tasks its host has.
    """

    index: int
    addresses: tuple[str, ...]
    local_id: int = 0
    local_count: int = 1

    @property
    def count(self) -> int:
        """How many tasks the step has."""
        return len(self.addresses)

    @property
    def neighbours(self) -> range:
        """The numbers of the tasks on this host, this one included."""
        first = self.index - self.local_id
        return range(first, first + self.local_count)


def find(environ: Mapping[str, str], always: bool = False) -> Step | None:
    """Return the place of this process in its Slurm step; None outside of one.

    A shell of salloc and the body of a batch script are in no step. A step of one task, such as
    that of `srun --pty bash`, is no cluster.

    Args:
        environ: The variables of this process.
        always: Whether a step of one task counts as well.

    Raises:
        ClusterError: The variables contradict each other.
    """
    step_id = environ.get("SLURM_STEP_ID", "")
    if not step_id.isdecimal() or int(step_id) >= _FIRST_SPECIAL_STEP:
        return None
    # A task that a task has started in its turn, with a part of the variables, is none.
    if not environ.get("SLURM_NODEID") or not environ.get("SLURM_LOCALID"):
        return None
    if environ.get("SLURM_HET_SIZE"):
        raise ClusterError(
            "This is a heterogeneous Slurm job, whose parts do not know the hosts of each other. "
            "Use a job of one part, or set TF_CONFIG."
        )
    # The step may have fewer hosts and tasks than the job.
    hosts = hostlist.expand(_first(environ, "SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST"))
    counts = hostlist.expand_counts(
        _first(environ, "SLURM_STEP_TASKS_PER_NODE", "SLURM_TASKS_PER_NODE")
    )
    node, local = _number(environ, "SLURM_NODEID"), _number(environ, "SLURM_LOCALID")
    if len(hosts) != len(counts) or node >= len(hosts) or local >= counts[node]:
        raise ClusterError(
            f"Slurm's variables contradict each other: {len(hosts)} hosts, tasks on "
            f"{len(counts)} of them, and this is task {local} of host {node}. Start the tasks "
            f"with srun, and leave its variables as they are."
        )
    if sum(counts) == 1 and not always:
        return None
    ports = _ports(environ, max(counts))
    return Step(
        sum(counts[:node]) + local,
        tuple(
            f"{host}:{ports[number]}"
            for host, count in zip(hosts, counts, strict=True)
            for number in range(count)
        ),
        local,
        counts[node],
    )


def visible_gpus(environ: Mapping[str, str], step: Step, training: Collection[int]) -> str | None:
    """Return CUDA_VISIBLE_DEVICES of this task; None to leave it as it is.

    Slurm gives each task GPUs of its own with --gpus-per-task, and all of its host's GPUs to every
    task with --gpus-per-node. Two tasks cannot train on one GPU: only in the second case the list
    is divided, over the tasks of the host that train.

    Args:
        environ: The variables of this process.
        step: Where it is.
        training: The numbers of the tasks that train.

    Raises:
        ClusterError: The GPUs do not divide over the tasks.
    """
    gpus = [gpu for gpu in environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if gpu]
    on_host = environ.get("SLURM_GPUS_ON_NODE", "")
    if step.local_count == 1 or not on_host.isdecimal() or len(gpus) != int(on_host):
        return None
    here = [index for index in step.neighbours if index in training]
    if step.index not in here:
        return "-1"
    if len(gpus) % len(here):
        raise ClusterError(
            f"{len(gpus)} GPUs of a host do not divide over its {len(here)} tasks that train. "
            f"Ask for a multiple of {len(here)} with --gpus-per-node, or for --gpus-per-task."
        )
    share, at = len(gpus) // len(here), here.index(step.index)
    return ",".join(gpus[at * share : (at + 1) * share])


def _ports(environ: Mapping[str, str], count: int) -> list[int]:
    """Return the ports of the tasks of each host, of which there are `count` at most."""
    if reserved := environ.get("SLURM_STEP_RESV_PORTS", ""):
        ports = [int(port) for port in hostlist.expand_numbers(reserved)]
        if len(ports) < count:
            raise ClusterError(
                f"Slurm has reserved {len(ports)} ports ({reserved[:100]}) for {count} tasks of a "
                f"host. Use --resv-ports={count}."
            )
        return ports
    if count > _WINDOW:
        raise ClusterError(
            f"A host has {count} tasks, and a job has {_WINDOW} ports. Use fewer tasks on each "
            f"host, or srun --resv-ports={count}."
        )
    job = _number(environ, "SLURM_JOB_ID")
    first = _FIRST_PORT + job % _WINDOWS * _WINDOW
    return list(range(first, first + count))


def _first(environ: Mapping[str, str], *names: str) -> str:
    for name in names:
        if text := environ.get(name, ""):
            return text
    raise ClusterError(
        f"This is a task of a Slurm step, and {names[0]} is not set. Start the tasks with srun, "
        f"and let it pass its variables on."
    )


def _number(environ: Mapping[str, str], name: str) -> int:
    text = environ.get(name, "")
    if not text.isdecimal() or len(text) > 18:
        raise ClusterError(f"{name}={text[:50]!r} is no number. Start the tasks with srun.")
    return int(text)
