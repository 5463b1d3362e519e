"""The scripts for sbatch, and the command of srun, as text. Pure: nothing is asked of Slurm.

slurm_script.standalone(job, wish)      # runs the tasks with srun alone
slurm_script.launcher(job, wish)        # has tfdp's launcher, which looks after them, as its body
slurm_script.srun(job, wish)            # what that launcher starts: ["srun", "--ntasks=2", ...]

The lines that begin with #SBATCH are the same in both scripts.
"""

import dataclasses
import re
import shlex
from collections.abc import Sequence

from tfdp.cluster import EVALUATOR_VARIABLE
from tfdp.error import Error
from tfdp.launch.discovery import TASKS_VARIABLE
from tfdp.launch.platforms.job import Job
from tfdp.launch.supervisor import RESTART_VARIABLE

# How long tasks may go on when one has ended well. A server ends 20 s after its chief, an evaluator
# sees the last checkpoint, and a chief exports its model while the workers have ended.
_WAIT_SECONDS = 600
# What is kept of the time between the signal and the limit for the new start.
_REQUEUE_SECONDS = 15.0
_SIGNAL = re.compile(r"(TERM|USR1|USR2)@([0-9]{1,5})")
_TIME = re.compile(r"[0-9]+|[0-9]+:[0-9]+(:[0-9]+)?|[0-9]+-[0-9]+(:[0-9]+){0,2}")


@dataclasses.dataclass(frozen=True)
class Wish:
    """What is asked of Slurm beside the tasks; 0 and "" leave it to the site.

    Attributes:
        nodes: On how many hosts.
        tasks_per_node: How many tasks a host has at most.
        cpus_per_task: CPUs of each task.
        gpus_per_node: GPUs of each host.
        time: The limit, as Slurm writes it: "90" (minutes), "1:30:00", "2-12".
        partition: Which hosts.
        account: Who pays.
        signal: What announces the time limit, and how many seconds before: "TERM@120".
        arguments: Further arguments of sbatch, or of srun in an allocation.

    Raises:
        Error: One of them makes no sense; one line that names the flag.
    """

    nodes: int = 0
    tasks_per_node: int = 0
    cpus_per_task: int = 0
    gpus_per_node: int = 0
    time: str = ""
    partition: str = ""
    account: str = ""
    signal: str = "TERM@120"
    arguments: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("nodes", "tasks_per_node", "cpus_per_task", "gpus_per_node"):
            if (value := getattr(self, name)) < 0:
                raise Error(f"--{name}={value}: use 1 or more, or 0 to leave it to Slurm.")
        if self.time and not _TIME.fullmatch(self.time):
            raise Error(
                f"--time={self.time!r} is no time limit of Slurm. Write minutes, H:MM:SS or "
                f"D-HH:MM:SS."
            )
        if not _SIGNAL.fullmatch(self.signal):
            raise Error(
                f"--signal={self.signal!r}: write TERM, USR1 or USR2, an @, and how many seconds "
                f"before the time limit it is to come, as in TERM@120."
            )

    @property
    def save_seconds(self) -> float:
        """How long the tasks have to save when the signal has come."""
        return max(1.0, int(self.signal.partition("@")[2]) - _REQUEUE_SECONDS)


def check(job: Job, wish: Wish) -> None:
    """Refuse what no allocation can hold.

    Raises:
        Error: One line with the remedy.
    """
    count = len(job.shape)
    if wish.nodes > count:
        raise Error(
            f"--nodes={wish.nodes}, and the cluster has {count} tasks. Use --nodes={count} or "
            f"fewer, or more --workers."
        )
    if wish.nodes and wish.tasks_per_node and wish.nodes * wish.tasks_per_node < count:
        raise Error(
            f"--nodes={wish.nodes} --tasks_per_node={wish.tasks_per_node} hold "
            f"{wish.nodes * wish.tasks_per_node} tasks, and the cluster has {count}. Use "
            f"--tasks_per_node={-(-count // wish.nodes)}."
        )
    if wish.gpus_per_node and job.gpus_per_task:
        raise Error("--gpus_per_node and --gpus_per_task: choose one of them.")
    if job.gpus_per_task and (job.shape.ps or job.shape.evaluator):
        # Slurm gives each task of a step as many.
        raise Error(
            f"--gpus_per_task={job.gpus_per_task}: Slurm would give as many to the tasks that do "
            f"not train. Use --gpus_per_node, which tfdp divides over those that do."
        )
    words = (*job.script, *wish.arguments, *job.environment.values())
    words += (wish.partition, wish.account, job.directory, job.log_dir)
    for word in words:
        if "\0" in word:
            raise Error(f"{word!r} holds a NUL character, which no process can be given.")
    for word in (*wish.arguments, wish.partition, wish.account, job.directory, job.log_dir):
        if not word.isprintable():
            raise Error(f"{word!r} cannot stand in a line of a batch script. Use printable text.")


def in_words(job: Job) -> str:
    """Return how many tasks of each kind there are, as in "chief + 2 workers"."""
    return str(job.shape.cluster([f"host:{port}" for port in range(1, len(job.shape) + 1)]))


def task_environment(job: Job, run: str) -> dict[str, str]:
    """Return the variables of every task that are no secrets; the run is called as it is given."""
    return {
        **job.open_environment(),
        **job.task_environment(),
        TASKS_VARIABLE: str(job.shape),
        **({EVALUATOR_VARIABLE: run} if job.shape.evaluator else {}),
    }


