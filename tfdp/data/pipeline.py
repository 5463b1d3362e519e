"""From records to batches: list -> shard -> interleave -> shuffle -> decode -> batch -> prefetch.

    plan = plan_training(source, config.data, pipelines=2)
    dataset = training(source, config.data, seed=0, context=context, epochs=20)
    dataset = training(source, config.data, seed=0, context=context, start=(3, 120))
    dataset = evaluation(source, config.data, context)  # in order, every record once

A pipeline is a function of tf.distribute.InputContext alone. What comes is decided by the seed and
the number of the epoch, never by timing: a dataset that starts at step k of epoch e goes on with
what an unbroken one would have given. A source that is read by index starts there at once; one that
is read from front to back reads up to there, without decoding.
"""

import dataclasses
import functools
from typing import Any

import numpy as np
import tensorflow as tf

from tfdp import config as config_lib
from tfdp.data import images, ledger, sharding
from tfdp.data import records as records_lib
from tfdp.data import source as source_lib
from tfdp.data.errors import DataError

# Files that a shuffled pipeline reads at a time, and records from one before the next.
FILES_AT_ONCE = 16
BLOCK = 4
# More than there are pipelines or epochs, so that no two of them share a seed.
_MANY = 1 << 20
_ONE = tf.distribute.InputContext()


@dataclasses.dataclass(frozen=True)
class _Pipeline:
    """One pipeline: what is read, by which plan, in which order."""

    records: records_lib.Records
    plan: sharding.Plan
    number: int
    shuffle: str
    buffer: int
    seed: int
    augment: str
    size: tuple[int, int] | None = None  # of augmented images

    @property
    def share(self) -> sharding.Share:
        return self.plan.shares[self.number]


def plan_training(
    source: source_lib.Source, data: config_lib.Data, pipelines: int
) -> sharding.Plan:
    """Return who reads what of the training records.

    Raises:
        Error: If somebody would starve, with what to do.
    """
    return sharding.make(
        source.train.files,
        pipelines,
        data.global_batch_size,
        policy=data.policy if data.policy == "auto" else data.policy.upper(),
        order=data.order,
        ragged=data.ragged,
        by_index=source.train.by_index,
    )


def plan_evaluation(
    source: source_lib.Source, data: config_lib.Data, pipelines: int
) -> sharding.Plan:
    """Return who reads what of the test records: each of them once."""
    policy = "auto" if source.test.by_index or data.policy == "auto" else data.policy.upper()
    return sharding.make(
        source.test.files,
        pipelines,
        data.global_batch_size,
        # A test set may have fewer files than the training set, for which the policy was chosen.
        policy="auto" if policy == "FILE" else policy,
        by_index=source.test.by_index,
        may_idle=True,
    )


def training(
    source: source_lib.Source,
    data: config_lib.Data,
    seed: int,
    context: tf.distribute.InputContext = _ONE,
    epochs: int | None = 1,
    start: tuple[int, int] = (0, 0),
) -> tf.data.Dataset:
    """Return the training batches (x, y) of one pipeline, epoch after epoch.

    Args:
        source: The records.
        data: How they are read.
        seed: Of the order and the augmentation.
        context: Which of how many pipelines.
        epochs: The number behind the last epoch; None goes on for ever. Where the records are not
            counted, None gives one epoch each time it is iterated over, in an order of its own.
        start: (epoch, step) of the first batch.
    """
    plan = plan_training(source, data, context.num_input_pipelines)
    shuffle = data.shuffle
    if shuffle == "auto":
        shuffle = "full" if source.train.by_index else "buffer"
        if not data.shuffle_buffer:
            shuffle = "none"
    pipeline = _Pipeline(
        source.train,
        plan,
        context.input_pipeline_id,
        shuffle,
        data.shuffle_buffer,
        seed,
        data.augment,
        images.size_of(data.image_size),
    )
    if plan.steps is None and epochs is None:
        numbers = tf.data.Dataset.random(seed=seed, rerandomize_each_iteration=True).take(1)
    else:
        stop = tf.int64.max if epochs is None else epochs
        numbers = tf.data.Dataset.range(start[0], stop)
    dataset = numbers.flat_map(functools.partial(_epoch, pipeline, start))
    if data.ledger:
        path = f"{data.ledger}-{context.input_pipeline_id}"
        dataset = dataset.map(ledger.writer(path, source.train.name_of))
    else:
        dataset = dataset.map(lambda epoch, ids, x, y: (x, y))
    count = None
    if plan.steps is not None and epochs is not None:
        count = max(0, (epochs - start[0]) * plan.steps - start[1])
    elif plan.steps is not None:
        # tf.distribute asks an endless dataset for no sign of its end, which would be a collective.
        count = tf.data.INFINITE_CARDINALITY
    return _finished(dataset, context, count)


