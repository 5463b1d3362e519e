"""Do all tasks make the same model? Compared when making a variable gets stuck or fails.

    watch(strategy)                          # before variables are made

Under MultiWorkerMirroredStrategy each new variable is sent by the chief to all: models that differ
end in an error that names neither, or in a wait without end.
"""

import json
import threading
import time

import tensorflow as tf

from tfdp.compat import coordination
from tfdp.fit.replicas import differences
from tfdp.fit.replicas.exchange import STUCK_SECONDS, AgreementError, explanations, members

# How long the others have to tell about their model once this one is stuck.
_EXPLAIN_SECONDS = 8.0
_PROBLEM = "tfdp/problem"


def watch(strategy: tf.distribute.Strategy) -> None:
    """Compares the models that are made under a strategy, when making one gets stuck or fails.

    Costs nothing otherwise.
    """
    tasks = members(strategy)
    if tasks is not None and strategy not in explanations:
        made = _Watch(*tasks)
        explanations[strategy] = made.compare
        coordination.watch_initial_values(strategy, made.begins, made.ends)


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
            problem = differences.between_lists("model", *first, *second)
            if problem:
                coordination.share_text(_PROBLEM, problem, replace=True)
                return problem
        return ""

    def _look(self) -> None:
        while True:
            self._begun.wait()
            since = self._since
            if since is None or time.monotonic() - since < STUCK_SECONDS:
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
