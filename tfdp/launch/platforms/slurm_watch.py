"""One step of Slurm, from its start to its end: srun, what it says, and what its tasks write.

    step = Step(job, wish, in_batch, screen, outputs, wake_fd)
    code, reason = step.run(variables)
    step.saved      # whether the tasks were asked to end, and have saved

A signal that announces the end is passed on to the tasks, which save; one that ends the launcher
ends them, and so does the death of the launcher.
"""

import functools
import math
import os
import pathlib
import re
import selectors
import signal
import subprocess
import time
from collections.abc import Mapping

from tfdp.cluster import Task
from tfdp.launch import endings, process, task_start
from tfdp.launch.output import STDERR, STDOUT, Screen, TaskOutput, printable
from tfdp.launch.plan import log_name
from tfdp.launch.platforms import slurm_output, slurm_script
from tfdp.launch.platforms.job import Job
from tfdp.launch.supervisor import SIGNALS

# Announce the end: the tasks are to save.
NOTICES = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
BAD_SETTING = 2
_PREEMPTED = 143
_LOST_PEER = 138
# From a failure to the end of all: tasks that wait for the one that failed do not end otherwise.
_GRACE_SECONDS = 5.0
# From the moment at which srun was asked to end all, to its own end by force.
_KILL_SECONDS = 60.0
# The controller does not answer: that is nobody's setting.
_UNREACHABLE = re.compile(r"contact|connect|communicat|timed out|[Ss]ocket")
_READ_BYTES = 1 << 16


