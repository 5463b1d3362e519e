"""--platform=ray: the tasks run where a cluster of Ray places them.

    ray start --head                                    # there is a cluster already, as a rule
    tfdp launch --platform=ray --workers=4 --ray_cpus=2 -- train.py

Ray core places one actor for each task, all or none (a placement group), and spreads them over the
nodes. Each actor starts the task as a process of its node (ray_actor). To tfdp's launcher a task is
the small process beside it that shows what the actor tells (relay): so restarts, logs, the table of
endings and exit codes are those of a launch on one machine.
"""

import contextlib
import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from absl import flags

from tfdp.error import Error
from tfdp.launch import local, plan
from tfdp.launch.platforms import ray_script
from tfdp.launch.platforms.job import Job
from tfdp.launch.platforms.ray_bridge import Bridge

_INSTALL = "pip install 'tfdp[ray]' on every node"
_PLACE_SECONDS = 60.0


def define(add: Callable[..., Any]) -> None:
    """Define the flags of this platform."""
    add(flags.DEFINE_string, "ray_address", "", "Ray: of the cluster; default: RAY_ADDRESS, auto.")
    add(flags.DEFINE_float, "ray_cpus", 1.0, "Ray: CPUs of each task.")


def render(job: Job, values: Any) -> str:
    """Return a program for Ray core that runs the cluster without tfdp's launcher."""
    _check(values)
    return ray_script.render(job, resources(job, values))


def launch(job: Job, values: Any) -> int:
    """Place the tasks, look after them, and return the exit code of the run.

    Raises:
        Error: There is no cluster, it has no room, or a node cannot run the tasks; one line.
    """
    _check(values)
    with _connected(values.ray_address) as ray:
        asked = resources(job, values)
        _check_room(ray, job, asked)
        with Bridge(ray, job, asked, _PLACE_SECONDS) as bridge:
            processes = bridge.plan()
            hosts = ", ".join(sorted({process.host for process in processes}))
            print(f"{job.shape} on Ray ({hosts}), seed {job.seed}. Logs: {job.log_dir}", flush=True)
            return local.look_after(processes, job.log_dir, values, bridge.plan)


def resources(job: Job, values: Any) -> list[dict[str, float]]:
    """Return what each task asks for, in the order of the tasks: {"CPU": 1.0, "GPU": 1.0}."""
    asked = []
    for task in job.shape.tasks:
        gpus = job.gpus_per_task if plan.trains(task.type, bool(job.shape.ps)) else 0
        asked.append({"CPU": values.ray_cpus, **({"GPU": float(gpus)} if gpus else {})})
    return asked


def _check(values: Any) -> None:
    if not 0 < values.ray_cpus <= 1024:
        raise Error(f"--ray_cpus={values.ray_cpus}: use a number above 0.")


def _check_room(ray: Any, job: Job, asked: Sequence[dict[str, float]]) -> None:
    """Refuse what the cluster can never place: Ray would wait for it without end."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    for name in ("CPU", "GPU"):
        each = [one.get(name, 0.0) for one in asked]
        there = [node.get(name, 0.0) for node in nodes]
        # Whole tasks on each node: one of 2 CPUs does not lie half here and half there.
        largest = max(each)
        room = sum(int(have // largest) for have in there) if largest else len(each)
        needs = sum(one > 0 for one in each)
        if sum(each) > sum(there) or room < needs:
            raise Error(
                f"{job.shape} asks Ray for {sum(each):g} {name}s ({needs} tasks with up to "
                f"{largest:g} each), and the cluster has {sum(there):g} on {len(nodes)} "
                f"node{'s'[: len(nodes) != 1]}. Ask for less (--workers, --ray_cpus, "
                f"--gpus_per_task), or add nodes."
            )


@contextlib.contextmanager
def _connected(address: str) -> Iterator[Any]:
    """Connect to the cluster; leave it with all that was started there."""
    try:
        import ray
    except ImportError:
        raise Error(f"--platform=ray needs Ray: {_INSTALL}.") from None
    given = address or os.environ.get("RAY_ADDRESS", "") or "auto"
    logging.getLogger("ray").setLevel(logging.ERROR)
    try:
        ray.init(
            address=given,
            namespace="tfdp",
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise Error(
            f"No cluster of Ray answers at {given}: {str(error).splitlines()[0][:200]} Start one "
            "(ray start --head), or name it with --ray_address."
        ) from None
    try:
        yield ray
    finally:
        sys.stdout.flush()
        ray.shutdown()
