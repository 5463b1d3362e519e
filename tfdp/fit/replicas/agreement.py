"""Do all tasks train the same? Compared before the first collective, which would hang or break.

    watch(strategy)                          # before variables are made: the models are compared
    check(strategy, "fit", settings)         # at the beginning of fit, evaluate and predict
    check_rows(strategy, "data", 123, 456)   # when the first batches have been read

The tasks exchange text through the store of TensorFlow's coordination service, so that comparing
is itself no collective. The chief (the first task) collects what the others have written, and all
read its verdict: every task raises the same AgreementError, with the setting, both values and both
tasks. Without several processes, or without that service, nothing is compared.
"""

import atexit
import contextlib
import dataclasses
import functools
import hashlib
import json
import logging
import os
import socket
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import keras
import tensorflow as tf

from tfdp.compat import coordination, distribute
from tfdp.error import Error

_log = logging.getLogger("tfdp")

_POLL_SECONDS = 1.0
_REPORT_SECONDS = 10.0
# A variable that takes longer to be made waits for a task that makes another, or none.
_STUCK_SECONDS = 3.0
# How long the others have to tell about their model once this one is stuck.
_EXPLAIN_SECONDS = 8.0
_PROBLEM = "tfdp/problem"
# Begins a verdict that ends nothing.
_NOTE = "note: "
# How long a process that ends tries to tell the others so.
_FAREWELL_SECONDS = 2.0
_ENDED = "tfdp/ended"
_CACHE = "cache(filename)"
_SAVE = "tfdp/save"
# How long the chief may take to come to the place where another task saves already.
_SAVE_SECONDS = 30.0
_OTHER_PLACE_SECONDS = 1.0
_REMEDY = "Every task has to train the same model with the same settings."
_REMEDIES = {
    "shard()": (
        "tfdp gives each worker its rows of batches that all of them read: leave out shard(), or "
        "let the dataset ask for tf.data's auto_shard_policy OFF, with as many batches everywhere."
    ),
    "callbacks": (
        "Give every task the same callbacks: all of them decide alike, and only the chief writes."
    ),
}

_watches: "weakref.WeakKeyDictionary[Any, _Watch]" = weakref.WeakKeyDictionary()
_exchanges = 0
_told = 0  # how often the chief has given a text to all
_saves: dict[str, int] = {}  # how often this task has saved to a path


class AgreementError(Error):
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
    facts = {"call": call, **{name: _plain(value) for name, value in settings.items()}}
    _exchange(strategy, call, facts, _pairwise(_difference))


def check_rows(strategy: tf.distribute.Strategy, of: str, labels: int, inputs: int) -> None:
    """Compares what every worker has read of an input that all of them read whole.

    Args:
        strategy: The strategy.
        of: What the input is called: "data", "validation data".
        labels: A digest of the labels so far (of the inputs, where there are no labels).
        inputs: One of the inputs.

    Raises:
        AgreementError: On every task, when labels differ.
    """
    call = f"rows of {of}"
    facts = {"call": call, "labels": labels, "inputs": inputs}
    note = _exchange(strategy, call, facts, _pairwise(functools.partial(_rows_differ, of)))
    if note:
        _say_once(note)


def same_everywhere(strategy: tf.distribute.Strategy, name: str, value: str) -> bool:
    """Says whether all tasks give the same text; True where there is nobody to compare with."""
    facts = {"call": name, "value": value}

    def judge(first: str, ours: Any, second: str, theirs: Any) -> str:
        return "" if ours == theirs else f"{_NOTE}{first} and {second} differ"

    return not _exchange(strategy, name, facts, _pairwise(judge))


def of_all(strategy: tf.distribute.Strategy, what: str, number: int) -> list[int]:
    """Returns the numbers that all tasks give, the chief's first.

    Raises:
        AgreementError: On every task, when another has called something else, or has ended.
    """

    def judge(facts: dict[str, Any]) -> str:
        chief, *others = facts
        for other in others:
            if facts[other]["call"] != what:
                return _difference(chief, facts[chief], other, facts[other])
        return _NOTE + json.dumps([fact["number"] for fact in facts.values()])

    numbers = _exchange(strategy, what, {"call": what, "number": number}, judge)
    return json.loads(numbers) if numbers else [number]


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
            return _difference(first, ours, second, theirs)
        for who, facts in ((first, ours), (second, theirs)):
            if facts["problem"]:
                return f"{_NOTE}{who}: {facts['problem']}"
        return ""

    call = f"{call} with {option}"
    return _exchange(strategy, call, {"call": call, "problem": problem}, _pairwise(judge))


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


