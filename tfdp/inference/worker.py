"""A worker process: loads the model, then makes one part after the other until none is missing.

    python -m tfdp.inference.worker FD ORDER     (started by the supervisor)
    python -m tfdp.inference.worker - ORDER      (on another host, by an agent: see hosts)

It takes the next part that is not there and that no other process holds. Three threads read, run
and write. When its launcher is gone it finishes the part that is being run, and ends.
"""

import collections
import contextlib
import os
import pathlib
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from typing import Any

from tfdp.inference import folder as folder_lib
from tfdp.inference import hosts, input_files
from tfdp.inference.claims import Claims
from tfdp.inference.failures import InferenceError, JobFailed
from tfdp.inference.part import Part
from tfdp.inference.settings import Order
from tfdp.inference.shards import Span
from tfdp.inference.status import Status
from tfdp.launch import progress, task_start

# Batches that wait between two threads.
_WAITING = 4
# While more parts than so many for each worker are missing, the next one is read while one is run.
_PLENTY = 4


def main() -> None:
    """Do the work that the command line describes."""
    if sys.argv[1] == hosts.FAR:
        task_start.tie_to_launcher(os.environ)
        memory = os.open(os.environ.pop(progress.FILE_VARIABLE), os.O_RDWR | os.O_CLOEXEC)
    else:
        memory = int(sys.argv[1])
    status = Status(memory)
    order = Order.from_json(sys.argv[2])
    code = 0
    try:
        make(order, status)
    except (InferenceError, JobFailed) as error:
        code = 1
        status.update(failure=str(error), mistake=isinstance(error, InferenceError))
        with contextlib.suppress(OSError):
            print(error, file=sys.stderr, flush=True)
    # Not through TensorFlow's destructors, which can take seconds.
    os._exit(code)


def make(order: Order, status: Status) -> None:
    """Make parts until none is missing.

    Raises:
        InferenceError: If the model cannot be loaded, or the input does not fit.
        JobFailed: If a part cannot be read, run or written.
    """
    _Maker(order, status).make()


def _divide_machine(threads: int) -> None:
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(max(1, min(2, threads)))
    for gpu in tf.config.list_physical_devices("GPU"):
        tf.config.experimental.set_memory_growth(gpu, True)


class _Maker:
    """What makes the parts: one thread reads, the main one runs the model, and one writes."""

    def __init__(self, order: Order, status: Status) -> None:
        """Load the model; find out what the parts are made with.

        Raises:
            InferenceError: If the model cannot be loaded, or the input does not fit.
        """
        from tfdp import run

        run.import_tensorflow()
        _divide_machine(order.settings.threads or len(os.sched_getaffinity(0)))
        from tfdp.inference import model, plan, readers, signature

        self._order = order
        self._status = status
        settings = order.settings
        loaded, signatures = model.load(settings.model)
        chosen = signature.choose(signatures, settings.signature)
        self._served = model.Served(loaded, chosen, order.job["batch_size"], settings.jit_compile)
        self._served.warm_up()
        split, self._base = None, input_files.base_of(settings.input)
        if settings.input.startswith(input_files.TFDS_PREFIX):
            from tfdp.inference import tfds_input

            text = settings.input.removeprefix(input_files.TFDS_PREFIX)
            split = tfds_input.open_split(text, settings.data_dir)
            self._base = split.found.base
        self._job = plan.agreed(order, signatures, split)
        self._read = readers.reader(
            self._job["input"]["kind"],
            chosen.inputs,
            self._job["columns"],
            base=self._base,
            names=[name for name, *_ in self._job["input"]["files"]],
            header=self._job["header"],
            id_column=settings.id,
            features=split.features if split else None,
        )
        self._parts = folder_lib.Parts.of(pathlib.Path(settings.output), self._job)
        self._claims = Claims(self._parts, settings.timeout_seconds)
        self._batches: queue.Queue[Any] = queue.Queue(_WAITING)
        self._writer = futures.ThreadPoolExecutor(1)
        self._unwritten: collections.deque[futures.Future[None]] = collections.deque()

    def make(self) -> None:
        """Make parts until none is missing, or the launcher is gone.

        Raises:
            JobFailed: If a part cannot be read, run or written.
        """
        self._status.update(ready=True)
        outputs = {
            name: (spec.dtype, tuple(size or 1 for size in spec.row))
            for name, spec in self._served.signature.outputs.items()
        }
        part = None
        for number, batch in self._batches_ahead():
            if part is None:
                if self._order.is_orphaned():
                    return
                began = self._status.state.began or time.monotonic()
                self._status.update(part=number, rows=0, began=began)
                part = Part(self._parts, number, outputs)
                self._write(part.begin)
            if batch is not None:
                made, refused = self._served.run(batch.inputs) if batch.ids else ({}, [])
                rows = len(batch.ids) + len(batch.errors)
                self._status.update(rows=self._status.state.rows + rows)
                self._write(part.add, batch, made, refused)
            else:
                self._write(part.finish)
                # The next part is run when this one is in its place: a death costs one part.
                self._wait_for_writer(0)
                self._status.update(finished=time.monotonic())
                self._claims.give_back(number)
                part = None

    def _batches_ahead(self) -> Iterator[tuple[int, Any]]:
        """Yield (number, batch) of part after part, and (number, None) at the end of each."""
        threading.Thread(target=self._read_ahead, daemon=True).start()
        while (item := self._batches.get()) is not None:
            if isinstance(item, JobFailed):
                raise item
            yield item
            self._batches.task_done()

    def _read_ahead(self) -> None:
        try:
            for number in self._claims.take(
                lambda: not self._order.is_orphaned(), self._before_claim
            ):
                spans = [Span(*place) for place in self._job["cut"][number]]
                for batch in self._read(spans, self._served.batch_size):
                    self._batches.put((number, batch))
                self._check_unchanged(number)
                self._batches.put((number, None))
            self._batches.put(None)
        except JobFailed as error:
            self._batches.put(error)
        except Exception as error:
            self._batches.put(JobFailed(f"The input cannot be read: {error}"))

    def _check_unchanged(self, number: int) -> None:
        """Check that the part is of the input that job.json describes."""
        for at in {place[0] for place in self._job["cut"][number]}:
            name, size, changed, *_ = self._job["input"]["files"][at]
            path = os.path.join(self._base, name)
            facts = os.stat(path)
            if (facts.st_size, facts.st_mtime_ns) != (size, changed):
                raise JobFailed(f"{path} has changed since its records were counted.")

    def _before_claim(self, left: int) -> None:
        if left <= _PLENTY * self._order.settings.workers:
            # Near the end the parts are for whoever is idle: no claim ahead of time.
            self._batches.join()

    def _write(self, work: Callable[..., None], *arguments: Any) -> None:
        self._unwritten.append(self._writer.submit(work, *arguments))
        self._wait_for_writer(_WAITING)

    def _wait_for_writer(self, most: int) -> None:
        """Wait until no more than so much is unwritten."""
        while len(self._unwritten) > most:
            try:
                self._unwritten.popleft().result()
            except JobFailed:
                raise
            except Exception as error:
                why = getattr(error, "strerror", "") or f"{type(error).__name__}: {error}"
                folder = self._order.settings.output
                raise JobFailed(f"A part cannot be written to {folder}: {why}.") from error


if __name__ == "__main__":
    main()
