"""Bad input: every damaged file is named, and nothing trains on it silently."""

import os
import random

import numpy as np
import pytest
import tensorflow as tf

from tfdp.config import Data
from tfdp.data import array_files, counts, damage, pipeline, source, tfrecord
from tfdp.data.errors import DataError
from tfdp.error import Error

RECORDS = 20


def example(**features):
    def feature(value):
        if isinstance(value, bytes):
            return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))
        values = np.atleast_1d(value)
        if values.dtype.kind == "f":
            return tf.train.Feature(float_list=tf.train.FloatList(value=values))
        return tf.train.Feature(int64_list=tf.train.Int64List(value=values))

    found = tf.train.Features(feature={name: feature(value) for name, value in features.items()})
    return tf.train.Example(features=found).SerializeToString(deterministic=True)


def contents(count=RECORDS):
    return [example(x=np.arange(3) + 0.5 + n, label=n % 10) for n in range(count)]


def settings(folder, **more):
    pattern = str(folder / "*.tfrecord")
    return Data(
        **{
            "source": "tfrecord",
            "train_files": pattern,
            "test_files": pattern,
            "features": "x: float32[3], label: int64",
            "classes": 10,
            "global_batch_size": 8,
            "shuffle": "none",
            **more,
        }
    )


def write(path, records):
    path.write_bytes(b"".join(map(tfrecord.frame, records)))
    return path


def read(opened, data, **more):
    """The labels of an epoch, or what is said of the first error."""
    try:
        batches = list(pipeline.training(opened, data, 0, **more).as_numpy_iterator())
    except (tf.errors.OpError, UnicodeDecodeError) as error:
        raise damage.explained(error, opened.train) or error from error
    return [label for _, labels in batches for label in labels.tolist()]


def offsets(records):
    """Where each record begins, and the end."""
    begins = [0]
    for record in records:
        begins.append(begins[-1] + len(tfrecord.frame(record)))
    return begins


# -- flips and cuts --------------------------------------------------------------------------------


@pytest.mark.parametrize("flips", [150, pytest.param(1000, marks=pytest.mark.exhaustive)])
def test_flips_are_named_with_file_and_record(flips, tmp_path):
    records = contents()
    sound = b"".join(map(tfrecord.frame, records))
    path = write(tmp_path / "a.tfrecord", records)
    data = settings(tmp_path)
    opened = source.open_source(data)
    whole = pipeline.training(opened, data, 0)
    # What the pipeline reads the file with, for all flips; the whole pipeline for some.
    reader = opened.train.reader.open(tf.constant(0, tf.int64))
    assert (len(list(whole)), len(list(reader))) == (3, RECORDS)
    begins = offsets(records)
    times = path.stat().st_atime_ns, path.stat().st_mtime_ns
    dice = random.Random(0)
    places = [dice.randrange(len(sound)) for _ in range(flips)]
    parts = set()
    for number, place in enumerate(places):
        damaged = bytearray(sound)
        damaged[place] ^= 1 << dice.randrange(8)
        path.write_bytes(damaged)
        # Size and time as before: neither gives it away, the content alone does.
        os.utime(path, ns=times)
        with pytest.raises(tf.errors.OpError) as raised:
            for _ in whole if number % 50 == 0 else reader:
                pass
        found = damage.explained(raised.value, opened.train)
        record = max(n for n in range(RECORDS) if begins[n] <= place)
        assert str(found).startswith(f"{path}: record {record} at byte {begins[record]:,}: "), place
        within = place - begins[record]
        rest = begins[record + 1] - begins[record] - within
        parts.add("length" if within < 8 else "its crc" if within < 12 else
                  "crc" if rest <= 4 else "data")  # fmt: skip
    assert parts == {"length", "its crc", "data", "crc"}
    path.write_bytes(sound)
    os.utime(path, ns=times)
    assert (len(list(whole)), len(list(reader))) == (3, RECORDS)


@pytest.mark.parametrize("opened_before", [True, False])
def test_two_hundred_cuts_are_named_before_or_in_the_run(tmp_path, opened_before):
    records = contents()
    sound = b"".join(map(tfrecord.frame, records))
    path = write(tmp_path / "a.tfrecord", records)
    data = settings(tmp_path)
    opened = source.open_source(data)  # counts
    dataset = pipeline.training(opened, data, 0)
    begins = offsets(records)
    dice = random.Random(1)
    # Every record boundary, the empty file among them, and places within.
    cuts = begins[:-1] + [dice.randrange(1, len(sound)) for _ in range(200 - RECORDS)]
    # All of them when files are opened; in a run, which takes longer, the boundaries and some.
    for cut in cuts[: RECORDS + 20] if opened_before else cuts:
        path.write_bytes(sound[:cut])
        if opened_before:
            with pytest.raises(tf.errors.OpError) as raised:
                list(dataset)
            message = str(damage.explained(raised.value, opened.train))
            opened.train.raised.clear()
        else:
            with pytest.raises(Error) as refused:
                source.open_source(data)
            message = str(refused.value)
        assert message.startswith(f"{path}"), (cut, message)