def is_chief(strategy: tf.distribute.Strategy) -> bool:
    """Says whether this task is the first of those that train together."""
    tasks = members(strategy)
    return tasks is None or tasks[0] == tasks[1][0]


@contextlib.contextmanager
def writing(strategy: tf.distribute.Strategy, path: str) -> Iterator[None]:
    """Tells the others, on the chief, that a path is being written, and when it has been."""
    if members(strategy) is None:
        yield
        return
    number = _saves.setdefault(path, 0)
    _saves[path] += 1
    coordination.share_text(f"{_SAVE}/number/{sum(_saves.values())}", path)
    coordination.share_text(_save_key(path, number, "begun"), path)
    try:
        yield
    finally:
        # Also where that fails: then the chief's error tells, and the others wait for no file.
        coordination.share_text(_save_key(path, number, "ended"), path)


def wait_until_written(strategy: tf.distribute.Strategy, path: str) -> bool:
    """Waits, on another task than the chief, until the chief has written a path.

    Returns:
        False if the chief writes elsewhere (it may have ended since), or does not come to write it
        within some seconds.

    Raises:
        AgreementError: If the chief is lost meanwhile.
    """
    tasks = members(strategy)
    if tasks is None:
        return False
    chief = tasks[1][0]
    number = _saves.setdefault(path, 0)
    _saves[path] += 1
    written = None
    try:
        # A chief that has saved as often as this task may have saved elsewhere.
        written = coordination.shared_text(f"{_SAVE}/number/{sum(_saves.values())}", _SAVE_SECONDS)
        begun = written == path or (
            coordination.shared_text(_save_key(path, number, "begun"), _OTHER_PLACE_SECONDS)
            is not None
        )
    except tf.errors.OpError as error:
        if written is not None:
            return False  # it has saved elsewhere, and has ended since
        raise AgreementError(
            f"{chief} ended or was lost before it had saved {path}: {error.message.splitlines()[0]}"
        ) from error
    if begun:
        _wait(_save_key(path, number, "ended"), [chief], f"save({path!r}) to its end", None)
    return begun


def _save_key(path: str, number: int, what: str) -> str:
    return f"{_SAVE}/{hashlib.sha256(path.encode()).hexdigest()}/{number}/{what}"


