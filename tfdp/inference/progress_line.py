"""How far a job is, on one line: rows done, rows a second, time left.

    progress = Progress(sys.stderr, total=1_000_000, before=250_000)
    progress.show(done=300_000, errors=2)

On a terminal the line is written over itself; elsewhere, in a log file, there is a new one now and
then, without control codes.
"""

import time
from collections.abc import Callable
from typing import IO

_TERMINAL_SECONDS = 0.5
_FILE_SECONDS = 10.0


class Progress:
    """The line.

    Args:
        before: Rows that were done already when this begins.
    """

    def __init__(
        self,
        stream: IO[str] | None,
        total: int,
        before: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._before = before
        self._stream = stream
        self._total = total
        self._clock = clock
        self._terminal = stream is not None and stream.isatty()
        self._every = _TERMINAL_SECONDS if self._terminal else _FILE_SECONDS
        self._began = self._shown = clock()
        self._drawn = 0

    def show(self, done: int, errors: int) -> None:
        """Show the line, if it is time to."""
        now = self._clock()
        if self._stream is None or now - self._shown < self._every:
            return
        self._shown = now
        line = describe(done, self._total, errors, done - self._before, now - self._began)
        if self._terminal:
            self._stream.write("\r" + line.ljust(self._drawn))
            self._drawn = len(line)
        else:
            self._stream.write(line + "\n")
        self._stream.flush()

    def close(self) -> None:
        """Clear the line from a terminal."""
        if self._drawn and self._stream is not None:
            self._stream.write("\r" + " " * self._drawn + "\r")
            self._stream.flush()
            self._drawn = 0


def describe(done: int, total: int, errors: int, rows: int, seconds: float) -> str:
    """Return the line: `rows` of the `done` were done in so many seconds."""
    rate = rows / seconds if seconds > 0 else 0.0
    left = _time((total - done) / rate) + " left" if rate else "no rows yet"
    bad = f", {errors:,} unreadable" if errors else ""
    return f"{done:,}/{total:,} rows, {_rate(rate)} rows/s, {left}{bad}"


def _rate(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 10 else f"{rate:.1f}"


def _time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
