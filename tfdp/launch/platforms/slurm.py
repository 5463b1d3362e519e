"""Slurm: sbatch hands out hosts, and srun starts the tasks on them.

    tfdp launch --platform=slurm --workers=4 --tasks_per_node=2 --time=1:00:00 -- train.py

Outside of an allocation this submits a batch script whose body is the same command; there, and in
a shell of salloc, it starts one step with srun and looks after it. It may be read in this order:

    slurm_script    the batch scripts and the command of srun, as text
    slurm_submit    sbatch, and following the job to its end
    slurm_run       the tasks in an allocation, and their new starts
    slurm_watch     one step: output, signals, the table of endings
    slurm_output    what srun says about the tasks of its step
    slurm_step      what a task sees: which one it is
"""

import dataclasses
import os
import re
import shlex
import shutil
from collections.abc import Callable
from typing import Any

from absl import flags

from tfdp.error import Error
from tfdp.launch.platforms import slurm_script
from tfdp.launch.platforms.job import Job

_PROGRAMS = ("srun", "sbatch", "scancel", "scontrol")


def define(add: Callable[..., None]) -> None:
    """Define the flags of this platform."""
    integer, string = flags.DEFINE_integer, flags.DEFINE_string
    add(integer, "nodes", 0, "Slurm: hosts to use; 0: as few as hold the tasks.")
    add(integer, "tasks_per_node", 0, "Slurm: the most tasks of one host.")
    add(integer, "cpus_per_task", 0, "Slurm: CPUs of each task.")
    add(integer, "gpus_per_node", 0, "Slurm: GPUs of each host, divided over its tasks that train.")
    add(string, "time", "", "Slurm: the time limit, such as 90 (minutes), 1:30:00 or 2-12.")
    add(string, "partition", "", "Slurm: the partition.")
    add(string, "account", "", "Slurm: the account.")
    add(
        string,
        "signal",
        "TERM@120",
        "Slurm: what tells the tasks to save, and how many seconds before the time limit.",
    )
    add(string, "slurm_args", "", "Slurm: more arguments of sbatch, or of srun in an allocation.")


def render(job: Job, values: Any) -> str:
    """Return the batch script, which runs the tasks with srun alone.

    Raises:
        Error: What is asked for makes no sense; one line.
    """
    return slurm_script.standalone(job, wish(values))


def launch(job: Job, values: Any) -> int:
    """Run the tasks in this allocation, or submit a job that does; return its exit code.

    Raises:
        Error: What is asked for makes no sense, or Slurm refuses it; one line.
    """
    from tfdp.launch.platforms import slurm_run, slurm_submit

    asked = wish(values)
    slurm_script.check(job, asked)
    for program in _PROGRAMS:
        if shutil.which(program) is None:
            raise Error(
                f"--platform=slurm: {program} is not found here. Start the command on a host where "
                f"Slurm's commands are installed, such as the login node of the cluster."
            )
    if os.environ.get("SLURM_JOB_ID"):
        return slurm_run.launch(
            job, asked, log_bytes=values.log_megabytes << 20, logs_kept=values.logs_kept
        )
    return slurm_submit.launch(job, asked, detach=values.detach)


def wish(values: Any) -> slurm_script.Wish:
    """Return what the flags ask of Slurm.

    Raises:
        Error: One of them makes no sense; one line.
    """
    try:
        arguments = tuple(shlex.split(values.slurm_args))
    except ValueError as error:
        raise Error(
            f"--slurm_args={values.slurm_args!r}: {error}. Quote it as a shell takes it."
        ) from None
    for argument in arguments:
        if not re.match(r"--[a-z]|-[A-Za-z]", argument):
            raise Error(
                f"--slurm_args: {argument!r} is no option of its own. Write them as in "
                f'--slurm_args="--distribution=cyclic --mem=4G".'
            )
    names = [field.name for field in dataclasses.fields(slurm_script.Wish)]
    given = {name: getattr(values, name) for name in names if name != "arguments"}
    return slurm_script.Wish(**given, arguments=arguments)
