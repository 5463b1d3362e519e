"""Gloo's collectives, as one worker sees them.

    gloo = Gloo(rank=0, size=2, host="10.0.0.1", share=share_text, shared=shared_text)
    sums = gloo.sum([array, ...])       # over the workers; the same bits on all of them
    parts = gloo.gather(array)          # [worker 0's, worker 1's]: of any length each
    gloo.close()

Gloo is the library of collectives over TCP that PyTorch uses on CPUs. Its binding is that of the
package xoscar, and runs in a process of its own: see gloo_process for why. A sum costs one copy
into memory that both processes share, and none back: what it returns lies there.
"""

import contextlib
import importlib.util
import os
import pathlib
import queue
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tfdp.fit.replicas import gloo_process
from tfdp.fit.replicas.memory import LOOK_SECONDS, SMALL, Failed, Late, Layout, Regions, key_of

_GONE = "the process that runs Gloo has ended"


def binding() -> str | None:
    """Return the path of Gloo's binding, None where it is not installed.

    xoscar itself is not imported: it takes a second, and imports pandas.
    """
    try:
        found = importlib.util.find_spec("xoscar")
    except (ImportError, ValueError):
        return None
    for folder in (found.submodule_search_locations or ()) if found else ():
        for path in sorted(pathlib.Path(folder, "collective").glob("xoscar_pygloo*.so")):
            return str(path)
    return None


