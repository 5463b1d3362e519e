"""Do all tasks train the same? Compared before the first collective, which would hang or break.

    watch(strategy)                          # before variables are made: the models are compared
    check(strategy, "fit", settings)         # at the beginning of fit, evaluate and predict

The tasks exchange text through the store of TensorFlow's coordination service, so that comparing
is itself no collective. The chief (the first task) collects what the others have written, and all
read its verdict: every task raises the same AgreementError, with the setting, both values and both
tasks. Without several processes, or without that service, nothing is compared.
"""

import dataclasses
import json
import logging
import threading
import time
import weakref
from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from tfdp import compat

_log = logging.getLogger("tfdp")

_POLL_SECONDS = 1.0
_REPORT_SECONDS = 10.0
# A variable that takes longer to be made waits for a task that makes another, or none.
_STUCK_SECONDS = 3.0
# How long the others have to tell about their model once this one is stuck.
_EXPLAIN_SECONDS = 8.0
_PROBLEM = "tfdp/problem"

_watches: "weakref.WeakKeyDictionary[Any, _Watch]" = weakref.WeakKeyDictionary()
_checks = 0


class AgreementError(ValueError):
    """Tasks of one cluster train with different settings."""


def check(strategy: tf.distribute.Strategy, call: str, settings: Mapping[str, Any]) -> None:
    """Compares this call of fit, evaluate or predict with that of every other task.

    Waits for tasks that have not come to their call yet, and says so: the heartbeats of the
    service end the wait when one of them has died.

    Args:
        strategy: The strategy; nothing is compared unless it spans several processes.
        call: "fit", "evaluate", ...: compared as well.
        settings: What must be the same, by name; values are compared as text, lists item by item.

    Raises:
        AgreementError: On every task, when one differs or has ended.
    """
    global _checks
    tasks = _tasks(strategy)
    if tasks is None:
        return
    me, names = tasks
    _checks += 1
    prefix = f"tfdp/check/{_checks}"
    facts = {"call": call, **{name: _plain(value) for name, value in settings.items()}}
    # First the key, then the wait: a chief that waits can tell a late task from one that is there.
    compat.share_text(f"{prefix}/{me}", json.dumps(facts))
    chief, *others = names
    watch = _watches.get(strategy)
    if me == chief:
        problem = ""
        for other in others:
            theirs = json.loads(_wait(f"{prefix}/{other}", [other], call, watch))
            problem = problem or _difference(chief, facts, other, theirs)
        compat.share_text(f"{prefix}/verdict", problem)
        # All have come here, so that nobody reads the last one any more.
        compat.forget_text(f"tfdp/check/{_checks - 1}")
    else:
        problem = _wait(f"{prefix}/verdict", [name for name in names if name != me], call, watch)
    if problem:
        raise AgreementError(problem)


def watch(strategy: tf.distribute.Strategy) -> None:
    """Compares the models that are made under a strategy, when making one gets stuck or fails.

    Under MultiWorkerMirroredStrategy each new variable is sent by the chief to all: models that
    differ end in an error that names neither, or in a wait without end. Costs nothing otherwise.
    """
    tasks = _tasks(strategy)
    if tasks is not None:
        made = _watches[strategy] = _Watch(*tasks)
        compat.watch_initial_values(strategy, made.begins, made.ends)


def settings(model: Any, strategy: Any, communication: Any, feed: Any) -> dict[str, Any]:
    """Returns what must be the same on every task that trains or tests, by name."""
    variables = [f"{v.path} {v.dtype}[{','.join(map(str, v.shape))}]" for v in model.variables]
    same = {
        "model: number of variables": len(variables),
        "model": variables,
        "optimizer": type(model.optimizer).__name__ if model.compiled else None,
        "steps_per_execution": model.steps_per_execution,
        "communication": dataclasses.replace(communication, timeout_seconds=None),
        "replicas": strategy.num_replicas_in_sync,
        **data_plan(feed),
    }
    if feed.split.by_rows:  # else each task shuffles its own data as it likes
        same["seed"] = compat.global_seed()
    return same


def data_plan(feed: Any, of: str = "data") -> dict[str, Any]:
    """Returns what must be the same of a feed.Feed on every task, by name."""
    plan = {f"{of}: split": feed.description, f"{of}: steps of an epoch": feed.steps_per_epoch}
    if feed.split.by_rows:  # else each task reads what it was given
        leaves = [leaf for leaf in tf.nest.flatten(feed.spec) if isinstance(leaf, tf.TensorSpec)]
        plan[f"{of}: global batch size"] = getattr(feed._adapter, "batch_size", None)
        plan[f"{of}: batches in a pass"] = feed.batches
        plan[f"{of}: elements"] = ", ".join(f"{leaf.dtype.name}{leaf.shape}" for leaf in leaves)
    return plan