def evaluation(
    source: source_lib.Source,
    data: config_lib.Data,
    context: tf.distribute.InputContext = _ONE,
) -> tf.data.Dataset:
    """Return the test batches (x, y) of one pipeline, in order."""
    plan = plan_evaluation(source, data, context.num_input_pipelines)
    pipeline = _Pipeline(source.test, plan, context.input_pipeline_id, "none", 0, 0, "none")
    dataset = _epoch(pipeline, (0, 0), tf.constant(0, tf.int64))
    dataset = dataset.map(lambda epoch, ids, x, y: (x, y))
    return _finished(dataset, context, plan.steps)


def _finished(
    dataset: tf.data.Dataset, context: tf.distribute.InputContext, batches: int | None
) -> tf.data.Dataset:
    """Divide a worker's batches among its replicas, tell how many there are, and fetch ahead."""
    replicas = max(1, context.num_replicas_in_sync // context.num_input_pipelines)
    if replicas > 1:

        def parts(x: Any, y: Any) -> tf.data.Dataset:
            rows = tf.shape(tf.nest.flatten(x)[0], tf.int64)[0]

            def part(replica: Any) -> Any:
                begin, end = sharding.slice_of(rows, replica, replicas)
                return tf.nest.map_structure(lambda leaf: leaf[begin:end], (x, y))

            return tf.data.Dataset.range(replicas).map(part)

        dataset = dataset.flat_map(parts)
    if batches is not None:
        count = batches * replicas if batches >= 0 else batches
        dataset = dataset.apply(tf.data.experimental.assert_cardinality(count))
    return dataset.prefetch(tf.data.AUTOTUNE)


# No function in here branches on a tensor: converting them would take as long as the rest of a
# seek.
@tf.autograph.experimental.do_not_convert
def _epoch(pipeline: _Pipeline, start: tuple[int, int], number: Any) -> tf.data.Dataset:
    """Return the batches (epoch, ids, x, y) of an epoch, from the start on."""
    records, plan = pipeline.records, pipeline.plan
    skipped = tf.where(tf.equal(number, start[0]), tf.constant(start[1], tf.int64), 0)
    skip = skipped if start[1] else 0
    if records.by_index:
        raw = _by_index(pipeline, number, skip)
        if not records.decodes_batches:
            raw = raw.unbatch()
    else:
        raw = _from_front(pipeline, number, skip)
        if records.decodes_batches and plan.policy == "DATA":
            raw = raw.batch(pipeline.share.batch)  # for the decoder alone: all records
        elif records.decodes_batches:
            raw = _batch(raw, pipeline)
    # The order of each epoch is another, and so is what augmentation makes of a record.
    base = tf.constant(pipeline.seed, tf.int64) * _MANY + number

    def decode(ids: Any, raw: Any) -> tuple[Any, Any, Any]:
        x, y = records.decode(raw)
        if pipeline.augment != "none":
            x = images.augment(x, pipeline.augment, tf.stack([base, ids]), pipeline.size)
        return ids, x, y

    decoded = raw.map(decode, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    batches = decoded if records.decodes_batches else None
    if plan.policy == "DATA":
        if batches is not None:
            decoded = batches.unbatch()
        decoded = decoded.shard(len(plan.shares), pipeline.number)
        decoded, batches = decoded.skip(skip * pipeline.share.batch), None
    if batches is None:
        batches = _batch(decoded, pipeline)
    if plan.steps is not None:
        batches = _equal(batches, pipeline, skip)
    return batches.map(lambda ids, x, y: (number, ids, x, y))


def _from_front(pipeline: _Pipeline, number: Any, skip: Any) -> tf.data.Dataset:
    """Return (id, raw record) of a source that is read from front to back."""
    records, plan = pipeline.records, pipeline.plan

    def open_file(at: Any) -> tf.data.Dataset:
        return records.reader.open(_unchanged(records, at))

    dataset = _files(pipeline, number).interleave(
        open_file,
        cycle_length=FILES_AT_ONCE if pipeline.shuffle != "none" else 1,
        block_length=BLOCK,
        num_parallel_calls=tf.data.AUTOTUNE,
        deterministic=True,
    )
    pipelines = len(plan.shares)
    if plan.how == "records" and plan.policy == "HINT":
        # Right behind the reader: what is left out is never decoded.
        dataset = dataset.shard(pipelines, pipeline.number)
    dataset = _shuffled(dataset, pipeline, number)
    if plan.how == "slices" and pipelines > 1:
        dataset = _own_slices(dataset, pipeline)
    return dataset if plan.policy == "DATA" else dataset.skip(skip * pipeline.share.batch)


def _by_index(pipeline: _Pipeline, number: Any, skip: Any) -> tf.data.Dataset:
    """Return batches of (ids, raw records) of a source that is read by index."""
    records, plan = pipeline.records, pipeline.plan
    total, rows = records.count, plan.global_batch_size
    assert total is not None
    assert plan.steps is not None

    seed = tf.stack([tf.constant(pipeline.seed, tf.int64), number])

    def places(step: Any) -> Any:
        begin = step * rows
        low, high = sharding.slice_of(
            tf.minimum(tf.constant(rows, tf.int64), total - begin),
            pipeline.number,
            len(plan.shares),
        )
        own = tf.range(begin + low, begin + high)
        if pipeline.shuffle == "full":
            # A permutation that is computed, not kept: no memory, whatever the number of records.
            # It takes no empty vector.
            own = tf.cond(
                tf.size(own) > 0,
                lambda: tf.random.experimental.index_shuffle(
                    own, seed, tf.constant(total - 1, tf.int64)
                ),
                lambda: own,
            )
        return own

    if pipeline.shuffle == "buffer":
        begins = tf.constant(records.begins)
        counts = tf.constant([file.records or 0 for file in records.files], tf.int64)
        dataset = _files(pipeline, number).interleave(
            lambda at: tf.data.Dataset.range(begins[at], begins[at] + counts[at]),
            cycle_length=FILES_AT_ONCE,
            block_length=BLOCK,
        )
        dataset = _shuffled(dataset.map(lambda place: (place, place)), pipeline, number)
        if len(plan.shares) > 1:
            dataset = _own_slices(dataset, pipeline)
        dataset = dataset.skip(skip * pipeline.share.batch).map(lambda place, _: place)
        dataset = dataset.batch(pipeline.share.batch)
    else:
        dataset = tf.data.Dataset.range(skip, plan.steps).map(places)
    return dataset.map(
        functools.partial(_read, records), num_parallel_calls=tf.data.AUTOTUNE, deterministic=True
    )


def _read(records: records_lib.Records, places: Any) -> tuple[Any, Any]:
    """Return ids and raw records of a batch of places, in a graph."""
    specs = tf.nest.flatten(records.reader.spec)

    def read(places: np.ndarray) -> list[Any]:
        try:
            found = records.reader.read(places)
        except DataError as error:
            raise records.failed(error) from error
        return [records.ids(places), *tf.nest.flatten(found)]

    ids, *leaves = tf.numpy_function(read, [places], [tf.int64, *(spec.dtype for spec in specs)])
    ids.set_shape((None,))
    for leaf, spec in zip(leaves, specs, strict=True):
        leaf.set_shape((None, *spec.shape))
    return ids, tf.nest.pack_sequence_as(records.reader.spec, leaves)


def _unchanged(records: records_lib.Records, at: Any) -> Any:
    """Return the number of a file, after it was seen that it is what it was."""
    if not records.unchanging:
        return at

    def check(at: np.int64) -> np.int64:
        records.check_unchanged(int(at))
        return at

    checked = tf.numpy_function(check, [at], tf.int64)
    checked.set_shape(())
    return checked


def _files(pipeline: _Pipeline, number: Any) -> tf.data.Dataset:
    """Return the numbers of the files in the order of an epoch."""
    files = tf.constant(pipeline.share.files, tf.int64)
    if pipeline.shuffle != "none":
        files = tf.random.experimental.stateless_shuffle(files, [pipeline.seed, number])
    return tf.data.Dataset.from_tensor_slices(files)


def _shuffled(dataset: tf.data.Dataset, pipeline: _Pipeline, number: Any) -> tf.data.Dataset:
    if pipeline.shuffle != "buffer" or not pipeline.buffer:
        return dataset
    # Where all pipelines see the same sequence they have to shuffle it alike.
    alike = pipeline.plan.how == "slices" or pipeline.plan.policy == "DATA"
    key = 0 if alike else 1 + pipeline.number
    count = pipeline.records.count
    size = pipeline.buffer if count is None else max(1, min(pipeline.buffer, count))
    # Two zeros would ask for any order.
    return shuffled(dataset, size, pipeline.seed + 1, number * _MANY + key)


def shuffled(dataset: tf.data.Dataset, size: int, seed: int = 0, seed2: Any = 0) -> tf.data.Dataset:
    """Return the records shuffled; without seeds anew in each process and each time.

    By the operation under Dataset.shuffle, which would mix in the global seed of TensorFlow, write
    the seed of this task into a graph that others run, and takes no seed that is known in the graph
    alone.
    """
    spec = dataset.element_spec
    leaves = tf.nest.flatten(spec)
    variant = tf.raw_ops.ShuffleDataset(
        input_dataset=tf.data.experimental.to_variant(dataset),
        buffer_size=size,
        seed=seed,
        seed2=seed2,
        output_types=[leaf.dtype for leaf in leaves],
        output_shapes=[leaf.shape for leaf in leaves],
        reshuffle_each_iteration=not seed,
    )
    return tf.data.experimental.from_variant(variant, spec)


def _own_slices(dataset: tf.data.Dataset, pipeline: _Pipeline) -> tf.data.Dataset:
    """Keep a pipeline's rows of each global batch of a sequence of records."""
    total, rows = pipeline.plan.records, pipeline.plan.global_batch_size
    assert total is not None

    def is_own(place: Any, *record: Any) -> Any:
        begin = place // rows * rows
        low, high = sharding.slice_of(
            tf.minimum(tf.constant(rows, tf.int64), total - begin),
            pipeline.number,
            len(pipeline.plan.shares),
        )
        return tf.logical_and(place - begin >= low, place - begin < high)

    return dataset.enumerate().filter(is_own).map(lambda place, record: record)


def _batch(dataset: tf.data.Dataset, pipeline: _Pipeline) -> tf.data.Dataset:
    return dataset.batch(
        pipeline.share.batch,
        drop_remainder=pipeline.plan.ragged == "drop",
        num_parallel_calls=tf.data.AUTOTUNE,
        deterministic=True,
    )


def _equal(batches: tf.data.Dataset, pipeline: _Pipeline, skip: Any) -> tf.data.Dataset:
    """Give a pipeline the plan's number of batches: drop what is more, add batches of no row."""
    steps, share = pipeline.plan.steps, pipeline.share
    assert steps is not None
    batches = batches.take(steps - skip)
    if not share.empty or pipeline.plan.ragged == "drop":
        return batches
    nothing = tf.nest.map_structure(
        lambda spec: tf.zeros([size or 0 for size in (0, *spec.shape[1:])], spec.dtype),
        batches.element_spec,
    )
    empty = tf.data.Dataset.from_tensors(nothing).repeat()
    return batches.concatenate(empty).take(steps - skip)
