"""Callbacks that measure: `tfdp.callbacks.Bench` and `tfdp.callbacks.Throughput`."""

import time
from typing import Any

import keras

from tfdp.bench import flops, hardware, model_facts, session
from tfdp.bench.record import Record
from tfdp.bench.settings import CONTINUES, ENDS, Settings
from tfdp.error import Error
from tfdp.fit import Pace, Rehearsal


class Bench(keras.callbacks.Callback):
    """Measures where the time of this fit goes, before it begins; then the fit trains as without.

        model.fit(dataset, epochs=3, callbacks=[tfdp.callbacks.Bench("runs/a")])

    Weights, optimizers, metrics, seeds and the place in the data are as before the bench when the
    training begins. In a cluster every task needs the callback.

    Args:
        folder: Where bench.json, bandwidth.svg and .png and TensorBoard's numbers go; None: the
            report is printed, and nothing is written.
        apply: Whether the best remedy is tried for a few rounds, predicted beside measured. The
            training itself stays as it is.
        goes_on: Whether the fit trains afterwards; otherwise the process ends with the report.
        rounds: How often each of the five runs is measured.
        seconds: Of one timed run, about.

    Attributes:
        record: What was measured; None before fit has begun. See tfdp/bench/record.py.

    Raises:
        Error: For a value that is not allowed; by fit, for data that can be read only once, and on
            parameter servers.
    """

    def __init__(
        self,
        folder: Any = None,
        apply: bool = False,
        goes_on: bool = True,
        rounds: int = 5,
        seconds: float = 0.4,
    ):
        super().__init__()
        where = session.folder_of(str(folder)) if folder is not None else ""
        then = CONTINUES if goes_on else ENDS
        self._session = session.Session(Settings(where, then, apply, rounds, seconds))

    @property
    def record(self) -> Record | None:
        """What was measured."""
        return self._session.record

    def tfdp_before_training(self, rehearsal: Rehearsal) -> None:
        """Measure: fit calls it on every task."""
        self._session.observe(rehearsal)


class Throughput(keras.callbacks.Callback):
    """Adds how fast an epoch was to its logs, under the names of Composer's SpeedMonitor.

        throughput/batches_per_sec, throughput/samples_per_sec        of all replicas
        throughput/device/batches_per_sec, .../samples_per_sec        divided by the replicas
        throughput/flops_per_sec, throughput/device/flops_per_sec     where the layers are known
        throughput/device/mfu                                         where the device's peak is
        time/train, time/val, time/total                              in seconds, since the start
        data_wait                                                     the share of waits for input

    They stand in the History, in a CSVLogger and in TensorBoard if these callbacks come later in
    the list. Nothing is added where fit does not measure it: without a strategy, and on parameter
    servers.

    Args:
        seconds_in: "seconds", "minutes" or "hours": the unit of time/...
    """

    def __init__(self, seconds_in: str = "seconds"):
        super().__init__()
        units = {"seconds": 1.0, "minutes": 60.0, "hours": 3600.0}
        if seconds_in not in units:
            raise Error(f"Throughput(seconds_in={seconds_in!r}): use one of {', '.join(units)}.")
        self._unit = units[seconds_in]
        self._pace: Pace | None = None
        self._train = self._validation = 0.0
        self._began = self._test_began = self._in_epoch = 0.0
        self._flops = 0.0
        self._peak = 0.0

    def tfdp_pace(self, epoch: int, pace: Pace) -> None:
        """Take what fit has measured of an epoch."""
        del epoch
        self._pace = pace

    def on_train_begin(self, logs: Any = None) -> None:
        """Count the operations of the model."""
        self._train = self._validation = 0.0
        self._flops, self._peak = _arithmetic(self.model)

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Start the clock of the epoch."""
        self._began, self._in_epoch = time.perf_counter(), 0.0

    def on_test_begin(self, logs: Any = None) -> None:
        """Start the clock of the validation."""
        self._test_began = time.perf_counter()

    def on_test_end(self, logs: Any = None) -> None:
        """Stop it."""
        if self._began:
            self._in_epoch = time.perf_counter() - self._test_began

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Add the numbers to the logs."""
        whole = time.perf_counter() - self._began
        self._train += whole - self._in_epoch
        self._validation += self._in_epoch
        if logs is None or self._pace is None:
            return
        logs.update(self._numbers(self._pace))
        self._pace = None

    def _numbers(self, pace: Pace) -> dict[str, float]:
        batches = pace.steps / pace.seconds
        numbers = {
            "throughput/batches_per_sec": batches,
            "throughput/samples_per_sec": pace.examples_per_second,
            "throughput/device/batches_per_sec": batches / pace.replicas,
            "throughput/device/samples_per_sec": pace.examples_per_second / pace.replicas,
        }
        if self._flops:
            rate = self._flops * flops.TRAINING * pace.examples_per_second
            numbers["throughput/flops_per_sec"] = rate
            numbers["throughput/device/flops_per_sec"] = rate / pace.replicas
            if self._peak:
                numbers["throughput/device/mfu"] = rate / pace.replicas / self._peak
        numbers |= {
            "time/train": self._train / self._unit,
            "time/val": self._validation / self._unit,
            "time/total": (self._train + self._validation) / self._unit,
        }
        if pace.data_wait is not None:
            numbers["data_wait"] = pace.data_wait
        return numbers


def _arithmetic(model: keras.Model) -> tuple[float, float]:
    """Return the operations of a row's forward pass, and the peak of a device; zeros: unknown."""
    count = model_facts.count_model_flops(model)
    device, _ = model_facts.device()
    peak, _ = hardware.peak_flops_per_second(device, model.dtype_policy.name)
    return count.flops, peak
