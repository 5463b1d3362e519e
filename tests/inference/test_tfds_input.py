"""Splits of a TFDS dataset: which records of its files they are."""

import pytest

from tfdp.inference import raw_rows, shards, tfds_input


def records(split, data_dir, shard_rows):
    """The records of a split that is read in shards."""
    made = tfds_input.open_split(f"tfdp_digits/{split}", data_dir)
    return [
        record
        for spans in shards.cut(made.files, shard_rows)
        for span in spans
        for record in raw_rows.read_tfrecord(made.found.path(made.found.names[span.file]), span)
    ]


@pytest.mark.parametrize("shard_rows", [7, 1000])
def test_parts_of_a_split(shard_rows, tmp_path_factory):
    data_dir = str(tmp_path_factory.getbasetemp() / "tfds")
    whole = records("test", data_dir, 1000)
    assert len(whole) == 360
    assert records("test[100:250]", data_dir, shard_rows) == whole[100:250]
    twice = records("test[:10]+test[20:110]+test[:3]", data_dir, shard_rows)
    assert twice == whole[:10] + whole[20:110] + whole[:3]
