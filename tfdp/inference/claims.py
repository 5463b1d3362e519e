"""Which process makes which part: a claim is a lock on a file, OUT/.tfdp/writing-KEY/00003.

    claims = Claims(parts, timeout_seconds=60.0)
    for number in claims.take():        # each part that is missing, when this process has it
        ...                             # and when it is there:
        claims.give_back(number)

Nobody hands out parts. The kernel gives a lock back when its process ends, however it ends: then
the part is free for whoever comes next. A claim that its holder does not touch any more, because it
is stopped, is taken from it. That one part is then made twice does no harm: it is the same bytes.
"""

import contextlib
import fcntl
import os
import pathlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import IO

from tfdp.inference.failures import JobFailed
from tfdp.inference.folder import Parts

_TOUCH_SECONDS = 1.0
# How often to look whether a part has become free that another process holds.
_POLL_SECONDS = 0.2


class Claims:
    """The claims of this process."""

    def __init__(self, parts: Parts, timeout_seconds: float) -> None:
        """Begin to touch what will be claimed, from a thread.

        Args:
            parts: What there is to claim.
            timeout_seconds: How long the claim of another process may be untouched.
        """
        self._parts = parts
        self._timeout_seconds = timeout_seconds
        self._held: dict[int, IO[bytes]] = {}
        # The time of change of what others hold, and since when it is known.
        self._seen: dict[int, tuple[int, float]] = {}
        threading.Thread(target=self._touch, daemon=True).start()

    def take(
        self,
        goes_on: Callable[[], bool] = lambda: True,
        before: Callable[[int], None] = lambda left: None,
    ) -> Iterator[int]:
        """Yield the parts that are missing, in order, until all are there.

        Args:
            goes_on: Whether to wait for those that other processes hold.
            before: Called before each claim with the number of parts that may be left, and with 0
                before it is looked for parts that are still missing.

        Raises:
            JobFailed: If a claim cannot be made, because the job's folder is gone for instance.
        """
        missing = self._parts.missing()
        while missing and goes_on():
            for at, number in enumerate(missing):
                before(len(missing) - at)
                if self._claim(number):
                    yield number
            before(0)
            missing = self._parts.missing(missing)
            for number in missing:
                self._free_if_untouched(number)
            if missing:
                time.sleep(_POLL_SECONDS)

    def give_back(self, number: int) -> None:
        """End a claim."""
        self._held.pop(number).close()

    def _path(self, number: int) -> pathlib.Path:
        return self._parts.writing / f"{number:05}"

    def _claim(self, number: int) -> bool:
        try:
            file = open(self._path(number), "ab")
        except OSError as error:
            why = error.strerror or error
            raise JobFailed(f"{self._path(number)} cannot be written: {why}.") from error
        with contextlib.suppress(BlockingIOError, FileNotFoundError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Before the lock was there, the part may have come, or the file may have been replaced.
            is_it = os.path.samestat(os.fstat(file.fileno()), os.stat(self._path(number)))
            if is_it and not self._parts.path(number).exists():
                self._held[number] = file
                return True
        file.close()
        return False

    def _free_if_untouched(self, number: int) -> None:
        with contextlib.suppress(FileNotFoundError):
            changed, now = self._path(number).stat().st_mtime_ns, time.monotonic()
            if self._seen.get(number, (0, 0.0))[0] != changed:
                self._seen[number] = changed, now
            elif now - self._seen[number][1] > self._timeout_seconds:
                # The next claim is on a new file; the holder keeps the lock of one without a name.
                self._path(number).unlink()

    def _touch(self) -> None:
        while True:
            for number in list(self._held):
                with contextlib.suppress(OSError):
                    os.utime(self._path(number))
            time.sleep(_TOUCH_SECONDS)
