"""Writes one checkpoint while training goes on.

    writer = Writer(store)
    writer.write(place, run, specs, values)     # returns at once
    writer.wait()                               # until it is on the disk

One at a time: while one is written the next is left out, and said. A disk that is full for a moment
is no reason to end a training of a week; one that fails three times in a row is.
"""

import logging
import threading
from collections.abc import Iterable, Sequence
from typing import Any

from tfdp.checkpoints.lease import LeaseLost
from tfdp.checkpoints.store import Place, Store
from tfdp.checkpoints.tensors import Spec
from tfdp.error import Error

_log = logging.getLogger("tfdp")

_MOST_FAILURES = 3


class Writer:
    """Writes checkpoints into a store.

    Args:
        store: A claimed store.
        asynchronous: Whether to write in a thread of its own.
    """

    def __init__(self, store: Store, asynchronous: bool = True):
        self._store = store
        self._asynchronous = asynchronous
        self._thread: threading.Thread | None = None
        self._failures = 0
        self._lost: LeaseLost | None = None

    @property
    def is_busy(self) -> bool:
        """Whether a checkpoint is being written."""
        return self._thread is not None and self._thread.is_alive()

    def write(
        self,
        place: Place,
        run: dict[str, Any],
        specs: Sequence[Spec],
        values: Iterable[Any],
    ) -> None:
        """Write a checkpoint.

        The arguments are those of Store.save; nobody may change the arrays meanwhile.

        Raises:
            Error: If the disk has failed three times in a row, or another run has the folder.
        """
        self.wait()
        if not self._asynchronous:
            self._save(place, run, specs, values)
            self._raise()
            return
        self._thread = threading.Thread(
            target=self._save, args=(place, run, specs, values), name="tfdp-checkpoint"
        )
        self._thread.start()

    def wait(self) -> None:
        """Wait until nothing is being written.

        Raises:
            Error: See write.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self._raise()

    def _raise(self) -> None:
        if self._lost is not None:
            raise self._lost
        if self._failures >= _MOST_FAILURES:
            raise Error(
                f"Checkpoints could not be saved in {self._store.folder} {self._failures} times in "
                "a row: training ends, because nothing after the last checkpoint would survive."
            )

    def _save(
        self, place: Place, run: dict[str, Any], specs: Sequence[Spec], values: Iterable[Any]
    ) -> None:
        try:
            self._store.save(place, run, specs, values)
            self._failures = 0
        except LeaseLost as error:
            self._lost = error
        except OSError as error:
            self._failures += 1
            _log.warning(
                "The checkpoint of step %s could not be saved in %s: %s. Training goes on%s.",
                f"{place.step:,}",
                self._store.folder,
                error.strerror or error,
                "" if self._failures < _MOST_FAILURES else " no more",
            )
