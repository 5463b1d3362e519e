import pytest
import tensorflow as tf

from tfdp.data import tfrecord
from tfdp.inference import raw_rows, shards
from tfdp.inference.failures import InferenceError, RowError

RECORDS = [b"record %d" % number * (number % 7) for number in range(1000)]


def write_tfrecord(path, contents):
    """By TensorFlow's own writer."""
    with tf.io.TFRecordWriter(str(path)) as writer:
        for content in contents:
            writer.write(content)
    return str(path)


def read_in_shards(file, read, shard_rows):
    return [
        record
        for spans in shards.cut([file], shard_rows)
        for span in spans
        for record in read(file.name, span)
    ]


@pytest.mark.parametrize("shard_rows", [1, 100, 256, 333, 1000, 2000])
def test_tfrecord_in_shards(shard_rows, tmp_path):
    path = write_tfrecord(tmp_path / "a.tfrecord", RECORDS)
    file = raw_rows.scan_tfrecord(path, path)
    assert file.records == 1000
    assert read_in_shards(file, raw_rows.read_tfrecord, shard_rows) == RECORDS


# Of three records, at 0, 19 and 39, the second is damaged.
@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda c: c[:33] + b"?" + c[34:], [b"one", "its checksum is wrong", b"three"]),
        (
            lambda c: c[:19] + b"?" + c[20:],
            [b"one", "its header is damaged, so nothing behind it can be found"],
        ),
        (lambda c: c[:36], [b"one", "the file ends in the middle of it"]),
        (lambda c: c[:24], [b"one", "the file ends in the middle of its header"]),
    ],
)
def test_damaged_tfrecords(damage, expected, tmp_path):
    path = tmp_path / "a.tfrecord"
    path.write_bytes(damage(b"".join(map(tfrecord.frame, (b"one", b"two!", b"three")))))
    file = raw_rows.scan_tfrecord(str(path), str(path))
    found = read_in_shards(file, raw_rows.read_tfrecord, 1)
    assert [r.args[0] if isinstance(r, RowError) else r for r in found] == expected
    assert file.records == len(expected)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"a,b\n1,2\n", "does not begin with a TFRecord."),
        (b"\x1f\x8b\x08 something", "is packed with GZIP. Unpack it first."),
    ],
)
def test_no_tfrecord(content, why, tmp_path):
    path = tmp_path / "a.tfrecord"
    path.write_bytes(content)
    with pytest.raises(InferenceError) as raised:
        raw_rows.scan_tfrecord(str(path), "a.tfrecord")
    assert str(raised.value) == f"{path} {why}"


CSV = '''\
name,x,y
plain,1,2
"with, comma",3,4

"over
two lines","5",6
"a ""quote""",7,8
ümläut,9,10
short,11
last,12,13'''
ROWS = [
    ["plain", "1", "2"],
    ["with, comma", "3", "4"],
    ["over\ntwo lines", "5", "6"],
    ['a "quote"', "7", "8"],
    ["ümläut", "9", "10"],
    ["short", "11"],
    ["last", "12", "13"],
]


@pytest.mark.parametrize("shard_rows", [1, 2, 100])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_csv_in_shards(shard_rows, end, tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "STRIDE", 2)
    path = tmp_path / "a.csv"
    path.write_bytes(CSV.replace("\n", end).encode())
    file = raw_rows.scan_csv(str(path), str(path))
    assert (file.records, len(file.offsets)) == (7, 4)
    expected = [[cell.replace("\n", end) for cell in row] for row in ROWS]
    assert read_in_shards(file, raw_rows.read_csv, shard_rows) == expected
    assert raw_rows.csv_header(str(path)) == ["name", "x", "y"]


@pytest.mark.parametrize(
    ("content", "why"),
    [(b"", "is empty"), (b"a,b,a\n1,2,3\n", "names 'a' twice")],
)
def test_csv_without_names(content, why, tmp_path):
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(InferenceError) as raised:
        raw_rows.csv_header(str(tmp_path / "a.csv"))
    line = f"{tmp_path}/a.csv: its first line has to name the columns, but {why}."
    assert str(raised.value) == line


def test_names_without_the_mark_of_spreadsheets(tmp_path):
    (tmp_path / "a.csv").write_bytes("\ufeffa, b\n1,2\n".encode())
    assert raw_rows.csv_header(str(tmp_path / "a.csv")) == ["a", "b"]
