"""Sums of the workers of one machine, through memory that they share.

    memory = SharedMemory(rank=0, size=2, share=share_text, shared=shared_text)
    sums = memory.sum([array, ...])       # over the workers; the same bits on all of them
    parts = memory.gather(array)          # [worker 0's, worker 1's]: of any length each
    memory.close()

Between processes of one machine every byte that passes a socket is copied twice by the kernel. Here
each worker writes its numbers once into memory that all of them map, and adds up its own share of
all numbers, a half where there are two, into the memory of worker 0. There all read the sums: no
other copy is made. MPI and Horovod do alike within a host. What passes a Unix socket are the words
"my numbers lie in region 3", and small sums whole. A worker that dies closes its sockets, which the
others see at once.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import secrets
import select
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from tfdp.fit.replicas.memory import (
    LOOK_SECONDS,
    SMALL,
    Failed,
    Late,
    Layout,
    Region,
    Regions,
    key_of,
    mapped,
)
from tfdp.fit.replicas.shares import Cut, add

# What is smaller passes the socket whole: one message instead of three. The kernel takes 200 KB.
_INLINE = 1 << 14
# Sums whose layouts are remembered.
_REMEMBERED = 1000
# What a message says, the number and the size of a region or the bytes that follow, how many
# regions of its own the sender has given back, and how many of the receiver's it holds: their
# numbers follow.
_HEADER = struct.Struct("<BIQHH")
_BYTES, _REGION, _SUMMED, _READ = range(4)
# The worker in whose memory the sums lie.
_FIRST = 0


class SharedMemory:
    """Sums and gathers of one worker with all others, which run on the same machine.

    Every worker makes it, and calls the same methods with the same sizes in the same order.

    Args:
        rank: The number of this worker.
        size: How many there are.
        share: Called with (key, text): writes a text for all workers.
        shared: Called with (key, seconds): returns the text, or None when it does not come.
        connect_seconds: How long connecting may take.
        check: Called every second while others are waited for; raises when one is lost.

    Raises:
        Failed: The workers do not all run on one machine, or cannot be connected.
    """

    def __init__(
        self,
        rank: int,
        size: int,
        share: Callable[[str, str], None],
        shared: Callable[[str, float], str | None],
        connect_seconds: float = 20.0,
        check: Callable[[], None] = lambda: None,
    ):
        self.rank, self.size = rank, size
        self._check = check
        self._broken = ""
        self._lock = threading.Lock()  # one collective after the other
        self._regions = Regions(
            self._announce, lambda region: self._gone.append(region.number), self._is_lent
        )
        self._new: tuple[int, int] | None = None  # a region that nobody knows, and its file
        self._gone: list[int] = []  # regions that are given back
        self._lent: dict[int, set[int]] = {}  # regions with sums that other workers hold
        self._others: dict[tuple[int, int], np.ndarray] = {}  # by worker and number of a region
        self._sums: dict[int, Region] = {}  # the first worker's, as this one sees them
        self._cuts: dict[Any, Cut] = {}  # of each kind of sum
        self._sockets: dict[int, socket.socket] = {}
        try:
            self._connect(share, shared, time.monotonic() + connect_seconds)
        except BaseException:
            self.close()
            raise

    def sum(
        self, arrays: Sequence[np.ndarray], timeout_seconds: float | None = None
    ) -> list[np.ndarray]:
        """Return the sums over all workers, each in the type of its array.

        16-bit floats are added in float32 and rounded once. What is returned may lie in memory
        that all workers share: it cannot be written, and is not written again while a worker holds
        it.

        Raises:
            Failed: A worker is lost, or the time is over.
        """
        with self._lock, self._whole(timeout_seconds) as until:
            key = key_of(arrays)
            if key not in self._cuts:
                if len(self._cuts) >= _REMEMBERED:
                    self._cuts.clear()
                self._cuts[key] = Cut(Layout(arrays, self.size), self.rank, self.size)
            cut = self._cuts[key]
            if cut.layout.size <= _INLINE:
                return self._sum_small(arrays, cut.layout, until)
            region = self._regions.take(key, lambda: cut.layout)
            for index in cut.whole:
                np.copyto(region.views[index], arrays[index])
            for index, part, place, dtype in cut.parts:
                np.copyto(region.bytes[place].view(dtype), arrays[index].reshape(-1)[part])
            written, sums = self._exchange_region(region, until)
            for place, dtype in cut.runs:
                add([one[place].view(dtype) for one in written], sums.bytes[place].view(dtype))
            for index, part, place, dtype in cut.direct:
                terms = [one[place].view(dtype) for one in written]
                terms[self.rank] = arrays[index].reshape(-1)[part]
                add(terms, sums.bytes[place].view(dtype))
            self._exchange(_SUMMED, until)
            if region.size <= SMALL:
                return [view.copy() for view in sums.views]
            return list(sums.results)

    def gather(self, array: np.ndarray, timeout_seconds: float | None = None) -> list[np.ndarray]:
        """Return every worker's array; they may differ in their first dimension.

        Raises:
            Failed: A worker is lost, or the time is over.
        """
        mine = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        with self._lock, self._whole(timeout_seconds) as until:
            if mine.size <= _INLINE:
                answers = self._exchange(_BYTES, until, mine.tobytes())
                answers[self.rank] = _Message(_BYTES, 0, mine.size, mine)
            else:
                # Regions of powers of two, so that few are made for many lengths.
                space = 1 << (mine.size - 1).bit_length()
                region = self._regions.take(("gather", space), lambda: Layout([], 0, space))
                region.bytes[: mine.size] = mine
                answers = self._exchange(_REGION, until, region=region, size=mine.size)
                answers[self.rank] = _Message(_REGION, region.number, mine.size, region.bytes)
            parts = []
            for worker in range(self.size):
                found = answers[worker].data[: answers[worker].size].copy()
                parts.append(found.view(array.dtype).reshape(-1, *array.shape[1:]))
            if any(answer.kind == _REGION for answer in answers.values()):
                self._exchange(_READ, until)
            return parts

    def close(self) -> None:
        """Leave the others, which fail when they wait for this worker."""
        self._broken = self._broken or "shared memory was closed"
        for one in self._sockets.values():
            one.close()

    # -- sums ---------------------------------------------------------------------------------

    def _sum_small(
        self, arrays: Sequence[np.ndarray], layout: Layout, until: float | None
    ) -> list[np.ndarray]:
        """Let every worker add up all numbers, in the same order."""
        mine = np.zeros(layout.size, np.uint8)
        for view, array in zip(layout.views(mine), arrays, strict=True):
            np.copyto(view, array)
        answers = self._exchange(_BYTES, until, mine.tobytes())
        each = [mine if n == self.rank else answers[n].data for n in range(self.size)]
        if any(len(one) != len(mine) for one in each):
            raise Failed(f"the workers sum different numbers: {[len(one) for one in each]} bytes")
        total = np.empty_like(mine)
        for name, begin, count in layout.parts:
            dtype = np.dtype(name)
            end = begin + count * dtype.itemsize
            add([one[begin:end].view(dtype) for one in each], total[begin:end].view(dtype))
        return layout.views(total)

    # -- messages -----------------------------------------------------------------------------

    @contextlib.contextmanager
    def _whole(self, seconds: float | None) -> Iterator[float | None]:
        """Leave the others when a collective has not come to its end: they cannot go on."""
        if self._broken:
            raise Failed(self._broken)
        try:
            yield None if seconds is None else time.monotonic() + seconds
        except BaseException as error:
            self._broken = str(error) or type(error).__name__
            self.close()
            raise

    def _announce(self, region: Region, file: int) -> None:
        self._new = (region.number, os.dup(file))

    def _is_lent(self, region: Region) -> bool:
        return any(region.number in numbers for numbers in self._lent.values())

    def _exchange_region(
        self, region: Region, until: float | None
    ) -> tuple[list[np.ndarray], Region]:
        """Tell where the numbers lie; return the memory of all workers, and where sums belong."""
        answers = self._exchange(_REGION, until, region=region, size=region.size)
        sizes = {answer.size for answer in answers.values()} | {region.size}
        if len(sizes) > 1:
            raise Failed(f"the workers sum different numbers: {sorted(sizes)} bytes")
        written = [region.bytes if n == self.rank else answers[n].data for n in range(self.size)]
        if self.rank == _FIRST:
            for worker in answers:  # until it says in its next message that it has none of it
                self._lent[worker].add(region.number)
            return written, region
        number = answers[_FIRST].number
        if number not in self._sums:
            self._sums[number] = Region(number, region.layout, answers[_FIRST].data)
        return written, self._sums[number]

    def _exchange(
        self,
        kind: int,
        until: float | None,
        data: bytes = b"",
        region: Region | None = None,
        size: int = 0,
    ) -> "dict[int, _Message]":
        """Send a message to all workers, and return those of all others."""
        number = region.number if region is not None else 0
        gone, self._gone = self._gone, []
        # Said where a sum begins: at its end nobody holds yet what it is about to hand out.
        begins = kind in (_BYTES, _REGION)
        held = [n for n, sums in self._sums.items() if begins and not sums.is_free()]
        head = _HEADER.pack(kind, number, size or len(data), len(gone), len(held))
        message = [head, struct.pack(f"<{len(gone) + len(held)}I", *gone, *held), data]
        files = []
        if self._new is not None and self._new[0] == number and kind == _REGION:
            files, self._new = [self._new[1]], None
        try:
            for worker, one in self._sockets.items():
                try:
                    socket.send_fds(one, message, files)
                except OSError as error:
                    raise _lost(worker) from error
        finally:
            for file in files:
                os.close(file)
        return self._receive(kind, until)

    def _receive(self, kind: int, until: float | None) -> "dict[int, _Message]":
        answers: dict[int, _Message] = {}
        waiting = {one.fileno(): worker for worker, one in self._sockets.items()}
        poll = select.poll()
        for file in waiting:
            poll.register(file, select.POLLIN)
        while waiting:
            left = LOOK_SECONDS if until is None else until - time.monotonic()
            ready = poll.poll(max(1.0, min(LOOK_SECONDS, left) * 1e3))
            for file, _ in ready:
                worker = waiting.pop(file)
                poll.unregister(file)
                answers[worker] = self._read(worker)
                if (answers[worker].kind <= _REGION) != (kind <= _REGION):
                    raise Failed(f"worker {worker} is at another point of the program", worker)
            if not ready:
                self._check()
                if until is not None and time.monotonic() >= until:
                    raise Late("a collective took longer than its timeout_seconds")
        return answers

    def _read(self, worker: int) -> "_Message":
        try:
            message, files, _, _ = socket.recv_fds(self._sockets[worker], 2 * _INLINE, 1)
        except OSError as error:
            raise _lost(worker) from error
        if not message:
            raise _lost(worker)
        kind, number, size, gone, held = _HEADER.unpack_from(message)
        numbers = struct.unpack_from(f"<{gone + held}I", message, _HEADER.size)
        if kind in (_BYTES, _REGION):
            self._lent[worker] = set(numbers[gone:])
        for one in numbers[:gone]:
            self._others.pop((worker, one), None)
            if worker == _FIRST:
                self._sums.pop(one, None)
        for file in files:
            self._others[worker, number] = mapped(file, os.fstat(file).st_size)
            os.close(file)
        data = np.frombuffer(message, np.uint8, offset=_HEADER.size + 4 * len(numbers))
        if kind == _REGION:
            data = self._others[worker, number]
        return _Message(kind, number, size, data)

    # -- connecting ---------------------------------------------------------------------------

    def _connect(
        self,
        share: Callable[[str, str], None],
        shared: Callable[[str, float], str | None],
        until: float,
    ) -> None:
        """Connect with every other worker, by sockets that only this user's processes reach."""
        here, token = _machine(), secrets.token_hex(16)
        if not here:
            share(str(self.rank), json.dumps(["", ""]))
            raise Failed("it needs Linux")
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as own:
            own.bind(f"\0tfdp-{token}")
            own.listen(self.size)
            share(str(self.rank), json.dumps([here, token]))
            tokens = {}
            for worker in range(self.size):
                if worker == self.rank:
                    continue
                text = shared(str(worker), max(0.1, until - time.monotonic()))
                if text is None:
                    raise Failed(f"worker {worker} did not tell where it runs", worker)
                machine, tokens[worker] = json.loads(text)
                if not machine:
                    raise Failed(f"it needs Linux, which worker {worker} does not run on")
                if machine != here:
                    raise Failed(f"worker {worker} runs on another machine than worker {self.rank}")
            for worker in range(self.rank):
                self._sockets[worker] = _call(tokens[worker], self.rank, worker, until)
            while len(self._sockets) < self.size - 1:
                worker, one = _answered(own, token, until)
                self._sockets[worker] = one
        for one in self._sockets.values():
            one.settimeout(None)


