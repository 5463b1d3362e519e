"""Replicas that train by themselves for some steps, and then meet: local SGD and DiLoCo.

    meetings = Meetings(loop, communication)
    meetings.begin(points)                          # of an epoch
    done, ended, met = meetings.advance(feed, limit)
    meetings.finish()                               # of the epoch

Between two meetings nothing is exchanged. At a meeting, with w the weights of the meeting before
and w_r those of replica r, every replica takes

    w + mean of (w_r - w)           without an outer optimizer (Lin et al. 2018)
    outer(w, w - mean of w_r)       with one: the difference is its gradient (Douillard et al. 2023)

Each replica counts alike, whatever rows it had; one that had none since then is left out. The
differences travel, not the weights, so that a compression rounds what is small. What layers keep
(BatchNormalization's statistics) becomes one too, and the optimizers' counters become the largest.
What optimizers keep for each weight (momenta) stays each replica's own until an epoch ends: it
would cost as much again for each, and both papers leave it where it is.
"""

import dataclasses
from typing import Any

import keras
import tensorflow as tf

from tfdp.compat import distribute, keras_optimizers
from tfdp.fit import callbacks as callbacks_lib
from tfdp.fit import feed as feed_lib
from tfdp.fit import optimizers
from tfdp.fit.replicas import apart as apart_lib
from tfdp.fit.replicas import communication as communication_lib
from tfdp.fit.replicas import loop as loop_lib


