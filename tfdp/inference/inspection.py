"""What only a process with TensorFlow can say of an input, for a supervisor that has none.

inspect({"tfds": "tfdp_digits/test", "data_dir": ""})
inspect({"file": "a.tfrecord", "features": ["image"]})
"""

import itertools
import os
from typing import Any

from tfdp.error import Error
from tfdp.inference import examples, records
from tfdp.inference.errors import InferenceError, RowError
from tfdp.inference.shards import Span

# Of so many records at the beginning one has to have a feature, or it is taken for misspelled.
_FIRST = 10


def inspect(question: dict[str, Any]) -> dict[str, Any]:
    """Answer a question.

    Raises:
        InferenceError: If the dataset or the features are not there.
    """
    if "tfds" in question:
        return _tfds(question["tfds"], question["data_dir"])
    return {"features": _features(question["file"], question["features"])}


def tfds_features(tfds: dict[str, str]) -> Any:
    """Return the features of a TFDS dataset."""
    return _builder(tfds["name"], tfds["data_dir"]).info.features


def _builder(name: str, data_dir: str) -> Any:
    from tfdp.config import Data
    from tfdp.data import prepared

    try:
        return prepared.open_builder(Data(tfds_name=name, data_dir=data_dir))
    except Error as error:
        raise InferenceError(str(error).replace("--config.data.", "--")) from error


def _tfds(text: str, data_dir: str) -> dict[str, Any]:
    """Return the files of a split, and the features of its dataset.

    Returns:
        {"base": folder, "files": [[name, first record, records]], "features": {name: [dtype,
        shape] or None}}
    """
    name, _, split = text.rpartition("/")
    if not name or not split:
        raise InferenceError(f"--input=tfds:{text}: write tfds:NAME/SPLIT, as in tfds:mnist/test.")
    builder = _builder(name, data_dir)
    try:
        info = builder.info.splits[split]
        instructions = info.file_instructions
    except (KeyError, ValueError) as error:
        raise InferenceError(
            f"--input=tfds:{text}: {split!r} is no split of {name}. It has "
            f"{', '.join(builder.info.splits)}; a part is written like 'train[:90%]'."
        ) from error
    if builder.info.file_format is not None and builder.info.file_format.value != "tfrecord":
        raise InferenceError(
            f"--input=tfds:{text}: its files are {builder.info.file_format.value}, not tfrecord."
        )
    base = str(builder.data_path)
    files = []
    for instruction in instructions:
        have = instruction.examples_in_shard - instruction.skip
        taken = have if instruction.take == -1 else min(have, instruction.take)
        files.append([os.path.relpath(instruction.filename, base), instruction.skip, taken])
    features = {}
    for key, spec in builder.info.features.get_tensor_spec().items():
        known = hasattr(spec, "shape") and hasattr(spec, "dtype")
        features[key] = [spec.dtype.name, spec.shape.as_list()] if known else None
        if known and spec.dtype.name == "string":
            features[key] = ["bytes", spec.shape.as_list()]
    return {"base": base, "files": files, "features": features}


def _features(file: str, wanted: list[str]) -> list[str]:
    """Check that the first records have features of these names; return what they have."""
    seen: set[str] = set()
    for raw in itertools.islice(records.read_tfrecord(Span(file, 0, _FIRST)), _FIRST):
        try:
            seen |= set(examples.feature_names(raw) if isinstance(raw, bytes) else ())
        except RowError:
            continue
    return sorted(seen)
