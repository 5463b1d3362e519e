"""From records to global batches.

    dataset = training(source, config.data, seed=0)     # (image, label), shuffled anew each epoch
    dataset = evaluation(source, config.data)           # in order, every record once

Every process reads the same global batches, and fit gives each replica its rows.
"""

from typing import Any

import tensorflow as tf
import tensorflow_datasets as tfds

from tfdp import config as config_lib
from tfdp.data import source as source_lib


def training(source: source_lib.Source, data: config_lib.Data, seed: int) -> tf.data.Dataset:
    """Return the training batches of one epoch: each record once, the last batch ragged.

    The order depends on the seed and the epoch alone, so that every process has the same.
    """
    dataset = _records(source, data.train_split)
    if data.shuffle_buffer:
        dataset = dataset.shuffle(data.shuffle_buffer, seed=seed, reshuffle_each_iteration=True)
    return _batches(dataset, data.global_batch_size)


def evaluation(source: source_lib.Source, data: config_lib.Data) -> tf.data.Dataset:
    """Return the test batches, in order."""
    return _batches(_records(source, data.test_split), data.global_batch_size)


def _records(source: source_lib.Source, split: str) -> tf.data.Dataset:
    return source.builder.as_dataset(
        split=split,
        as_supervised=True,
        shuffle_files=False,
        # File after file, in order: the same records in the same order in every process.
        read_config=tfds.ReadConfig(interleave_cycle_length=1, try_autocache=False),
    )


def _batches(dataset: tf.data.Dataset, global_batch_size: int) -> Any:
    return dataset.batch(global_batch_size).prefetch(tf.data.AUTOTUNE)