class Meetings:
    """Runs training steps, and lets the replicas meet every so many.

    Args:
        loop: Runs the steps of the model.
        communication: `sync_every` and what belongs to it; how differences travel.
    """

    def __init__(self, loop: loop_lib.Loop, communication: communication_lib.Communication):
        self._loop, self._steps, self._communication = loop, loop.steps, communication
        steps = self._steps
        self._replicas = steps.replicas
        self._trained = steps.model.trainable_variables
        self._since = 0  # steps of this process since they met
        self._period = 0  # steps from that meeting to the next
        self._is_ready = False  # whether `_starts` hold the weights
        self._points: callbacks_lib.SavePoints
        self._replicas.trains_apart = True
        steps.apart.open()
        self._starts = []
        for local, device in enumerate(self._replicas.devices):
            with distribute.leave_strategy(), tf.device(device):
                copies = [self._replicas.copy(v, local) for v in self._trained]
                self._starts.append([tf.Variable(c, trainable=False) for c in copies])
        if communication.outer is not None:
            self._replicas.outer = _of_its_own(communication.outer, self._trained, steps.strategy)
        self._start = distribute.function(self._take_starts)

    def begin(self, points: callbacks_lib.SavePoints) -> None:
        """Begin an epoch; whoever has changed the weights meanwhile did so on all replicas.

        Args:
            points: Where callbacks save: there they meet.
        """
        self._points, self._is_ready, self._since = points, False, 0

    def advance(self, feed: feed_lib.Feed, limit: int) -> tuple[int, bool, bool]:
        """Take up to `limit` batches, each one step, no further than to the next meeting.

        A worker whose own data has ended goes to the meeting at once: there it learns how many
        steps the others have made.

        Returns:
            How many steps; whether the data of all has ended; and whether the replicas have met to
            go on.
        """
        if (together := self._steps_together()) > 0:
            limit = min(limit, together)
            done = self._loop.advance("train", feed, limit)
            self._is_ready = False
            return done, done < limit, True
        if not self._is_ready:
            self._start()
            self._is_ready = True
        if self._since == 0:
            left = feed.steps_left()
            if left is None and feed.steps_per_epoch is not None:
                left = feed.steps_per_epoch - feed.step
            until = [self._communication.sync_every, left, self._points.left()]
            self._period = min(steps for steps in until if steps is not None)
        limit = min(limit, self._period - self._since)
        done = self._loop.advance(loop_lib.APART, feed, limit)
        self._since += done
        if done == limit and self._since < self._period:
            return done, False, False
        ahead = self._meet() - self._since
        feed.took(ahead)
        made, self._since = self._since + ahead, 0
        ended = made < self._period
        return done + ahead, ended, not ended

    def finish(self) -> None:
        """Make all replicas equal: what optimizers keep for each weight too."""
        if self._since:
            self._meet()
            self._since = 0
        slots, _ = optimizers.kept(self._steps.model)
        if slots:
            self._loop.collective(f"join {len(slots)}", self._join, tf.constant(0))

    def _steps_together(self) -> int:
        """Return how many steps are left that sum the gradients."""
        found = optimizers.of(self._steps.model)
        if not self._communication.sync_after or not found:
            return 0
        count = self._replicas.copy(keras_optimizers.step_count(found[0]), 0)
        return max(0, self._communication.sync_after - int(count.numpy()))

    def _take_starts(self) -> None:
        for local, starts in enumerate(self._starts):
            self._steps.apart.rows[local].assign(0.0)
            for start, variable in zip(starts, self._trained, strict=True):
                start.assign(self._replicas.copy(variable, local))

    def _meet(self) -> int:
        """Make the weights and the layers' state one; return the steps of who made the most."""
        _, numbers = optimizers.kept(self._steps.model)
        name = f"meet {len(numbers)} {self._replicas.moving}"
        return int(self._loop.collective(name, self._on_replica, tf.constant(self._since)))

    # -- on a replica -----------------------------------------------------------------------

    def _on_replica(self, since: tf.Tensor) -> tf.Tensor:
        replicas = self._replicas
        local = replicas.here()
        rows, starts = self._steps.apart.rows[local], self._starts[local]
        copies = [replicas.copy(v, local) for v in self._trained]
        present = rows > 0
        moved = [
            tf.where(present, copy - start, tf.zeros_like(copy))
            for copy, start in zip(copies, starts, strict=True)
        ]
        mine = [*moved, tf.cast(present, tf.float32)]
        layout = communication_lib.Packs(mine, self._communication, exact=[len(moved)])
        *sums, number = layout.unpack(layout.reduce(layout.pack(mine)))
        means = [total / tf.cast(tf.maximum(number, 1.0), total.dtype) for total in sums]
        for copy, start in zip(copies, starts, strict=True):
            copy.assign(start)
        apart_lib.where(number > 0, lambda: self._move(copies, means, local))
        for copy, start in zip(copies, starts, strict=True):
            start.assign(copy)
        rows.assign(0.0)
        _, numbers = optimizers.kept(self._steps.model)
        most = self._agree([replicas.copy(v, local) for v in numbers], since, local)
        if "train" in replicas.moves_in:
            replicas.merge_state()
        return most

    def _move(self, copies: list[tf.Variable], means: list[tf.Tensor], local: int) -> None:
        """Move the weights from where they were to what the replicas have made of them."""
        outer = self._replicas.outer
        if outer is None:
            for copy, mean in zip(copies, means, strict=True):
                copy.assign_add(mean)
            return
        with self._steps.on_copies(outer, local):
            outer.apply([-mean for mean in means], self._trained)

    def _agree(self, numbers: list[tf.Variable], since: tf.Tensor, local: int) -> tf.Tensor:
        """Give numbers of optimizers what fits all; return the largest `since`.

        Counters differ where an update was left out, for want of rows or of finite gradients: all
        take the largest. Of others, such as a loss scale, the smallest.
        """
        replicas = self._replicas
        mine = tf.stack([tf.cast(n, tf.float64) for n in [since, *numbers]])
        slot = tf.one_hot(replicas.first + local, replicas.in_sync, dtype=tf.float64)
        (each,) = communication_lib.all_sum([tf.tensordot(slot, mine, 0)])
        largest, smallest = tf.reduce_max(each, 0), tf.reduce_min(each, 0)
        for place, number in enumerate(numbers, 1):
            one = smallest[place] if number.dtype.is_floating else largest[place]
            number.assign(tf.cast(one, number.dtype))
        return tf.cast(largest[0], tf.int32)

    def _join(self, unused: tf.Tensor) -> tf.Tensor:
        """Give what optimizers keep for each weight the mean over all replicas."""
        replicas = self._replicas
        slots, _ = optimizers.kept(self._steps.model)
        copies = [replicas.copy(v, replicas.here()) for v in slots]
        plain = dataclasses.replace(self._communication, compression=None)
        sums = communication_lib.all_reduce([tf.identity(copy) for copy in copies], plain)
        for copy, total in zip(copies, sums, strict=True):
            copy.assign(tf.cast(total / tf.cast(replicas.in_sync, total.dtype), copy.dtype))
        return unused


def describe(communication: communication_lib.Communication) -> str:
    """Say what replicas give up that train by themselves for some steps."""
    first, outer = communication.sync_after, communication.outer
    return (
        f"sync_every={communication.sync_every}: "
        + (f"after {first:,} steps together " if first else "")
        + f"replicas train by themselves for {communication.sync_every} steps, each with the "
        "gradients of its own rows, and then take the mean of their weights"
        + (f" by {type(outer).__name__}" if outer is not None else "")
        + ". They no longer train what one device trains. What a callback reads between two "
        "meetings is this task's own; saves wait for the next one."
    )


def _of_its_own(
    outer: keras.optimizers.Optimizer, trained: list[Any], strategy: tf.distribute.Strategy
) -> keras.optimizers.Optimizer:
    """Return an optimizer like `outer` for one model: it keeps momenta of its weights."""
    with strategy.scope():
        own = type(outer).from_config(outer.get_config())
        own.build(trained)
    return own