def test_a_file_cut_between_two_records_while_its_time_stays(tmp_path):
    records = contents()
    path = write(tmp_path / "a.tfrecord", records)
    data = settings(tmp_path)
    opened = source.open_source(data)
    path.write_bytes(b"".join(map(tfrecord.frame, records[:12])))
    opened.train.states[0] = counts.state(str(path))  # as if nobody had seen the change
    with pytest.raises(DataError) as raised:
        read(opened, data)
    assert str(raised.value) == (
        f"{path} holds 12 records where 20 were counted: it has been cut, or written anew."
    )


@pytest.mark.parametrize("by_index", [True, False])
def test_a_file_that_changes_during_the_run(tmp_path, by_index):
    data = settings(tmp_path)
    if by_index:
        path = tmp_path / "a.array_record"
        write_array_record(path, contents())
        data = settings(tmp_path, source="array_record", train_files=str(path),
                        test_files=str(path))  # fmt: skip
    else:
        path = write(tmp_path / "a.tfrecord", contents())
    size = path.stat().st_size
    opened = source.open_source(data)
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(DataError) as raised:
        read(opened, data)
    assert str(raised.value) == (
        f"{path} has changed during the run ({size:,} bytes before, {size + 1:,} now): start again."
    )


def test_a_file_that_disappears_during_the_run(tmp_path):
    path = write(tmp_path / "a.tfrecord", contents())
    data = settings(tmp_path)
    opened = source.open_source(data)
    path.unlink()
    with pytest.raises(DataError, match=f"{path} cannot be read: No such file or directory."):
        read(opened, data)


# -- skipping --------------------------------------------------------------------------------------


def damage_crc(path, records, numbers):
    """Flips a byte of the data of these records."""
    content = bytearray(path.read_bytes())
    for number in numbers:
        content[offsets(records)[number] + 12] ^= 1
    path.write_bytes(content)


def test_damaged_records_are_skipped_up_to_the_limit(tmp_path, caplog):
    records = contents()
    write(tmp_path / "a.tfrecord", records)
    path = write(tmp_path / "b.tfrecord", records)
    damage_crc(path, records, [3, 17])
    with pytest.raises(Error) as raised:
        source.open_source(settings(tmp_path, bad_records=1))
    assert str(raised.value) == (
        "2 damaged records, config.data.bad_records=1 may be skipped. The first: "
        f"{path}: record 3 at byte {offsets(records)[3]}: its checksum is wrong."
    )
    data = settings(tmp_path, bad_records=2)
    opened = source.open_source(data)
    assert [file.records for file in opened.train.files] == [20, 18]
    expected = [n % 10 for n in range(20)] + [n % 10 for n in range(20) if n not in (3, 17)]
    assert read(opened, data) == expected
    assert "2 damaged records are skipped in every epoch." in caplog.text
    # And each of two pipelines has its part of what is left.
    parts = [
        read(opened, data, context=tf.distribute.InputContext(2, pipeline)) for pipeline in (0, 1)
    ]
    assert sorted(map(len, parts)) == [18, 20]
    assert sorted([*parts[0], *parts[1]]) == sorted(expected)


def test_what_a_damaged_header_hides_is_lost_and_said(tmp_path):
    records = contents()
    path = write(tmp_path / "a.tfrecord", records)
    content = bytearray(path.read_bytes())
    content[offsets(records)[5]] ^= 1
    path.write_bytes(content)
    with pytest.raises(Error) as raised:
        source.open_source(settings(tmp_path))
    assert str(raised.value) == (
        f"{path}: record 5 at byte {offsets(records)[5]}: its header is damaged, so nothing behind "
        "it can be found. Restore the file, or let config.data.bad_records=1 or more be skipped."
    )
    data = settings(tmp_path, bad_records=1)
    assert read(source.open_source(data), data) == [0, 1, 2, 3, 4]


