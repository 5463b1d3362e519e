"""The log of one task: a file that is continued in a new one before it grows too large.

log = Log(pathlib.Path("runs/a/worker-1.log"), max_bytes=100 << 20, keep=3)
log.write(b"...")   # worker-1.log; older parts are worker-1.log.1 (the newest) to .3
log.close()
"""

import contextlib
import itertools
import os
import pathlib


class Log:
    """Appends to a file, in whole lines where there are lines.

    Args:
      path: The file; its folder is made when absent.
      max_bytes: How large it may grow; 0 for as large as it will.
      keep: How many older parts are kept; with 0, what is full is thrown away.

    Raises:
      OSError: It cannot be opened.
    """

    def __init__(self, path: pathlib.Path, max_bytes: int = 0, keep: int = 0) -> None:
        self._path = path
        self._max_bytes = max_bytes
        self._keep = keep
        self._is_in_line = False
        path.parent.mkdir(parents=True, exist_ok=True)
        self._open()

    def write(self, data: bytes) -> None:
        """Appends.

        Raises:
          OSError: The disk is full, or gone.
        """
        while self._max_bytes and self._size + len(data) > self._max_bytes:
            # Whole lines that fit; else the line that was begun ends where it began.
            end = data.rfind(b"\n", 0, max(0, self._max_bytes - self._size)) + 1
            if not end and self._is_in_line:
                end = data.find(b"\n") + 1
            if not end and (not self._size or (self._is_in_line and self._size < self._max_bytes)):
                break  # a line as long as a file
            self._append(data[:end])
            data = data[end:]
            if not data:
                return
            self._rotate()
        self._append(data)

    def close(self) -> None:
        """Closes the file."""
        # A network disk may report only now that it was full; nothing can be done about it.
        with contextlib.suppress(OSError):
            os.close(self._fd)

    def _open(self) -> None:
        self._fd = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        self._size = os.fstat(self._fd).st_size

    def _append(self, data: bytes) -> None:
        if data:
            self._is_in_line = not data.endswith(b"\n")
        # A file takes a part only when the disk is nearly full; the next call then says so.
        view = memoryview(data)
        while view:
            count = os.write(self._fd, view)
            self._size += count
            view = view[count:]

    def _rotate(self) -> None:
        if self._keep:
            parts = [self._path, *(self._part(number) for number in range(1, self._keep + 1))]
            for newer, older in reversed(list(itertools.pairwise(parts))):
                with contextlib.suppress(FileNotFoundError):
                    os.replace(newer, older)
        else:
            os.truncate(self._path, 0)
        # Opened before the other is closed: when that fails, the old file is gone on with.
        before = self._fd
        self._open()
        os.close(before)

    def _part(self, number: int) -> pathlib.Path:
        return self._path.with_name(f"{self._path.name}.{number}")
