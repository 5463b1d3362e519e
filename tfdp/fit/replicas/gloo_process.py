"""The process beside a worker that runs Gloo's collectives for it.

    python -P gloo_process.py BINDING SOCKET_FD PARENT_PID      # started by gloo.Gloo

Gloo's binding in the package xoscar holds Python's lock for as long as a collective takes, and that
is as long as the slowest worker takes to come to it: meanwhile no callback, generator or handler
of Ctrl-C would run, and nobody could look whether the other worker is alive. Here it has an
interpreter of its own. The numbers lie in memory that both processes share, so that nothing is
copied for it; what passes the socket are orders, a line of JSON each:

    ["connect", rank, size, host, seconds]      answers ["store", ...] orders until it is connected
    ["memory", bytes]                           with a file descriptor: the next region's
    ["forget", region]
    ["sum", region, [[type, offset, count], ...]]
    ["gather", region, offset, bytes, to]       everybody's bytes, in the order of ranks

Each is answered by ["done"] or ["failed", why]. It ends when its worker does. Not a part of the
package when it runs: importing tfdp.fit would import TensorFlow.
"""

import ctypes
import datetime
import importlib.util
import json
import mmap
import os
import signal
import socket
import sys
from typing import Any

import numpy as np

_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
# Its worker ends a collective that takes too long, by ending this process.
_NO_LIMIT = datetime.timedelta(days=365)
_TYPES = {
    "float32": "glooFloat32",
    "float64": "glooFloat64",
    "int32": "glooInt32",
    "int64": "glooInt64",
}


class Channel:
    """One end of the socket between a worker and its process.

    Args:
        end: The end.
    """

    def __init__(self, end: socket.socket):
        self._end = end
        self._read = b""
        self._files: list[int] = []

    def send(self, *words: Any, file: int | None = None) -> None:
        """Send an order or an answer, and with it a file descriptor."""
        line = json.dumps(words).encode() + b"\n"
        sent = socket.send_fds(self._end, [line], [file]) if file is not None else 0
        self._end.sendall(line[sent:])

    def receive(self, seconds: float | None = None) -> list[Any] | None:
        """Return what comes; None when nothing has come in time.

        Raises:
            EOFError: The other end is gone.
        """
        self._end.settimeout(seconds)
        while b"\n" not in self._read:
            try:
                data, files, _, _ = socket.recv_fds(self._end, 1 << 16, 1)
            except TimeoutError:
                return None
            except ConnectionError as error:
                raise EOFError from error
            if not data:
                raise EOFError
            self._read += data
            self._files += files
        self._end.settimeout(None)
        line, _, self._read = self._read.partition(b"\n")
        return json.loads(line)

    def file(self) -> int:
        """Return the file descriptor that came with an order."""
        return self._files.pop(0)


class _Store:
    """Where Gloo leaves its addresses and finds those of others: with the worker.

    The names are those that the binding's CustomStore calls.
    """

    def __init__(self, channel: Channel):
        self._channel = channel

    def set_tcp(self, key: str, data: bytes) -> None:
        self._channel.send("store", "set", key, data.hex())
        self._answer()

    def get_tcp(self, key: str) -> bytes:
        self._channel.send("store", "get", key, "")
        return bytes.fromhex(self._answer())

    def wait(self, keys: list[str], timeout: Any = None) -> None:
        del keys, timeout  # what is asked for next waits

    def _answer(self) -> str:
        answer = self._channel.receive()
        if answer is None or answer[0] != "value":
            raise RuntimeError("The addresses of the other workers did not come.")
        return answer[1]