class Step:
    """One step: srun, what it says, and what its tasks write.

    Args:
        job: What is run.
        wish: How the tasks are placed.
        in_batch: Whether this is a batch script.
        screen: Where output goes.
        outputs: Those of the tasks, in the order of their numbers.
        wake_fd: A descriptor from which the numbers of signals are read.
    """

    def __init__(
        self,
        job: Job,
        wish: slurm_script.Wish,
        in_batch: bool,
        screen: Screen,
        outputs: list[TaskOutput],
        wake_fd: int,
    ) -> None:
        self.interrupted = False  # by Ctrl-C, or by a lost terminal
        self.told = False  # whether the tasks were told to save
        self._job, self._wish, self._in_batch = job, wish, in_batch
        self._screen, self._outputs = screen, outputs
        self._srun = slurm_output.Srun()
        self._begun = {STDOUT: bytearray(), STDERR: bytearray()}
        self._held: list[tuple[int, bytes]] = []  # lines of tasks whose places are not known
        self._process: subprocess.Popen[bytes] | None = None
        self._signal = 0
        self._is_to_tell = self._is_ending = False
        # Times of time.monotonic().
        self._end_at = self._kill_at = math.inf
        self._wake_fd = wake_fd
        self._selector = selectors.DefaultSelector()

    @property
    def saved(self) -> bool:
        """Whether the tasks were asked to end, and have saved: a task exits with 143 then."""
        first = slurm_output.culprit(self._srun.ends)
        return first is not None and first.code == _PREEMPTED and not first.is_signal

    def run(self, variables: Mapping[str, str]) -> tuple[int, str]:
        """Run the step to its end; return its exit code, and the last line to say."""
        in_step = bool(variables.get("SLURM_STEP_ID"))
        command = slurm_script.srun(self._job, self._wish, self._in_batch, in_step)
        self._process = subprocess.Popen(
            # Labels say whose line it is, and verbose lines where each task runs and how it ends.
            [*command, "--label", "--verbose", *self._job.command],
            cwd=self._job.directory,
            env=dict(variables),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            # Ctrl-C comes to the launcher alone.
            start_new_session=True,
            # srun ends its tasks when it gets SIGTERM, and so when this process dies.
            preexec_fn=functools.partial(task_start.die_with_parent, signal.SIGTERM),
        )
        for stream, pipe in ((STDOUT, self._process.stdout), (STDERR, self._process.stderr)):
            assert pipe is not None
            read = functools.partial(self._read, stream, pipe.fileno())
            self._selector.register(pipe.fileno(), selectors.EVENT_READ, read)
        self._selector.register(self._wake_fd, selectors.EVENT_READ, self._wake)
        while len(self._selector.get_map()) > 1:  # srun's pipes are closed when it has ended
            self._screen.flush()
            for key, _ in self._selector.select(self._timeout()):
                key.data()
            self._decide(time.monotonic())
        code = self._process.wait()
        self._release_held()
        for output in self._outputs:
            output.ended()
        return self._result(128 - code if code < 0 else code)

    def close(self) -> None:
        """End what runs, which is nothing unless the launcher itself has failed."""
        if self._process is not None:
            if self._process.poll() is None:
                self._process.terminate()
                self._process.wait()
            for pipe in (self._process.stdout, self._process.stderr):
                if pipe is not None:
                    pipe.close()
        self._selector.close()

    # -- what happens ---------------------------------------------------------------------------

    def _timeout(self) -> float | None:
        if self._screen.blocked_on() is not None:
            return 0.1
        at = min(self._end_at, self._kill_at)
        return None if at == math.inf else max(0.0, at - time.monotonic())

    def _decide(self, now: float) -> None:
        assert self._process is not None
        if self._is_to_tell and self._srun.step:
            # Once, and to all: they agree on the step after which they save.
            self._is_to_tell = False
            subprocess.run(["scancel", "--signal=TERM", self._srun.step], stdin=subprocess.DEVNULL)
        if not self._is_ending and self._has_failed():
            self._end_at = min(self._end_at, now + _GRACE_SECONDS)
        elif not self._is_ending and self.saved and self._have_trained():
            self._end_at = now  # servers and the evaluator did not listen to the signal
        if now >= self._end_at:
            self._is_ending = self._srun.is_forced = True
            self._end_at = math.inf
            self._kill_at = min(self._kill_at, now + _KILL_SECONDS)
            self._process.send_signal(signal.SIGTERM)  # srun kills its tasks for it
        elif now >= self._kill_at:
            self._kill_at = math.inf
            self._process.kill()

    def _has_failed(self) -> bool:
        first = slurm_output.culprit(self._srun.ends)
        # Where all are asked to save, one that has done so is no reason to hurry the others.
        return first is not None and first.code != _PREEMPTED

    def _have_trained(self) -> bool:
        servers = ("ps", "worker", "evaluator") if self._job.shape.ps else ("evaluator",)
        ended = {self._index(end.number) for end in self._srun.ends}
        return all(
            index in ended or task.type in servers
            for index, task in enumerate(self._job.shape.tasks)
        )

    def _wake(self) -> None:
        now = time.monotonic()
        for number in os.read(self._wake_fd, 4096):
            if number in NOTICES:
                if not self.told and not self._is_ending:
                    self.told = self._is_to_tell = True
                    seconds = self._wish.save_seconds
                    if not self._in_batch:
                        seconds = self._job.preempt_seconds
                    self._end_at = now + seconds
            elif number in SIGNALS:
                self.interrupted = True
                # The second time at once.
                self._kill_at = now if self._signal else self._kill_at
                self._end_at = min(self._end_at, now)
            else:
                continue
            self._signal = self._signal or number

    def _read(self, stream: int, fd: int) -> None:
        data = os.read(fd, _READ_BYTES)
        begun = self._begun[stream]
        begun += data
        if not data:
            self._selector.unregister(fd)
            if begun:
                begun += b"\n"
        *lines, rest = bytes(begun).split(b"\n")
        begun[:] = rest
        for line in lines:
            whose = slurm_output.split(line)
            if whose is None:
                if shown := self._srun.take(line):
                    self._screen.write_lines(STDERR, printable(shown))
            elif len(self._srun.places) >= len(self._outputs) and not self._held:
                self._feed(stream, *whose)
            else:
                self._held.append((stream, line))
        if self._held and len(self._srun.places) >= len(self._outputs):
            self._release_held()

    def _release_held(self) -> None:
        held, self._held = self._held, []
        for stream, line in held:
            whose = slurm_output.split(line)
            assert whose is not None
            self._feed(stream, *whose)

    def _feed(self, stream: int, number: int, line: bytes) -> None:
        if slurm_output.is_slurms(line):  # about the step, under the name of a task
            self._screen.write_lines(STDERR, line + b"\n")
        else:
            self._outputs[self._index(number)].feed(stream, line + b"\n")

    def _index(self, number: int) -> int:
        """The number of a task within the cluster, of its number within the step."""
        _, index = self._srun.places.get(number, ("", number))
        return min(index, len(self._outputs) - 1)

    # -- the end --------------------------------------------------------------------------------

    def _result(self, code: int) -> tuple[int, str]:
        tasks = self._job.shape.tasks
        if self.interrupted:
            name = signal.Signals(self._signal).name
            name += " (Ctrl-C)" if self._signal == signal.SIGINT else ""
            return (
                128 + self._signal,
                f"Interrupted by {name}: all tasks ended. Logs: {self._job.log_dir}",
            )
        first = slurm_output.culprit(self._srun.ends)
        if first is None:
            if code == 0:
                return 0, ""
            said = self._srun.last or f"srun exited with code {code}"
            if not self._srun.step:
                code = 1 if _UNREACHABLE.search(said) else BAD_SETTING
                return code, f"srun does not start the tasks: {said}"
            if self._srun.lost_host:
                return _LOST_PEER, f"{self._srun.lost_host} was lost: {said}"
            return code, f"srun exited with code {code}: {said}"
        index = self._index(first.number)
        self._outputs[index].repeat_reason()
        for line in endings.table(self._endings(first)):
            self._screen.write_lines(STDERR, printable(line))
        found = first.code
        if self._srun.lost_host and first.is_signal:
            found = _LOST_PEER
        if self.told and first.is_signal:
            found = _PREEMPTED  # it has not saved in time
        how = process.exit_code(-(first.code - 128) if first.is_signal else first.code)[1]
        return (
            found,
            f"{tasks[index]} on {first.host} {how}. Log: {log_path(self._job, tasks[index])}",
        )

    def _endings(self, first: slurm_output.End) -> list[endings.Ending]:
        """How each task ended, in the order of their numbers."""
        name = str(self._job.shape.tasks[self._index(first.number)])
        ended = {self._index(end.number): end for end in self._srun.ends}
        hosts = {index: host for host, index in self._srun.places.values()}
        found = []
        for index, task in enumerate(self._job.shape.tasks):
            end = ended.get(index)
            consequence = end is None or (end is not first and end.is_signal)
            found.append(
                endings.Ending(
                    task,
                    end.code if end is not None else None,
                    self._outputs[index].tail,
                    f"ended because {name} had failed" if consequence else "",
                    is_signal=end is not None and end.is_signal,
                    host=hosts.get(index, ""),
                )
            )
        return found


def log_path(job: Job, task: Task) -> pathlib.Path:
    """Return the file of a task's output."""
    return pathlib.Path(job.log_dir, log_name(task))
