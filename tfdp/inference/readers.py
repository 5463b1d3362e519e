"""Reading a shard in batches: from raw records to the inputs of a signature.

    read = reader("tfrecord", signature.inputs, columns, base="data", names=["a.tfrecord"])
    for batch in read(spans, rows=64):
        batch.ids, batch.inputs, batch.errors

A whole batch is converted at once. Where that fails each of its rows is converted alone, and those
that cannot be are errors of the batch, with file, record and reason.
"""

import dataclasses
import functools
import itertools
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from tfdp.inference import examples, raw_rows
from tfdp.inference.failures import RowError
from tfdp.inference.shards import Span
from tfdp.inference.signature import RECORD, Spec

Inputs = dict[str, np.ndarray]
# Makes the inputs of some raw records; RowError or any ValueError if one of them is bad.
Convert = Callable[[Sequence[Any]], Inputs]


@dataclasses.dataclass(frozen=True)
class BadRow:
    """A row that cannot be read.

    Attributes:
        at: Its place among the records of the batch.
        file: Its file, relative to the input's folder.
        record: Its number in the file.
        reason: In words.
    """

    at: int
    file: str
    record: int
    reason: str


@dataclasses.dataclass(frozen=True)
class Batch:
    """Up to so many records.

    Attributes:
        rows: (place among the records of the batch, file, record number) of each that was read.
        ids: The id of each row.
        inputs: An array for each input, with a row for each id.
        errors: What could not be read.
    """

    rows: Sequence[tuple[int, str, int]]
    ids: Sequence[str]
    inputs: Inputs
    errors: Sequence[BadRow]


Read = Callable[[Iterable[Span], int], Iterator[Batch]]


def reader(
    kind: str,
    inputs: Mapping[str, Spec],
    columns: Mapping[str, Sequence[str]],
    *,
    base: str,
    names: Sequence[str],
    header: Mapping[str, Any] | None = None,
    id_column: str = "",
    features: Any = None,
) -> Read:
    """Return what reads the spans of a shard in batches of so many records.

    Args:
        kind: See input_files.Found.
        inputs: Of the signature.
        columns: See signature.bind.
        base: The folder of the input.
        names: The files in it, as ids have them.
        header: See input_files.header.
        id_column: Column or feature that holds the id of a row; "" makes FILE:RECORD.
        features: Of the TFDS dataset.
    """
    raws: Callable[[str, Span], Iterator[Any]]
    id_of: Callable[[Any], str] | None = None
    if kind == "npy":
        return _array_reader(inputs, columns, base, names, id_column)
    if kind == "csv":
        assert header is not None
        convert, id_of = _csv(inputs, columns, header["columns"], id_column)
        raws = raw_rows.read_csv
    elif kind == "images":
        ((name, spec),) = inputs.items()
        convert, raws = examples.image_converter(name, spec), _file_content
    else:
        raws = raw_rows.read_tfrecord
        if RECORD in [column[0] for column in columns.values()]:
            ((name, spec),) = inputs.items()
            convert = examples.string_converter(name, spec)
        elif kind == "tfds":
            convert = examples.tfds_converter(inputs, columns, features)
        else:
            convert = examples.converter(inputs, columns)
        if id_column:
            id_of = functools.partial(examples.id_of, feature=id_column)

    def name_of(file: str, number: int, raw: Any) -> str:
        if id_of is not None:
            return id_of(raw)
        return file if kind == "images" else f"{file}:{number}"

    def rows_of(span: Span) -> Iterator[tuple[str, int, Any]]:
        file, number = names[span.file], span.first
        for raw in raws(os.path.join(base, file), span):
            yield file, number, raw
            number += 1
        # What a damaged file hides was counted as one record; if it shrank since, say so.
        for missing in range(number, span.first + span.records):
            error = RowError("the file has become shorter since its records were counted")
            yield file, missing, error

    def read(spans: Iterable[Span], rows: int) -> Iterator[Batch]:
        every = itertools.chain.from_iterable(map(rows_of, spans))
        while batch := list(itertools.islice(every, rows)):
            yield _batch(batch, convert, name_of)

    return read


