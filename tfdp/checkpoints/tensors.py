"""Arrays in the safetensors format, written and read one at a time.

    with open(path, "wb") as file:
        digest = write(file, [Spec("kernel", "float32", (3, 2))], iter([kernel]))
    Reader(path).read("kernel")

The format: the length of a header (8 bytes, little-endian), the header in JSON with each array's
type, shape and place, and the bytes of the arrays. Its own package serialises all arrays in memory
before it writes; here a table that is read from parameter servers a part at a time is never whole
in memory. (https://huggingface.co/docs/safetensors: format.)
"""

import dataclasses
import hashlib
import json
import math
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

# Of numpy, and of ml_dtypes for bfloat16.
_TYPES = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint64": "U64",
    "uint32": "U32",
    "uint16": "U16",
    "uint8": "U8",
    "bool": "BOOL",
}
_NAMES = {code: name for name, code in _TYPES.items()}
_METADATA = "__metadata__"
# What is digested, and then written, at a time: it stays in a core's cache between the two.
_CHUNK_BYTES = 512 << 10
# As the format's own package: a longer header is no header.
_MOST_HEADER_BYTES = 100 << 20


class FormatError(ValueError):
    """A file is not in the format, or ends too early."""


@dataclasses.dataclass(frozen=True)
class Spec:
    """An array before its values are there.

    Attributes:
        name: Its name in the file.
        dtype: The name of its type: "float32", "bfloat16", "int64", "bool", ...
        shape: Its shape.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """The size of the values."""
        return math.prod(self.shape) * numpy_dtype(self.dtype).itemsize


def numpy_dtype(name: str) -> np.dtype:
    """Return the dtype of a name that the format knows.

    Raises:
        ValueError: If it knows no such type (a string, say).
    """
    if name not in _TYPES:
        raise ValueError(f"The safetensors format has no type {name}.")
    if name == "bfloat16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(name)


def write(
    file: Any,
    specs: Sequence[Spec],
    values: Iterable[Any],
    metadata: Mapping[str, str] | None = None,
) -> str:
    """Write arrays; return the SHA-256 of the file in hexadecimal.

    Args:
        file: Where to, from its beginning: `write(bytes)` takes all that it is given.
        specs: All arrays, in the order of the file.
        values: Their values in the same order. Each is taken when it is written, and let go of
            before the next: an iterator may read them from where they are. A value may also be an
            iterator over the array's parts along its first axis.
        metadata: Texts that the header holds.

    Raises:
        OSError: If the file cannot be written.
        ValueError: If a value is not what its spec says.
    """
    header: dict[str, Any] = {_METADATA: dict(metadata)} if metadata else {}
    end = 0
    for spec in specs:
        if spec.name in header:
            raise ValueError(f"Two arrays have the name {spec.name!r}.")
        begin, end = end, end + spec.bytes
        header[spec.name] = {
            "dtype": _TYPES[spec.dtype],
            "shape": list(spec.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    digest = hashlib.sha256()

    def put(data: Any) -> None:
        digest.update(data)
        file.write(data)

    put(len(text).to_bytes(8, "little"))
    put(text)
    given = iter(values)
    for spec in specs:
        dtype, left = numpy_dtype(spec.dtype), spec.bytes
        value = next(given)
        for part in value if hasattr(value, "__next__") else (value,):
            array = np.ascontiguousarray(part)
            if array.dtype != dtype or array.shape[1:] != spec.shape[1:]:
                raise ValueError(f"{spec.name} is {array.dtype}{array.shape}, and not {spec}.")
            left -= array.nbytes
            raw = array.reshape(-1).view(np.uint8).data
            for begin in range(0, len(raw), _CHUNK_BYTES):
                put(raw[begin : begin + _CHUNK_BYTES])
        if left:
            raise ValueError(f"{spec.name} has {spec.bytes - left} bytes, and not those of {spec}.")
        del value
    return digest.hexdigest()


class Reader:
    """Reads arrays of a file by their names.

    Args:
        path: The file.

    Attributes:
        specs: Every array by its name, in the order of the file.
        metadata: The texts of the header.

    Raises:
        FormatError: If it is no such file.
        OSError: If it cannot be read.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self._path = pathlib.Path(path)
        size = self._path.stat().st_size
        with open(self._path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            self._begin = 8 + length
            if size < 8 or length > min(size - 8, _MOST_HEADER_BYTES):
                raise FormatError(f"{path} ends within its header.")
            text = file.read(length)
        self.specs: dict[str, Spec] = {}
        self._places: dict[str, int] = {}
        try:
            header = json.loads(text)
            self.metadata: dict[str, str] = header.pop(_METADATA, {})
            for name, entry in header.items():
                spec = Spec(name, _NAMES[entry["dtype"]], tuple(map(int, entry["shape"])))
                begin, end = map(int, entry["data_offsets"])
                if end - begin != spec.bytes or not 0 <= begin <= end <= size - self._begin:
                    raise FormatError(f"{path}: {name} lies beyond the end of the file.")
                self.specs[name], self._places[name] = spec, begin
        except FormatError:
            raise
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise FormatError(f"{path} has no header of the safetensors format.") from error

    def read(self, name: str) -> np.ndarray:
        """Return an array.

        Raises:
            KeyError: If there is none of that name.
            OSError, FormatError: If it cannot be read.
        """
        spec = self.specs[name]
        array = np.fromfile(
            self._path,
            numpy_dtype(spec.dtype),
            math.prod(spec.shape),
            offset=self._begin + self._places[name],
        )
        if array.nbytes != spec.bytes:
            raise FormatError(f"{self._path}: {name} ends too early.")
        return array.reshape(spec.shape)

    def map(self, name: str) -> np.ndarray:
        """Return an array that cannot be written to, whose parts are read when they are used.

        Raises:
            KeyError: If there is none of that name.
            OSError: If the file cannot be read.
        """
        spec = self.specs[name]
        dtype = numpy_dtype(spec.dtype)
        if not spec.bytes:  # nothing can be mapped
            return np.empty(spec.shape, dtype)
        place = self._begin + self._places[name]
        raw = np.memmap(self._path, np.uint8, "r", place, (spec.bytes,))
        return raw.view(np.ndarray).view(dtype).reshape(spec.shape)