class Gloo:
    """Collectives of one worker with all others.

    Every worker makes it, and calls the same methods with the same sizes in the same order.

    Args:
        rank: The number of this worker.
        size: How many there are.
        host: Of this worker: the interface with its address is the only one that is used.
        share: Called with (key, text): writes a text for all workers.
        shared: Called with (key, seconds): returns the text, or None when it does not come.
        connect_seconds: How long connecting may take.
        check: Called every second while others are waited for; raises when one is lost.

    Raises:
        Failed: The workers cannot be connected.
    """

    def __init__(
        self,
        rank: int,
        size: int,
        host: str,
        share: Callable[[str, str], None],
        shared: Callable[[str, float], str | None],
        connect_seconds: float = 20.0,
        check: Callable[[], None] = lambda: None,
    ):
        self.rank, self.size = rank, size
        self._share, self._shared, self._check = share, shared, check
        self._broken = ""
        self._lock = threading.Lock()  # one collective after the other
        self._regions = Regions(
            lambda region, file: self._order("memory", region.size, file=file),
            lambda region: self._order("forget", region.number),
        )
        path = binding()
        if path is None:
            raise Failed("Gloo is not installed")
        ours, theirs = socket.socketpair()
        self._channel = gloo_process.Channel(ours)
        self._process = _start(path, theirs)
        theirs.close()
        try:
            self._connect(host, connect_seconds)
        except BaseException:
            with contextlib.suppress(Exception):  # it may have told its address before
                share(str(rank), "")  # so that nobody waits for it
            self.close()
            raise

    def sum(
        self, arrays: Sequence[np.ndarray], timeout_seconds: float | None = None
    ) -> list[np.ndarray]:
        """Return the sums over all workers, each in the type of its array.

        16-bit floats are added in float32 and rounded once. The numbers of all arrays of a type
        travel together. What is returned may lie in shared memory, and is not written again while
        somebody holds it.

        Raises:
            Failed: A worker is lost, or the time is over.
        """
        with self._lock:
            region = self._regions.take(key_of(arrays), lambda: Layout(arrays, self.size))
            for view, array in zip(region.views, arrays, strict=True):
                np.copyto(view, array)
            self._order("sum", region.number, region.layout.parts, seconds=timeout_seconds)
            if region.size <= SMALL:
                return [view.copy() for view in region.views]
            return list(region.results)

    def gather(self, array: np.ndarray, timeout_seconds: float | None = None) -> list[np.ndarray]:
        """Return every worker's array; they may differ in their first dimension.

        Raises:
            Failed: A worker is lost, or the time is over.
        """
        lengths = np.zeros(self.size, np.int64)
        lengths[self.rank] = len(array)
        (lengths,) = self.sum([lengths], timeout_seconds)
        row = int(np.prod(array.shape[1:], dtype=np.int64)) * array.dtype.itemsize
        most = int(lengths.max()) * row
        if not most:
            return [array[:0] for _ in lengths]
        with self._lock:
            # Regions of powers of two, so that few are made for many lengths.
            space = 1 << (most - 1).bit_length()
            region = self._regions.take(("gather", space), lambda: Layout([], self.size, space))
            mine = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
            region.bytes[: mine.size] = mine
            self._order("gather", region.number, 0, most, space, seconds=timeout_seconds)
            parts = []
            for worker, length in enumerate(lengths):
                start = space + worker * most
                part = region.bytes[start : start + int(length) * row].copy()
                parts.append(part.view(array.dtype).reshape(int(length), *array.shape[1:]))
            return parts

    def close(self) -> None:
        """End the process."""
        self._broken = self._broken or "Gloo was closed"
        self._process.kill()

    def _connect(self, host: str, seconds: float) -> None:
        """Let the process connect; hand it the addresses of the others."""
        until = time.monotonic() + seconds
        self._send("connect", self.rank, self.size, host, seconds)
        while (answer := self._answer(until))[0] == "store":
            _, what, key, text = answer
            if what == "set":
                self._share(key, text)
                self._send("value", "")
                continue
            value = self._shared(key, max(0.1, until - time.monotonic()))
            if value == "":
                raise Failed(f"worker {key} cannot connect")
            if value is None:
                raise Failed(f"worker {key} did not tell its address within {seconds:g} s")
            self._send("value", value)
        if answer[0] != "done":
            raise Failed(_plain(answer[1]))

    # -- orders -------------------------------------------------------------------------------

    def _order(self, *words: Any, file: int | None = None, seconds: float | None = None) -> None:
        """Let the process do something to its end."""
        if self._broken:
            raise Failed(self._broken)
        try:
            self._send(*words, file=file)
            answer = self._answer(None if seconds is None else time.monotonic() + seconds)
            if answer[0] != "done":
                raise Failed(_plain(answer[1]))
        except BaseException as error:
            # The others have added this worker's numbers, or wait for them: it cannot go on.
            self._broken = str(error) or type(error).__name__
            self.close()
            raise

    def _send(self, *words: Any, file: int | None = None) -> None:
        try:
            self._channel.send(*words, file=file)
        except OSError:
            raise Failed(_GONE) from None

    def _answer(self, until: float | None) -> list[Any]:
        """Return the process's answer; look now and then whether it can still come."""
        while True:
            left = LOOK_SECONDS if until is None else until - time.monotonic()
            try:
                answer = self._channel.receive(max(0.001, min(LOOK_SECONDS, left)))
            except EOFError:
                raise Failed(_GONE) from None
            if answer is not None:
                return answer
            self._check()
            if until is not None and time.monotonic() >= until:
                raise Late("a collective of Gloo took longer than its timeout_seconds")


def _plain(problem: str) -> str:
    """Return what Gloo says without the line of its source and its advice.

    "RuntimeError: [/a/pair.cc:561] Connection closed by peer [10.0.0.1]:5. This is typically ..."
    """
    problem = re.sub(r"^RuntimeError: (\[[^]]*\.cc:\d+\] )?", "", problem)
    return problem.partition(" This is typically ")[0]


def _start(path: str, theirs: socket.socket) -> subprocess.Popen:
    """Start the process, from a thread that lives as long as this one.

    The kernel ends it at the death of the thread that started it (PR_SET_PDEATHSIG), and fit may
    be called in a thread that is done long before the process is.
    """
    started: queue.SimpleQueue[Any] = queue.SimpleQueue()
    script = str(pathlib.Path(gloo_process.__file__))
    # -P: the folder of the script holds modules with names of others'.
    command = [sys.executable, "-P", script, path, str(theirs.fileno()), str(os.getpid())]

    def run() -> None:
        try:
            process = subprocess.Popen(
                command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL
            )
        except OSError as error:
            started.put(error)
            return
        started.put(process)
        process.wait()

    threading.Thread(target=run, name="tfdp-gloo", daemon=True).start()
    result = started.get()
    if isinstance(result, OSError):
        raise Failed(f"its process cannot be started: {result.strerror}")
    return result
