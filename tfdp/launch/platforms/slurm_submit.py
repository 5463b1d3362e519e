"""Submits a job to Slurm, and follows it to its end: its output is shown, its exit code returned.

    slurm_submit.launch(job, wish, detach=False)

Ctrl-C ends the job. A job that starts again is followed on.
"""

import os
import pathlib
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping

from tfdp.error import Error
from tfdp.launch.output import printable
from tfdp.launch.platforms import slurm_script
from tfdp.launch.platforms.job import Job

# How often the output, and how often Slurm is looked at: a controller serves many users.
_OUTPUT_SECONDS = 0.5
_ASK_SECONDS = 3.0
# A controller that restarts does not answer for a while. A job is not lost for it.
_LOST_SECONDS = 600.0
_OVER = frozenset(
    "BOOT_FAIL CANCELLED COMPLETED DEADLINE FAILED NODE_FAIL OUT_OF_MEMORY PREEMPTED TIMEOUT "
    "REVOKED".split()
)


def launch(job: Job, wish: slurm_script.Wish, detach: bool) -> int:
    """Submit the job, and follow it; return its exit code.

    Args:
        job: What to run.
        wish: What is asked of Slurm.
        detach: Whether to return when it is submitted.

    Raises:
        Error: Slurm refuses the job; one line.
    """
    text = slurm_script.launcher(job, wish)
    folder = pathlib.Path(job.log_dir)
    folder.mkdir(parents=True, exist_ok=True)
    script = folder / "job.sbatch"
    script.write_text(text)
    number = _submit(script, job)
    words = slurm_script.in_words(job)
    _say(f"{words}: Slurm job {number}, seed {job.seed}. Logs: {folder}")
    if detach:
        _say(f"`scancel {number}` ends it.")
        return 0
    return _follow(number, folder / f"slurm-{number}.out")


def _submit(script: pathlib.Path, job: Job) -> str:
    done = subprocess.run(
        # What holds secrets goes with the environment.
        ["sbatch", "--parsable", "--export=ALL", str(script)],
        env={**os.environ, **job.environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    number = done.stdout.strip().partition(";")[0]
    if done.returncode == 0 and number.isdecimal():
        return number
    lines = [line.removeprefix("sbatch: ") for line in done.stderr.splitlines() if line.strip()]
    raise Error(
        f"sbatch does not take the job: {' '.join(lines) or 'it says nothing'}. The script is "
        f"{script}."
    )


def _follow(number: str, output: pathlib.Path) -> int:
    """Show what the job writes until it has ended; return its exit code."""
    asked: list[int] = []
    before = {
        one: signal.signal(one, lambda caught, _: asked.append(caught))
        # SIGHUP ends this program alone: a job does not depend on the connection of its user.
        for one in (signal.SIGINT, signal.SIGTERM)
        if signal.getsignal(one) is not signal.SIG_IGN
    }
    try:
        return _follow_until(number, output, asked)
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)


def _follow_until(number: str, output: pathlib.Path, asked: list[int]) -> int:
    position, state, cancelled = 0, "", 0
    ask_at, answered_at = 0.0, time.monotonic()
    while True:
        position = _show(output, position)
        now = time.monotonic()
        if len(asked) > cancelled:
            cancelled = len(asked)
            _say(f"{signal.Signals(asked[0]).name}: Slurm job {number} is cancelled.")
            # The second time at once; a script may do as it likes with the first.
            force = ["--signal=KILL", "--full"] if cancelled > 1 else []
            subprocess.run(["scancel", *force, number], stdin=subprocess.DEVNULL)
            ask_at = 0.0
        if now >= ask_at:
            ask_at = now + (_OUTPUT_SECONDS if asked else _ASK_SECONDS)
            facts = describe(number)
            if facts:
                answered_at = now
                if (new := facts.get("JobState", "")) != state:
                    state = new
                    if state == "PENDING":
                        reason = facts.get("Reason", "None")
                        _say(f"Slurm job {number} waits{f': {reason}' * (reason != 'None')}.")
                if state in _OVER:
                    _show(output, position)
                    if state not in ("COMPLETED", "FAILED"):  # of those the launcher has told
                        _say(f"Slurm job {number} ended: {state} ({facts.get('Reason', '')}).")
                    return 128 + asked[0] if asked else exit_code(facts)
            elif now - answered_at > _LOST_SECONDS:
                _say(f"Slurm says nothing about job {number} any more. Look: sacct -j {number}")
                return 1
        time.sleep(_OUTPUT_SECONDS)


def describe(number: str) -> dict[str, str]:
    """Return what Slurm knows of a job, by name; nothing where it does not answer."""
    done = subprocess.run(
        ["scontrol", "show", "job", "--oneliner", number],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    return dict(re.findall(r"(\S+?)=(\S*)", done.stdout))


def exit_code(facts: Mapping[str, str]) -> int:
    """Return the exit code of a job that is over, from what Slurm knows of it."""
    code, _, number_of_signal = facts.get("ExitCode", "1:0").partition(":")
    state = facts.get("JobState", "")
    if state == "COMPLETED":
        return 0
    if state == "FAILED":
        return int(code) or 128 + int(number_of_signal)
    # What ended it is no defect of the run: a lost host, or somebody who wanted its hosts.
    return {"NODE_FAIL": 138, "PREEMPTED": 143, "CANCELLED": 143}.get(state, 1)


def _show(path: pathlib.Path, position: int) -> int:
    """Show what a file holds from a position on; return its end."""
    try:
        with open(path, "rb") as file:
            file.seek(position)
            data = file.read()
    except FileNotFoundError:
        return position
    if data:
        sys.stdout.flush()
        sys.stdout.buffer.write(data)
        sys.stdout.flush()
    return position + len(data)


def _say(line: str) -> None:
    sys.stdout.write(printable(line).decode())
    sys.stdout.flush()
