"""SIGTERM: this machine is taken away soon. The training saves at its next step, and ends.

    with asked() as ask:
        ...
        if ask.ends: save, and raise SystemExit(EXIT_CODE)

The handler only notes that the signal has come: whoever saves in a handler may hold a lock that the
interrupted code needs.
"""

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any

# 128 + SIGTERM: what a process that SIGTERM has ended leaves.
EXIT_CODE = 143


class Ask:
    """Whether this process was asked to end.

    Attributes:
        ends: Set by the signal, and never taken back.
    """

    def __init__(self) -> None:
        self.ends = False


@contextlib.contextmanager
def asked() -> Iterator[Ask]:
    """Note SIGTERM while this runs; TensorFlow takes the signal when a strategy is made.

    In a thread that is not the main one no signal can be noted: nothing changes there.
    """
    ask = Ask()
    if threading.current_thread() is not threading.main_thread():
        yield ask
        return

    def note(number: int, frame: Any) -> None:
        del number, frame
        ask.ends = True

    before = signal.signal(signal.SIGTERM, note)
    try:
        yield ask
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)
