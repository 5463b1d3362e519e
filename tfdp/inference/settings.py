"""What a job of `tfdp predict` is told.

settings = Settings(model="models/digits", input="data/*.csv", output="out", workers=2)
check(settings)
"""

import dataclasses
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from tfdp import plain
from tfdp.inference.failures import InferenceError

FORMATS = ("jsonl", "csv", "npy", "tfrecord")
DEFAULT_BATCH_SIZE = 64


@dataclasses.dataclass(frozen=True)
class Settings:
    """What to predict, and how.

    Attributes:
        model: A version of a SavedModel, or the folder of its versions.
        input: Pattern, folder, or tfds:NAME/SPLIT; see input_files.find.
        output: The folder of the parts.
        workers: Worker processes; 0 is one for each GPU, or one.
        signature: Which function of the model.
        format: One of FORMATS; "" goes by the end of the output's name, else jsonl.
        batch_size: Rows of a call; 0 takes what the parts on disk were made with, or 64.
        shard_rows: Rows of a part; 0 takes what is on disk, or cuts 64 parts of 256 to 16384 rows.
        max_errors: Rows that may be unreadable before the job stops.
        id: The column or feature that holds the id of a row; "" makes FILE:RECORD.
        map: Columns or features of the input by input of the signature, where names differ.
        jit_compile: Whether XLA compiles the model.
        data_dir: Folder of TFDS datasets.
        timeout_seconds: How long a worker may be silent before it is replaced.
        threads: Of each worker; 0 divides the cores.
    """

    model: str
    input: str
    output: str
    workers: int = 0
    signature: str = "serving_default"
    format: str = ""
    batch_size: int = 0
    shard_rows: int = 0
    max_errors: int = 100
    id: str = ""
    map: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    jit_compile: bool = False
    data_dir: str = ""
    timeout_seconds: float = 60.0
    threads: int = 0


@dataclasses.dataclass(frozen=True)
class Order(plain.Facts):
    """What a worker is told; job.json holds the rest.

    Attributes:
        settings: Of the command, with the model's version and the numbers that it has left open.
        launcher: The process that has started the worker, which ends after its part without it; 0
            for another host's, which ends at once.
        job: The entries of job.json that the command decides.
    """

    settings: Settings
    launcher: int
    job: Mapping[str, Any]

    def is_orphaned(self) -> bool:
        """Say, in a worker, whether its launcher is gone."""
        return self.launcher != 0 and os.getppid() != self.launcher


def check(settings: Settings) -> None:
    """Check what needs neither the model nor the input.

    Raises:
        InferenceError: Naming the flag.
    """
    for name in ("model", "input", "output"):
        if not getattr(settings, name):
            raise InferenceError(
                f"No --{name}. Write: tfdp predict --model=MODELS/NAME --input=PATTERN --output=DIR"
            )
    for name, least in (
        ("workers", 0),
        ("batch_size", 0),
        ("shard_rows", 0),
        ("max_errors", 0),
        ("threads", 0),
        ("timeout_seconds", 3),
    ):
        if getattr(settings, name) < least:
            raise InferenceError(f"--{name}={getattr(settings, name)}: use {least} or more.")
    if settings.format and settings.format not in FORMATS:
        raise InferenceError(f"--format={settings.format!r}: use one of {', '.join(FORMATS)}.")


def extension(settings: Settings) -> str:
    """Return the format of the parts: as asked for, else by the name of the output."""
    ending = pathlib.Path(settings.output).suffix.removeprefix(".")
    return settings.format or (ending if ending in FORMATS else "jsonl")