class _Watch:
    """What one task has made under a strategy, and the comparison with the others."""

    def __init__(self, me: str, names: list[str]) -> None:
        self._me, self._names = me, names
        self._made: list[str] = []
        self._since: float | None = None  # when the variable that is being made was begun
        self._begun = threading.Event()
        self._shared = -1
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def begins(self, name: str, spec: str) -> None:
        """Called before the value of a new variable is exchanged."""
        self._made.append(f"{name} {spec}")
        self._since = time.monotonic()
        self._begun.set()
        if self._thread is None:
            self._thread = threading.Thread(target=self._look, name="tfdp-agreement", daemon=True)
            self._thread.start()

    def ends(self, error: BaseException | None) -> None:
        """Called when it is there, or when that has failed.

        Raises:
            AgreementError: It failed because the tasks make different models.
        """
        self._since = None
        self._begun.clear()
        if isinstance(error, tf.errors.OpError):
            until = time.monotonic() + _EXPLAIN_SECONDS
            while time.monotonic() < until:
                try:
                    problem = self.compare()
                except tf.errors.OpError:
                    return  # the service is gone as well: what TensorFlow said must do
                if problem:
                    raise AgreementError(problem) from error

    def compare(self) -> str:
        """Says what differs, "" while nothing is known to; takes up to 0.05 s for each task."""
        with self._lock:
            if len(self._made) != self._shared:
                self._shared = len(self._made)
                compat.share_text(f"tfdp/model/{self._me}", json.dumps(self._made), replace=True)
        known = compat.shared_text(_PROBLEM, 0.05)
        if known:
            return known
        chief, *others = self._names
        for other in others if self._me == chief else [chief]:
            text = compat.shared_text(f"tfdp/model/{other}", 0.05)
            if text is None:
                continue
            mine, theirs = (self._me, list(self._made)), (other, json.loads(text))
            first, second = (mine, theirs) if self._me == chief else (theirs, mine)
            problem = _first_difference("model", *first, *second)
            if problem:
                compat.share_text(_PROBLEM, problem, replace=True)
                return problem
        return ""

    def _look(self) -> None:
        while True:
            self._begun.wait()
            since = self._since
            if since is None or time.monotonic() - since < _STUCK_SECONDS:
                time.sleep(0.2)
                continue
            try:
                problem = self.compare()
            except tf.errors.OpError:
                return
            if problem and self._since == since:
                # The main thread waits in TensorFlow, and gets out of it by this alone.
                compat.abort_collectives(problem)
                return


def _wait(key: str, names: list[str], call: str, watch: _Watch | None) -> str:
    """Returns what is written under a key, as soon as it is there."""
    begin = time.monotonic()
    report_at = begin + _REPORT_SECONDS
    while True:
        try:
            text = compat.shared_text(key, _POLL_SECONDS)
            if text is not None:
                return text
            # A task that does not come may be stuck while it makes another model.
            is_late = time.monotonic() - begin > _STUCK_SECONDS
            problem = watch.compare() if watch is not None and is_late else ""
        except tf.errors.OpError as error:
            raise AgreementError(
                f"{', '.join(names)} ended or was lost before all tasks had called {call}: "
                f"{error.message.splitlines()[0]}"
            ) from error
        if problem:
            raise AgreementError(problem)
        if time.monotonic() >= report_at:
            report_at += _REPORT_SECONDS
            _log.warning(
                "waiting for %s to call %s, %.0f s. Every task has to call it.",
                " or ".join(names),
                call,
                time.monotonic() - begin,
            )


def _tasks(strategy: tf.distribute.Strategy) -> tuple[str, list[str]] | None:
    """Returns this task and all that train, the chief first; None where there is nobody else."""
    resolver = getattr(strategy, "cluster_resolver", None)
    if resolver is None or not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return None
    jobs = resolver.cluster_spec().as_dict()
    names = [f"{job}:{n}" for job in ("chief", "worker") for n in range(len(jobs.get(job, ())))]
    me = f"{resolver.task_type}:{resolver.task_id}"
    if len(names) < 2 or me not in names or not compat.has_shared_text():
        return None
    return me, names


def _plain(value: Any) -> Any:
    """Returns a value as JSON keeps it: text, or a list of texts."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = ", ".join(f"{name}={one!r}" for name, one in dataclasses.asdict(value).items())
    return [str(one) for one in value] if isinstance(value, list) else str(value)


def _difference(first: str, ours: Any, second: str, theirs: Any) -> str:
    if ours["call"] != theirs["call"]:  # what belongs to another call cannot be compared
        ours, theirs = {"call": ours["call"]}, {"call": theirs["call"]}
    for name in {**ours, **theirs}:
        a, b = ours.get(name, "none"), theirs.get(name, "none")
        if isinstance(a, list) and isinstance(b, list):
            problem = _first_difference(name, first, a, second, b)
            if problem:
                return problem
        elif a != b:
            return _problem(name, first, a, second, b)
    return ""


def _first_difference(name: str, first: str, ours: list, second: str, theirs: list) -> str:
    """Says where two lists differ. One that is the beginning of the other does not, unless done."""
    for number, (a, b) in enumerate(zip(ours, theirs, strict=False), 1):
        # Names count up in the order of making: "dense_1" may be another's "dense".
        if a.split()[-1] != b.split()[-1]:
            return _problem(f"{name}: variable {number}", first, a, second, b)
    return ""


def _problem(name: str, first: str, a: Any, second: str, b: Any) -> str:
    def short(value: Any) -> str:
        text = str(value)
        return text if len(text) <= 300 else text[:297] + "..."

    return (
        f"{name} differs: {first} has {short(a)}, {second} has {short(b)}. "
        "Every task has to train the same model with the same settings."
    )
