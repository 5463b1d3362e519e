"""A plan as text: one command for each task, which a shell can run as it stands.

    print(dry_run.render(processes, redaction.Redactor(os.environ)))
    # worker:0 on 127.0.0.1. Log: runs/a/worker-0.log
    # cd -- /home/me && TF_CONFIG='{"cluster": ...}' TFDP_SEED=7 python3 -m tfdp.run a.py

Pasted into as many shells, the commands are the run: TensorFlow waits until all tasks are there.
"""

import re
import shlex
from collections.abc import Sequence

from tfdp.launch import cores
from tfdp.launch.plan import TaskProcess
from tfdp.launch.redaction import Redactor


def render(processes: Sequence[TaskProcess], redactor: Redactor) -> str:
    """All tasks of a plan, a comment and a command each; secrets are shown as ***."""
    return "\n".join(
        f"# {task.task} on {task.host}."
        + (f" Log: {quote(redactor.text(str(task.log)))}" if task.log is not None else "")
        + f"\n{command_line(task, redactor)}"
        for task in processes
    )


def command_line(process: TaskProcess, redactor: Redactor) -> str:
    """The command of one task for bash, on one line, whatever its words hold."""
    variables = redactor.environment(process.environment)
    words = [f"{quote(name)}={quote(value)}" for name, value in variables.items()]
    pinned = ("taskset", "--cpu-list", cores.in_words(process.cpus)) if process.cpus else ()
    if not all(re.fullmatch(r"[A-Za-z_]\w*", name, re.ASCII) for name in variables):
        words.insert(0, "env")  # names that no shell can assign to
    command = " ".join([*words, *pinned, *map(quote, redactor.command(process.command))])
    if process.directory is None:
        return command
    # "--": a folder may be called -P.
    return f"cd -- {quote(redactor.text(str(process.directory)))} && {command}"


def quote(text: str) -> str:
    """A word for bash that can run nothing, of printable characters of one line alone.

    What a terminal would act on is written as $'\\x1b': neither a new line nor an escape code gets
    through to the one who reads the plan.
    """
    if text.isprintable():
        return shlex.quote(text)
    raw = text.encode("utf-8", "surrogateescape")
    shown = "".join(
        chr(byte) if 0x20 <= byte < 0x7F and chr(byte) not in "\\'" else f"\\x{byte:02x}"
        for byte in raw
    )
    return f"$'{shown}'"
