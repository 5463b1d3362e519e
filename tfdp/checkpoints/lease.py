"""Who may write into a folder of checkpoints: the run that claimed it last.

    lease = Lease.claim(folder)         # refused while another process that lives holds it
    lease.check()                       # before each commit: raises where another has claimed it

A claim has the next generation number, never a time: clocks of machines differ. A process that was
stopped while another took its place finds a newer generation when it is woken, and writes no more.
"""

import contextlib
import dataclasses
import fcntl
import json
import os
import pathlib
import socket
import uuid
from collections.abc import Iterator
from typing import Any

from tfdp.checkpoints import disk
from tfdp.error import Error

_FILE = "lease.json"
_LOCK = ".lock"


class LeaseLost(Error):
    """Another run has taken over the folder."""


@dataclasses.dataclass(frozen=True)
class Lease:
    """The right to write into a folder.

    Attributes:
        folder: The folder.
        generation: How many runs have claimed it, this one included.
        owner: A name that no other claim has.
    """

    folder: pathlib.Path
    generation: int
    owner: str

    @classmethod
    def claim(cls, folder: pathlib.Path) -> "Lease":
        """Claim a folder for this process.

        Raises:
            Error: If a process of this machine that is alive writes there.
            OSError: If the folder cannot be written.
        """
        with _locked(folder):
            held = _read(folder)
            if held and _lives(held):
                raise Error(
                    f"{folder} belongs to a run that goes on: process {held['pid']} on "
                    f"{held['host']}. Wait for its end, or choose another folder."
                )
            claimed = cls(folder, int(held.get("generation", 0)) + 1, uuid.uuid4().hex)
            facts = {
                "generation": claimed.generation,
                "owner": claimed.owner,
                "host": socket.gethostname(),
                "pid": os.getpid(),
                "began": _began(os.getpid()),
            }
            disk.replace(folder / _FILE, json.dumps(facts).encode())
        return claimed

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Check, and let nobody else claim the folder meanwhile.

        Raises:
            LeaseLost: If another has claimed it.
        """
        with _locked(self.folder):
            self.check()
            yield

    def release(self) -> None:
        """Give the folder up, unless another run has claimed it: what says whose it is goes."""
        with contextlib.suppress(OSError, LeaseLost):
            with self.held():
                (self.folder / _FILE).unlink()
            (self.folder / _LOCK).unlink()

    def check(self) -> None:
        """Raise LeaseLost if another run has claimed the folder; OSError if the disk fails."""
        now = _read(self.folder)
        if now.get("owner") != self.owner:
            raise LeaseLost(
                f"{self.folder} was taken over by another run (process {now.get('pid')} on "
                f"{now.get('host')}), which goes on from its last checkpoint: this one ends."
            )


@contextlib.contextmanager
def _locked(folder: pathlib.Path) -> Iterator[None]:
    """Hold the folder's lock, where the file system has locks."""
    with open(folder / _LOCK, "w") as file:
        # A holder that is stopped would keep it for ever: then the generation alone decides.
        with disk.where_supported():
            for _ in range(50):
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    disk.pause()
        yield


def _read(folder: pathlib.Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / _FILE).read_bytes())
    except (FileNotFoundError, ValueError):
        return {}  # a disk that fails says nothing of whose the folder is
    return found if isinstance(found, dict) else {}


def _lives(held: dict[str, Any]) -> bool:
    """Say whether the holder is another process of this machine that runs."""
    pid = held.get("pid")
    if held.get("host") != socket.gethostname() or not isinstance(pid, int) or pid == os.getpid():
        return False
    began = _began(pid)
    return began is not None and began == held.get("began")


def _began(pid: int) -> str | None:
    """Return when a process has begun, in the kernel's ticks; None if it does not run.

    A number of a process is used again: it is the same process if it has begun at the same time.
    """
    try:
        fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    # Stopped, a zombie, dead: it writes nothing now.
    return None if fields[0] in "TtZX" else fields[19]