def srun(job: Job, wish: Wish, in_batch: bool, in_step: bool = False) -> list[str]:
    """Return the command that starts the tasks, up to their own.

    Args:
        job: Which tasks.
        wish: How they are placed.
        in_batch: Whether a batch script has asked for all that already: srun inherits it.
        in_step: Whether a step, such as that of `srun --pty bash`, holds the CPUs: they are shared.
    """
    words = [
        "srun",
        f"--job-name={job.name}",
        f"--ntasks={len(job.shape)}",
        "--kill-on-bad-exit=1",
        f"--wait={_WAIT_SECONDS}",
        "--export=ALL",
    ]
    if in_step:
        words.append("--overlap")
    if not in_batch:
        words += _placement(job, wish)
        words += wish.arguments
    return words


def standalone(job: Job, wish: Wish) -> str:
    """Return a batch script that needs nothing of tfdp but the program of its tasks."""
    check(job, wish)
    output = f"--output={_no_pattern(job.log_dir)}/task-%t.log"
    words = [*srun(job, wish, True), "--unbuffered", "--open-mode=append", output, *job.command]
    lines = [
        *_head(job, wish, f"# Submit it with: mkdir -p {_command([job.log_dir])} && sbatch FILE"),
        "",
        "# The tasks are told as well: they save, and end with 143.",
        f"trap 'scancel --signal=TERM \"$SLURM_JOB_ID\"' {wish.signal.partition('@')[0]}",
        f"said={shlex.quote(job.log_dir)}/srun-$SLURM_JOB_ID.txt",
        _command(words) + ' 2>"$said" &',
        "step=$!",
        "# A signal ends wait before the step has ended.",
        'while wait "$step"; code=$?; kill -0 "$step" 2>/dev/null; do :; done',
        'cat "$said" >&2',
        "",
        "# The code of srun is the highest of all tasks, those that it has ended included: what it",
        "# says of each counts. 143: saved. 2: a bad setting, which no new start mends.",
        "again=",
        'if grep -q "Exited with exit code 143$" "$said"; then',
        "  again=yes",
        'elif [ $code != 0 ] && ! grep -q "Exited with exit code 2$" "$said"; then',
        f'  [ "${{SLURM_RESTART_COUNT:-0}}" -ge {job.max_restarts} ] || again=yes',
        "fi",
        "# A job that was cancelled, or that Slurm itself starts again, is not RUNNING any more.",
        'if [ -n "$again" ] && [ "$(squeue --noheader --jobs="$SLURM_JOB_ID" --format=%T)" = '
        "RUNNING ]; then",
        '  scontrol requeue "$SLURM_JOB_ID"',
        "fi",
        "exit $code",
    ]
    return "\n".join(lines) + "\n"


def launcher(job: Job, wish: Wish) -> str:
    """Return the batch script that is submitted: tfdp's launcher watches the tasks there."""
    check(job, wish)
    shape = job.shape
    words = [
        *(job.python, "-m", "tfdp", "launch", "--platform=slurm", f"--workers={shape.workers}"),
        *(["--chief"] if shape.chief else []),
        *([f"--ps={shape.ps}"] if shape.ps else []),
        *(["--evaluator"] if shape.evaluator else []),
        *(f"--env={name}" for name in job.secret_names()),
        f"--job_name={job.name}",
        f"--log_dir={job.log_dir}",
        f"--signal={wish.signal}",
        *([f"--max_restarts={job.max_restarts}"] if job.max_restarts else []),
        *(["--trust_network"] if job.trust_network else []),
        *("--", *job.script),
    ]
    lines = [
        *_head(job, wish),
        "",
        "# exec: the signal comes to the launcher.",
        "exec " + _command(words),
    ]
    return "\n".join(lines) + "\n"


def _placement(job: Job, wish: Wish) -> list[str]:
    gpus_per_task = f"--gpus-per-task={job.gpus_per_task}" if job.gpus_per_task else ""
    numbers = {
        "--nodes": wish.nodes,
        "--ntasks-per-node": wish.tasks_per_node,
        "--cpus-per-task": wish.cpus_per_task,
        "--gpus-per-node": wish.gpus_per_node,
    }
    words = [f"{name}={number}" for name, number in numbers.items() if number]
    return [*words, *([gpus_per_task] if gpus_per_task else [])]


def _head(job: Job, wish: Wish, note: str = "") -> list[str]:
    texts = {"--time": wish.time, "--partition": wish.partition, "--account": wish.account}
    options = [
        f"--job-name={job.name}",
        f"--ntasks={len(job.shape)}",
        *_placement(job, wish),
        *(f"{name}={text}" for name, text in texts.items() if text),
        f"--chdir={job.directory}",
        f"--output={_no_pattern(job.log_dir)}/slurm-%j.out",
        "--open-mode=append",
        "--requeue",
        f"--signal=B:{wish.signal}",
        *wish.arguments,
    ]
    variables = task_environment(job, "slurm-$SLURM_JOB_ID")
    return [
        "#!/bin/bash",
        *(f"#SBATCH {shlex.quote(option)}" for option in options),
        "",
        *([note] if note else []),
        *(
            f': "${{{name}:?is not set. Set it where you submit this script.}}"'
            for name in job.secret_names()
        ),
        *(
            # The number of the job is known there alone.
            f"export {name}={value if name == EVALUATOR_VARIABLE else shlex.quote(value)}"
            for name, value in variables.items()
        ),
        f"export {RESTART_VARIABLE}=${{SLURM_RESTART_COUNT:-0}}",
        "# srun does not inherit it any more since Slurm 22.05.",
        '[ -z "${SLURM_CPUS_PER_TASK:-}" ] || export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK',
    ]


def _command(words: Sequence[str]) -> str:
    return " ".join(shlex.quote(word) for word in words)


def _no_pattern(path: str) -> str:
    """Return a path in which Slurm replaces nothing."""
    return path.replace("%", "%%")
