"""Workers of a job on other hosts, which share the folder of the job with this one.

    with platform.reach(shape, values, directory, python) as reached:
        hosts = Hosts(reached, shape)
        job.run(settings, sys.stderr, hosts)

A process here stands for each worker (launch.platforms.relay). What the worker tells comes
back over the connection, into the memory that a worker of this machine would write. The claims on
parts are locks on files: on a disk shared over a network they hold where its locks do. Where they
do not, a part may be made twice, which costs time and spoils nothing: it is the same bytes.
"""

import os
from typing import Any

from tfdp.inference.settings import Order
from tfdp.launch import plan, progress, task_start
from tfdp.launch.shape import Shape

# What a worker on another host is given in place of a descriptor.
FAR = "-"


class Hosts:
    """Where the workers run.

    Attributes:
        workers: How many there are.
        threads: Of each: the CPUs of the host that has the fewest for a worker. Sums over more
            threads may differ in their last bits, so that all workers have the same number.
    """

    def __init__(self, reached: Any, shape: Shape) -> None:
        """Take hosts that were asked, and have no problem.

        Args:
            reached: What the platform's `reach` gives.
            shape: As many workers as are wanted.
        """
        self._reached, self._shape = reached, shape
        self._placed = reached.place(shape)
        self.workers = len(shape)
        names = [host.name for host in self._placed.values()]
        self.threads = min(
            max(1, sum(map(len, reached.facts[name]["cores"])) // names.count(name))
            for name in names
        )

    def relays(self, order: Order) -> list[plan.TaskProcess]:
        """Return the process that stands for each worker."""
        cluster = self._reached.cluster(self._shape, self._placed)
        gpus = self._reached.gpus(cluster, self._placed, None, 0)
        words = ("-m", "tfdp.inference.worker", FAR, order.to_text())
        workers = [
            plan.TaskProcess(
                task,
                host.name,
                (self._reached.ssh.python, *words),
                {"TF_CPP_MIN_LOG_LEVEL": "2"},
            )
            for task, host in self._placed.items()
        ]
        return self._reached.relays(workers, self._placed, gpus, divide_cores=False)


def environment(relay: plan.TaskProcess, memory: int) -> dict[str, str]:
    """Return the environment of a process that stands for a worker.

    Args:
        relay: The process.
        memory: The descriptor, in this process, of what the worker tells.
    """
    return {
        **os.environ,
        **relay.environment,
        progress.FILE_VARIABLE: f"/proc/{os.getpid()}/fd/{memory}",
        task_start.PID_VARIABLE: str(os.getpid()),
    }