@dataclasses.dataclass
class _Message:
    """What another worker has said; `data` is what follows, or the memory of its region."""

    kind: int
    number: int
    size: int
    data: np.ndarray


def _machine() -> str:
    """Return what all processes have in common that can share memory, "" where none can.

    Sockets without a file are those of a network namespace: containers that have one each count
    as machines.
    """
    if sys.platform != "linux" or not hasattr(os, "memfd_create"):
        return ""
    try:
        os.close(os.memfd_create("tfdp"))  # a container may forbid it
        boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        network = os.stat("/proc/self/ns/net").st_ino
    except OSError:
        return ""
    return f"{boot} {network} {os.getuid()}"


def _lost(worker: int) -> Failed:
    return Failed(f"worker {worker} has closed its connection", worker)


def _call(token: str, rank: int, worker: int, until: float) -> socket.socket:
    """Connect to a worker, and say who calls."""
    one = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        one.settimeout(max(0.1, until - time.monotonic()))
        one.connect(f"\0tfdp-{token}")
        one.send(f"{token} {rank}".encode())
    except OSError as error:
        one.close()
        raise Failed(f"worker {worker} cannot be reached: {error.strerror or error}") from None
    return one


def _answered(own: socket.socket, token: str, until: float) -> tuple[int, socket.socket]:
    """Return the next worker that connects, and the connection; send others away."""
    while True:
        own.settimeout(max(0.1, until - time.monotonic()))
        try:
            one, _ = own.accept()
        except OSError:
            raise Failed("not all workers have connected") from None
        with contextlib.suppress(OSError, ValueError):
            one.settimeout(max(0.1, until - time.monotonic()))
            said, _, rank = one.recv(100).decode().partition(" ")
            if secrets.compare_digest(said, token):
                return int(rank), one
        one.close()
