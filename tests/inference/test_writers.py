import io

import ml_dtypes
import numpy as np
import orjson
import pytest
import tensorflow as tf

from tfdp.inference import settings, writers

IDS = ["a.csv:0", 'b, "c"', "ü"]
OUTPUTS = {
    "flag": np.array([True, False, True]),
    "label": np.array([b"cat", b"d\xff", "hünd".encode()], object),
    "n": np.array([[1], [-2], [3]], "int64"),
    "p": np.array([[0.1, 1 / 3], [np.nan, 1e-8], [1, 2]], "float32"),
    "half": np.array([0.1, 1.5, 2], ml_dtypes.bfloat16),
}
KINDS = {
    "flag": ("bool", ()),
    "label": ("string", ()),
    "n": ("int64", (1,)),
    "p": ("float32", (2,)),
    "half": ("bfloat16", ()),
}


def written(extension, blocks, kinds=KINDS):
    """The bytes of a part whose rows came in blocks."""
    file = io.BytesIO()
    writer = writers.make(extension, file, kinds)
    for first, last in blocks:
        rows = {name: array[first:last] for name, array in OUTPUTS.items()}
        writer.write(IDS[first:last], rows)
    writer.close()
    return file.getvalue()


def test_json_lines():
    assert [orjson.loads(line) for line in written("jsonl", [(0, 3)]).splitlines()] == [
        {"id": "a.csv:0", "flag": True, "label": "cat", "n": [1], "p": [0.1, 0.33333334],
         "half": 0.100097656},
        {"id": 'b, "c"', "flag": False, "label": {"b64": "ZP8="}, "n": [-2], "p": [None, 1e-8],
         "half": 1.5},
        {"id": "ü", "flag": True, "label": "hünd", "n": [3], "p": [1.0, 2.0], "half": 2.0},
    ]  # fmt: skip


def test_csv():
    assert written("csv", [(0, 3)]) == (
        b"id,flag,label,n,p_0,p_1,half\n"
        b"a.csv:0,True,cat,1,0.100000001,0.333333343,0.100097656\n"
        b'"b, ""c""",False,d\xff,-2,nan,9.99999994e-09,1.5\n'
        b"\xc3\xbc,True,h\xc3\xbcnd,3,1,2,2\n"
    )


def test_npy():
    rows = np.load(io.BytesIO(written("npy", [(0, 3)])), allow_pickle=False)
    assert rows.dtype.names == ("id", *OUTPUTS)
    assert [name.decode() for name in rows["id"]] == IDS
    assert rows["label"].tolist() == OUTPUTS["label"].tolist()
    for name in ("flag", "n", "p"):
        assert rows[name].dtype == OUTPUTS[name].dtype
        np.testing.assert_array_equal(rows[name], OUTPUTS[name])
    np.testing.assert_array_equal(rows["half"], OUTPUTS["half"].astype("float32"))


def test_tfrecord(tmp_path):
    path = tmp_path / "part.tfrecord"
    path.write_bytes(written("tfrecord", [(0, 3)]))
    features = {
        "id": tf.io.FixedLenFeature((), tf.string),
        "flag": tf.io.FixedLenFeature((), tf.int64),
        "label": tf.io.FixedLenFeature((), tf.string),
        "n": tf.io.FixedLenFeature((1,), tf.int64),
        "p": tf.io.FixedLenFeature((2,), tf.float32),
        "half": tf.io.FixedLenFeature((), tf.float32),
    }
    rows = [
        tf.io.parse_single_example(record, features)
        for record in tf.data.TFRecordDataset(str(path))
    ]
    assert [row["id"].numpy().decode() for row in rows] == IDS
    for name, array in OUTPUTS.items():
        found = np.array([row[name].numpy() for row in rows])
        np.testing.assert_array_equal(found, array.astype(found.dtype))


@pytest.mark.parametrize("extension", settings.FORMATS)
def test_blocks_make_no_difference(extension):
    assert written(extension, [(0, 1), (1, 3)]) == written(extension, [(0, 3)])


@pytest.mark.parametrize("extension", settings.FORMATS)
def test_a_part_without_rows(extension):
    content = written(extension, [])
    if extension == "npy":
        rows = np.load(io.BytesIO(content))
        assert (len(rows), rows.dtype.names) == (0, ("id", *OUTPUTS))
        assert rows.dtype["p"].shape == (2,)
    else:
        assert content == (b"id,flag,label,n,p_0,p_1,half\n" if extension == "csv" else b"")


def test_a_full_disk_is_an_error():
    with open("/dev/full", "wb") as file:
        writer = writers.make("jsonl", file, KINDS)
        writer.write(IDS, OUTPUTS)
        with pytest.raises(OSError, match="No space left on device"):
            file.flush()
        with pytest.raises(OSError, match="No space left on device"):
            file.close()
