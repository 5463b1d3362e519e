"""A worker process: loads the model, then makes one part after the other until its socket closes.

    python -m tfdp.inference.worker FD      (started by the supervisor, with one end of a socket)

Lines of JSON come and go. First {"job": ...}, answered by {"ready": signatures}; then
{"inspect": ...}, {"start": ...} once, and {"shard": ...}, each answered by {"done": ...}. In
between {"rows": n} is sent once a second: a worker that is silent hangs.

Three threads read, run and write. When the supervisor dies the socket closes: the shard that is
being run is finished, and the process ends.
"""

import contextlib
import fcntl
import json
import os
import pathlib
import queue
import socket
import sys
import threading
from collections.abc import Iterator
from typing import IO, Any

from tfdp.inference import folder as folder_lib
from tfdp.inference import shards, signature
from tfdp.inference.errors import InferenceError, JobFailed

BEAT_SECONDS = 1.0
# Batches that wait between two threads.
_WAITING = 4


class Channel:
    """Lines of JSON over a socket, from any thread."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._lines = connection.makefile("r", encoding="utf-8", newline="\n")
        self._lock = threading.Lock()

    def send(self, **message: Any) -> None:
        """Send one; nothing happens when nobody is there any more."""
        with self._lock, contextlib.suppress(OSError):
            self._connection.sendall(json.dumps(message).encode() + b"\n")

    def receive(self) -> Iterator[dict[str, Any]]:
        """Yield what comes until the other end is closed."""
        with contextlib.suppress(OSError):
            for line in self._lines:
                yield json.loads(line)


def main() -> None:
    """Serve the supervisor at the other end of the socket that argv names."""
    connection = socket.socket(fileno=int(sys.argv[1]))
    connection.set_inheritable(False)
    channel = Channel(connection)
    try:
        _serve(channel)
    except (InferenceError, JobFailed) as error:
        channel.send(failed=str(error), mistake=isinstance(error, InferenceError))
        os._exit(1)
    # Not through TensorFlow's destructors, which can take seconds.
    sys.stderr.flush()
    os._exit(0)


def _serve(channel: Channel) -> None:
    commands = channel.receive()
    job = next(commands, {}).get("job")
    if job is None:
        return
    inbox: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
    orphaned = threading.Event()

    def listen() -> None:
        for command in commands:
            inbox.put(command)
        orphaned.set()
        inbox.put(None)

    threading.Thread(target=listen, daemon=True).start()
    state = _Progress()
    threading.Thread(target=_beat, args=(channel, state), daemon=True).start()

    from tfdp import run

    run.import_tensorflow()
    _divide_machine(job)
    from tfdp.inference import model

    loaded, signatures = model.load(job["model"])
    served = None
    if job["signature"] in signatures:
        chosen = signatures[job["signature"]]
        served = model.Served(loaded, chosen, job["batch_size"], job["jit_compile"])
        served.warm_up()
    channel.send(ready=signature.to_json(signatures))
    while (command := inbox.get()) is not None:
        if "inspect" in command:
            from tfdp.inference import inspection

            channel.send(inspected=inspection.inspect(command["inspect"]))
        if "start" in command:
            assert served is not None  # the supervisor has checked the signature
            _work(channel, inbox, orphaned, state, _Job(served, command["start"]))
            return


class _Progress:
    """Rows of the running shard that have been run; read by the thread that beats."""

    def __init__(self) -> None:
        self.rows = 0


def _beat(channel: Channel, state: _Progress) -> None:
    quiet = threading.Event()
    while not quiet.wait(BEAT_SECONDS):
        channel.send(rows=state.rows)


def _divide_machine(job: dict[str, Any]) -> None:
    import tensorflow as tf

    threads = job["threads"]
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(max(1, min(2, threads)))
    for gpu in tf.config.list_physical_devices("GPU"):
        tf.config.experimental.set_memory_growth(gpu, True)


class _Job:
    """What all shards of a job share."""

    def __init__(self, served: Any, start: dict[str, Any]) -> None:
        from tfdp.inference import inspection, readers

        chosen = served.signature
        self.served = served
        self.read = readers.reader(
            start["kind"],
            chosen.inputs,
            start["columns"],
            base=start["base"],
            header=start["header"],
            id_column=start["id"],
            features=inspection.tfds_features(start["tfds"]) if start["tfds"] else None,
        )
        self.folder = pathlib.Path(start["output"])
        self.writing = folder_lib.writing_folder(self.folder, start["hash"])
        self.extension = start["extension"]
        self.parts = start["parts"]
        self.max_errors = start["max_errors"]
        self.outputs = {
            name: (spec.dtype, tuple(size or 1 for size in spec.row))
            for name, spec in chosen.outputs.items()
        }


def _work(
    channel: Channel,
    inbox: queue.SimpleQueue,
    orphaned: threading.Event,
    state: _Progress,
    job: _Job,
) -> None:
    batches: queue.Queue[Any] = queue.Queue(_WAITING)
    written: queue.Queue[Any] = queue.Queue(_WAITING)
    failure: list[BaseException] = []
    threading.Thread(target=_read, args=(inbox, batches, job), daemon=True).start()
    threading.Thread(target=_write, args=(channel, written, job, failure), daemon=True).start()
    while True:
        item = batches.get()
        if item is None or (orphaned.is_set() and isinstance(item, shards.Shard)):
            return
        if isinstance(item, BaseException):
            raise JobFailed(f"The input cannot be read: {item}") from item
        if isinstance(item, shards.Shard):
            state.rows = 0
            written.put(item)
            with open(folder_lib.work_folder(job.folder) / "journal", "a") as journal:
                journal.write(f"{item.number} {os.getpid()}\n")
        elif item == "end":
            written.put(item)
            # The next shard is run when this part is in its place: a death costs one shard.
            written.join()
        else:
            outputs, refused = job.served.run(item.inputs) if item.ids else ({}, [])
            state.rows += len(item.ids) + len(item.errors)
            written.put((item, outputs, refused))
        if failure:
            raise failure[0]


def _read(inbox: queue.SimpleQueue, batches: queue.Queue, job: _Job) -> None:
    """Read the shards that come: a shard, its batches, "end"; None at the end of all."""
    try:
        while (command := inbox.get()) is not None:
            spans = tuple(shards.Span(*span) for span in command["shard"]["spans"])
            shard = shards.Shard(command["shard"]["number"], command["shard"]["rows"], spans)
            batches.put(shard)
            for batch in job.read(spans, job.served.batch_size):
                batches.put(batch)
            batches.put("end")
        batches.put(None)
    except Exception as error:
        batches.put(error)


def _write(channel: Channel, written: queue.Queue, job: _Job, failure: list[Any]) -> None:
    part: _Part | None = None
    while True:
        item = written.get()
        try:
            if failure:
                pass  # what comes is thrown away until the main thread has seen it
            elif isinstance(item, shards.Shard):
                part = _Part(item, job, channel)
            elif item == "end":
                assert part is not None
                part.finish()
                channel.send(done=part.shard.number, rows=part.rows, errors=len(part.errors))
                part = None
            else:
                assert part is not None
                part.add(*item)
        except Exception as error:  # the main thread raises it: nobody would hear of it here
            if part is not None:
                part.abandon()
            failure.append(_why(error, job.folder))
        finally:
            written.task_done()


def _why(error: Exception, folder: pathlib.Path) -> JobFailed:
    if isinstance(error, JobFailed):
        return error
    why = error.strerror if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
    return JobFailed(f"A part cannot be written to {folder}: {why}.")


class _Part:
    """The part that is being written: a locked file beside the parts, renamed when it is whole."""

    def __init__(self, shard: shards.Shard, job: _Job, channel: Channel) -> None:
        self.shard = shard
        self.rows = 0
        self.errors: list[str] = []
        self._job = job
        self._channel = channel
        self._path = folder_lib.writing_path(job.writing, shard.number)
        self._writer: Any = None
        self._file: IO[bytes] = open(self._path, "wb")
        # Nobody else writes it; a launcher may be looking whether it is locked, for a moment.
        fcntl.flock(self._file, fcntl.LOCK_EX)

    def add(self, batch: Any, outputs: dict[str, Any], refused: list[tuple[int, str]]) -> None:
        """Add a batch, with the rows that the model has refused."""
        reasons = dict(refused)
        bad = [(error.at, error.file, error.record, error.reason) for error in batch.errors]
        bad += [(*batch.rows[row], reason) for row, reason in reasons.items()]
        ids = [name for row, name in enumerate(batch.ids) if row not in reasons]
        for _, file, record, reason in sorted(bad):
            line = json.dumps({"file": file, "record": record, "reason": reason})
            self.errors.append(line)
            if len(self.errors) <= self._job.max_errors + 1:
                self._channel.send(error=line, shard=self.shard.number)
        if ids:
            self._writer_of(outputs).write(ids, outputs)
            self.rows += len(ids)

    def finish(self) -> None:
        """Put the part in its place, behind the file of its errors."""
        if self.rows + len(self.errors) != self.shard.rows:
            raise JobFailed(
                f"Part {self.shard.number} has {self.rows} rows and {len(self.errors)} errors, but "
                f"its input had {self.shard.rows} records when they were counted: was it changed?"
            )
        self._writer_of({}).close()
        self._file.flush()
        os.fsync(self._file.fileno())
        self._put_errors()
        name = shards.part_name(self.shard.number, self._job.parts, self._job.extension)
        self._path.rename(self._job.folder / name)
        self._file.close()

    def abandon(self) -> None:
        """Remove what has been written."""
        with contextlib.suppress(OSError):
            self._file.close()
        with contextlib.suppress(OSError):
            self._path.unlink(missing_ok=True)

    def _put_errors(self) -> None:
        errors = folder_lib.errors_path(self._job.folder, self.shard.number)
        if not self.errors:
            errors.unlink(missing_ok=True)
            return
        errors.parent.mkdir(exist_ok=True)
        beside = self._path.with_name(self._path.name + ".errors")
        try:
            with open(beside, "w") as file:
                file.write("".join(line + "\n" for line in self.errors))
                file.flush()
                os.fsync(file.fileno())
            beside.rename(errors)
        except OSError:
            beside.unlink(missing_ok=True)
            raise

    def _writer_of(self, outputs: dict[str, Any]) -> Any:
        from tfdp.inference import writers

        if self._writer is None:
            kinds = self._job.outputs
            if outputs:
                kinds = {
                    name: (kinds[name][0], outputs[name].shape[1:]) for name in sorted(outputs)
                }
            self._writer = writers.make(self._job.extension, self._file, kinds)
        return self._writer


if __name__ == "__main__":
    main()