class Collectives:
    """Gloo's collectives on shared memory.

    Args:
        binding: The path of the binding.
        channel: To the worker.
    """

    def __init__(self, binding: str, channel: Channel):
        spec = importlib.util.spec_from_file_location("xoscar_pygloo", binding)
        if spec is None or spec.loader is None:
            raise ImportError(f"{binding} is no module of Python")
        self._gloo: Any = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(self._gloo)
        self._channel = channel
        self._size = 1
        self._regions: list[Any] = []
        self._scratch: dict[tuple[str, int], np.ndarray] = {}
        self._context: Any = None

    def connect(self, rank: int, size: int, host: str, seconds: float) -> None:
        """Connect to all others, by the interface that has this host's address alone."""
        tcp = self._gloo.transport.tcp
        self._size = size
        self._context = self._gloo.rendezvous.Context(rank, size)
        self._context.setTimeout(datetime.timedelta(seconds=seconds))
        store = self._gloo.rendezvous.CustomStore(_Store(self._channel))
        self._context.connectFullMesh(store, tcp.CreateDevice(tcp.attr(host)))
        self._context.setTimeout(_NO_LIMIT)

    def memory(self, size: int) -> None:
        """Take a region of shared memory, whose file descriptor came with the order."""
        file = self._channel.file()
        self.use(np.frombuffer(mmap.mmap(file, size), np.uint8))
        os.close(file)

    def use(self, region: np.ndarray) -> None:
        """Take bytes as the next region."""
        self._regions.append(region)

    def forget(self, region: int) -> None:
        """Give a region back."""
        self._regions[region] = None

    def sum(self, region: int, parts: list[list[Any]]) -> None:
        """Sum parts of a region over all workers, in place."""
        base = self._regions[region].ctypes.data
        for dtype, offset, count in parts:
            if dtype in _TYPES:
                self._gloo.allreduce(
                    self._context,
                    base + offset,
                    base + offset,
                    count,
                    getattr(self._gloo.GlooDataType_t, _TYPES[dtype]),
                    self._gloo.ReduceOp.SUM,
                    self._gloo.AllreduceAlgorithm.RING,
                    0,
                )
            else:
                self._sum_halves(region, dtype, offset, count)

    def gather(self, region: int, offset: int, size: int, to: int) -> None:
        """Put `size` bytes of each worker one after the other."""
        base = self._regions[region].ctypes.data
        self._gloo.allgather(
            self._context, base + offset, base + to, size, self._gloo.GlooDataType_t.glooInt8, 0
        )

    def _sum_halves(self, region: int, dtype: str, offset: int, count: int) -> None:
        """Sum 16-bit numbers in float32, and round once.

        Each worker adds up a part of them, in the order of the workers, and sends the sums to all.
        Gloo's own sums round after each addition, take four times as long, and know no bfloat16.
        `count` is a multiple of the number of workers.
        """
        if dtype == "bfloat16":
            import ml_dtypes

            kind: Any = ml_dtypes.bfloat16
        else:
            kind = np.float16
        received = self._temporary("received", count)
        part = count // self._size
        summed = self._temporary("summed", part)
        base = self._regions[region].ctypes.data + offset
        sixteen_bits = self._gloo.GlooDataType_t.glooFloat16
        self._gloo.all_to_all(self._context, base, received.ctypes.data, count, sixteen_bits, 0)
        with np.errstate(over="ignore", invalid="ignore"):  # infinite, as promised
            each = received.view(kind).reshape(self._size, part)
            total = each[0].astype(np.float32)
            for other in each[1:]:
                total += other.astype(np.float32)
            summed.view(kind)[:] = total.astype(kind)
        self._gloo.allgather(self._context, summed.ctypes.data, base, part, sixteen_bits, 0)

    def _temporary(self, name: str, count: int) -> np.ndarray:
        key = (name, count)
        if key not in self._scratch:
            self._scratch[key] = np.empty(count, np.uint16)
        return self._scratch[key]


def main(binding: str, descriptor: int, parent: int) -> None:
    """Do what the worker orders until it is gone."""
    # A terminal sends Ctrl-C to all processes of a group; the worker decides what it means.
    for one in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(one, signal.SIG_IGN)
    if sys.platform == "linux":
        # A collective that waits for another worker does not see that its own is gone.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            return
    channel = Channel(socket.socket(fileno=descriptor))
    collectives = Collectives(binding, channel)
    orders = {
        name: getattr(collectives, name)
        for name in ("connect", "memory", "forget", "sum", "gather")
    }
    while True:
        try:
            words = channel.receive()
        except EOFError:
            os._exit(0)  # not through the destructors of Gloo, which say goodbye to nobody
        assert words is not None
        try:
            orders[words[0]](*words[1:])
        except Exception as error:
            channel.send("failed", f"{type(error).__name__}: {error}")
        else:
            channel.send("done")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