def first_line(error: BaseException) -> str:
    """Return what an error says in one short line, without TensorFlow's notes around it."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    for line, following in itertools.pairwise(lines):
        # The reason stands between the place in the graph and the names of the nodes.
        if lines[0].startswith("Graph execution error") and following.lstrip().startswith("[["):
            lines = [line]
            break
    text = lines[0] if lines else type(error).__name__
    text = re.sub(r"\{\{[^}]*\}\}", "", text)
    text = re.sub(r"\s*\[(Op:|\[)[^\n]*$", "", text).strip()
    return text if len(text) <= 300 else text[:300] + "..."


def _batch(
    records_of_it: Sequence[tuple[str, int, Any]],
    convert: Convert,
    name_of: Callable[[str, int, Any], str],
) -> Batch:
    good, bad = [], []
    for at, (file, number, raw) in enumerate(records_of_it):
        if isinstance(raw, RowError):
            bad.append(BadRow(at, file, number, str(raw.args[0])))
        else:
            good.append((at, file, number, raw))
    ids: list[str] = []
    inputs: Inputs = {}
    try:
        if good:
            inputs = convert([raw for *_, raw in good])
            ids = [name_of(*row[1:]) for row in good]
    except Exception:
        # One of them is bad: which, and why? TensorFlow's errors have no common class but this.
        kept, parts = [], []
        for row in good:
            try:
                parts.append((convert([row[-1]]), name_of(*row[1:])))
                kept.append(row)
            except Exception as error:
                bad.append(BadRow(*row[:3], first_line(error)))
        good, ids = kept, [name for _, name in parts]
        inputs = {}
        if parts:
            inputs = {
                name: np.concatenate([part[name] for part, _ in parts]) for name in parts[0][0]
            }
    return Batch([row[:3] for row in good], ids, inputs, bad)


def _file_content(path: str, span: Span) -> Iterator[bytes | RowError]:
    del span  # a file is one row
    try:
        with open(path, "rb") as file:
            yield file.read()
    except OSError as error:
        yield RowError(f"the file cannot be read: {error.strerror or error}")


def _csv(
    inputs: Mapping[str, Spec],
    columns: Mapping[str, Sequence[str]],
    header: Sequence[str],
    id_column: str,
) -> tuple[Convert, Callable[[Any], str] | None]:
    places = {name: [header.index(column) for column in columns[name]] for name in inputs}

    def convert(raws: Sequence[Sequence[str]]) -> Inputs:
        for row in raws:
            if len(row) != len(header):
                raise RowError(f"it has {len(row)} values for {len(header)} columns")
        return {
            name: np.array(
                [[_value(row[at], spec.dtype, header[at]) for at in places[name]] for row in raws],
                object if spec.dtype == "string" else spec.dtype,
            ).reshape(len(raws), *spec.row)
            for name, spec in inputs.items()
        }

    if not id_column:
        return convert, None
    at = header.index(id_column)
    return convert, lambda row: row[at].encode("utf-8", "surrogateescape").decode(errors="replace")


def _value(cell: str, dtype: str, column: str) -> Any:
    try:
        if dtype == "string":
            return cell.encode("utf-8", "surrogateescape")
        if dtype == "bool":
            return {"true": True, "1": True, "false": False, "0": False}[cell.strip().lower()]
        if "int" in dtype:
            value = int(cell)
            limits = np.iinfo(dtype)
            if not limits.min <= value <= limits.max:
                raise ValueError
            return value
        return float(cell)
    except (ValueError, KeyError):
        shown = cell.encode(errors="replace").decode()
        raise RowError(f"column {column}: {shown[:80]!r} is no {dtype}") from None


def _array_reader(
    inputs: Mapping[str, Spec],
    columns: Mapping[str, Sequence[str]],
    base: str,
    names: Sequence[str],
    id_column: str,
) -> Read:
    def read(spans: Iterable[Span], rows: int) -> Iterator[Batch]:
        for span in spans:
            file = names[span.file]
            # Slices are copied: what is mapped counts as memory of this process.
            array = np.load(os.path.join(base, file), mmap_mode="r", allow_pickle=False)
            for first in range(span.first, span.first + span.records, rows):
                last = min(first + rows, span.first + span.records)
                block = array[first:last]
                numbers = range(first, last)
                taken = {
                    name: _converted(block[columns[name][0]] if columns[name] else block, spec)
                    for name, spec in inputs.items()
                }
                if id_column:
                    ids = [_text(value) for value in block[id_column].tolist()]
                else:
                    ids = [f"{file}:{number}" for number in numbers]
                where = [(at, file, number) for at, number in enumerate(numbers)]
                yield Batch(where, ids, taken, ())

    return read


def _converted(block: np.ndarray, spec: Spec) -> np.ndarray:
    if spec.dtype == "string":
        values = [value if isinstance(value, bytes) else value.encode()
                  for value in block.reshape(-1).tolist()]  # fmt: skip
        return np.array(values, object).reshape(block.shape)
    return np.array(block, spec.dtype)


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
