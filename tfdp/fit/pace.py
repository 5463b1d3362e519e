"""How fast an epoch was trained, and how much of that its steps waited for their batches.

    watch = Stopwatch(loop.clock)
    watch.after_steps(16)               # after each execution
    pace = watch.pace(feed.split)
    tell(callbacks, epoch, pace)

It stands in the printed line of an epoch and in TensorBoard. The logs that callbacks get, and the
History, hold what they hold on one device: who wants it there gives fit a callback that has
`tfdp_pace(epoch, pace)`, as `tfdp.callbacks.Throughput` does.
"""

import dataclasses
import logging
import time
from typing import Any

import keras

from tfdp.compat import tensorboard

_log = logging.getLogger("tfdp")

# TensorFlow's profiler calls a training "highly input-bound" above that share.
HIGHLY_INPUT_BOUND = 0.2
# Shorter ones say little.
_LEAST_SECONDS = 1.0


@dataclasses.dataclass(frozen=True)
class Pace:
    """What one epoch of training took, without its first execution where that has traced.

    Attributes:
        seconds: Of its steps, from the first to the last.
        waited_seconds: Of these, how long this process waited for batches; None: not known, with
            deterministic operations.
        steps: Their number.
        examples: Rows that all replicas have trained on.
        replicas: The number of replicas.
    """

    seconds: float
    waited_seconds: float | None
    steps: int
    examples: float
    replicas: int

    @property
    def data_wait(self) -> float | None:
        """The share of the time that steps wait for their batches, 0 to 1; None: not known."""
        if self.waited_seconds is None:
            return None
        return min(1.0, self.waited_seconds / self.seconds)

    @property
    def examples_per_second(self) -> float:
        """Rows per second, of all replicas."""
        return self.examples / self.seconds

    def scalars(self) -> dict[str, float]:
        """Return what is shown of it, by name."""
        waits = {} if self.data_wait is None else {"data_wait": self.data_wait}
        return {**waits, "examples/s": self.examples_per_second}


class Stopwatch:
    """Times the training steps of one epoch.

    Args:
        clock: Of the loop that runs them: see replicas.loop.Clock.
        traces: Whether the first execution traces, and is left out if others follow.
    """

    def __init__(self, clock: Any, traces: bool):
        self._clock, self._traces = clock, traces
        self._steps = 0
        clock.take()
        self._begin = time.perf_counter()

    def after_steps(self, steps: int) -> None:
        """Count steps of one execution."""
        if self._traces:
            self._traces = False
            self._first = (steps, self._read(), *self._clock.take())
            self._steps, self._begin = 0, time.perf_counter()
        else:
            self._steps += steps

    def _read(self) -> float:
        return time.perf_counter() - self._begin

    def pace(self, split: Any, share: float) -> Pace | None:
        """Return the pace; None without a step.

        Args:
            split: Of the feed.
            share: This process's replicas among all: they read so many of the rows where each
                process reads for itself, as if all read equally much.
        """
        steps, seconds = self._steps, self._read()
        waited, rows = self._clock.take()
        if not steps and hasattr(self, "_first"):
            steps, seconds, waited, rows = self._first
        if not steps or seconds <= 0:
            return None
        examples = rows if split.by_rows else rows / share
        return Pace(seconds, waited, steps, examples, split.replicas)


class Progress(keras.callbacks.ProgbarLogger):
    """Keras's line of an epoch, with its pace."""

    pace: Pace | None = None

    def tfdp_pace(self, epoch: int, pace: Pace) -> None:
        """Keep what the line is to show."""
        del epoch
        self.pace = pace

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Print the line."""
        shown = self.pace.scalars() if self.pace else {}
        super().on_epoch_end(epoch, {**(logs or {}), **shown})


def tell(callbacks: keras.callbacks.CallbackList, epoch: int, pace: Pace) -> None:
    """Give the pace of an epoch to the callbacks that show it, before they hear of its end."""
    for callback in callbacks.callbacks:
        if isinstance(callback, keras.callbacks.TensorBoard):
            # In the names of tags a slash makes a group.
            values = {n.replace("/s", "_per_second"): v for n, v in pace.scalars().items()}
            tensorboard.write_epoch(callback, epoch, values)
        elif hasattr(callback, "tfdp_pace"):
            callback.tfdp_pace(epoch, pace)


class Hint:
    """Says once that a training waits for its input."""

    def __init__(self) -> None:
        self._is_due = True

    def __call__(self, epoch: int, pace: Pace) -> None:
        """Look at an epoch."""
        share = pace.data_wait
        if share is None or share <= HIGHLY_INPUT_BOUND or pace.seconds < _LEAST_SECONDS:
            return
        if self._is_due:
            self._is_due = False
            _log.warning(
                "In epoch %d the steps waited %.0f%% of their time for batches: the training is "
                "highly input-bound. `tfdp launch --bench -- SCRIPT.py`, or tfdp.callbacks.Bench() "
                "in the script, names the slowest stage of the input and what to do.",
                epoch + 1,
                100 * share,
            )
