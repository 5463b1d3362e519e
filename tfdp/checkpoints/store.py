"""A folder of checkpoints.

    store = Store("runs/a/backup", keep=3)
    found = store.newest()                          # None in a new folder
    store.claim()
    store.save(Place(step=1200), run, specs, values)

A checkpoint is written beside the others under a name that nobody reads, every file and folder is
synchronised, and a rename commits it. Steps order them, never a clock: there is no pointer to the
newest that could be older or newer than what it names.
"""

import contextlib
import dataclasses
import hashlib
import json
import logging
import os
import pathlib
import re
import shutil
import uuid
from collections.abc import Iterable, Sequence
from typing import Any

from tfdp.checkpoints import disk, tensors
from tfdp.checkpoints.lease import Lease, LeaseLost
from tfdp.error import Error

_log = logging.getLogger("tfdp")

STATE, RUN, MANIFEST = "state.safetensors", "run.json", "manifest.json"
FORMAT = 1
_DAMAGED = ".damaged"
# step-000000001200-1: after 1,200 steps, in the first phase after them.
_NAME = re.compile(r"step-(\d{12})-(\d)")


class DamagedError(Error):
    """There are checkpoints, and none of them is whole."""


@dataclasses.dataclass(frozen=True, order=True)
class Place:
    """Where in a training a checkpoint was taken.

    Attributes:
        step: Steps since the beginning, over all epochs.
        phase: 0 within an epoch; 1 when all steps of it are done; 2 behind its end.
    """

    step: int
    phase: int = 0

    @property
    def name(self) -> str:
        """The name of the checkpoint's folder."""
        return f"step-{self.step:012d}-{self.phase}"


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """One that is whole: its sizes and digests were compared.

    Attributes:
        place: Where it was taken.
        path: Its folder.
        run: What run.json holds.
    """

    place: Place
    path: pathlib.Path
    run: dict[str, Any]

    def arrays(self) -> tensors.Reader:
        """Open the arrays."""
        return tensors.Reader(self.path / STATE)


class Store:
    """Saves checkpoints into a folder and finds them again.

    Args:
        folder: The folder; made when something is saved.
        keep: How many whole checkpoints stay.
    """

    def __init__(self, folder: str | os.PathLike[str], keep: int = 3):
        self.folder = pathlib.Path(folder)
        self.keep = keep
        self._lease: Lease | None = None

    def claim(self) -> None:
        """Take over the folder: only the last run that did may save.

        Raises:
            Error: If a process of this machine that is alive writes there, or nothing can be
                written.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lease = Lease.claim(self.folder)
        except OSError as error:
            raise Error(
                f"Checkpoints cannot be saved in {self.folder}: {error.strerror}. "
                "Choose another folder."
            ) from error
        # What nobody finished: nobody else writes here now.
        for path in self.folder.glob(f"{disk.TEMPORARY}*"):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                with contextlib.suppress(OSError):
                    path.unlink()

    def save(
        self,
        place: Place,
        run: dict[str, Any],
        specs: Sequence[tensors.Spec],
        values: Iterable[Any],
    ) -> pathlib.Path:
        """Save a checkpoint; return its folder. All of it is on the disk then, or nothing.

        Args:
            place: Where it is taken. One that is there already stays.
            run: Plain data, for run.json.
            specs: The arrays.
            values: Theirs, one at a time: see tensors.write.

        Raises:
            OSError: If it cannot be written; what was saved before is as it was.
            LeaseLost: If another run has claimed the folder.
        """
        assert self._lease is not None, "claim() comes first"
        path = self.folder / place.name
        if path.exists():
            return path
        part = self.folder / f"{disk.TEMPORARY}{uuid.uuid4().hex}"
        try:
            part.mkdir()
            files = {}
            with disk.DirectFile(part / STATE) as file:
                digest = tensors.write(file, specs, values)
                file.finish()
            files[STATE] = {"bytes": file.written, "sha256": digest}
            text = (json.dumps(run, indent=1) + "\n").encode()
            files[RUN] = {"bytes": len(text), "sha256": hashlib.sha256(text).hexdigest()}
            facts = {"format": FORMAT, "step": place.step, "phase": place.phase, "files": files}
            facts["sha256"] = _digest(facts)  # of all the rest of the manifest
            disk.write(part / RUN, text)
            disk.write(part / MANIFEST, (json.dumps(facts, indent=1) + "\n").encode())
            disk.sync_folder(part)
            with self._lease.held():
                os.rename(part, path)
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)
            raise
        disk.sync_folder(self.folder)
        self._forget()
        return path

    def places(self) -> list[Place]:
        """Return where checkpoints were taken, the first one first; nothing is verified."""
        found = []
        with contextlib.suppress(FileNotFoundError):
            for name in os.listdir(self.folder):
                if match := _NAME.fullmatch(name):
                    found.append(Place(int(match[1]), int(match[2])))
        return sorted(found)

    def newest(self) -> Checkpoint | None:
        """Return the newest checkpoint that is whole; None if none was ever saved.

        One that is damaged is renamed, and the one before it is taken.

        Raises:
            DamagedError: If there are checkpoints and all are damaged.
            OSError: If the folder cannot be read.
        """
        for place in reversed(self.places()):
            path = self.folder / place.name
            problem, run = _verify(path, place)
            if not problem:
                return Checkpoint(place, path, run)
            aside = path.with_name(f"{path.name}{_DAMAGED}-{uuid.uuid4().hex[:8]}")
            with contextlib.suppress(OSError):
                os.rename(path, aside)
            _log.warning(
                "The checkpoint %s is damaged and is not used: %s. It is kept as %s.",
                path,
                problem,
                aside.name,
            )
        if self.folder.is_dir() and any(self.folder.glob(f"*{_DAMAGED}-*")):
            raise DamagedError(
                f"{self.folder} holds checkpoints, and all are damaged. To start from the "
                "beginning remove that folder, or choose another."
            )
        return None

    def clear(self) -> None:
        """Remove all checkpoints, and the folder where it holds nothing else.

        The next run starts from the beginning. Where another run has claimed the folder meanwhile,
        nothing is removed.
        """
        if self._lease is not None:
            try:
                self._lease.check()
            except (LeaseLost, OSError):
                return
        for place in reversed(self.places()):
            disk.remove(self.folder / place.name)
        if self._lease is not None:
            self._lease.release()
            self._lease = None
        with contextlib.suppress(OSError):
            self.folder.rmdir()

    def _forget(self) -> None:
        """Remove those beyond the newest `keep`; called when a new one is committed."""
        try:
            for place in self.places()[: -self.keep]:
                disk.remove(self.folder / place.name)
        except OSError as error:
            _log.warning(
                "Older checkpoints could not be removed in %s: %s.", self.folder, error.strerror
            )


def _digest(facts: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _verify(path: pathlib.Path, place: Place) -> tuple[str, dict[str, Any]]:
    """Return what is wrong with a checkpoint, or "" and what run.json holds."""
    try:
        facts = json.loads((path / MANIFEST).read_bytes())
        if facts.pop("sha256") != _digest(facts):
            return f"{MANIFEST} was changed (SHA-256)", {}
        if isinstance(facts["format"], int) and facts["format"] > FORMAT:
            raise Error(
                f"{path} has format {facts['format']}, and this tfdp reads {FORMAT}: use the "
                "version of tfdp that has written it, or newer, or another folder."
            )
        if (facts["step"], facts["phase"]) != (place.step, place.phase):
            return "its manifest is that of another checkpoint", {}
        for name in (STATE, RUN):
            wanted = facts["files"][name]
            size = (path / name).stat().st_size
            if size != wanted["bytes"]:
                return f"{name} has {size:,} bytes of {wanted['bytes']:,}", {}
            with open(path / name, "rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != wanted["sha256"]:
                    return f"{name} was changed (SHA-256)", {}
        return "", json.loads((path / RUN).read_bytes())
    except Error:
        raise
    except FileNotFoundError as error:
        return f"{pathlib.Path(error.filename).name} is not there", {}
    except OSError as error:
        return f"it cannot be read: {error.strerror}", {}
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{MANIFEST} cannot be read", {}
