"""A trial, in the process that trains: a few steps, or a training, that measures itself.

    trial.run(settings, model, inputs.training, inputs.evaluation, records=1437)

Each task writes what it has measured into the folder of the trial. A task that the kernel kills, or
that ends in an allocation that failed, writes nothing: that is the answer.
"""

import dataclasses
import os
import time
from typing import Any

import keras
import tensorflow as tf

from tfdp import cluster as cluster_lib
from tfdp.gradient_noise import GradientNoiseScale
from tfdp.launch import machine
from tfdp.tuning import memory_limit
from tfdp.tuning.record import Room
from tfdp.tuning.settings import NOISE, Trial
from tfdp.tuning.told import Told

# The first steps trace, compile and fill buffers.
_LEAD = 2
# Measurements of the noise that are wanted of one training, and steps from one to the next at most.
_MEASUREMENTS, _MOST_BETWEEN = 200, 8
_LOOKS = 20


def run(
    settings: Trial,
    model: keras.Model,
    training: Any,
    evaluation: Any = None,
    *,
    records: int | None = None,
    steps_per_epoch: int | None = None,
    epochs: int = 1,
    **data: Any,
) -> None:
    """Carry out a trial; every task calls it.

    Args:
        settings: What is asked for.
        model: Compiled.
        training: For `x` of fit: of the global batch that is tried.
        evaluation: For `validation_data`; None for none.
        records: To train on, if somebody has counted them.
        steps_per_epoch: Of the training itself; None if nobody knows.
        epochs: Of the training itself.
        data: More for fit: y and batch_size of arrays.
    """
    found = cluster_lib.from_environment(os.environ)
    task = str(found.task) if found is not None else ""
    replicas = model.distribute_strategy.num_replicas_in_sync
    told = Told(task, replicas, records)
    if settings.kind == NOISE:
        told = _noise(told, settings, model, training, steps_per_epoch, epochs, data)
    else:
        told = _room(told, settings, model, training, evaluation, data)
    told.write_into(settings.folder)


def _room(
    told: Told, settings: Trial, model: Any, training: Any, evaluation: Any, data: dict[str, Any]
) -> Told:
    clock = _Clock()
    limits = memory_limit.limits(settings.tasks)
    steps = max(settings.steps, _LEAD + 1, 2 * int(model.steps_per_execution))
    with memory_limit.Peaks() as peaks:
        model.fit(
            training,
            epochs=1,
            steps_per_epoch=steps,
            validation_data=evaluation,
            validation_steps=1 if evaluation is not None else None,
            callbacks=[clock],
            verbose=0,
            **data,
        )
    rooms = _devices(told.task) or [
        Room(told.task, limit.source, peaks.of(limit.kind), limit.bytes) for limit in limits
    ]
    return dataclasses.replace(
        told, step_seconds=clock.step_seconds, steps=clock.steps, rooms=tuple(rooms)
    )


def _devices(task: str) -> list[Room]:
    """Return what the GPUs of this process have taken; nothing where it trains on CPUs."""
    sizes = machine.gpu_memory_bytes(os.environ)
    rooms = []
    for device in tf.config.list_logical_devices("GPU"):
        name = device.name.removeprefix("/device:")
        index = int(name.rpartition(":")[2])
        peak = tf.config.experimental.get_memory_info(name)["peak"]
        if index < len(sizes):
            # TensorFlow leaves a part to the driver: 2 GiB or a twentieth on large devices.
            limit = sizes[index] - max(2 << 30, sizes[index] // 20)
            rooms.append(Room(task, f"the memory of {name}", peak, limit))
    return rooms


class _Clock(keras.callbacks.Callback):
    """Times the steps after the first ones."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = 0
        self._begin = self._end = 0.0
        self._led = 0

    @property
    def step_seconds(self) -> float:
        timed = self.steps - self._led
        return (self._end - self._begin) / timed if timed > 0 and self._led else 0.0

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.steps = batch + 1
        if not self._led and self.steps >= _LEAD:
            self._led, self._begin = self.steps, time.perf_counter()
        self._end = time.perf_counter()

    def on_test_begin(self, logs: Any = None) -> None:
        self._end = time.perf_counter()  # the metrics were read: a GPU has ended its steps


def _noise(
    told: Told,
    settings: Trial,
    model: Any,
    training: Any,
    steps_per_epoch: int | None,
    epochs: int,
    data: dict[str, Any],
) -> Told:
    planned = (steps_per_epoch or 0) * epochs
    between = max(1, min(_MOST_BETWEEN, planned // _MEASUREMENTS)) if planned else _MOST_BETWEEN
    # All steps count alike: a ratio of means, where a mean of ratios would be far too high.
    noise = GradientNoiseScale(every=between, smoothing=1.0)
    part = max(1, planned // _LOOKS) if planned else 50
    history = model.fit(
        training,
        epochs=-(-planned // part) if planned else 10_000,
        steps_per_epoch=part,
        callbacks=[noise, ends := _Ends(settings.seconds)],
        verbose=0,
        **data,
    )
    return dataclasses.replace(
        told,
        steps=ends.parts * part,
        scale=noise.scale,
        over_time=tuple(history.history.get("gradient_noise_scale", ())),
        planned_steps=planned,
    )


class _Ends(keras.callbacks.Callback):
    """Ends a training after some seconds, not counted from its first steps, which trace."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.parts = 0
        self._seconds, self._begin = seconds, 0.0

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.parts += 1
        self._begin = self._begin or time.perf_counter()
        if time.perf_counter() - self._begin > self._seconds:
            self.model.stop_training = True
