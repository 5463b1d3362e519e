"""What the parts of a job are made with: found out once, by the first worker, and written down.

    job = agreed(order, signatures, split=None)     # of job.json, which this may have written

This needs TensorFlow (for features and signatures), and time where there is much to count: so it is
a worker that does it, while the others wait for job.json.
"""

import fcntl
import hashlib
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from tfdp.inference import examples, input_files, raw_rows, shards, signature
from tfdp.inference import folder as folder_lib
from tfdp.inference.failures import InferenceError, JobFailed, RowError
from tfdp.inference.input_files import Split
from tfdp.inference.settings import Order
from tfdp.inference.shards import Span
from tfdp.inference.signature import Signature

# Of so many records at the beginning one has to have a feature, or it is taken for misspelled.
_FIRST = 10


def agreed(
    order: Order, signatures: Mapping[str, Signature], split: Split | None
) -> dict[str, Any]:
    """Return the job of the output folder; find out what it is if this is the first worker.

    Args:
        order: What the worker is told.
        signatures: Of the model.
        split: The input, if it is one of TFDS.

    Raises:
        InferenceError: If the input does not fit the model, or the folder belongs to another job.
    """
    folder = pathlib.Path(order.settings.output)
    known = dict(order.job)
    if split is not None:
        known["input"] = _described(split.found, split.files)
    # Of this launcher: a worker of an earlier one may be stopped, and is not waited for.
    with open(folder_lib.work_folder(folder) / f"plan-{order.launcher}.lock", "w") as lock:
        # The kernel gives it back if the process that holds it dies before it is done.
        fcntl.flock(lock, fcntl.LOCK_EX)
        job = folder_lib.read_job(folder)
        if job is None:
            job = _made(order, signatures, split)
            if order.is_orphaned():
                raise JobFailed("The launcher is gone: the folder may be another job's by now.")
            folder_lib.write_job(folder, job)
    folder_lib.check_same_job(folder, job, known)
    parts = folder_lib.Parts.of(folder, job)
    parts.writing.mkdir(exist_ok=True)
    parts.errors.mkdir(exist_ok=True)
    return job


def _made(order: Order, signatures: Mapping[str, Signature], split: Split | None) -> dict[str, Any]:
    job = dict(order.job)
    found = split.found if split else input_files.find(order.settings.input)
    header = split.header if split else input_files.header(found)
    chosen = signature.choose(signatures, job["signature"])
    columns = signature.bind(chosen, found.kind, header, job["map"], signatures, job["id"])
    if found.kind == "tfrecord":
        wanted = [name for names in columns.values() for name in names] + [job["id"]]
        _check_features(found, signatures, [name for name in wanted if name])
    files = split.files if split else input_files.scan(found)
    rows = sum(file.records for file in files)
    job.setdefault("shard_rows", shards.default_shard_rows(rows, job["batch_size"]))
    job |= {
        "input": {"rows": rows, **_described(found, files)},
        "columns": columns,
        "header": header,
        "cut": list(shards.cut(files, job["shard_rows"])),
    }
    return job | {"key": hashlib.sha256(json.dumps(job).encode()).hexdigest()[:16]}


def _described(found: input_files.Found, files: Sequence[shards.File]) -> dict[str, Any]:
    described = found.described()
    for told, file in zip(described["files"], files, strict=True):
        told += [file.first, file.records]
    return described


def _check_features(
    found: input_files.Found, signatures: Mapping[str, Signature], wanted: Sequence[str]
) -> None:
    """Check that the first records have features of these names."""
    path = found.path(found.names[0])
    have: set[str] = set()
    for raw in raw_rows.read_tfrecord(path, Span(0, 0, _FIRST)):
        try:
            have |= set(examples.feature_names(raw) if isinstance(raw, bytes) else ())
        except RowError:
            continue
    missing = [name for name in wanted if name not in have and name != signature.RECORD]
    # Where none of the first records can be read, they are errors of rows.
    if missing and have:
        raise InferenceError(
            f"The first records of {path} have no feature {missing[0]!r}, but "
            f"{', '.join(sorted(have))}. Name another with --map=INPUT=FEATURE. The model has: "
            f"{'; '.join(str(one) for one in signatures.values())}."
        )
