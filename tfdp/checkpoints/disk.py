"""What makes a file durable."""

import contextlib
import errno
import os
import pathlib
import shutil
import time
import uuid
from collections.abc import Iterator

TEMPORARY = ".tmp-"
_PAUSE_SECONDS = 0.1
# What a disk that fails says, and no file system that cannot do what it is asked.
_FAILURES = (errno.EIO, errno.ENOSPC, errno.EDQUOT)


def replace(path: pathlib.Path, data: bytes) -> None:
    """Write a whole file, or leave the one that is there.

    Raises:
        OSError: If it cannot be written.
    """
    part = path.with_name(f"{TEMPORARY}{uuid.uuid4().hex}")
    try:
        with open(part, "wb") as file:
            file.write(data)
            sync_file(file.fileno())
        os.replace(part, path)
    except BaseException:
        with contextlib.suppress(OSError):
            part.unlink()
        raise
    sync_folder(path.parent)


def sync_file(descriptor: int) -> None:
    """Wait until a file's bytes are on the disk."""
    os.fsync(descriptor)


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
