"""Writing one part: TFRecord, JSON Lines, CSV or .npy, each row with its input's id.

    writer = make("jsonl", file, {"probabilities": Spec(...)})
    writer.write(ids, {"probabilities": array})     # arrays with a row for each id
    writer.close()

The same rows give the same bytes. A floating-point value is written with the digits that tell it
from its neighbours in its own type.
"""

import base64
import csv
import io
from collections.abc import Mapping, Sequence
from typing import IO, Any

import numpy as np
import orjson

from tfdp.data import tfrecord

Outputs = Mapping[str, np.ndarray]


class Writer:
    """Writes rows to a file that it does not close."""

    def __init__(self, file: IO[bytes], outputs: Mapping[str, Any]) -> None:
        """Begin; see `make`."""
        self._file = file
        self._outputs = outputs

    def write(self, ids: Sequence[str], outputs: Outputs) -> None:
        """Write rows: arrays with one row for each id."""
        raise NotImplementedError

    def close(self) -> None:
        """Write what is still missing."""


def make(extension: str, file: IO[bytes], outputs: Mapping[str, Any]) -> Writer:
    """Return the writer of a format.

    Args:
        extension: One of settings.FORMATS.
        file: Open for writing.
        outputs: The outputs and the types and shapes of a row: {"p": ("float32", (10,))}.
    """
    kinds = {"jsonl": _JsonLines, "csv": _Csv, "npy": _Npy, "tfrecord": _TFRecord}
    return kinds[extension](file, outputs)


def text(value: bytes) -> str | dict[str, str]:
    """Return bytes as text, as TensorFlow Serving's REST interface writes them: {"b64": ...}."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return {"b64": base64.b64encode(value).decode()}


class _JsonLines(Writer):
    """{"id": "a.csv:0", "probabilities": [0.1, 0.9]}; NaN and infinity are null in JSON."""

    def write(self, ids: Sequence[str], outputs: Outputs) -> None:
        columns = {name: _json_ready(array) for name, array in outputs.items()}
        lines = [
            orjson.dumps(
                {"id": name, **{key: column[row] for key, column in columns.items()}},
                option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE,
            )
            for row, name in enumerate(ids)
        ]
        self._file.write(b"".join(lines))


def _json_ready(array: np.ndarray) -> Any:
    if array.dtype.kind in "OSU":
        return _nested_text(array.tolist())
    if array.dtype.kind not in "biuf" or array.dtype.name == "float16":
        array = array.astype(np.float32)  # bfloat16
    return np.ascontiguousarray(array)


def _nested_text(value: Any) -> Any:
    if isinstance(value, list):
        return [_nested_text(item) for item in value]
    return text(value) if isinstance(value, bytes) else str(value)


class _Csv(Writer):
    """A column id, and one for each value: "p" for a single one, else "p_0", "p_1", ..."""

    def __init__(self, file: IO[bytes], outputs: Mapping[str, Any]) -> None:
        super().__init__(file, outputs)
        names = ["id"]
        for name, (_, shape) in outputs.items():
            size = int(np.prod(shape, dtype=np.int64))
            names += [name] if size == 1 else [f"{name}_{number}" for number in range(size)]
        self._write_rows([names])

    def write(self, ids: Sequence[str], outputs: Outputs) -> None:
        columns = [_cells(array.reshape(len(ids), -1)) for array in outputs.values()]
        self._write_rows(
            [name, *(cell for column in columns for cell in column[row])]
            for row, name in enumerate(ids)
        )

    def _write_rows(self, rows: Any) -> None:
        lines = io.StringIO(newline="")
        csv.writer(lines, lineterminator="\n").writerows(rows)
        self._file.write(lines.getvalue().encode("utf-8", "surrogateescape"))


def _cells(array: np.ndarray) -> list[list[Any]]:
    if array.dtype.kind in "OSU":
        return [
            [value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else value
             for value in row]
            for row in array.tolist()
        ]  # fmt: skip
    if array.dtype.kind in "biu" or array.dtype.name == "float64":
        return array.tolist()
    return [[f"{value:.9g}" for value in row] for row in array.astype(np.float32).tolist()]


class _Npy(Writer):
    """A structured array with the fields id (UTF-8 bytes) and the outputs."""

    def __init__(self, file: IO[bytes], outputs: Mapping[str, Any]) -> None:
        super().__init__(file, outputs)
        # Its head tells the number of rows and the longest id: a shard is kept until its end.
        self._ids: list[bytes] = []
        self._blocks: list[Outputs] = []

    def write(self, ids: Sequence[str], outputs: Outputs) -> None:
        self._ids += [name.encode("utf-8", "surrogateescape") for name in ids]
        self._blocks.append({name: _fixed(array) for name, array in outputs.items()})

    def close(self) -> None:
        fields: list[Any] = [("id", f"S{max(map(len, self._ids), default=1)}")]
        for name, (dtype, shape) in self._outputs.items():
            kinds = [block[name].dtype for block in self._blocks]
            kind = np.result_type(*kinds) if kinds else np.dtype("S1" if dtype == "string" else
                                                                 _native(dtype))  # fmt: skip
            fields.append((name, kind, tuple(shape)))
        rows = np.zeros(len(self._ids), fields)
        rows["id"] = self._ids
        for name in self._outputs:
            if self._blocks:
                rows[name] = np.concatenate([block[name] for block in self._blocks])
        np.lib.format.write_array(self._file, rows, version=(1, 0), allow_pickle=False)


def _native(dtype: str) -> str:
    return "float32" if dtype == "bfloat16" else dtype


def _fixed(array: np.ndarray) -> np.ndarray:
    if array.dtype.kind == "O":
        return array.astype(bytes)
    return array if array.dtype.kind in "biufcSU" else array.astype(np.float32)


class _TFRecord(Writer):
    """A tf.train.Example with the features id and the outputs, row by row."""

    def write(self, ids: Sequence[str], outputs: Outputs) -> None:
        import tensorflow as tf

        columns = {name: array.reshape(len(ids), -1) for name, array in outputs.items()}
        frames = []
        for row, name in enumerate(ids):
            example = tf.train.Example()
            feature = example.features.feature
            feature["id"].bytes_list.value.append(name.encode("utf-8", "surrogateescape"))
            for key, column in columns.items():
                _fill(feature[key], column[row])
            frames.append(tfrecord.frame(example.SerializeToString(deterministic=True)))
        self._file.write(b"".join(frames))


def _fill(feature: Any, values: np.ndarray) -> None:
    if values.dtype.kind in "OSU":
        feature.bytes_list.value.extend(
            value if isinstance(value, bytes) else str(value).encode() for value in values.tolist()
        )
    elif values.dtype.kind in "biu":
        feature.int64_list.value.extend(values.astype(np.int64).tolist())
    else:
        feature.float_list.value.extend(values.astype(np.float32).tolist())
