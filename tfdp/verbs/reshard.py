"""tfdp reshard: TFRecord or ArrayRecord files into M even files."""

import sys

from absl import flags

from tfdp.error import Error
from tfdp.verbs import UsageError

SYNOPSIS = (
    "tfdp reshard --input='data/*.tfrecord' --output=even --shards=M [--format=...]\n\n"
    "Write the records of TFRecord or ArrayRecord files, in order, into M files whose numbers of\n"
    "records differ by at most one: even/even.tfrecord-00000-of-00016 and so on. The new folder\n"
    "appears when all are complete."
)


def define(values: flags.FlagValues, words: list[str]) -> None:
    """Define the flags of tfdp reshard."""
    flags.DEFINE_string("input", "", "Files: patterns, commas between them.", flag_values=values)
    flags.DEFINE_string("output", "", "A new folder for the files.", flag_values=values)
    flags.DEFINE_integer("shards", 0, "How many files to write.", flag_values=values)
    flags.DEFINE_enum(
        "format",
        "same",
        ["same", "tfrecord", "array_record"],
        "Format of the new files: array_record can be read by index.",
        flag_values=values,
    )


def run(values: flags.FlagValues, positional: list[str], script: list[str]) -> int:
    """Carry out `tfdp reshard`."""
    if positional or script:
        raise UsageError(f"{(positional + script)[0]!r}: tfdp reshard takes flags only.")
    for name in ("input", "output"):
        if not values[name].value:
            raise UsageError(f"--{name} is missing: tfdp reshard --help.")
    if values.shards < 1:
        raise UsageError(f"--shards={values.shards}: use 1 or more.")
    from tfdp.data import reshard

    try:
        written = reshard.reshard(
            values.input,
            values.output,
            values.shards,
            "" if values.format == "same" else values.format,
        )
    except Error as error:
        raise UsageError(str(error)) from error
    sys.stdout.write(
        f"{written.records:,} records in {len(written.files)} files: {written.pattern}\n"
    )
    return 0
