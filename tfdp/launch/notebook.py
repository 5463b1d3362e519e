"""Train on several processes of this machine from a notebook, or at Python's prompt.

    def train(epochs):
        import tfdp
        with tfdp.strategy().scope():
            model = build(); model.compile(...)
        return model.fit(x, y, epochs=epochs).history

    history = tfdp.notebook_launcher(train, args=(3,), workers=2)

The name is that of Hugging Face's accelerate. The function and its arguments are pickled by value
(cloudpickle), as a function of a notebook lies in no file. The processes are new ones, not forks:
what TensorFlow holds in the notebook's own process does not matter to them.
"""

import codecs
import contextlib
import os
import pathlib
import pickle
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import IO, Any

from tfdp.error import Error
from tfdp.launch import discovery, local, machine, plan
from tfdp.launch.shape import Shape

_INSTALL = "pip install 'tfdp[notebook]'"


def notebook_launcher(
    function: Callable[..., Any],
    args: Sequence[Any] = (),
    workers: int = 2,
    *,
    log_dir: str | os.PathLike[str] | None = None,
    seed: int | None = None,
) -> Any:
    """Run a function in every worker of a cluster on this machine, as `tfdp launch` runs a script.

    The output of the workers stands in the cell, and in files. When one fails, or the cell is
    interrupted, all end.

    Args:
        function: Called in each worker. It makes its model and its data itself: neither can be
            sent.
        args: Its arguments.
        workers: How many processes train together.
        log_dir: The folder of the logs; by default a new one in runs/.
        seed: TFDP_SEED of the workers; by default one is drawn.

    Returns:
        What the chief's call returned (worker:0).

    Raises:
        Error: Something that was given cannot be sent, a worker has failed (the message names it;
            its traceback is in the cell), or this process is a task of a cluster itself.
        KeyboardInterrupt: The cell was interrupted; the workers have ended.
        RuntimeError: It was not called from the main thread.
    """
    if os.environ.get("TF_CONFIG"):
        raise Error(
            "notebook_launcher: TF_CONFIG is set, so this process is a task of a cluster already. "
            "Call the function itself, or remove TF_CONFIG."
        )
    name = getattr(function, "__name__", type(function).__name__)
    shape = Shape(workers)
    call = pickled("notebook_launcher", f"{name} and its arguments", function, tuple(args))
    folder = os.fspath(log_dir or f"runs/{name}-{time.strftime('%Y%m%d-%H%M%S')}")
    with tempfile.TemporaryDirectory(prefix="tfdp-notebook-") as aside:
        result = pathlib.Path(aside, "result")
        pathlib.Path(aside, "call").write_bytes(call)
        processes = plan.plan(
            plan.local_cluster(shape, machine.free_ports(len(shape))),
            ["-m", "tfdp.launch.notebook", os.path.join(aside, "call"), str(result)],
            seed=int.from_bytes(os.urandom(4), "little") >> 1 if seed is None else seed,
            gpus=machine.gpus(os.environ),
            log_dir=folder,
            cores=machine.cores(),
        )
        with _shown(sys.stdout) as stdout, _shown(sys.stderr) as stderr:
            code = local.run(processes, folder, stdout=stdout, stderr=stderr)
        if code == 130:
            raise KeyboardInterrupt
        if code:
            raise Error(
                f"{name} has failed in one of {workers} workers, with exit code {code}: the lines "
                f"above say which one, and why. Logs: {folder}"
            )
        return pickle.loads(result.read_bytes())  # noqa: S301 # our own worker has written it


def pickled(caller: str, name: str, *what: Any) -> bytes:
    """Return functions and values as bytes for other processes, by value.

    Args:
        caller: What the user has called.
        name: What is sent, in words.
        what: The things.

    Raises:
        Error: Something cannot be sent, or cloudpickle is not installed.
    """
    try:
        import cloudpickle
    except ImportError:
        raise Error(f"{caller} needs cloudpickle: {_INSTALL}.") from None
    try:
        return cloudpickle.dumps(what)
    except Exception as error:
        # Whatever a user's object raises when it is pickled.
        raise Error(
            f"{name} cannot be sent to the workers: {error}. Make models, datasets and strategies "
            "inside of it, and give it plain values and arrays."
        ) from error


@contextlib.contextmanager
def _shown(stream: Any) -> Iterator[IO[bytes] | Any]:
    """Give a file with a descriptor whose bytes are shown where a stream shows its text."""
    if stream in (sys.__stdout__, sys.__stderr__) and stream is not None:
        yield stream
        return
    read, write = os.pipe()
    # A cell's stream is no file.
    pump = threading.Thread(target=_pump, args=(read, stream), name="tfdp-notebook", daemon=True)
    pump.start()
    try:
        with open(write, "wb", buffering=0) as file:
            yield file
    finally:
        pump.join()


def _pump(descriptor: int, stream: Any) -> None:
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    with open(descriptor, "rb", buffering=0) as file:
        while data := file.read(1 << 16):
            if stream is not None:
                stream.write(decoder.decode(data))
                stream.flush()


def _main(call: str, result: str) -> None:
    """Call the function in a worker; the chief writes what it returns."""
    function, args = pickle.loads(pathlib.Path(call).read_bytes())  # noqa: S301 # the launcher's
    returned = function(*args)
    if discovery.is_chief():
        name = getattr(function, "__name__", "function")
        pathlib.Path(result).write_bytes(_returned(name, returned))


def _returned(name: str, value: Any) -> bytes:
    import cloudpickle

    try:
        return cloudpickle.dumps(value)
    except Exception as error:
        raise Error(
            f"What {name} returned ({type(value).__name__}) cannot be sent back: {error}. Return "
            "plain values and arrays: history.history, say, or model.get_weights()."
        ) from error


if __name__ == "__main__":
    _main(*sys.argv[1:])
