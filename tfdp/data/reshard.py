"""Rewriting TFRecord or ArrayRecord files into even ones. TensorFlow is not imported.

    done = reshard("data/*.tfrecord", "even", shards=16, format="array_record")
    done.pattern                        # "even/even.array_record-*-of-00016"

The records keep their order, and every one is checked on the way. The files are written into a
hidden folder beside the new one, which gets its name when all are complete: whoever looks sees all
of them or none.
"""

import contextlib
import dataclasses
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence

from tfdp import batching
from tfdp.data import counts, listing, tfrecord
from tfdp.error import Error

FORMATS = ("tfrecord", "array_record")
_AT_ONCE = 1000


@dataclasses.dataclass(frozen=True)
class Resharded:
    """What was written.

    Attributes:
        files: The paths, in order.
        pattern: A glob pattern that names them.
        records: How many they hold.
    """

    files: tuple[str, ...]
    pattern: str
    records: int


def reshard(patterns: str, folder: str, shards: int, format: str = "") -> Resharded:
    """Write all records that patterns name into `shards` files with as even numbers as can be.

    Args:
        patterns: Of TFRecord or of ArrayRecord files.
        folder: A new folder; the files are FOLDER.FORMAT-00000-of-00016 and so on in it.
        shards: How many files.
        format: One of FORMATS; "" keeps that of the input.

    Raises:
        Error: If a record is damaged, the folder is there, or cannot be written.
    """
    names = listing.find(patterns)
    before = _format_of(names)
    format = format or before
    folder = os.path.normpath(folder)
    if os.path.exists(folder):
        raise Error(f"{folder} is there already: remove it, or name another --output.")
    records = sum(counts.count(names, _count if before == "array_record" else tfrecord.count))
    if records < shards:
        raise Error(f"{records} records are too few for {shards} files.")
    name = os.path.basename(folder)
    ends = [f"{name}.{format}-{number:05}-of-{shards:05}" for number in range(shards)]
    source = _read(names, before)
    above = os.path.dirname(folder) or "."
    try:
        os.makedirs(above, exist_ok=True)
        hidden = tempfile.mkdtemp(dir=above, prefix=f".{name}-")
        try:
            for end, size in zip(ends, batching.split(records, shards), strict=True):
                with _writer(os.path.join(hidden, end), format) as write:
                    for _ in range(size):
                        write(_next(source, names))
            os.chmod(hidden, 0o777 & ~_umask())
            os.rename(hidden, folder)
        finally:
            shutil.rmtree(hidden, ignore_errors=True)
    except OSError as error:
        raise Error(f"{folder} cannot be written: {error.strerror or error}.") from error
    pattern = os.path.join(folder, f"{name}.{format}-*-of-{shards:05}")
    return Resharded(tuple(os.path.join(folder, end) for end in ends), pattern, records)


def _format_of(names: Sequence[str]) -> str:
    formats = {_is_array_record(name) for name in names}
    if len(formats) > 1:
        raise Error("The files are TFRecord and ArrayRecord files: name one kind.")
    return FORMATS[formats.pop()]


def _is_array_record(name: str) -> bool:
    counts.state(name)  # it is there, and not empty
    with open(name, "rb") as file:
        head = file.read(tfrecord.HEADER.size)
    # A TFRecord begins with a length that its checksum confirms, or is packed.
    if tfrecord.length_of(head) is not None or tfrecord.compression(name):
        return False
    try:
        _count(name)
    except OSError:
        return False  # neither: counting it as TFRecord says what is wrong
    return True


def _count(name: str) -> int:
    from tfdp.data import array_files

    return array_files.count(name)


def _next(source: Iterator[bytes], names: Sequence[str]) -> bytes:
    record = next(source, None)
    if record is None:
        raise Error(f"{names[-1]} has changed while it was read: start again.")
    return record


def _read(names: Sequence[str], format: str) -> Iterator[bytes]:
    from tfdp.data import array_files

    for name in names:
        if format == "tfrecord":
            for record in tfrecord.read(name):
                if isinstance(record, tfrecord.Damage):
                    raise Error(str(record)) from record
                yield record
            continue
        reader = array_files.open_file(name)
        total = reader.num_records()
        for begin in range(0, total, _AT_ONCE):
            try:
                yield from reader.read(begin, min(total, begin + _AT_ONCE))
            except (RuntimeError, ValueError, IndexError) as error:
                raise Error(
                    f"{name}: a record from {begin} on cannot be read: "
                    f"{array_files.first_line(error)}."
                ) from error


@contextlib.contextmanager
def _writer(path: str, format: str) -> Iterator[Callable[[bytes], object]]:
    if format == "tfrecord":
        with open(path, "wb") as file:
            yield lambda record: file.write(tfrecord.frame(record))
        return
    from tfdp.data import array_files

    writer = array_files.writer(path)
    try:
        yield writer.write
    finally:
        writer.close()


def _umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask
