"""How long training steps wait for their batches.

element, waited = clock.next(iterator)      # in a graph
clock.add(waited, rows)
seconds, rows = clock.take()                # of all steps since the last call
"""

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from tfdp.compat import distribute


class Clock:
    """How long steps have waited for their batches, and the rows of these, in this process.

    Two time stamps around the take of a batch: what is between them is a wait, for a batch that is
    ready costs some 20 microseconds. The sums stay in a variable until somebody asks. With
    `tf.config.experimental.enable_op_determinism()` TensorFlow allows no time stamps: nobody knows.
    """

    def __init__(self) -> None:
        with distribute.leave_strategy(), tf.device("CPU:0"):
            self._sums = tf.Variable([0.0, 0.0], trainable=False, dtype=tf.float64)

    def take(self) -> tuple[float | None, float]:
        """Return the seconds waited (None: not known) and the rows read since the last call."""
        seconds, rows = self._sums.numpy().tolist()
        self._sums.assign([0.0, 0.0])
        return None if distribute.is_deterministic() else seconds, rows

    @staticmethod
    def now(after: Sequence[Any] = ()) -> tf.Tensor:
        """Return the time, in seconds, when what stands in `after` has ended; in a graph."""
        if distribute.is_deterministic():
            return tf.constant(0.0, tf.float64)
        with tf.control_dependencies(after):
            return tf.timestamp()

    def next(self, iterator: Any) -> tuple[Any, tf.Tensor]:
        """Return the next batch, and the seconds waited for it; in a graph."""
        begin = self.now()
        with tf.control_dependencies([begin]):
            element = iterator.get_next()
        leaves = tf.nest.flatten(element, expand_composites=True)
        return element, self.now([leaf for leaf in leaves if tf.is_tensor(leaf)]) - begin

    def add(self, waited: Any, rows: Any) -> None:
        """Add the wait for a batch, and its rows."""
        parts = [tf.cast(waited, tf.float64), tf.cast(rows, tf.float64)]
        self._sums.assign_add(tf.stack(parts))
