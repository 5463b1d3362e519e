"""A function of the user's instead of a source.

    dataset = call(config.data, "train", context)

It gets (config.data, split, tf.distribute.InputContext) and returns a tf.data.Dataset of (x, y)
batches for that pipeline: `context.get_per_replica_batch_size(data.global_batch_size)` rows for
each replica. With config.data.policy="hint" it gets the context of a single pipeline, and returns
batches of the global size with tf.data's hint where the records are to be sharded:
`dataset.shard(tf.data.experimental.SHARD_HINT, tf.data.experimental.SHARD_HINT)`.
"""

import tensorflow as tf

from tfdp import config as config_lib
from tfdp.compat import data_adapters
from tfdp.error import Error


def call(data: config_lib.Data, split: str, context: tf.distribute.InputContext) -> tf.data.Dataset:
    """Return the dataset of a pipeline.

    Raises:
        Error: If the function cannot be imported, takes something else, returns no dataset, or
            none of pairs.
    """
    setting, wanted = "data.function", "(config.data, split, context)"
    function = config_lib.load(setting, data.function)
    config_lib.check_takes(setting, data.function, wanted, function, data, split, context)
    dataset = function(data, split, context)
    if not isinstance(dataset, tf.data.Dataset):
        raise Error(
            f"config.data.function={data.function!r} returned a {type(dataset).__name__}: let it "
            "return a tf.data.Dataset of (x, y) batches."
        )
    spec = dataset.element_spec
    if not isinstance(spec, tuple) or len(spec) not in (2, 3):
        raise Error(
            f"config.data.function={data.function!r} returned a dataset of {spec}: let it hold "
            "(x, y) or (x, y, weight)."
        )
    return dataset


def with_hint(dataset: tf.data.Dataset, name: str) -> tf.data.Dataset:
    """Return a dataset that tf.distribute shards where its hint stands.

    Raises:
        Error: If there is no hint: every worker would read and train on everything.
    """
    if not data_adapters.has_shard_hint(dataset):
        raise Error(
            f"policy 'hint': the dataset of {name!r} has no hint, so that every worker would train "
            "on all of it. Put dataset.shard(tf.data.experimental.SHARD_HINT, "
            "tf.data.experimental.SHARD_HINT) behind its reader."
        )
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.HINT
    return dataset.with_options(options)
