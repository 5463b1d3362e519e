"""Where the tasks of a cluster run: beside this machine, one file for each platform.

    ssh             hosts that are reached by ssh
    slurm           an allocation of Slurm; slurm_step: what its tasks see of it
    kubernetes      a cluster of pods; kubernetes_objects: what a run is made of;
                    kubernetes_watch: what becomes of it
    ray             a cluster of Ray; ray_actor, ray_pipe, ray_bridge: how the launcher and the
                    agents on its nodes come together; ray_script: a run as a program

Each of them has

    define(add)                     its flags
    render(job, values) -> str      pure: the artefact, which runs without tfdp's launcher
    launch(job, values) -> int      start it with the platform's own program, watch it, return its
                                    exit code
    reach(shape, values, ...)       where hosts are known before a run: look at them, for launch and
                                    for tfdp doctor

What is asked for is one `job.Job` for all. None of them decides anything that `plan` decides, so
that a task is the same wherever it runs.
"""

import importlib
from typing import Any

NAMES: tuple[str, ...] = ("local", "ssh", "slurm", "kubernetes", "ray")


def module(name: str) -> Any:
    """Return the module of a platform."""
    return importlib.import_module(f"tfdp.launch.platforms.{name}")