def _exchange(
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
            problem, a note (which begins with `_NOTE`), or "".

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
    watch = _watches.get(strategy)
    if me == chief:
        written = {chief: facts}
        try:
            for other in others:
                written[other] = json.loads(_wait(f"{prefix}/{other}", [other], call, watch))
            verdict = judge(written)
        except AgreementError as error:
            with contextlib.suppress(tf.errors.OpError):
                coordination.share_text(f"{prefix}/verdict", str(error))
            raise
        coordination.share_text(f"{prefix}/verdict", verdict)
        # All have come here, so that nobody reads the last one any more.
        coordination.forget_text(f"tfdp/check/{_exchanges - 1}")
    else:
        verdict = _wait(f"{prefix}/verdict", [name for name in names if name != me], call, watch)
    if verdict.startswith(_NOTE):
        return verdict.removeprefix(_NOTE)
    if verdict:
        raise AgreementError(verdict)
    return ""


def _pairwise(judge: Callable[[str, Any, str, Any], str]) -> Callable[[dict[str, Any]], str]:
    """Returns a judge of all out of one of two: the chief and another; a problem before a note."""

    def judge_all(facts: dict[str, Any]) -> str:
        chief, *others = facts
        found = [judge(chief, facts[chief], other, facts[other]) for other in others]
        return next(
            (one for one in found if one and not one.startswith(_NOTE)),
            next((one for one in found if one), ""),
        )

    return judge_all


def watch(strategy: tf.distribute.Strategy) -> None:
    """Compares the models that are made under a strategy, when making one gets stuck or fails.

    Under MultiWorkerMirroredStrategy each new variable is sent by the chief to all: models that
    differ end in an error that names neither, or in a wait without end. Costs nothing otherwise.
    """
    tasks = members(strategy)
    if tasks is not None and strategy not in _watches:
        made = _watches[strategy] = _Watch(*tasks)
        coordination.watch_initial_values(strategy, made.begins, made.ends)


def settings(model: Any, strategy: Any, communication: Any, feed: Any) -> dict[str, Any]:
    """Returns what must be the same on every task that trains or tests, by name."""
    variables = [f"{v.path} {v.dtype}[{','.join(map(str, v.shape))}]" for v in model.variables]
    same = {
        "model: number of variables": len(variables),
        "model": variables,
        "optimizer": type(model.optimizer).__name__ if model.compiled else None,
        "steps_per_execution": model.steps_per_execution,
        "run_eagerly": model.run_eagerly,
        "communication": dataclasses.replace(communication, timeout_seconds=None),
        "replicas": strategy.num_replicas_in_sync,
        **data_plan(feed),
    }
    if feed.split.by_rows:  # else each task shuffles its own data as it likes
        same["seed"] = distribute.global_seed()
    return same


def data_plan(feed: Any, of: str = "data") -> dict[str, Any]:
    """Returns what must be the same of a feed.Feed on every task, by name."""
    plan = {f"{of}: split": feed.description, f"{of}: steps of an epoch": feed.steps_per_epoch}
    if feed.split.by_rows:  # else each task reads what it was given
        leaves = [leaf for leaf in tf.nest.flatten(feed.spec) if isinstance(leaf, tf.TensorSpec)]
        plan[f"{of}: global batch size"] = getattr(feed._adapter, "batch_size", None)
        # Before the number of batches, which differs where shards are uneven.
        plan[f"{of}: shard()"] = ", ".join(f"{n}, {i}" for n, i in feed.shards) or "none"
        plan[f"{of}: batches in a pass"] = feed.batches
        plan[f"{of}: elements"] = ", ".join(f"{leaf.dtype.name}{leaf.shape}" for leaf in leaves)
    host = socket.gethostname()
    plan[f"{of}: {_CACHE}"] = [f"{host}:{os.path.abspath(name)}" for name in feed.cache_files]
    return plan


def callbacks_plan(callbacks: Any) -> str:
    """Names the callbacks that every task needs: they change the training, or save inside it.

    Those that only write, and a user's own, may be the chief's alone.
    """
    kinds = (
        keras.callbacks.EarlyStopping,
        keras.callbacks.LearningRateScheduler,
        keras.callbacks.ReduceLROnPlateau,
        keras.callbacks.BackupAndRestore,
        keras.callbacks.SwapEMAWeights,
    )
    names = []
    for callback in callbacks:
        frequency = getattr(callback, "save_freq", None)
        if isinstance(frequency, int):
            names.append(f"a callback with save_freq={frequency}")
        elif isinstance(callback, kinds):
            names.append(type(callback).__name__)
    return ", ".join(names) or "none"


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
                coordination.share_text(
                    f"tfdp/model/{self._me}", json.dumps(self._made), replace=True
                )
        known = coordination.shared_text(_PROBLEM, 0.05)
        if known:
            return known
        chief, *others = self._names
        for other in others if self._me == chief else [chief]:
            text = coordination.shared_text(f"tfdp/model/{other}", 0.05)
            if text is None:
                continue
            mine, theirs = (self._me, list(self._made)), (other, json.loads(text))
            first, second = (mine, theirs) if self._me == chief else (theirs, mine)
            problem = _first_difference("model", *first, *second)
            if problem:
                coordination.share_text(_PROBLEM, problem, replace=True)
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
                coordination.abort_collectives(problem)
                return


def _wait(key: str, names: list[str], call: str, watch: _Watch | None) -> str:
    """Returns what is written under a key, as soon as it is there."""
    begin = time.monotonic()
    report_at = begin + _REPORT_SECONDS
    while True:
        try:
            text = coordination.shared_text(key, _POLL_SECONDS)
            if text is not None:
                return text
            # A task that does not come may be stuck while it makes another model.
            is_late = time.monotonic() - begin > _STUCK_SECONDS
            problem = watch.compare() if watch is not None and is_late else ""
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


@functools.cache
def _say_once(note: str) -> None:
    _log.warning(note)


def _rows_differ(of: str, first: str, ours: Any, second: str, theirs: Any) -> str:
    if ours["labels"] != theirs["labels"]:
        return (
            f"{of}: {second} reads other rows than {first}. Every worker has to read the same "
            "batches in the same order, and trains on its rows of each. Give shuffles a seed "
            "(keras.utils.set_random_seed(1) at the beginning of the script), and leave out what "
            "shards by hand; a dataset that each worker shards for itself asks for tf.data's "
            "auto_shard_policy OFF."
        )
    if ours["inputs"] != theirs["inputs"]:
        return (
            f"{_NOTE}{of}: {second} and {first} read the same labels beside different inputs, as "
            "random augmentation without a seed makes them. Every row is trained once; one device "
            "would draw others."
        )
    return ""


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
        if name.endswith(_CACHE):
            if shared := set(a) & set(b):
                return (
                    f"{name}: {first} and {second} write to one file, {shared.pop()}. Give each "
                    "worker its own, as in cache(f'{path}-{index}'), or cache() in memory."
                )
            continue
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

    remedy = next((text for end, text in _REMEDIES.items() if name.endswith(end)), _REMEDY)
    return f"{name} differs: {first} has {short(a)}, {second} has {short(b)}. {remedy}"
