"""A split of a TFDS dataset as an input: its files, and what its records hold.

split = open_split("tfdp_digits/test", data_dir="")
split.files         # shards.File: how many records of each, and the first of them
"""

import dataclasses
import os
from typing import Any

from tfdp.config import Data
from tfdp.data import prepared
from tfdp.error import Error
from tfdp.inference import input_files, raw_rows
from tfdp.inference.failures import InferenceError


def open_split(text: str, data_dir: str) -> input_files.Split:
    """Open NAME/SPLIT of a dataset that has been prepared.

    Raises:
        InferenceError: If it is not there, or not TFRecord.
    """
    name, _, split = text.rpartition("/")
    if not name or not split:
        raise InferenceError(f"--input=tfds:{text}: write tfds:NAME/SPLIT, as in tfds:mnist/test.")
    try:
        builder = prepared.open_builder(Data(tfds_name=name, data_dir=data_dir))
        pieces, _, kind = prepared.files_of(builder, split)
    except Error as error:
        why = str(error).replace("--config.data.", "--")
        raise InferenceError(f"--input=tfds:{text}: {why}") from error
    if kind != "tfrecord":
        raise InferenceError(f"--input=tfds:{text}: its files are {kind}, not tfrecord.")
    base = str(builder.data_path)
    names = [os.path.relpath(piece.name, base) for piece in pieces]
    # Scanned, to know where a record begins.
    files = [
        dataclasses.replace(
            raw_rows.scan_tfrecord(piece.name, name), first=piece.first, records=piece.records or 0
        )
        for name, piece in zip(names, pieces, strict=True)
    ]
    features = builder.info.features
    return input_files.Split(
        input_files.of_files("tfds", base, names), files, {"features": _told(features)}, features
    )


def _told(features: Any) -> dict[str, Any]:
    told: dict[str, Any] = {}
    for key, spec in features.get_tensor_spec().items():
        known = hasattr(spec, "shape") and hasattr(spec, "dtype")
        dtype = spec.dtype.name if known else ""
        told[key] = ["bytes" if dtype == "string" else dtype, spec.shape.as_list()]
        if not known:
            told[key] = None
    return told
