"""Looks after the tasks of a plan from their start to the end of the last: the loop of local.run.

    supervisor = Supervisor(screen, wake_fd, Settings(max_restarts=3))
    code, reason = supervisor.run(processes, pathlib.Path("runs/a"))

Three things can be started again on their own: the group of tasks that train together, a worker
that serves a coordinator of parameter servers, and the evaluator. All else that fails ends all.
"""

import contextlib
import dataclasses
import functools
import math
import os
import pathlib
import selectors
import signal
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from tfdp.cluster import DATA, Task
from tfdp.launch import endings, process, progress, restarts
from tfdp.launch.log import Log
from tfdp.launch.output import STDERR, STDOUT, Screen, TaskOutput, printable
from tfdp.launch.plan import TaskProcess, log_name
from tfdp.launch.redaction import Redactor

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
RESTART_VARIABLE = "TFDP_RESTART"
_HERE = ("127.0.0.1", "localhost", "::1")
_READ_BYTES = 1 << 16
# The most a pipe can hold: what is left in it when its task has ended.
_PIPE_BYTES = 1 << 20
# How often a task of tf.data service is started again, whatever was asked for: it holds no state of
# the training, which waits for it.
_DATA_RESTARTS = 3
# How often to look for tasks that have ended, where the kernel cannot tell (no pidfd).
_POLL_SECONDS = 0.02
# How long a process may take to end that was killed. One that waits for a dead disk never does.
_KILL_SECONDS = 5.0


@dataclasses.dataclass(frozen=True)
class Settings:
    """How tasks are looked after.

    Attributes:
      grace_seconds: From SIGTERM to SIGKILL. TensorFlow ignores SIGTERM: this is waited in full.
      evaluator_seconds: How long the evaluator may go on when the training has ended.
      max_restarts: How many failures without progress (see progress, restarts) are followed by a
        restart: of all tasks that train; of the worker alone where there are parameter servers; of
        the evaluator alone.
      restart_delay_seconds: The wait before the first restart; doubled with each failure that came
        without progress, up to a minute.
      log_bytes: How large a log may grow before it is continued in a new one; 0 for any size.
      logs_kept: How many full logs of a task are kept.
      renew: Gives the plan for a restart of all, on ports that are free then, without the workers
        whose plans it is given (see min_workers); None for the same plan again.
      preempt_seconds: From SIGTERM to SIGKILL where this process got SIGTERM: a training saves what
        it has.
      min_workers: Where a worker has used up its restarts, the others that train together start
        again without it, as long as so many are left; 0 for all or none. Needs renew. The workers
        of parameter servers go on by themselves, as long as so many are left, and one is.
    """

    grace_seconds: float = 3.0
    evaluator_seconds: float = 600.0
    max_restarts: int = 0
    restart_delay_seconds: float = 1.0
    log_bytes: int = 100 << 20
    logs_kept: int = 3
    renew: Callable[[Sequence[TaskProcess]], Sequence[TaskProcess]] | None = None
    preempt_seconds: float = 25.0
    min_workers: int = 0


