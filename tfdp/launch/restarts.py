"""Whether what has failed is started again, and when. Pure: a launcher asks, and does it.

    budget = Budget(max_restarts=3)
    budget.decide(Failure(Task("worker", 1), code=137, progress=(2, 30)))
    # Decision(restart=True, delay_seconds=1.0, why="restart 1 of 3")

Only a failure without progress since the one before spends the budget: a machine that is taken away
every hour does not end a training of a week, and nor does a task that got SIGTERM and has saved.
The same failure at the same step, three times in a row, is a defect that no restart mends: it ends
the run whatever is left of the budget.
"""

import dataclasses

from tfdp.cluster import Task
from tfdp.launch.progress import Progress, describe

_SAME_FAILURES = 3
# 128 + SIGTERM: what a task ends with that was asked to, and has saved what it had.
_PREEMPTED = 143


@dataclasses.dataclass(frozen=True)
class Failure:
    """The end of a task that should not have ended like that.

    Attributes:
      task: Which.
      code: Its exit code, 128 + the signal for one that was killed.
      progress: How far the run was; None when nothing was reported.
    """

    task: Task
    code: int
    progress: Progress | None = None


@dataclasses.dataclass(frozen=True)
class Decision:
    """What is to be done about a failure.

    Attributes:
      restart: Whether to start again.
      delay_seconds: How long to wait before.
      why: The reason in a few words.
    """

    restart: bool
    delay_seconds: float
    why: str


class Budget:
    """The restarts of one thing: the group of tasks that train together, or a task by itself.

    Args:
      max_restarts: How many failures without progress are followed by a restart.
      first_delay_seconds: The wait before a restart; doubled with each failure without progress.
      longest_delay_seconds: The longest wait.
    """

    def __init__(
        self,
        max_restarts: int,
        *,
        first_delay_seconds: float = 1.0,
        longest_delay_seconds: float = 60.0,
    ) -> None:
        self.restarts = 0
        self._max_restarts = max_restarts
        self._first = first_delay_seconds
        self._longest = longest_delay_seconds
        self._spent = 0
        self._in_a_row = 0  # failures without progress
        self._furthest: Progress | None = None
        self._last: Failure | None = None
        self._same = 0

    def decide(self, failure: Failure) -> Decision:
        """Takes a failure into account. Call it once for each, in their order."""
        progress, furthest = failure.progress, self._furthest
        advanced = progress is not None and (furthest is None or progress > furthest)
        if advanced:
            self._furthest = progress
        self._same = self._same + 1 if failure == self._last else 1
        self._last = failure
        if self._max_restarts <= 0:
            return Decision(False, 0.0, "")
        if self._same >= _SAME_FAILURES:
            where = describe(failure.progress)
            return Decision(False, 0.0, f"the same failure {self._same} times, {where}")
        if failure.code == _PREEMPTED:
            self.restarts += 1
            return Decision(True, self._first, "it was asked to end: the budget is not touched")
        if advanced:
            self._in_a_row = 0
        elif self._spent == self._max_restarts:
            return Decision(False, 0.0, f"no progress, and max_restarts={self._spent} is used up")
        else:
            self._spent += 1
        delay = min(self._longest, self._first * 2.0**self._in_a_row)
        self._in_a_row += 1
        self.restarts += 1
        if advanced:
            return Decision(True, delay, "there was progress: the budget is not touched")
        return Decision(True, delay, f"restart {self._spent} of {self._max_restarts}")

    def start_with_fewer(self, left: int) -> Decision:
        """What is done where a task that was given up can be left out: all have failed afresh.

        Args:
          left: How many workers there are without it.
        """
        self.restarts += 1
        self._spent = self._in_a_row = self._same = 0
        self._last = None
        return Decision(True, self._first, f"with {left} worker{'s'[: left > 1]}")