# -- contents --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (example(x=np.ones(3)), "it has no feature 'label' (it has x)"),
        (example(x=np.ones(3), label=0.5), "the feature 'label' is a float_list, not a int64_list"),
        (example(x=np.ones(2), label=1), "the feature 'x' has 2 values, not 3"),
        (b"\xff\xff", "it is no tf.train.Example"),
    ],
)
@pytest.mark.parametrize("kind", ["tfrecord", "array_record"])
def test_a_feature_that_is_not_as_described(kind, record, reason, tmp_path):
    records = contents()
    records[13] = record
    path = tmp_path / f"a.{kind}"
    (write if kind == "tfrecord" else write_array_record)(path, records)
    data = settings(tmp_path, source=kind, train_files=str(path), test_files=str(path))
    with pytest.raises(DataError) as raised:
        read(source.open_source(data), data)
    assert str(raised.value) == f"{path}: record 13: {reason}."


def write_array_record(path, records):
    writer = array_files.writer(str(path))
    for record in records:
        writer.write(record)
    writer.close()


def test_an_image_that_cannot_be_decoded(tmp_path):
    picture = tf.io.encode_png(np.zeros((4, 6, 3), np.uint8)).numpy()
    records = [example(image=picture, label=1) for _ in range(5)]
    records[2] = example(image=picture[:-20], label=1)
    records[3] = example(image=b"GIF", label=1)
    path = write(tmp_path / "a.tfrecord", records)
    for features, reason in (
        ("image: image[4,6,3], label: int64", "is no image that can be decoded"),
        ("image: image[4,5,3], label: int64", "is an image of 4 x 6 x 3, not 4 x 5 x 3"),
    ):
        data = settings(tmp_path, features=features)
        with pytest.raises(DataError) as raised:
            read(source.open_source(data), data)
        number = 2 if "no image" in reason else 0
        assert f"{path}: record {number}: the feature 'image' {reason}" in str(raised.value)


def test_a_damaged_array_record(tmp_path):
    path = tmp_path / "a.array_record"
    dice = np.random.default_rng(0)
    write_array_record(path, [example(x=dice.normal(size=3), label=n % 10) for n in range(20)])
    sound = path.read_bytes()
    data = settings(tmp_path, source="array_record", train_files=str(path), test_files=str(path))
    times = path.stat().st_atime_ns, path.stat().st_mtime_ns
    expected = read(source.open_source(data), data)
    messages = []
    used = [place for place, byte in enumerate(sound) if byte]  # most of a small file is padding
    for place in used[:: len(used) // 40]:
        damaged = bytearray(sound)
        damaged[place] ^= 1
        path.write_bytes(damaged)
        os.utime(path, ns=times)
        try:
            found = read(source.open_source(data), data)
        except (DataError, Error) as error:
            messages.append(str(error))
        else:  # a byte that nothing depends on
            assert found == expected
    assert len(messages) >= 30
    assert all(message.startswith(str(path)) for message in messages), messages


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "'{folder}/*.tfrecord' matches no file in {here}."),
        (b"", "{folder}/a.tfrecord is empty: remove it, or write it again."),
        (
            b"a text, no record at all",
            "{folder}/a.tfrecord: record 0 at byte 0: the file does not begin with a TFRecord. "
            "Restore the file, or let config.data.bad_records=1 or more be skipped.",
        ),
    ],
)
def test_files_that_hold_nothing(content, message, tmp_path):
    if content is not None:
        (tmp_path / "a.tfrecord").write_bytes(content)
    with pytest.raises(Error) as raised:
        source.open_source(settings(tmp_path))
    assert str(raised.value) == message.format(folder=tmp_path, here=os.getcwd())


def test_an_error_of_the_model_is_not_taken_for_one_of_the_data(tmp_path):
    path = write(tmp_path / "a.tfrecord", contents())
    data = settings(tmp_path)
    opened = source.open_source(data)
    path.write_bytes(b"damaged since")
    error = tf.errors.InvalidArgumentError(None, None, "logits and labels must have the same size")
    assert damage.explained(error, opened.train) is None
    assert damage.explained(KeyError("x"), opened.train) is None


def test_the_search_for_a_damaged_record_ends(tmp_path, monkeypatch, caplog):
    path = write(tmp_path / "a.tfrecord", contents())
    opened = source.open_source(settings(tmp_path))
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    error = tf.errors.DataLossError(None, None, "IteratorGetNext: corrupted record")
    assert isinstance(damage.explained(error, opened.train), DataError)
    monkeypatch.setattr(damage, "_LOOK_SECONDS", 0.0)
    with caplog.at_level("WARNING", "tfdp"):
        assert damage.explained(error, opened.train) is None
    assert f"Not found within 0 s, which ended at {path}." in caplog.messages
