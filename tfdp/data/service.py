"""The training batches of one pipeline, decoded by workers of tf.data service.

    dataset = training(source, config.data, context)        # endless

A dispatcher and workers of tf.data service (tensorflow.org/api_docs, tf.data.experimental.service)
run beside the tasks that train: `tfdp launch --data_workers=N` starts them, and tells the tasks
where in TFDP_DATA_SERVICE. Each pipeline hands its own files to them:

    parallel_epochs     every data worker reads all of them, each time in another order; an epoch is
                        as many batches as the records give, and may have a record twice
    distributed_epoch   the data workers share them out file by file: each record at most once an
                        epoch; what a data worker that dies had at hand is lost for that epoch

Batches come in the order in which they are ready. So there is no order that a seed decides, none
that is the same for any number of workers, and no place at which a killed run could go on.
"""

import os

import tensorflow as tf

from tfdp import config as config_lib
from tfdp.data import images, pipeline
from tfdp.data import source as source_lib
from tfdp.error import Error
from tfdp.launch.data_workers import VARIABLE

_ONE = tf.distribute.InputContext()


def training(
    source: source_lib.Source,
    data: config_lib.Data,
    context: tf.distribute.InputContext = _ONE,
) -> tf.data.Dataset:
    """Return batches (x, y) without end.

    Raises:
        Error: There is no service, or it cannot read these records for such a pipeline.
    """
    address = os.environ.get(VARIABLE, "")
    if not address:
        raise Error(
            f"config.data.service={data.service!r}, and {VARIABLE} names no service. Start with "
            f"--data_workers=2, or set {VARIABLE}=grpc://HOST:PORT."
        )
    records = source.train
    plan = pipeline.plan_training(source, data, context.num_input_pipelines)
    share = plan.shares[context.input_pipeline_id]
    if records.by_index:
        raise Error(
            f"config.data.service={data.service!r}: these records are read by Python code "
            "(ArrayRecord, arrays), which other processes do not have. Use TFRecord or CSV files "
            "(tfdp reshard --format=tfrecord), or leave the service off."
        )
    if len(plan.shares) > 1 and plan.how != "files":
        raise Error(
            f"config.data.service={data.service!r} hands each worker's files to the service, and "
            f"{len(plan.shares)} workers would share {len(records.files)} "
            f"file{'s'[: len(records.files) != 1]}. Make more files (tfdp reshard), or leave the "
            "service off."
        )
    everything = data.service == "parallel_epochs"
    policy = tf.data.experimental.service.ShardingPolicy
    dataset = _records(source, data, share.files)
    dataset = dataset.batch(share.batch, num_parallel_calls=tf.data.AUTOTUNE)
    dataset = dataset.apply(
        tf.data.experimental.service.distribute(
            policy.OFF if everything else policy.DYNAMIC, address
        )
    )
    # Those of the ends are joined to batches of the size that was asked for.
    dataset = dataset.repeat().rebatch(share.batch, drop_remainder=True)
    # tf.distribute asks an endless dataset for no sign of its end, which would be a collective.
    endless = tf.data.experimental.assert_cardinality(tf.data.INFINITE_CARDINALITY)
    return dataset.apply(endless).prefetch(tf.data.AUTOTUNE)


def _records(
    source: source_lib.Source, data: config_lib.Data, files: tuple[int, ...]
) -> tf.data.Dataset:
    """Return the records of some files, decoded, in any order. No Python code is left in it."""
    records = source.train
    listed = tf.data.Dataset.from_tensor_slices(tf.constant(files, tf.int64))
    numbers = pipeline.shuffled(listed, max(1, len(files)))
    dataset = numbers.interleave(
        records.reader.open,
        cycle_length=pipeline.FILES_AT_ONCE,
        block_length=pipeline.BLOCK,
        num_parallel_calls=tf.data.AUTOTUNE,
        deterministic=False,
    )
    if data.shuffle != "none" and data.shuffle_buffer:
        dataset = pipeline.shuffled(dataset, data.shuffle_buffer)
    if records.decodes_batches:
        dataset = dataset.batch(data.global_batch_size)

    def decode(ids: tf.Tensor, raw: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        x, y = records.decode(raw)
        if data.augment != "none":
            seed = tf.random.uniform((), maxval=tf.int64.max, dtype=tf.int64)
            size = images.size_of(data.image_size)
            x = images.augment(x, data.augment, tf.stack([seed, ids]), size)
        return x, y

    dataset = dataset.map(decode, num_parallel_calls=tf.data.AUTOTUNE, deterministic=False)
    return dataset.unbatch() if records.decodes_batches else dataset
