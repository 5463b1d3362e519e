"""What a run feeds to fit: from config.data to datasets, or functions of InputContext.

    inputs = open_inputs(config.data, seed=0, epochs=20, pipelines=2)
    print("\n".join(inputs.plan_lines))
    model.fit(inputs.training, steps_per_epoch=inputs.steps, validation_data=inputs.evaluation)

One pipeline is a dataset of global batches, of which fit gives each replica its rows. Several are a
function: tf.distribute calls it on every worker, with the InputContext of its pipeline. Workers of
parameter servers that read for themselves get whole batches, each another: `apart`.
"""

import dataclasses
import functools
import os
import zlib
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from tfdp import config as config_lib
from tfdp.data import damage, function, pipeline, plan_report, service, source
from tfdp.data import records as records_lib
from tfdp.data.errors import DataError
from tfdp.error import Error


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What fit gets.

    Attributes:
        training: For `x` of fit.
        evaluation: For `validation_data`, and for evaluate.
        steps: Batches of an epoch, None if unknown.
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
    records: tuple[int | None, int | None]
    plan_lines: list[str]
    input_shape: Any
    classes: int
    label_names: tuple[str, ...]
    pixel_max: float
    explained: Callable[[BaseException], DataError | None]


def batches_apart(data: config_lib.Data, workers: int) -> config_lib.Data:
    """Return the settings with which each of several workers gets whole batches; 0 for as it is."""
    if not workers:
        return data
    return dataclasses.replace(data, global_batch_size=data.global_batch_size * workers)


def open_inputs(
    data: config_lib.Data, seed: int, epochs: int, pipelines: int, apart: int = 0
) -> Inputs:
    """Open what a config names, and plan who reads what.

    Args:
        data: The config's part.
        seed: Of the order and the augmentation.
        epochs: Of the run.
        pipelines: One for each worker that trains in sync.
        apart: Workers that each read a shard and batches of their own; a step takes one of these.

    Raises:
        Error: If the data cannot be opened, or a pipeline would starve.
    """
    if data.function:
        return _of_function(data, pipelines, apart)
    opened = source.open_source(data)
    shared = batches_apart(data, apart)
    plan = pipeline.plan_training(opened, shared, apart or pipelines)
    pipeline.plan_evaluation(opened, data, pipelines)  # refuses what could not be evaluated
    # With a ledger the data ends where the run ends: nothing is fetched, and written, beyond.
    last = epochs if data.ledger and plan.steps is not None else None

    def training(
        context: tf.distribute.InputContext, start: tuple[int, int] = (0, 0)
    ) -> tf.data.Dataset:
        return pipeline.training(opened, shared, seed, context, last, start)

    def evaluation(context: tf.distribute.InputContext) -> tf.data.Dataset:
        return pipeline.evaluation(opened, data, context)

    one = tf.distribute.InputContext()
    validation: Any = evaluation if pipelines > 1 else evaluation(one)
    if data.service != "off":
        of_service, lines = _by_service(opened, data, plan.steps, pipelines, apart)
        return _of(opened, of_service, validation, plan.steps, lines)
    if apart:
        _check_apart(opened.train, data)
        # The check is Python code, which other processes do not have.
        opened = dataclasses.replace(
            opened, train=dataclasses.replace(opened.train, unchanging=False)
        )
    functions = pipelines > 1 or bool(apart)
    x: Any = functools.partial(training) if functions else training(one)
    if plan.steps is not None:
        # A run that goes on begins at its step: see fit.call.Data.

        def starting_at(epoch: int, step: int) -> Any:
            # Nobody knows which of the workers that read apart has taken how many steps.
            begin = functools.partial(training, start=(epoch, step // (apart or 1)))
            return begin if functions else begin(one)

        x.tfdp_starting_at = starting_at
    x.tfdp_fingerprint = _made_of(opened.train)
    steps = plan.steps and plan.steps * (apart or 1)
    return _of(opened, x, validation, steps, plan_report.lines(plan, "train"))


def _of(opened: source.Source, x: Any, y: Any, steps: int | None, lines: list[str]) -> Inputs:
    return Inputs(
        x,
        y,
        steps,
        (opened.train.count, opened.test.count),
        lines,
        opened.input_shape,
        opened.classes,
        opened.label_names,
        opened.pixel_max,
        lambda error: damage.explained(error, opened.train, opened.test),
    )


def _by_service(
    opened: source.Source,
    data: config_lib.Data,
    steps: int | None,
    pipelines: int,
    apart: int,
) -> tuple[Any, list[str]]:
    """Return what fit trains on where workers of tf.data service read, and who reads what."""
    if apart or steps is None:
        why = "the servers' workers read for themselves" if apart else "nobody has counted them"
        raise Error(f"config.data.service={data.service!r}: {why}. Leave the service off.")
    training = functools.partial(service.training, opened, data)
    # Made here also where fit makes its own: it refuses before fit begins.
    first = training(tf.distribute.InputContext(pipelines, 0, pipelines))
    each = {
        "parallel_epochs": "every data worker reads all of them, in an order of its own",
        "distributed_epoch": "the data workers share them out, file by file",
    }[data.service]
    line = f"Input train: tf.data service gives batches in any order; {each}."
    lines = [line, "Input train: a run that is killed cannot go on at its record: none is saved."]
    return training if pipelines > 1 else first, lines


def _made_of(records: records_lib.Records) -> dict[str, Any]:
    """Return what a run that goes on compares: see fit.recovery.fingerprint."""
    files = [os.path.basename(file.name) for file in records.files]
    sizes = [size for size, _ in records.states]
    listed = zlib.crc32(repr((files, sizes)).encode())
    return {"records": records.count, "files": len(files), "checksum of the list of files": listed}


def _check_apart(records: records_lib.Records, data: config_lib.Data) -> None:
    """Refuse what other processes cannot read, or not for themselves."""
    reasons = {
        "these records are read by Python code, which is in the chief alone": records.by_index,
        "damaged records are skipped in the chief alone": data.bad_records,
        "the ledger is written by the chief": data.ledger,
        "nobody has counted the records, so an epoch has no end": records.count is None,
    }
    for reason, holds in reasons.items():
        if holds:
            raise Error(
                f"config.servers.reading='shard': {reason}. Let the chief read: "
                "config.servers.reading='coordinator'."
            )


def _of_function(data: config_lib.Data, pipelines: int, apart: int) -> Inputs:
    name = data.function

    def training(context: tf.distribute.InputContext) -> tf.data.Dataset:
        return function.call(data, data.train_split, context)

    def evaluation(context: tf.distribute.InputContext) -> tf.data.Dataset:
        return function.call(data, data.test_split, context)

    one = tf.distribute.InputContext()
    first = training(one)
    x: Any = training
    y: Any = evaluation
    how = f"{name} shards for each of {pipelines} pipelines, nothing is checked"
    if apart:
        y = evaluation(one)
        how = f"{name} shards for each of {apart} workers, nothing is checked"
    elif data.policy == "hint":
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
        (None, None),
        [f"Input train: {how}."],
        shape,
        data.classes,
        (),
        255.0,
        lambda error: None,
    )
