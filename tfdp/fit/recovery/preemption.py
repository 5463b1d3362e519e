"""SIGTERM: this machine is taken away soon. The training saves at its next step, and ends.

    with asked() as ask:
        ...
        if ask.ends: save, and raise SystemExit(EXIT_CODE)

    end_at_once()       # where nothing is saved

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


def end_at_once() -> None:
    """Let SIGTERM end this process again, unless somebody handles it in Python.

    TensorFlow takes the signal when it connects to a cluster, for programs that ask it whether it
    came, and ends nothing: whoever has sent it would wait, and kill in the end.
    """
    is_main = threading.current_thread() is threading.main_thread()
    # Python does not know of a handler that C++ has set.
    if is_main and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


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
