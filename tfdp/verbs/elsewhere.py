"""A short job on a platform, for the verbs that are no run of their own.

    elsewhere.define(values, "Where the tasks would run.")
    code = elsewhere.run(values, shape, ("-m", "tfdp.diagnose.probe", "runs", "10"), folder)

ssh asks its hosts before anything is started (`platforms.reach`). Slurm, Kubernetes and Ray choose
the hosts themselves: there a job is started as `tfdp launch` starts one, and its logs are read.
"""

import os
import types
from typing import Any

from absl import flags

from tfdp.launch import platforms
from tfdp.verbs import adder, stdout_to

# What `tfdp launch` has flags for, as a platform reads them.
_DEFAULTS = {
    "detach": False,
    "log_megabytes": 100,
    "logs_kept": 1,
    "max_restarts": 0,
    "min_workers": 0,
    "preempt_seconds": 5.0,
}


def define(values: flags.FlagValues, text: str) -> None:
    """Define --platform, and the flags of all platforms.

    Args:
        values: The flags.
        text: The help of --platform.
    """
    add = adder(values)
    flags.DEFINE_enum("platform", "local", list(platforms.NAMES), text, flag_values=values)
    add(flags.DEFINE_string, "job_name", "", "What the platform calls the job.")
    for name in platforms.NAMES[1:]:
        platforms.module(name).define(add)


def is_asked_before(name: str) -> bool:
    """Say whether the hosts of a platform can be asked before anything is started there."""
    return hasattr(platforms.module(name), "reach")


def run(
    values: flags.FlagValues,
    shape: Any,
    script: tuple[str, ...],
    folder: str,
    name: str,
    gpus_per_task: int = 0,
    max_restarts: int = 0,
) -> int:
    """Run a script as every task of a cluster; return the exit code.

    Args:
        values: The flags, with those of the platform.
        shape: How many tasks of each kind.
        script: "-m", a module, and its arguments.
        folder: For the logs of the tasks; all hosts see it where the platform needs that.
        name: What the platform calls the job, without --job_name.
        gpus_per_task: GPUs of each task that trains.
        max_restarts: Failures that are followed by a new start.

    Raises:
        Error: The platform refuses it; one line.
    """
    from tfdp.launch.platforms import job as job_lib

    trusts = "trust_network" in values and values.trust_network
    job = job_lib.Job(
        name=job_lib.platform_name(values.job_name or f"{name}-{os.getpid()}"),
        shape=shape,
        script=script,
        seed=0,
        log_dir=os.path.abspath(folder),
        directory=os.getcwd(),
        gpus_per_task=gpus_per_task,
        max_restarts=max_restarts,
        preempt_seconds=_DEFAULTS["preempt_seconds"],
        trust_network=trusts,
    )
    given: dict[str, Any] = {**_DEFAULTS, "max_restarts": max_restarts}
    given |= {flag: values[flag].value for flag in values}
    # What the tasks print is not what the verb has to say.
    with open(os.devnull, "wb") as nothing, stdout_to(nothing.fileno()):
        return int(platforms.module(values.platform).launch(job, types.SimpleNamespace(**given)))
