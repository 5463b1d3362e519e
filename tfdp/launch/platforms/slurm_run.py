"""Runs the tasks in a Slurm allocation, and starts them again where that may help.

    slurm_run.launch(job, wish)     # in a batch script, or in a shell of salloc

A new start is asked of Slurm in a batch job (scontrol requeue), and made here in a shell of salloc.
"""

import os
import select
import subprocess
from collections.abc import Mapping

from tfdp.cluster import Task
from tfdp.error import Error
from tfdp.launch import local, restarts
from tfdp.launch.log import Log
from tfdp.launch.output import STDERR, STDOUT, Screen, TaskOutput, printable
from tfdp.launch.platforms import hostlist, slurm_script, slurm_submit, slurm_watch
from tfdp.launch.platforms.job import Job
from tfdp.launch.redaction import Redactor
from tfdp.launch.supervisor import RESTART_VARIABLE, SIGNALS

# How long a pager that nobody pages is waited for.
_SCREEN_SECONDS = 5.0


def launch(job: Job, wish: slurm_script.Wish, *, log_bytes: int, logs_kept: int) -> int:
    """Run the tasks to their end in this allocation; return the exit code.

    Args:
        job: What to run.
        wish: How the tasks are placed.
        log_bytes: How large a log may grow before it is continued in a new one.
        logs_kept: How many full logs of a task are kept.

    Raises:
        Error: The allocation cannot hold the tasks; one line.
    """
    environ = dict(os.environ)
    _check_room(job, wish, environ)
    screen = Screen(STDOUT, STDERR)
    logs = {
        task: Log(slurm_watch.log_path(job, task), log_bytes, logs_kept) for task in job.shape.tasks
    }
    redactor = Redactor(environ, job.environment, secrets=[job.environment[n] for n in job.secrets])
    chief = job.shape.tasks[0]
    outputs = [
        TaskOutput(
            screen,
            prefix=b"" if task == chief else f"[{task}] ".encode(),
            log=log,
            redactor=redactor,
        )
        for task, log in logs.items()
    ]
    try:
        # Those that announce a time limit too: without a handler they would end the launcher.
        with local.signals_as_bytes(tuple({*SIGNALS, *slurm_watch.NOTICES})) as wake_fd:
            return _run(job, wish, environ, screen, outputs, wake_fd)
    finally:
        for output in outputs:
            output.end()
        screen.close(_SCREEN_SECONDS)


def _run(
    job: Job,
    wish: slurm_script.Wish,
    environ: Mapping[str, str],
    screen: Screen,
    outputs: list[TaskOutput],
    wake_fd: int,
) -> int:
    """Run a step, and others after failures in a shell of salloc; return the exit code."""

    def say(stream: int, line: str) -> None:
        screen.write_lines(stream, printable(line))

    in_batch = environ.get("ENVIRONMENT") == "BATCH"
    number = environ["SLURM_JOB_ID"]
    restart = int(environ.get("SLURM_RESTART_COUNT") or 0) if in_batch else 0
    budget = restarts.Budget(job.max_restarts)
    words = slurm_script.in_words(job)
    say(STDOUT, f"{words} in Slurm job {number}, seed {job.seed}. Logs: {job.log_dir}")
    while True:
        if restart:
            for output in outputs:
                output.begin_again(f"(tfdp: restart {restart})".encode())
        step = slurm_watch.Step(job, wish, in_batch, screen, outputs, wake_fd)
        try:
            code, reason = step.run(_variables(job, environ, restart))
        finally:
            step.close()
        if reason:
            say(STDERR, reason)
        may_restart = code not in (0, slurm_watch.BAD_SETTING) and not step.interrupted
        if in_batch:
            if may_restart and (step.saved or restart < job.max_restarts):
                say(STDERR, requeue(number))
            return code
        decision = budget.decide(restarts.Failure(Task("worker", 0), code))
        if not may_restart or step.told or not decision.restart:
            if may_restart and decision.why:
                say(STDERR, f"Given up: {decision.why}.")
            return code
        restart = budget.restarts
        say(STDERR, f"All tasks start again in {decision.delay_seconds:g} s ({decision.why}).")
        # A signal that comes now ends all.
        if select.select([wake_fd], [], [], decision.delay_seconds)[0]:
            return 128 + os.read(wake_fd, 1)[0]


def _check_room(job: Job, wish: slurm_script.Wish, environ: Mapping[str, str]) -> None:
    """Refuse more tasks than this allocation has CPUs for: srun would wait, or speak in riddles."""
    text = environ.get("SLURM_JOB_CPUS_PER_NODE", "")
    if not text or "--overcommit" in wish.arguments or "-O" in wish.arguments:
        return
    cpus = sum(hostlist.expand_counts(text))
    per_task = wish.cpus_per_task or int(environ.get("SLURM_CPUS_PER_TASK") or 1)
    if cpus < len(job.shape) * per_task:
        raise Error(
            f"This allocation (Slurm job {environ['SLURM_JOB_ID']}) has {cpus} CPUs, and "
            f"{len(job.shape)} tasks of {per_task} CPU{'s'[: per_task > 1]} need "
            f"{len(job.shape) * per_task}. Ask for them: salloc --ntasks={len(job.shape)}."
        )


def _variables(job: Job, environ: Mapping[str, str], restart: int) -> dict[str, str]:
    """Return the whole environment of srun, which hands it on to the tasks."""
    variables = {
        **environ,
        **job.environment,
        # The same name when the job starts again.
        **slurm_script.task_environment(job, f"slurm-{environ['SLURM_JOB_ID']}"),
        RESTART_VARIABLE: str(restart),
    }
    # srun does not inherit it any more since Slurm 22.05.
    if cpus := environ.get("SLURM_CPUS_PER_TASK"):
        variables.setdefault("SRUN_CPUS_PER_TASK", cpus)
    return variables


def requeue(number: str) -> str:
    """Ask Slurm to start the job again; return what is to be said about it."""
    state = slurm_submit.describe(number).get("JobState", "")
    if state != "RUNNING":
        # A job that somebody has cancelled would come back, and Slurm starts others again itself.
        return f"Slurm job {number} does not start again: its state is {state or 'not known'}."
    done = subprocess.run(
        ["scontrol", "requeue", number], stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    # A signal: Slurm was quicker, and has ended all that ran in the job, scontrol with it.
    if done.returncode > 0:
        return f"Slurm job {number} does not start again: {done.stderr.strip()}"
    return f"Slurm job {number} starts again."
