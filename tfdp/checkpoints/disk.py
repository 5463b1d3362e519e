"""What makes a file durable, and how a large one is written beside a training."""

import contextlib
import errno
import fcntl
import mmap
import os
import pathlib
import shutil
import time
import uuid
from collections.abc import Iterator
from typing import Any

TEMPORARY = ".tmp-"
_PAUSE_SECONDS = 0.1
_BUFFER_BYTES = 4 << 20
# What a disk that fails says, and no file system that cannot do what it is asked.
_FAILURES = (errno.EIO, errno.ENOSPC, errno.EDQUOT)


def replace(path: pathlib.Path, data: bytes) -> None:
    """Write a whole file, or leave the one that is there.

    Raises:
        OSError: If it cannot be written.
    """
    part = path.with_name(f"{TEMPORARY}{uuid.uuid4().hex}")
    try:
        write(part, data)
        os.replace(part, path)
    except BaseException:
        with contextlib.suppress(OSError):
            part.unlink()
        raise
    sync_folder(path.parent)


def write(path: pathlib.Path, data: bytes) -> None:
    """Write a whole file, and wait until it is on the disk.

    Raises:
        OSError: If it cannot be written.
    """
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


class DirectFile:
    """A new file that is written from its beginning to its end, past the page cache (O_DIRECT).

    A checkpoint is seldom read again soon. In the cache it would push out the data that the
    training reads, and memory would have to be found for each page of it. Where the file system
    has no O_DIRECT, it is written as any other.

    Args:
        path: The file.

    Attributes:
        written: The bytes that were given.

    Raises:
        OSError: If it cannot be made.
    """

    def __init__(self, path: pathlib.Path):
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        try:
            self._descriptor = os.open(path, flags | os.O_DIRECT, 0o666)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            path.unlink(missing_ok=True)  # some make it all the same
            self._descriptor = os.open(path, flags, 0o666)
        # As the disk wants it: it begins at a page, and holds whole blocks.
        self._buffer = mmap.mmap(-1, _BUFFER_BYTES)
        self._filled = 0
        self.written = 0

    def write(self, data: Any) -> None:
        """Write all of some bytes; the last of them wait for `finish`.

        Raises:
            OSError: If the disk is full or fails.
        """
        left = memoryview(data)
        self.written += len(left)
        while len(left):
            part = left[: _BUFFER_BYTES - self._filled]
            self._buffer[self._filled : self._filled + len(part)] = part
            self._filled += len(part)
            left = left[len(part) :]
            if self._filled == _BUFFER_BYTES:
                self._empty()

    def finish(self) -> None:
        """Wait until all is on the disk.

        Raises:
            OSError: If the disk is full or fails.
        """
        self._use_cache()  # the end is no whole block
        self._empty()
        os.fsync(self._descriptor)

    def close(self) -> None:
        """Let go of the file, whether it is finished or not."""
        os.close(self._descriptor)
        self._buffer.close()

    def __enter__(self) -> "DirectFile":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _empty(self) -> None:
        with memoryview(self._buffer) as whole, whole[: self._filled] as filled:
            done = 0
            while done < len(filled):
                try:
                    done += os.write(self._descriptor, filled[done:])
                except OSError as error:
                    if error.errno != errno.EINVAL or not self._use_cache():
                        raise
                if done % mmap.PAGESIZE:  # the disk took a part that is no whole block
                    self._use_cache()
        self._filled = 0

    def _use_cache(self) -> bool:
        """Write through the page cache from now on; return whether that is new."""
        flags = fcntl.fcntl(self._descriptor, fcntl.F_GETFL)
        fcntl.fcntl(self._descriptor, fcntl.F_SETFL, flags & ~os.O_DIRECT)
        return bool(flags & os.O_DIRECT)


@contextlib.contextmanager
def where_supported() -> Iterator[None]:
    """Leave out what the file system cannot do: locks, or syncing a folder.

    Raises:
        OSError: If the disk fails.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _FAILURES:
            raise


def sync_folder(folder: pathlib.Path) -> None:
    """Wait until a folder's names are on the disk, where the file system can.

    Raises:
        OSError: If the disk fails.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with where_supported():
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove(folder: pathlib.Path) -> None:
    """Remove a folder so that nobody ever sees a part of it under its name."""
    aside = folder.with_name(f"{TEMPORARY}{uuid.uuid4().hex}")
    try:
        os.rename(folder, aside)
    except FileNotFoundError:
        return
    shutil.rmtree(aside, ignore_errors=True)


def pause() -> None:
    """Wait a little for another process."""
    time.sleep(_PAUSE_SECONDS)
