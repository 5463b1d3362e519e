"""A batch that is kept: steps on it need no input.

kept = Kept(strategy, feed, next(feed.iterator))
loop.advance("train", kept, limit=20)
"""

from typing import Any

import keras
import tensorflow as tf

from tfdp.fit import feed as feed_lib
from tfdp.fit import split as split_lib
from tfdp.fit.replicas import replica as replica_lib


class Kept:
    """One element of a feed's iterator, again and again; the part of a feed that a loop uses.

    Args:
        strategy: The strategy.
        feed: The feed, open.
        element: What its iterator gave.

    Attributes:
        is_plain: Whether the element is one batch of this process, not split by tf.distribute.
    """

    def __init__(self, strategy: tf.distribute.Strategy, feed: feed_lib.Feed, element: Any):
        self.split = feed.split
        self._exact = feed.steps_left() is not None
        self.is_plain = isinstance(feed.iterator, tf.data.Iterator)
        if self.is_plain:
            same = _loosened(tf.data.Dataset.from_tensors(element), feed.iterator.element_spec)
            self.iterator = iter(same.repeat())
            return
        parts = replica_lib.local_results(strategy, element)
        first, *rest = [tf.data.Dataset.from_tensors(part) for part in parts]
        for one in rest:
            first = first.concatenate(one)
        made = strategy.distribute_datasets_from_function(lambda _: first.repeat())
        self.iterator = iter(made)

    def steps_left(self) -> int | None:
        """Return what the feed would: many, or None where only the data knows."""
        return 1 << 60 if self._exact else None

    def took(self, steps: int) -> None:
        """Count nothing: there are always more."""
        del steps


def _loosened(dataset: tf.data.Dataset, spec: Any) -> tf.data.Dataset:
    """Return a dataset whose elements are said to have this spec, if they fit it."""
    own, wide = tf.nest.flatten(dataset.element_spec), tf.nest.flatten(spec)
    fits = len(own) == len(wide) and all(
        w.is_compatible_with(o) for o, w in zip(own, wide, strict=True)
    )
    if not fits:  # half a batch of a static size
        return dataset
    variant = tf.data.experimental.to_variant(dataset)
    return tf.data.experimental.from_variant(variant, spec)


def half(element: Any, replicas: int) -> Any:
    """Return the first half of a batch's rows; None if a replica would get none."""
    rows = split_lib.rows(element)
    rows = int(rows)
    if rows // 2 < replicas:
        return None
    return keras.tree.map_structure(lambda leaf: split_lib.cut(leaf, 0, rows // 2), element)
