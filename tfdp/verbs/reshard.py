"""tfdp reshard: TFRecord or ArrayRecord files into M even files."""

import sys

from absl import flags

from tfdp.error import Error
from tfdp.verbs import adder

SYNOPSIS = (
    "tfdp reshard --input='data/*.tfrecord' --output=even --shards=M [--format=...]\n\n"
    "Write the records of TFRecord or ArrayRecord files, in order, into M files whose numbers of\n"
    "records differ by at most one: even/even.tfrecord-00000-of-00016 and so on. The new folder\n"
    "appears when all are complete."
)


def define(values: flags.FlagValues, words: list[str]) -> None:
    """Define the flags of tfdp reshard."""
    add = adder(values)
    add(flags.DEFINE_string, "input", "", "Files: patterns, commas between them.")
    add(flags.DEFINE_string, "output", "", "A new folder for the files.")
    add(flags.DEFINE_integer, "shards", 0, "How many files to write.")
    flags.DEFINE_enum(
        "format",
        "same",
        ["same", "tfrecord", "array_record"],
        "Format of the new files: array_record can be read by index.",
        flag_values=values,
    )


def run(values: flags.FlagValues) -> int:
    """Carry out `tfdp reshard`."""
    for name in ("input", "output"):
        if not values[name].value:
            raise Error(f"--{name} is missing: tfdp reshard --help.")
    if values.shards < 1:
        raise Error(f"--shards={values.shards}: use 1 or more.")
    from tfdp.data import reshard

    kind = "" if values.format == "same" else values.format
    written = reshard.reshard(values.input, values.output, values.shards, kind)
    sys.stdout.write(
        f"{written.records:,} records in {len(written.files)} files: {written.pattern}\n"
    )
    return 0
