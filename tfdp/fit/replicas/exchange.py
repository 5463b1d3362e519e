"""Text that all tasks exchange: one judgement of what each of them wrote, for all.

    exchange(strategy, "fit", {"call": "fit", "seed": 1}, pairwise(differences.between))
    from_chief(strategy, "step 120")        # the chief's text, on every task

The tasks write through the store of TensorFlow's coordination service, so that comparing is itself
no collective: it can be done before one that would hang or break. The chief (the first task)
collects what the others have written, judges, and all read its verdict: every task raises the same
AgreementError. Without several processes, or without that service, nothing is exchanged.
"""

import atexit
import contextlib
import functools
import json
import logging
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from typing import Any

import tensorflow as tf

from tfdp.compat import coordination
from tfdp.error import Error
from tfdp.fit.replicas import differences

_log = logging.getLogger("tfdp")

# Begins a verdict that ends nothing.
NOTE = "note: "
# A task that takes longer than that may be stuck.
STUCK_SECONDS = 3.0
_POLL_SECONDS = 1.0
_REPORT_SECONDS = 10.0
# How long a process that ends tries to tell the others so.
_FAREWELL_SECONDS = 2.0
_ENDED = "tfdp/ended"

# By strategy: says why another task does not come, "" as long as that is not known.
explanations: "weakref.WeakKeyDictionary[Any, Callable[[], str]]" = weakref.WeakKeyDictionary()
_exchanges = 0
_told = 0  # how often the chief has given a text to all


class AgreementError(Error):
    """Tasks of one cluster train with different settings."""


def members(strategy: tf.distribute.Strategy) -> tuple[str, list[str]] | None:
    """Returns this task and all that train, the chief first; None where there is nobody else."""
    resolver = getattr(strategy, "cluster_resolver", None)
    if resolver is None or not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return None
    jobs = resolver.cluster_spec().as_dict()
    names = [f"{job}:{n}" for job in ("chief", "worker") for n in range(len(jobs.get(job, ())))]
    me = f"{resolver.task_type}:{resolver.task_id}"
    if len(names) < 2 or me not in names or not coordination.has_shared_text():
        return None
    return me, names


def is_chief(strategy: tf.distribute.Strategy) -> bool:
    """Says whether this task is the first of those that train together."""
    tasks = members(strategy)
    return tasks is None or tasks[0] == tasks[1][0]


def exchange(
    strategy: tf.distribute.Strategy,
    call: str,
    facts: Mapping[str, Any],
    judge: Callable[[dict[str, Any]], str],
) -> str:
    """Gives all tasks the chief's judgement of what each of them wrote.

    Args:
        strategy: The strategy; "" unless it spans several processes.
        call: What this task has called, for those who wait.
        facts: What it writes.
        judge: Called on the chief with what all have written, by name, its own first; returns a
            problem, a note (which begins with `NOTE`), or "".

    Returns:
        The note.

    Raises:
        AgreementError: On every task: the problem, or a task has ended.
    """
    global _exchanges
    tasks = members(strategy)
    if tasks is None:
        return ""
    me, names = tasks
    _tell_when_ended(me)
    _exchanges += 1
    prefix = f"tfdp/check/{_exchanges}"
    # First the key, then the wait: a chief that waits can tell a late task from one that is there.
    coordination.share_text(f"{prefix}/{me}", json.dumps(facts))
    chief, *others = names
    explain = explanations.get(strategy)
    if me == chief:
        written = {chief: facts}
        try:
            for other in others:
                written[other] = json.loads(wait(f"{prefix}/{other}", [other], call, explain))
            verdict = judge(written)
        except AgreementError as error:
            with contextlib.suppress(tf.errors.OpError):
                coordination.share_text(f"{prefix}/verdict", str(error))
            raise
        coordination.share_text(f"{prefix}/verdict", verdict)
        # All have come here, so that nobody reads the last one any more.
        coordination.forget_text(f"tfdp/check/{_exchanges - 1}")
    else:
        verdict = wait(f"{prefix}/verdict", [name for name in names if name != me], call, explain)
    if verdict.startswith(NOTE):
        return verdict.removeprefix(NOTE)
    if verdict:
        raise AgreementError(verdict)
    return ""


