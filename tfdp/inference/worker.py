"""A worker process: loads the model, then makes one part after the other until none is missing.

    python -m tfdp.inference.worker FD ORDER     (started by the supervisor)

It takes the next part that is not there and that no other process holds. Three threads read, run
and write. When its launcher is gone it finishes the part that is being run, and ends.
"""

import contextlib
import os
import pathlib
import queue
import sys
import threading
import time
from typing import Any

from tfdp.inference import folder as folder_lib
from tfdp.inference import input_files
from tfdp.inference.claims import Claims
from tfdp.inference.failures import InferenceError, JobFailed
from tfdp.inference.part import Part
from tfdp.inference.settings import Order
from tfdp.inference.shards import Span
from tfdp.inference.status import Status

# Batches that wait between two threads.
_WAITING = 4
# While more parts than so many for each worker are missing, the next one is read while one is run.
_PLENTY = 4


def main() -> None:
    """Do the work that the command line describes."""
    status = Status(int(sys.argv[1]))
    order = Order.from_json(sys.argv[2])
    code = 0
    try:
        _Maker(order, status, *_prepare(order)).make()
    except (InferenceError, JobFailed) as error:
        code = 1
        status.update(failure=str(error), mistake=isinstance(error, InferenceError))
        sys.stderr.write(f"{error}\n")
    # Not through TensorFlow's destructors, which can take seconds.
    with contextlib.suppress(OSError):
        sys.stderr.flush()
    os._exit(code)


def _prepare(order: Order) -> tuple[dict[str, Any], Any, Any]:
    """Return the job, the model's function, and what reads the rows for it."""
    from tfdp import run

    run.import_tensorflow()
    settings = order.settings
    _divide_machine(settings.threads)
    from tfdp.inference import model, plan, readers, signature

    loaded, signatures = model.load(settings.model)
    chosen = signature.choose(signatures, order.job["signature"])
    served = model.Served(loaded, chosen, order.job["batch_size"], order.job["jit_compile"])
    served.warm_up()
    split, base = None, input_files.base_of(settings.input)
    if settings.input.startswith(input_files.TFDS_PREFIX):
        from tfdp.inference import tfds_input

        text = settings.input.removeprefix(input_files.TFDS_PREFIX)
        split = tfds_input.open_split(text, settings.data_dir)
        base = split.found.base
    job = plan.agreed(order, signatures, split)
    read = readers.reader(
        job["input"]["kind"],
        chosen.inputs,
        job["columns"],
        base=base,
        names=[name for name, *_ in job["input"]["files"]],
        header=job["header"],
        id_column=job["id"],
        features=split.features if split else None,
    )
    return job, served, read


def _divide_machine(threads: int) -> None:
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(max(1, min(2, threads)))
    for gpu in tf.config.list_physical_devices("GPU"):
        tf.config.experimental.set_memory_growth(gpu, True)


class _Maker:
    """What makes the parts: one thread reads, the main one runs the model, and one writes."""

    def __init__(
        self, order: Order, status: Status, job: dict[str, Any], served: Any, read: Any
    ) -> None:
        self._order = order
        self._status = status
        self._job = job
        self._served = served
        self._read_batches = read
        self._parts = folder_lib.Parts.of(pathlib.Path(order.settings.output), job)
        self._claims = Claims(self._parts, order.settings.timeout_seconds)
        self._read: queue.Queue[Any] = queue.Queue(_WAITING)
        self._run: queue.Queue[Any] = queue.Queue(_WAITING)
        self._failure: list[JobFailed] = []

    def make(self) -> None:
        """Make parts until none is missing, or the launcher is gone.

        Raises:
            JobFailed: If a part cannot be read, run or written.
        """
        for work in (self._read_parts, self._write_parts):
            threading.Thread(target=work, daemon=True).start()
        self._status.update(ready=True)
        while True:
            match self._read.get():
                case ("begin", number):
                    if self._is_alone():
                        return
                    self._begin(number)
                case ("rows", batch):
                    outputs, refused = self._served.run(batch.inputs) if batch.ids else ({}, [])
                    rows = len(batch.ids) + len(batch.errors)
                    self._status.update(rows=self._status.state.rows + rows)
                    self._run.put(("rows", batch, outputs, refused))
                case ("end",):
                    self._run.put(("end",))
                    # The next part is run when this one is in its place: a death costs one part.
                    self._run.join()
                case ("failed", error):
                    raise error
                case ("nothing is missing",):
                    return
            self._read.task_done()
            if self._failure:
                raise self._failure[0]

    def _begin(self, number: int) -> None:
        began = self._status.state.began or time.monotonic()
        self._status.update(part=number, rows=0, began=began)
        with open(folder_lib.work_folder(self._parts.folder) / "journal", "a") as journal:
            journal.write(f"{number} {os.getpid()}\n")
        self._run.put(("begin", number))

    def _is_alone(self) -> bool:
        return os.getppid() != self._order.launcher

    def _before_claim(self, left: int) -> None:
        if left <= _PLENTY * self._order.settings.workers:
            # Near the end the parts are for whoever is idle: no claim ahead of time.
            self._read.join()

    def _read_parts(self) -> None:
        try:
            for number in self._claims.take(lambda: not self._is_alone(), self._before_claim):
                self._read.put(("begin", number))
                spans = [Span(*place) for place in self._job["cut"][number]]
                for batch in self._read_batches(spans, self._served.batch_size):
                    self._read.put(("rows", batch))
                self._read.put(("end",))
            self._read.put(("nothing is missing",))
        except JobFailed as error:
            self._read.put(("failed", error))
        except Exception as error:
            self._read.put(("failed", JobFailed(f"The input cannot be read: {error}")))

    def _write_parts(self) -> None:
        outputs = {
            name: (spec.dtype, tuple(size or 1 for size in spec.row))
            for name, spec in self._served.signature.outputs.items()
        }
        part: Any = None
        while True:
            item = self._run.get()
            try:
                match item:
                    case _ if self._failure:
                        pass  # what comes is thrown away until the main thread has seen it
                    case ("begin", number):
                        part = Part(self._parts, number, outputs)
                    case ("rows", *rows):
                        part.add(*rows)
                    case ("end",):
                        part.finish()
                        self._claims.give_back(part.number)
            except Exception as error:  # the main thread raises it: nobody would hear of it here
                self._failure.append(_why(error, self._parts.folder))
            finally:
                self._run.task_done()


def _why(error: Exception, folder: pathlib.Path) -> JobFailed:
    if isinstance(error, JobFailed):
        return error
    why = error.strerror if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
    return JobFailed(f"A part cannot be written to {folder}: {why}.")


if __name__ == "__main__":
    main()
