"""What a worker says of itself: a little memory that it writes, and that its supervisor reads.

    status = Status(descriptor)             # in the worker
    status.update(part=3, rows=64)
    State.read(descriptor)                  # in the supervisor: State(part=3, rows=64, ...)

A worker writes at least once a second, so that one whose memory does not change hangs. Nothing of
this is on a disk, which may be full.
"""

import contextlib
import dataclasses
import json
import os
import threading
import time
from typing import Any

BEAT_SECONDS = 1.0
_MOST_BYTES = 1 << 16


@dataclasses.dataclass(frozen=True)
class State:
    """What a worker tells.

    Attributes:
        ready: Whether the model is loaded and the job known.
        began: When the first part was begun, by time.monotonic(), which all processes share.
        finished: When the last part so far was there.
        part: The part that is being made.
        rows: Its rows that have been run.
        failure: Why the worker cannot go on, "" if it can.
        mistake: Whether the command is to blame for that (InferenceError, else JobFailed).
        beat: When this was written.
    """

    ready: bool = False
    began: float | None = None
    finished: float | None = None
    part: int | None = None
    rows: int = 0
    failure: str = ""
    mistake: bool = False
    beat: float = 0.0

    @classmethod
    def read(cls, descriptor: int) -> "State | None":
        """Return what a worker has written; None if that is nothing, or not whole yet."""
        try:
            return cls(**json.loads(os.pread(descriptor, _MOST_BYTES, 0)))
        except ValueError:
            return None


class Status:
    """The state of this process, written when it changes and once a second by a thread."""

    def __init__(self, descriptor: int) -> None:
        """Begin to write.

        Args:
            descriptor: Of a file in memory (os.memfd_create), which the supervisor has made.
        """
        self.state = State()
        self._descriptor = descriptor
        self._lock = threading.Lock()
        threading.Thread(target=self._beat, daemon=True).start()

    def update(self, **changes: Any) -> None:
        """Change fields of the state."""
        with self._lock, contextlib.suppress(OSError):
            self.state = dataclasses.replace(self.state, **changes, beat=time.monotonic())
            content = json.dumps(dataclasses.asdict(self.state)).encode()
            # Blanks cover what is left of a longer one.
            before = os.fstat(self._descriptor).st_size
            os.pwrite(self._descriptor, content.ljust(before), 0)

    def _beat(self) -> None:
        while True:
            self.update()
            time.sleep(BEAT_SECONDS)
