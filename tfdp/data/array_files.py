"""Single ArrayRecord files, with the `array_record` package: TensorFlow is not imported.

reader = open_file("a.array_record")
reader.num_records(), reader.read([3, 17])
"""

from typing import Any

from array_record.python import array_record_module

_BY_INDEX = "readahead_buffer_size:0,max_parallelism:0"
_BUFFER_BYTES = 1 << 15
# One record in a group, as TFDS writes them: the unit in which records are unpacked.
_GROUPS = "group_size:1"


def open_file(path: str) -> Any:
    """Return an ArrayRecordReader that is quick at single records.

    Raises:
        RuntimeError or ValueError: If it is no ArrayRecord file.
    """
    return array_record_module.ArrayRecordReader(
        path, _BY_INDEX, file_reader_buffer_size=_BUFFER_BYTES
    )


def count(path: str) -> int:
    """Return the number of records of a file, from its footer.

    Raises:
        OSError: If it is no ArrayRecord file, or a damaged one.
    """
    try:
        reader = open_file(path)
        records = reader.num_records()
        reader.close()
    except (RuntimeError, ValueError) as error:
        raise OSError(
            f"it is no ArrayRecord file, or a damaged one ({first_line(error)})"
        ) from error
    return int(records)


def writer(path: str) -> Any:
    """Return an ArrayRecordWriter of a new file."""
    return array_record_module.ArrayRecordWriter(path, _GROUPS)


def first_line(error: BaseException) -> str:
    """Return what an error of the package says, without what it says of itself."""
    return str(error).partition("\n")[0].partition(";")[0][:200]
