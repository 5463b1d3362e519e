"""tfdp.predict: rows in, rows out, in this process or in several.

y = tfdp.predict("models/digits", images, workers=2)            # a row for each image, in order
y = tfdp.predict(model, dataset)                                # a keras.Model, a tf.data.Dataset
y = tfdp.predict("models/digits", "data/*.tfrecord", workers=4)
"""

import os
import pathlib
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from tfdp.data import tfrecord
from tfdp.inference import job, shards, signature
from tfdp.inference import settings as settings_lib
from tfdp.inference.failures import InferenceError
from tfdp.inference.signature import Signature
from tfdp.serving import manifest

Rows = dict[str, np.ndarray]
# Rows of a file that workers read.
_FILE_ROWS = 4096


def predict(
    model: Any,
    dataset: Any,
    *,
    workers: int = 1,
    batch_size: int = settings_lib.DEFAULT_BATCH_SIZE,
    signature: str = "serving_default",
    jit_compile: bool = False,
) -> np.ndarray | dict[str, np.ndarray]:
    """Return the outputs of a model for every row, in the order of the rows.

    Args:
        model: The folder of a SavedModel or of its versions, or a keras.Model.
        dataset: An array, a dict of arrays by input, a tf.data.Dataset of batches (of inputs, or
            of (inputs, labels)), or what `tfdp predict --input` takes, as a string.
        workers: Processes. One is this one, which loads the model; more get the rows in files of
            the temporary folder (TMPDIR). A string is always read by processes of its own.
        batch_size: Rows of a call; the last batch is filled up.
        signature: Which function of the model.
        jit_compile: Whether XLA compiles the model.

    Returns:
        An array with a row for each row, or a dict of them if the model has several outputs.

    Raises:
        InferenceError: If the rows do not fit the model.
        JobFailed: If the model fails, or a row of files cannot be read.
    """
    if workers < 1:
        raise InferenceError(f"workers={workers}: use 1 or more.")
    if batch_size < 1:
        raise InferenceError(f"batch_size={batch_size}: use 1 or more.")
    with tempfile.TemporaryDirectory(prefix="tfdp-predict-") as name:
        folder = pathlib.Path(name)
        version = _version(model, folder)
        if not isinstance(dataset, str) and workers == 1:
            rows = _here(version, _blocks(dataset), signature, batch_size, jit_compile)
        else:
            source = dataset
            if not isinstance(dataset, str):
                source = str(folder / "input")
                _stage(_blocks(dataset), version, signature, pathlib.Path(source))
            settings = settings_lib.Settings(
                model=str(version),
                input=source,
                output=str(folder / "output"),
                workers=workers,
                format="npy",
                batch_size=batch_size,
                signature=signature,
                jit_compile=jit_compile,
                max_errors=0,
            )
            try:
                summary = job.run(settings)
            except job.Interrupted:
                raise KeyboardInterrupt from None
            rows = _collect(folder / "output", summary.parts)
    return rows.popitem()[1] if len(rows) == 1 else rows


def _version(model: Any, folder: pathlib.Path) -> pathlib.Path:
    if isinstance(model, str | os.PathLike):
        return manifest.version_folder(model)
    from tfdp.serving import export

    return export.export(model, folder / "model")


def _blocks(dataset: Any) -> Iterator[Rows]:
    """Yield rows by input name, "" where there is one input without a name."""
    if hasattr(dataset, "as_numpy_iterator"):
        elements: Iterable[Any] = dataset.as_numpy_iterator()
    else:
        elements = [dataset]
    for element in elements:
        if isinstance(element, tuple):
            element = element[0]  # the labels and weights of fit and evaluate
        named = element if isinstance(element, Mapping) else {"": element}
        block = {name: np.asarray(array) for name, array in named.items()}
        sizes = {name: array.shape[:1] for name, array in block.items()}
        if len(set(sizes.values())) != 1 or () in sizes.values():
            told = ", ".join(f"{name or 'input'}: {array.shape}" for name, array in block.items())
            raise InferenceError(
                f"The dataset gives {told}: every input needs the same number of rows. Batch it: "
                "dataset.batch(64)."
            )
        yield block