def pairwise(judge: Callable[[str, Any, str, Any], str]) -> Callable[[dict[str, Any]], str]:
    """Returns a judge of all out of one of two: the chief and another; a problem before a note."""

    def judge_all(facts: dict[str, Any]) -> str:
        chief, *others = facts
        found = [judge(chief, facts[chief], other, facts[other]) for other in others]
        return next(
            (one for one in found if one and not one.startswith(NOTE)),
            next((one for one in found if one), ""),
        )

    return judge_all


def same_everywhere(strategy: tf.distribute.Strategy, name: str, value: str) -> bool:
    """Says whether all tasks give the same text; True where there is nobody to compare with."""
    facts = {"call": name, "value": value}

    def judge(first: str, ours: Any, second: str, theirs: Any) -> str:
        return "" if ours == theirs else f"{NOTE}{first} and {second} differ"

    return not exchange(strategy, name, facts, pairwise(judge))


def of_all(strategy: tf.distribute.Strategy, what: str, value: Any) -> list[Any]:
    """Returns what all tasks give, the chief's first: numbers, or other plain data.

    Raises:
        AgreementError: On every task, when another has called something else, or has ended.
    """

    def judge(facts: dict[str, Any]) -> str:
        chief, *others = facts
        for other in others:
            if facts[other]["call"] != what:
                return differences.between(chief, facts[chief], other, facts[other])
        return NOTE + json.dumps([fact["value"] for fact in facts.values()])

    values = exchange(strategy, what, {"call": what, "value": value}, judge)
    return json.loads(values) if values else [value]


def first_problem(strategy: tf.distribute.Strategy, call: str, option: str, problem: str) -> str:
    """Gives all tasks the first problem that one of them has: "worker:1: the problem", or "".

    Args:
        strategy: The strategy.
        call: "fit", "evaluate", ...: what the tasks have called, for those who wait.
        option: What they are about to use, in words: compared as well.
        problem: This task's, or "".

    Raises:
        AgreementError: On every task, when they are about to do different things.
    """

    def judge(first: str, ours: Any, second: str, theirs: Any) -> str:
        if ours["call"] != theirs["call"]:
            return differences.between(first, ours, second, theirs)
        for who, facts in ((first, ours), (second, theirs)):
            if facts["problem"]:
                return f"{NOTE}{who}: {facts['problem']}"
        return ""

    call = f"{call} with {option}"
    return exchange(strategy, call, {"call": call, "problem": problem}, pairwise(judge))


def from_chief(strategy: tf.distribute.Strategy, text: str) -> str:
    """Gives the chief's text to all tasks; the others wait for it.

    Args:
        strategy: The strategy.
        text: What the chief has to say; of the others it does not matter.
    """
    global _told
    tasks = members(strategy)
    if tasks is None:
        return text
    _told += 1
    key = f"tfdp/chief/{_told}"
    if is_chief(strategy):
        coordination.share_text(key, text)
        return text
    while (found := coordination.shared_text(key, _REPORT_SECONDS)) is None:
        _log.info("waiting for the chief to read its checkpoint")
    return found


def wait(key: str, names: list[str], call: str, explain: Callable[[], str] | None = None) -> str:
    """Returns what is written under a key, as soon as it is there."""
    begin = time.monotonic()
    report_at = begin + _REPORT_SECONDS
    while True:
        try:
            text = coordination.shared_text(key, _POLL_SECONDS)
            if text is not None:
                return text
            # A task that does not come may be stuck while it makes another model.
            is_late = time.monotonic() - begin > STUCK_SECONDS
            problem = explain() if explain is not None and is_late else ""
            ended = [
                n for n in names if coordination.shared_text(f"{_ENDED}/{n}", 0.01) is not None
            ]
            if ended and coordination.shared_text(key, 0.01) is None:
                problem = problem or (
                    f"{', '.join(ended)} has ended and does not call {call} any more. Every task "
                    "has to call it: fit, evaluate and predict are work of all of them."
                )
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


@functools.cache
def _tell_when_ended(me: str) -> None:
    """Lets the others know when this process ends, so that nobody waits for it."""

    def tell() -> None:
        with contextlib.suppress(tf.errors.OpError):
            coordination.share_text(f"{_ENDED}/{me}", "ended", replace=True)

    def at_exit() -> None:
        # Aside, as nothing answers where the task that holds the store is gone.
        farewell = threading.Thread(target=tell, daemon=True)
        farewell.start()
        farewell.join(_FAREWELL_SECONDS)

    atexit.register(at_exit)
