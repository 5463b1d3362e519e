import gzip
import zlib

import pytest
import tensorflow as tf

from tfdp.data import tfrecord

RECORDS = [b"one", b"", b"x" * 70_000, b"four"]
PACK = {"": bytes, "GZIP": gzip.compress, "ZLIB": zlib.compress}


@pytest.mark.parametrize("packed", PACK)
def test_what_tensorflow_writes_is_read_and_counted(tmp_path, packed):
    path = str(tmp_path / "a.tfrecord")
    with tf.io.TFRecordWriter(path, packed or None) as writer:
        for record in RECORDS:
            writer.write(record)
    assert tfrecord.compression(path) == packed
    assert tfrecord.count(path) == 4
    assert list(tfrecord.read(path)) == RECORDS


@pytest.mark.parametrize("packed", PACK)
def test_what_is_framed_is_read_by_tensorflow(tmp_path, packed):
    path = tmp_path / "a.tfrecord"
    path.write_bytes(PACK[packed](b"".join(map(tfrecord.frame, RECORDS))))
    found = tf.data.TFRecordDataset(str(path), packed)
    assert [record.numpy() for record in found] == RECORDS


def test_several_packed_members_are_one_file(tmp_path):
    path = tmp_path / "a.tfrecord"
    path.write_bytes(b"".join(gzip.compress(tfrecord.frame(record)) for record in RECORDS))
    assert list(tfrecord.read(str(path))) == RECORDS


def test_a_length_that_begins_like_a_packed_file(tmp_path):
    path = tmp_path / "a.tfrecord"
    path.write_bytes(tfrecord.frame(b"x" * 0x8B1F))
    assert path.read_bytes()[:2] == b"\x1f\x8b"
    assert tfrecord.compression(str(path)) == ""
    assert tfrecord.count(str(path)) == 1


def cut(content):
    return content[: len(content) - 3]


def flip(at):
    def change(content):
        changed = bytearray(content)
        changed[at] ^= 1
        return bytes(changed)

    return change


# Three records of 3, 4 and 5 bytes: at 0, 19, 39, and the end at 60.
@pytest.mark.parametrize(
    ("change", "found"),
    [
        (flip(12), ["record 0 at byte 0: its checksum is wrong.", b"two!", b"three"]),
        (flip(38), [b"one", "record 1 at byte 19: its checksum is wrong.", b"three"]),
        (
            flip(19),
            [
                b"one",
                "record 1 at byte 19: its header is damaged, so nothing behind it can be found.",
            ],
        ),
        (flip(0), ["record 0 at byte 0: the file does not begin with a TFRecord."]),
        (cut, [b"one", b"two!", "record 2 at byte 39: the file ends in the middle of it."]),
        (
            lambda content: content[:45],
            [b"one", b"two!", "record 2 at byte 39: the file ends in the middle of its header."],
        ),
        (lambda content: content[:39], [b"one", b"two!"]),
    ],
)
def test_damage(tmp_path, change, found):
    path = tmp_path / "a.tfrecord"
    content = b"".join(map(tfrecord.frame, (b"one", b"two!", b"three")))
    assert len(content) == 60
    path.write_bytes(change(content))
    read = [
        str(one).removeprefix(f"{path}: ") if isinstance(one, tfrecord.Damage) else one
        for one in tfrecord.read(str(path))
    ]
    assert read == found


@pytest.mark.parametrize("packed", ["GZIP", "ZLIB"])
@pytest.mark.parametrize("change", [cut, flip(30), flip(-1)])
def test_a_damaged_packed_file_is_no_shorter_one(tmp_path, packed, change):
    path = tmp_path / "a.tfrecord"
    content = PACK[packed](b"".join(map(tfrecord.frame, [bytes(range(200))] * 5)))
    path.write_bytes(change(content))
    with pytest.raises(tfrecord.Damage, match="the packed file is damaged in or before it"):
        tfrecord.count(str(path))