def _here(
    version: pathlib.Path, blocks: Iterator[Rows], name: str, batch_size: int, jit_compile: bool
) -> Rows:
    from tfdp.inference import model
    from tfdp.inference.failures import JobFailed

    manifest.verify(version)
    loaded, signatures = model.load(version)
    chosen = signature.choose(signatures, name)
    served = model.Served(loaded, chosen, batch_size, jit_compile)
    outputs: list[Rows] = []
    first = 0
    for batch in _batches(blocks, chosen, batch_size):
        if not len(next(iter(batch.values()))):
            continue
        made, refused = served.run(batch)
        if refused:
            raise JobFailed(f"The model refuses row {first + refused[0][0]}: {refused[0][1]}")
        outputs.append(made)
        first += len(next(iter(batch.values())))
    if not outputs:
        return {
            key: np.zeros((0, *(size or 0 for size in spec.row)), _dtype(spec.dtype))
            for key, spec in chosen.outputs.items()
        }
    return {key: np.concatenate([rows[key] for rows in outputs]) for key in outputs[0]}


def _dtype(name: str) -> Any:
    return object if name == "string" else np.dtype("float32" if name == "bfloat16" else name)


def _batches(blocks: Iterator[Rows], chosen: Signature, batch_size: int) -> Iterator[Rows]:
    """Cut the blocks into batches of the inputs of a signature; the last one may be empty."""
    waiting: Rows | None = None
    for block in blocks:
        named = _named(block, chosen)
        if waiting is not None:
            named = {name: np.concatenate([waiting[name], named[name]]) for name in named}
        rows = len(next(iter(named.values())))
        whole = rows - rows % batch_size
        for first in range(0, whole, batch_size):
            yield {name: array[first : first + batch_size] for name, array in named.items()}
        is_cut = rows > 0 and whole == rows
        waiting = None if is_cut else {name: array[whole:] for name, array in named.items()}
    if waiting is not None:
        yield waiting


def _named(block: Rows, chosen: Signature) -> Rows:
    fields = {name: [_kind(array), array.shape[1:]] for name, array in block.items()}
    header: dict[str, Any] = {"fields": fields}
    if set(block) == {""}:
        header = {"dtype": fields[""][0], "shape": fields[""][1], "fields": {}}
    columns = signature.bind(chosen, "npy", header, {})
    return {
        name: _cast(block[column[0] if column else ""], chosen.inputs[name].dtype)
        for name, column in columns.items()
    }


def _kind(array: np.ndarray) -> str:
    return "str" if array.dtype.kind in "OSU" else array.dtype.name


def _cast(array: np.ndarray, dtype: str) -> np.ndarray:
    return array.astype(object) if dtype == "string" else array.astype(dtype)


def _stage(blocks: Iterator[Rows], version: pathlib.Path, name: str, folder: pathlib.Path) -> None:
    """Write rows to files that workers read."""
    from tfdp.inference import model

    chosen = signature.choose(model.read_signatures(version), name)
    folder.mkdir()
    for number, rows in enumerate(_batches(blocks, chosen, _FILE_ROWS)):
        path = folder / f"{number:010}.npy"
        if any(array.dtype.kind in "OSU" for array in rows.values()):
            _write_examples(rows, path.with_suffix(".tfrecord"))
            continue
        fields = [(name, array.dtype, array.shape[1:]) for name, array in rows.items()]
        table = np.zeros(len(next(iter(rows.values()))), fields)
        for name, array in rows.items():
            table[name] = array
        np.save(path, table)
    if not os.listdir(folder):
        raise InferenceError("The dataset gives nothing: not one batch.")


def _write_examples(rows: Rows, path: pathlib.Path) -> None:
    """Write rows with strings, which arrays of a fixed length would cut at zeros."""
    import tensorflow as tf

    with open(path, "wb") as file:
        for row in range(len(next(iter(rows.values())))):
            example = tf.train.Example()
            for name, array in rows.items():
                values = example.features.feature[name].bytes_list.value
                if array.dtype.kind in "OSU":
                    flat = array[row : row + 1].reshape(-1).tolist()
                    values.extend(v if isinstance(v, bytes) else v.encode() for v in flat)
                else:
                    values.append(np.ascontiguousarray(array[row]).tobytes())
            file.write(tfrecord.frame(example.SerializeToString()))


def _collect(folder: pathlib.Path, parts: int) -> Rows:
    arrays = [np.load(folder / shards.part_name(number, parts, "npy")) for number in range(parts)]
    full = [array for array in arrays if len(array)] or arrays[:1]
    return {name: np.concatenate([a[name] for a in full]) for name in full[0].dtype.names[1:]}
