"""The TFRecord format: what a file holds, and what is damaged in it.

    count("a.tfrecord")                     # 1000, from the headers alone
    for record in read("a.tfrecord"):       # bytes, or Damage where one is damaged
        ...
    begins = list(offsets("a.tfrecord"))    # where each record begins
    read("a.tfrecord", begins[300])         # from the middle on

A record is its length (8 bytes), the masked CRC-32C of those 8 bytes (4), its data, and the masked
CRC-32C of the data (4), all little-endian (tensorflow/core/lib/io/record_writer.h). A whole file
may be packed with gzip or zlib: both are recognised by their first bytes.
"""

import contextlib
import io
import os
import struct
import zlib
from collections.abc import Iterator
from typing import Any

import google_crc32c

HEADER = struct.Struct("<QI")
FOOTER_BYTES = 4
_CHUNK_BYTES = 1 << 20
# Of a file that is not packed: more would be read in vain where the records are long and only their
# headers are wanted.
_BUFFER_BYTES = 1 << 16
# Of zlib.decompressobj: gzip or zlib, told by the first bytes.
_EITHER_KIND = 47
_ZLIB_LEVELS = (b"\x78\x01", b"\x78\x5e", b"\x78\x9c", b"\x78\xda")


class Damage(ValueError):
    """A record that cannot be read.

    Attributes:
        file: Its file.
        record: Its number in the file, from 0.
        offset: The byte at which it begins, after unpacking.
        reason: In words.
    """

    def __init__(self, file: str, record: int, offset: int, reason: str):
        super().__init__(f"{file}: record {record} at byte {offset:,}: {reason}.")
        self.file, self.record, self.offset, self.reason = file, record, offset, reason


def frame(record: bytes) -> bytes:
    """Return a record as a TFRecord file holds it."""
    length = struct.pack("<Q", len(record))
    return b"".join(
        (
            length,
            struct.pack("<I", masked_crc(length)),
            record,
            struct.pack("<I", masked_crc(record)),
        )
    )


def masked_crc(data: bytes) -> int:
    """Return the checksum of the format (tensorflow/core/lib/hash/crc32c.h)."""
    crc = google_crc32c.value(data)
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def length_of(header: bytes) -> int | None:
    """Return the length of a record, None where its header is short or denies it."""
    if len(header) < HEADER.size:
        return None
    length, crc = HEADER.unpack(header)
    return length if masked_crc(header[:8]) == crc else None


def compression(path: str) -> str:
    """Return "GZIP", "ZLIB" or "", as tf.data.TFRecordDataset names them."""
    with open(path, "rb") as file:
        head = file.read(HEADER.size)
    if length_of(head) is not None:  # a length may begin like a packed file
        return ""
    if head.startswith(b"\x1f\x8b"):
        return "GZIP"
    return "ZLIB" if head.startswith(_ZLIB_LEVELS) else ""


def count(path: str) -> int:
    """Return the number of records, by the headers; their data is not looked at.

    Raises:
        Damage: If a header is damaged, or the file ends in the middle of a record.
        OSError: If it cannot be read.
    """
    number = 0
    for record in offsets(path):
        if isinstance(record, Damage):
            raise record
        number += 1
    return number


def offsets(path: str) -> Iterator[int | Damage]:
    """Yield the byte at which each record begins, by the headers; their data is not looked at."""
    return _walk(path, 0, read=False)


def read(path: str, begin: int = 0) -> Iterator[bytes | Damage]:
    """Yield the records, or what is damaged of one; the last one may hide the rest of the file.

    Args:
        path: The file.
        begin: The byte at which the first of them begins, see `offsets`. Damage.record counts from
            there. A packed file is read from its beginning only.
    """
    return _walk(path, begin, read=True)


def _walk(path: str, begin: int, read: bool) -> Iterator[Any]:
    number, offset = 0, begin
    try:
        with _opened(path) as (stream, size):
            if begin:
                stream.seek(begin)
            while True:
                header = stream.read(HEADER.size)
                if not header:
                    return
                length = length_of(header)
                if length is None:
                    reason = "its header is damaged, so nothing behind it can be found"
                    if len(header) < HEADER.size:
                        reason = "the file ends in the middle of its header"
                    elif offset == 0:
                        reason = "the file does not begin with a TFRecord"
                    yield Damage(path, number, offset, reason)
                    return
                end = offset + HEADER.size + length + FOOTER_BYTES
                if size is not None and end > size:
                    yield Damage(path, number, offset, "the file ends in the middle of it")
                    return
                if size is not None and not read:
                    stream.seek(end)
                    yield offset
                else:
                    data, footer = stream.read(length), stream.read(FOOTER_BYTES)
                    if len(footer) < FOOTER_BYTES:
                        yield Damage(path, number, offset, "the file ends in the middle of it")
                        return
                    if read and masked_crc(data) != int.from_bytes(footer, "little"):
                        yield Damage(path, number, offset, "its checksum is wrong")
                    else:
                        yield data if read else offset
                number, offset = number + 1, end
    except zlib.error as error:
        yield Damage(path, number, offset, f"the packed file is damaged in or before it ({error})")


@contextlib.contextmanager
def _opened(path: str) -> Iterator[tuple[Any, int | None]]:
    """A stream of the unpacked file, and its size where that is known beforehand."""
    packed = compression(path)
    with open(path, "rb", buffering=_BUFFER_BYTES) as file:
        if packed:
            yield io.BufferedReader(_Unpacked(file), _CHUNK_BYTES), None
        else:
            yield file, os.fstat(file.fileno()).st_size


class _Unpacked(io.RawIOBase):
    """What a gzip or zlib file holds. Reading it raises zlib.error where it is damaged."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self._packed = b""
        self._unpack = zlib.decompressobj(_EITHER_KIND)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while True:
            packed = self._packed or self._file.read(_CHUNK_BYTES)
            if not packed:
                if not self._unpack.eof:
                    raise zlib.error("it ends too early")
                return 0
            if self._unpack.eof:  # another member follows
                self._unpack = zlib.decompressobj(_EITHER_KIND)
            data = self._unpack.decompress(packed, len(buffer))
            self._packed = self._unpack.unconsumed_tail or self._unpack.unused_data
            if data:
                buffer[: len(data)] = data
                return len(data)
