"""One part while it is made: rows and errors come in batches, and at the end it gets its name.

    part = Part(parts, number, outputs)         # the process has the claim on it
    part.begin()
    part.add(batch, outputs, refused)
    part.finish()                       # the part is there, and whole

The errors are written first: where there is a part, all its errors are there too.
"""

import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import IO, Any

from tfdp.inference import folder as folder_lib
from tfdp.inference import writers
from tfdp.inference.failures import JobFailed


class Part:
    """The part that is being written."""

    def __init__(
        self,
        parts: folder_lib.Parts,
        number: int,
        outputs: Mapping[str, Any],
    ) -> None:
        """Write nothing yet.

        Args:
            parts: All parts of the job.
            number: Which one.
            outputs: Type and shape of a row of each output, see writers.make.
        """
        self.number = number
        self._parts = parts
        self._rows = self._errors = 0
        self._outputs = outputs
        # Named after this process: one that is stopped may have been taken for dead, and goes on.
        self._path = parts.writing / f"{number:05}.{os.getpid()}"
        self._error_path = self._path.with_suffix(f".{os.getpid()}.errors")
        self._file: IO[bytes]
        self._error_file: IO[str] | None = None
        self._writer: writers.Writer | None = None

    def begin(self) -> None:
        """Open its file, and note that in the journal of the job."""
        self._file = open(self._path, "wb")
        with open(folder_lib.work_folder(self._parts.folder) / "journal", "a") as journal:
            journal.write(f"{self.number} {os.getpid()}\n")

    def add(self, batch: Any, outputs: dict[str, Any], refused: list[tuple[int, str]]) -> None:
        """Add a batch, with the rows that the model has refused."""
        reasons = dict(refused)
        bad = [(error.at, error.file, error.record, error.reason) for error in batch.errors]
        bad += [(*batch.rows[row], reason) for row, reason in reasons.items()]
        if bad:
            self._add_errors(sorted(bad))
        ids = [name for row, name in enumerate(batch.ids) if row not in reasons]
        if ids:
            self._writer_of(outputs).write(ids, outputs)
            self._rows += len(ids)

    def finish(self) -> None:
        """Give the part its name.

        Raises:
            JobFailed: If it has not as many rows as were counted.
            OSError: If it cannot be written.
        """
        counted = self._parts.rows_of(self.number)
        if self._rows + self._errors != counted:
            raise JobFailed(
                f"Part {self.number} has {self._rows} rows and {self._errors} errors, but its "
                f"input had {counted} records when they were counted: was it changed?"
            )
        self._writer_of({}).close()
        errors = self._parts.errors_path(self.number)
        if self._error_file is None:
            errors.unlink(missing_ok=True)
        else:
            _put(self._error_file, self._error_path, errors)
        _put(self._file, self._path, self._parts.path(self.number))

    def _add_errors(self, bad: Sequence[tuple[int, str, int, str]]) -> None:
        if self._error_file is None:
            self._error_file = open(self._error_path, "w")
        for _, file, record, reason in bad:
            line = json.dumps({"file": file, "record": record, "reason": reason})
            self._error_file.write(line + "\n")
        # At once: the supervisor may want them when they have become too many.
        self._error_file.flush()
        self._errors += len(bad)

    def _writer_of(self, outputs: dict[str, Any]) -> writers.Writer:
        if self._writer is None:
            kinds = self._outputs
            if outputs:
                kinds = {
                    name: (kinds[name][0], outputs[name].shape[1:]) for name in sorted(outputs)
                }
            self._writer = writers.make(self._parts.extension, self._file, kinds)
        return self._writer


def _put(file: IO[Any], path: pathlib.Path, target: pathlib.Path) -> None:
    """Give a file its name when all of it is on the disk."""
    with file:
        file.flush()
        os.fsync(file.fileno())
        path.rename(target)