class Supervisor:
    """The state of one run, and its loop.

    Args:
      screen: Where the output of tasks, and what there is to say, goes.
      wake_fd: A descriptor from which the numbers of signals are read.
      settings: How tasks are looked after.
    """

    def __init__(self, screen: Screen, wake_fd: int, settings: Settings) -> None:
        self.signal: int | None = None  # the first one that came
        self._screen = screen
        self._settings = settings
        self._selector = selectors.DefaultSelector()
        self._register(wake_fd, functools.partial(self._wake, wake_fd))
        self._plans: dict[Task, TaskProcess] = {}
        self._hosts: dict[Task, str] = {}  # of those that run elsewhere
        self._logs: dict[Task, pathlib.Path] = {}
        self._outputs: dict[Task, TaskOutput] = {}
        self._alive: dict[Task, process.Running] = {}
        self._endings: dict[Task, endings.Ending] = {}
        self._budgets: dict[Task | None, restarts.Budget] = {}  # None: that of the group
        self._left_out: list[TaskProcess] = []  # workers that could not be started again
        self._servers: tuple[str, ...] = ()
        self._failed: tuple[process.Running, str] | None = None
        self._not_started: tuple[int, str] | None = None
        self._oom_kills = endings.oom_kills()
        self._is_reading = True
        self._is_ending = False
        self._blocked_on: int | None = None
        # Times of time.monotonic(), each set when what it waits for has begun.
        self._kill_at = self._give_up_at = math.inf
        self._evaluator_until: float | None = None
        self._group_at: float | None = None
        self._due: dict[Task, float] = {}  # tasks that start again by themselves

    def run(self, processes: Sequence[TaskProcess], log_dir: pathlib.Path) -> tuple[int, str]:
        """Returns the exit code and the last line, empty when there is nothing to say."""
        self._logs = {plan.task: plan.log or log_dir / log_name(plan.task) for plan in processes}
        if not processes or len(self._logs) < len(processes):
            raise ValueError("A plan needs tasks, and each task once.")
        chief = min(self._logs, key=lambda task: (task.type != "chief", task != Task("worker", 0)))
        if any(task.type == "ps" for task in self._logs):
            self._servers = ("ps", "worker") if chief.type == "chief" else ("ps",)
        self._servers += (DATA,)
        secrets = [plan.environment[name] for plan in processes for name in plan.secrets]
        redactor = Redactor(os.environ, *(plan.environment for plan in processes), secrets=secrets)
        for task, path in self._logs.items():
            prefix = b"" if task == chief else f"[{task}] ".encode()
            try:
                log = Log(path, self._settings.log_bytes, self._settings.logs_kept)
                # What an earlier run in this folder has reported is no progress of this one.
                self._progress_file(task).unlink(missing_ok=True)
            except OSError as error:
                return 2, f"The log {path} cannot be written: {error.strerror}. Choose another."
            self._outputs[task] = TaskOutput(
                self._screen, prefix=prefix, log=log, redactor=redactor
            )
        self._plans = {plan.task: plan for plan in processes}
        self._note_hosts()
        self._start(self._plans)
        self._loop()
        return self._result(log_dir)

    def close(self) -> None:
        """Ends what runs, which is nothing unless the launcher itself has failed."""
        for running in list(self._alive.values()):
            running.send(signal.SIGKILL)
            self._reap(running)
        for output in self._outputs.values():
            output.end()
        self._selector.close()

    def _result(self, log_dir: pathlib.Path) -> tuple[int, str]:
        if self._not_started:
            return self._not_started
        if self._failed:
            running, why = self._failed
            running.output.repeat_reason()
            known = [self._endings[task] for task in self._plans if task in self._endings]
            for line in endings.table(known):
                self._say(line)
            for ending in self._endings.values():
                if ending.was_stopped:
                    self._say(f"{ending.task} was stopped (SIGSTOP) when {running.task} failed.")
            if why:
                self._say(f"Given up: {why}.")
            code, how = process.exit_code(running.process.returncode)
            return code, f"{self._name(running.task)} {how}. Log: {self._logs[running.task]}"
        if self.signal:
            name = signal.Signals(self.signal).name
            name += " (Ctrl-C)" if self.signal == signal.SIGINT else ""
            return 128 + self.signal, f"Interrupted by {name}: all tasks ended. Logs: {log_dir}"
        count = sum(budget.restarts for budget in self._budgets.values())
        if not count:
            return 0, ""
        without = f", without {len(self._left_out)} of the workers" if self._left_out else ""
        return 0, f"All went well after {count} restart{'s'[: count > 1]}{without}."

    # -- start and end --------------------------------------------------------------------------

    def _start(self, tasks: Iterable[Task], variables: Mapping[str, str] | None = None) -> None:
        for task in tasks:
            plan, output = self._plans[task], self._outputs[task]
            added = dict(variables or {})
            if self._settings.max_restarts or self._settings.min_workers:
                added[progress.FILE_VARIABLE] = os.path.abspath(self._progress_file(task))
            plan = dataclasses.replace(plan, environment={**plan.environment, **added})
            try:
                running = process.start(plan, output, on_terminal=output.is_raw(STDOUT))
            except OSError as error:
                self._not_started = process.not_started(plan, error)
                self._end(self._alive.values(), 0.0, f"{task} could not be started")
                return
            self._alive[task] = running
            if running.pidfd is not None:
                # The selector (epoll) gives events in the order in which they came: of two tasks
                # that ended between two looks, the one that ended first is the first seen.
                self._register(running.pidfd, functools.partial(self._reap, running))
            if self._is_reading:
                for stream, pipe in running.pipes.items():
                    self._register(pipe.fileno(), functools.partial(self._read, running, stream))

    def _start_again(self, tasks: Sequence[Task], budget: restarts.Budget) -> None:
        for task in tasks:
            self._endings.pop(task, None)
            self._outputs[task].begin_again(f"(tfdp: restart {budget.restarts})".encode())
        self._start(tasks, {RESTART_VARIABLE: str(budget.restarts)})

    def _end(self, tasks: Iterable[process.Running], grace_seconds: float, why: str) -> None:
        self._kill_at, self._give_up_at = time.monotonic() + grace_seconds, math.inf
        for running in tasks:
            running.dismissed = running.dismissed or why
            running.send(signal.SIGTERM)

    # -- the loop -------------------------------------------------------------------------------

    def _loop(self) -> None:
        while self._alive or self._due or self._group_at is not None:
            self._decide()
            for key, _ in self._selector.select(self._timeout()):
                # An event before this one may have closed the descriptor.
                if self._selector.get_map().get(key.fd) == key:
                    key.data()
            for running in list(self._alive.values()):
                if running.pidfd is None and running.process.poll() is not None:
                    self._reap(running)
            self._follow_screen()

    def _timeout(self) -> float | None:
        if not self._alive and not self._due and self._group_at is None:
            return 0.0
        times = [self._kill_at, self._give_up_at, *self._due.values()]
        times += [at for at in (self._evaluator_until,) if at is not None]
        if self._group_at is not None and not self._living_group():
            times.append(self._group_at)
        seconds = max(0.0, min(times) - time.monotonic())
        if any(running.pidfd is None for running in self._alive.values()):
            seconds = min(seconds, _POLL_SECONDS)
        return None if seconds == math.inf else seconds

    def _decide(self) -> None:
        """What is to be done now, given what has happened."""
        now = time.monotonic()
        if self._failed or self.signal or self._not_started:
            self._due, self._group_at = {}, None
            if not self._is_ending:
                self._is_ending = True
                why, grace = "ended by tfdp", self._settings.grace_seconds
                asked = list(self._alive.values())
                if self._failed:
                    why = f"ended because {self._failed[0].task} had failed"
                elif self.signal == signal.SIGTERM:
                    # What the servers hold is saved as long as they live.
                    grace = self._settings.preempt_seconds
                    asked = [one for one in asked if one.task.type not in self._servers]
                self._dismiss(self._alive.values(), why)
                self._end(asked, grace, why)
            elif self.signal and not any(self._must_finish(task) for task in self._alive):
                self._kill_at = min(self._kill_at, now)
        elif self._group_at is not None:
            if now >= self._group_at and not self._living_group():
                self._group_at, self._kill_at = None, math.inf
                self._start_group_again()
        elif not any(self._must_finish(task) for task in self._alive):
            self._training_has_ended(now)
        for task in [task for task, at in self._due.items() if now >= at]:
            del self._due[task]
            self._start_again([task], self._budgets[task])
        dismissed = [running for running in self._alive.values() if running.dismissed]
        if now >= self._give_up_at:
            for running in dismissed:
                self._say(f"{running.task} does not end (process {running.process.pid}).")
                self._release(running)
            self._give_up_at = math.inf
        elif now >= self._kill_at:
            self._kill_at, self._give_up_at = math.inf, now + _KILL_SECONDS
            for running in dismissed:
                running.send(signal.SIGKILL)

    def _start_group_again(self) -> None:
        if self._settings.renew is not None:
            # The evaluator, which may run on, has an address that nobody else is told.
            renewed = {plan.task: plan for plan in self._settings.renew(self._left_out)}
            for task in set(self._plans) - set(renewed):
                self._endings.pop(task, None)
            self._plans = {task: renewed[task] for task in self._plans if task in renewed}
            self._note_hosts()
        self._start_again(self._group(), self._budgets[None])

    def _group(self) -> list[Task]:
        """The tasks that train together. The evaluator only reads what they write."""
        trains = [task for task in self._plans if task.type not in ("evaluator", DATA)]
        return trains or list(self._plans)

    def _living_group(self) -> list[process.Running]:
        return [self._alive[task] for task in self._group() if task in self._alive]

    def _must_finish(self, task: Task) -> bool:
        return task.type not in (*self._servers, "evaluator")

    def _training_has_ended(self, now: float) -> None:
        for task in [task for task in self._due if task.type in self._servers]:
            del self._due[task]
        for running in self._alive.values():
            if running.task.type in self._servers and not running.dismissed:
                running.dismissed = "ended by tfdp: the training is over"
                running.send(signal.SIGKILL)
        if self._evaluator_until is None:
            self._evaluator_until = now + self._settings.evaluator_seconds
        elif now >= self._evaluator_until:
            self._say(
                f"The evaluator was ended {self._settings.evaluator_seconds:g} s after the "
                f"training. It should return when it has seen the last checkpoint."
            )
            self._evaluator_until = math.inf
            self._due = {}
            self._end(self._alive.values(), self._settings.grace_seconds, "ended by tfdp")

    # -- what has happened ----------------------------------------------------------------------

    def _wake(self, fd: int) -> None:
        for number in os.read(fd, 4096):
            # The others are somebody else's, who gets them as well.
            if number in SIGNALS:
                if self._kill_at < math.inf:
                    self._kill_at = 0.0  # the second Ctrl-C: at once
                self.signal = self.signal or number

    def _read(self, running: process.Running, stream: int) -> None:
        try:
            data = os.read(running.pipes[stream].fileno(), _READ_BYTES)
        except BlockingIOError:
            return
        if data:
            running.output.feed(stream, data)
        else:
            self._close_pipe(running, stream)

    def _reap(self, running: process.Running) -> None:
        """The task has ended; so does what it started, and what they wrote last is shown."""
        running.send(signal.SIGKILL)
        returncode = running.process.wait()
        for stream, pipe in list(running.pipes.items()):
            # To the end, which does not come while somebody outside the group holds the pipe.
            with contextlib.suppress(BlockingIOError):
                for _ in range(_PIPE_BYTES // _READ_BYTES):
                    if data := os.read(pipe.fileno(), _READ_BYTES):
                        running.output.feed(stream, data)
        self._release(running)
        code, how = process.exit_code(returncode)
        before = self._endings.get(running.task)
        self._endings[running.task] = endings.Ending(
            running.task,
            code,
            running.output.tail,
            running.dismissed,
            out_of_memory=endings.oom_kills() > self._oom_kills,
            is_signal=returncode < 0,
            was_stopped=before is not None and before.was_stopped,
            host=self._hosts.get(running.task, ""),
        )
        if running.dismissed:
            return
        if code:
            self._has_failed(running, code, how)
        elif running.task.type in self._servers:
            self._say(f"{running.task} ended with code 0 before the chief did.")

    def _has_failed(self, running: process.Running, code: int, how: str) -> None:
        task = running.task
        alone = task.type in ("evaluator", DATA) or (
            task.type == "worker" and "worker" in self._servers
        )
        group = [task] if task.type == "evaluator" else self._group()
        budget = self._budgets.setdefault(
            task if alone else None,
            restarts.Budget(
                max(self._settings.max_restarts, _DATA_RESTARTS * (task.type == DATA)),
                first_delay_seconds=self._settings.restart_delay_seconds,
            ),
        )
        reached = [progress.read(self._progress_file(member)) for member in group]
        furthest = max((one for one in reached if one is not None), default=None)
        decision = budget.decide(restarts.Failure(task, code, furthest))
        others = [other for other in {*self._alive, *self._due} if other.type == "worker"]
        enough = len(others) >= max(1, self._settings.min_workers)
        if not decision.restart and alone and task.type == "worker" and enough:
            # Its coordinator gives what it had to the others.
            self._say(
                f"{self._name(task)} {how}: {endings.guess_cause(self._endings[task])}. The "
                f"training goes on "
                f"with {len(others)} worker{'s'[: len(others) > 1]}. Log: {self._logs[task]}"
            )
            return
        if not decision.restart and not alone and self._can_go_on_without(task):
            self._left_out.append(self._plans[task])
            left = budget.start_with_fewer(self._count_workers() - 1)
            why = f"{left.why}: {decision.why}" if decision.why else left.why
            decision = dataclasses.replace(left, why=why)
        if not decision.restart:
            self._failed = self._failed or (running, decision.why)
            self._dismiss(self._alive.values(), f"ended because {task} had failed")
            return
        self._oom_kills = endings.oom_kills()
        self._say(
            f"{self._name(task)} {how}, {progress.describe(furthest)}: "
            f"{endings.guess_cause(self._endings[task])}. "
            f"{'It starts' if alone else 'All tasks start'} again in {decision.delay_seconds:g} s "
            f"({decision.why})."
        )
        if alone:
            self._due[task] = time.monotonic() + decision.delay_seconds
            return
        self._group_at = time.monotonic() + decision.delay_seconds
        for member in group:
            self._due.pop(member, None)
        living = self._living_group()
        self._dismiss(living, f"ended to start again with {task}")
        self._end(living, self._settings.grace_seconds, "")

    def _can_go_on_without(self, task: Task) -> bool:
        return (
            self._settings.renew is not None
            and task.type == "worker"
            and 0 < self._settings.min_workers < self._count_workers()
        )

    def _count_workers(self) -> int:
        return sum(task.type == "worker" for task in self._plans)

    def _dismiss(self, tasks: Iterable[process.Running], why: str) -> None:
        """Whatever becomes of them now is a consequence."""
        for other in tasks:
            other.dismissed = other.dismissed or why
            if other.is_stopped:
                self._endings[other.task] = endings.Ending(other.task, None, was_stopped=True)

    def _release(self, running: process.Running) -> None:
        for stream in list(running.pipes):
            self._close_pipe(running, stream)
        if running.pidfd is not None:
            self._selector.unregister(running.pidfd)
        running.release()
        del self._alive[running.task]
        self._endings.setdefault(
            running.task, endings.Ending(running.task, None, running.output.tail)
        )

    def _close_pipe(self, running: process.Running, stream: int) -> None:
        pipe = running.pipes.pop(stream)
        if self._is_reading:
            self._selector.unregister(pipe.fileno())
        pipe.close()

    # -- the rest -------------------------------------------------------------------------------

    def _progress_file(self, task: Task) -> pathlib.Path:
        return self._logs[task].with_suffix(".step")

    def _follow_screen(self) -> None:
        """Waits for the screen to take more, and lets tasks that write wait, as without us."""
        if self._screen.blocked_on() != self._blocked_on:
            if self._blocked_on is not None:
                self._selector.unregister(self._blocked_on)
            self._blocked_on = self._screen.blocked_on()
            if self._blocked_on is not None:
                flush = self._screen.flush
                self._selector.register(self._blocked_on, selectors.EVENT_WRITE, flush)
        if self._is_reading != self._screen.is_full:
            return
        self._is_reading = not self._is_reading
        for running in self._alive.values():
            for stream, pipe in running.pipes.items():
                if self._is_reading:
                    self._register(pipe.fileno(), functools.partial(self._read, running, stream))
                else:
                    self._selector.unregister(pipe.fileno())

    def _register(self, fd: int, callback: Any) -> None:
        self._selector.register(fd, selectors.EVENT_READ, callback)

    def _note_hosts(self) -> None:
        for task, plan in self._plans.items():
            if plan.host not in _HERE:
                self._hosts[task] = plan.host

    def _name(self, task: Task) -> str:
        """A task, and where it runs when that is not here."""
        return f"{task} on {self._hosts[task]}" if task in self._hosts else str(task)

    def _say(self, line: str) -> None:
        self._screen.write_lines(STDERR, printable(line))
