"""What a run feeds to fit: from config.data to datasets, or functions of InputContext.

    inputs = open_inputs(config.data, seed=0, epochs=20, pipelines=2)
    print("\n".join(inputs.plan_lines))
    model.fit(inputs.training, steps_per_epoch=inputs.steps, validation_data=inputs.evaluation)

One pipeline is a dataset of global batches, of which fit gives each replica its rows. Several are a
function: tf.distribute calls it on every worker, with the InputContext of its pipeline.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from tfdp import config as config_lib
from tfdp import shard_report
from tfdp.data import damage, function, pipeline, source
from tfdp.data.errors import DataError


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What fit gets.

    Attributes:
        training: For `x` of fit.
        evaluation: For `validation_data`, and for evaluate.
        steps: Batches of an epoch, None if unknown.
        test_steps: Batches of an evaluation, None if unknown.
        records: Records to train on, and to evaluate on; None if unknown.
        plan_lines: Who reads what.
        input_shape: Shape of one input, or a dict of them.
        classes: Number of labels.
        label_names: Their names; () if nobody knows.
        pixel_max: The largest value of a pixel.
        explained: See damage.explained; takes the error alone.
    """

    training: Any
    evaluation: Any
    steps: int | None
    test_steps: int | None
    records: tuple[int | None, int | None]
    plan_lines: list[str]
    input_shape: Any
    classes: int
    label_names: tuple[str, ...]
    pixel_max: float
    explained: Callable[[BaseException], DataError | None]


def open_inputs(data: config_lib.Data, seed: int, epochs: int, pipelines: int) -> Inputs:
    """Open what a config names, and plan who reads what.

    Args:
        data: The config's part.
        seed: Of the order and the augmentation.
        epochs: Of the run.
        pipelines: One for each worker that trains in sync.

    Raises:
        SourceError: If the data cannot be opened.
        ShardingError: If a pipeline would starve.
    """
    if data.function:
        return _of_function(data, pipelines)
    opened = source.open_source(data)
    plan = pipeline.plan_training(opened, data, pipelines)
    test_plan = pipeline.plan_evaluation(opened, data, pipelines)
    # With a ledger the data ends where the run ends: nothing is fetched, and written, beyond.
    last = epochs if data.ledger and plan.steps is not None else None

    def training(context: tf.distribute.InputContext) -> tf.data.Dataset:
        return pipeline.training(opened, data, seed, context, last)

    def evaluation(context: tf.distribute.InputContext) -> tf.data.Dataset:
        return pipeline.evaluation(opened, data, context)

    several = pipelines > 1
    one = tf.distribute.InputContext()
    return Inputs(
        training if several else training(one),
        evaluation if several else evaluation(one),
        plan.steps,
        test_plan.steps,
        (opened.train.count, opened.test.count),
        shard_report.lines(plan, "train"),
        opened.input_shape,
        opened.classes,
        opened.label_names,
        opened.pixel_max,
        lambda error: damage.explained(error, opened.train, opened.test),
    )


def _of_function(data: config_lib.Data, pipelines: int) -> Inputs:
    made = function.load(data)
    name = data.function

    def training(context: tf.distribute.InputContext) -> tf.data.Dataset:
        return function.call(made, data, data.train_split, context)

    def evaluation(context: tf.distribute.InputContext) -> tf.data.Dataset:
        return function.call(made, data, data.test_split, context)

    one = tf.distribute.InputContext()
    first = training(one)
    x: Any = training
    y: Any = evaluation
    how = f"{name} shards for each of {pipelines} pipelines, nothing is checked"
    if data.policy == "hint":
        x, y = function.with_hint(first, name), function.with_hint(evaluation(one), name)
        how = f"policy HINT: tf.data shards {name} for {pipelines} pipelines where its hint stands"
    elif pipelines == 1:
        x, y = first, evaluation(one)
        how = f"{name} for one pipeline"
    shape = tf.nest.map_structure(lambda spec: tuple(spec.shape[1:]), first.element_spec[0])
    return Inputs(
        x,
        y,
        None,
        None,
        (None, None),
        [f"Input train: {how}."],
        shape,
        data.classes,
        (),
        255.0,
        lambda error: None,
    )
