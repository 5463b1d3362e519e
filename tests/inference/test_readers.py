"""What readers make of good and bad rows: ids, inputs, and reasons."""

import io

import numpy as np
import tensorflow as tf
from PIL import Image

from tfdp.data import tfrecord
from tfdp.inference import input_files, readers, shards
from tfdp.inference.signature import RECORD, Spec

VECTOR = {"x": Spec("float32", (None, 2))}
IMAGE = {"image": Spec("uint8", (None, 2, 3, 1))}


def example(**features):
    made = tf.train.Example()
    for name, values in features.items():
        kinds = {bytes: "bytes_list", float: "float_list", int: "int64_list"}
        kind = kinds[type(values[0])] if values else "float_list"
        getattr(made.features.feature[name], kind).value.extend(values)
    return made.SerializeToString()


def png(pixels):
    file = io.BytesIO()
    Image.fromarray(np.array(pixels, "uint8")).save(file, "png")
    return file.getvalue()


def read(pattern, inputs, columns, rows=100, **options):
    """All batches of an input that is one shard."""
    found = input_files.find(str(pattern))
    files = input_files.scan(found)
    (spans,) = shards.cut(files, max(1, sum(file.records for file in files)))
    header = input_files.header(found)
    read_spans = readers.reader(
        found.kind, inputs, columns, base=found.base, names=found.names, header=header, **options
    )
    return list(read_spans(spans, rows))


def errors(batch):
    return [(error.at, error.file, error.record, error.reason) for error in batch.errors]


def write(path, contents):
    path.write_bytes(b"".join(map(tfrecord.frame, contents)))
    return path


def test_batches_of_one_size_over_files(tmp_path):
    for name in "ab":
        rows = [example(x=[float(ord(name)), float(n)]) for n in range(3)]
        write(tmp_path / f"{name}.tfrecord", rows)
    batches = read(tmp_path, VECTOR, {"x": ["x"]}, rows=4)
    assert [batch.ids for batch in batches] == [
        ["a.tfrecord:0", "a.tfrecord:1", "a.tfrecord:2", "b.tfrecord:0"],
        ["b.tfrecord:1", "b.tfrecord:2"],
    ]
    assert batches[1].inputs["x"].tolist() == [[98, 1], [98, 2]]
    assert batches[1].inputs["x"].dtype == np.float32
    assert [list(batch.errors) for batch in batches] == [[], []]


def test_rows_that_are_no_good_examples(tmp_path):
    path = write(
        tmp_path / "a.tfrecord",
        [
            example(x=[1.0, 2.0]),
            b"\xff nothing",
            example(y=[1.0], z=[2.0]),
            example(x=[1.0, 2.0, 3.0]),
            example(x=[b"1", b"2"]),
            example(x=[3, 4]),
            example(x=[]),
            example(x=[np.array([5, 6], "float32").tobytes()]),
        ],
    )
    (batch,) = read(path, VECTOR, {"x": ["x"]})
    assert batch.ids == ["a.tfrecord:0", "a.tfrecord:5", "a.tfrecord:7"]
    assert batch.inputs["x"].tolist() == [[1, 2], [3, 4], [5, 6]]
    assert [row[0] for row in batch.rows] == [0, 5, 7]
    assert errors(batch) == [
        (1, "a.tfrecord", 1, "it is no tf.train.Example"),
        (2, "a.tfrecord", 2, "it has no feature 'x' (it has y, z)"),
        (3, "a.tfrecord", 3, "the feature 'x' has 3 values, not 2"),
        (4, "a.tfrecord", 4, "the feature 'x' has 2 values, not 1"),
        (6, "a.tfrecord", 6, "the feature 'x' has 0 values, not 2"),
    ]


def test_images_in_examples_are_raw_or_encoded_or_numbers(tmp_path):
    pixels = [[0, 50, 100], [150, 200, 250]]
    flat = [*pixels[0], *pixels[1]]
    path = write(
        tmp_path / "a.tfrecord",
        [example(i=[png(pixels)]), example(i=[bytes(flat)]), example(i=flat),
         example(i=[png([[1]])]), example(i=[b"\x89PNG?"]), example(i=[300, 0, 0, 0, 0, 0]),
         example(i=[float(v) for v in flat])],
    )  # fmt: skip
    (batch,) = read(path, IMAGE, {"image": ["i"]})
    assert batch.inputs["image"].dtype == np.uint8
    assert batch.inputs["image"].reshape(3, 2, 3).tolist() == [pixels] * 3
    assert [reason for *_, reason in errors(batch)] == [
        "the image is 1 x 1, not 2 x 3: resize it, or export the model with "
        "config.export.second_signature='images', which does",
        "it is no image that can be decoded (BMP, GIF, JPEG, PNG or WebP)",
        "the feature 'i' has values that are no uint8",
        "the feature 'i' is a float_list, but image is uint8 (?, 2, 3, 1)",
    ]


def test_whole_records_and_ids_of_features(tmp_path):
    contents = [example(id=[b"one"]), example(id=[2]), example(x=[1.0])]
    path = write(tmp_path / "a.tfrecord", contents)
    spec = {"examples": Spec("string", (None,))}
    (batch,) = read(path, spec, {"examples": [RECORD]}, id_column="id")
    assert batch.ids == ["one", "2"]
    assert batch.inputs["examples"].tolist() == contents[:2]
    assert errors(batch) == [(2, "a.tfrecord", 2, "the feature 'id' holds no id")]


CSV = """\
key,x_0,x_1,n,on,word
k0,1,2.5,3,true,wörd
k1,1,,3,0,b
k2,nan,1e3, 4 ,1,"c, d"
k3,1,2,3.5,1,e
k4,1,2,300,1,f
k5,1,2,3,yes,g
k6,1,2
"""


def test_csv(tmp_path):
    (tmp_path / "a.csv").write_text(CSV)
    inputs = {
        **VECTOR,
        "n": Spec("uint8", (None,)),
        "on": Spec("bool", (None, 1)),
        "word": Spec("string", (None,)),
    }
    columns = {"x": ["x_0", "x_1"], "n": ["n"], "on": ["on"], "word": ["word"]}
    (batch,) = read(tmp_path / "a.csv", inputs, columns, id_column="key")
    assert batch.ids == ["k0", "k2"]
    np.testing.assert_array_equal(batch.inputs["x"], np.array([[1, 2.5], [np.nan, 1000]]))
    assert batch.inputs["n"].tolist() == [3, 4]
    assert batch.inputs["on"].tolist() == [[True], [True]]
    assert batch.inputs["word"].tolist() == ["wörd".encode(), b"c, d"]
    assert [(record, reason) for _, _, record, reason in errors(batch)] == [
        (1, "column x_1: '' is no float32"),
        (3, "column n: '3.5' is no uint8"),
        (4, "column n: '300' is no uint8"),
        (5, "column on: 'yes' is no bool"),
        (6, "it has 3 values for 6 columns"),
    ]


def test_arrays(tmp_path):
    np.save(tmp_path / "a.npy", np.arange(10, dtype="int64").reshape(5, 2))
    batches = read(tmp_path / "a.npy", VECTOR, {"x": []}, rows=3)
    assert [batch.ids for batch in batches] == [
        ["a.npy:0", "a.npy:1", "a.npy:2"],
        ["a.npy:3", "a.npy:4"],
    ]
    assert batches[1].inputs["x"].tolist() == [[6, 7], [8, 9]]
    assert batches[1].inputs["x"].dtype == np.float32


def test_structured_arrays(tmp_path):
    rows = np.array(
        [(b"r0", (1, 2), "wörd"), (b"r1", (3, 4), "b")],
        [("key", "S4"), ("x", "float64", (2,)), ("word", "U5")],
    )
    np.save(tmp_path / "a.npy", rows)
    inputs = {**VECTOR, "text": Spec("string", (None,))}
    columns = {"x": ["x"], "text": ["word"]}
    (batch,) = read(tmp_path / "a.npy", inputs, columns, id_column="key")
    assert batch.ids == ["r0", "r1"]
    assert batch.inputs["x"].tolist() == [[1, 2], [3, 4]]
    assert batch.inputs["text"].tolist() == ["wörd".encode(), b"b"]


def test_folders_of_images(tmp_path):
    (tmp_path / "cats").mkdir()
    pixels = [[0, 50, 100], [150, 200, 250]]
    (tmp_path / "cats" / "1.png").write_bytes(png(pixels))
    (tmp_path / "cats" / "2.png").write_bytes(b"no image")
    (tmp_path / "dog.png").write_bytes(png(np.full((2, 3, 3), 7)))
    (tmp_path / "big.png").write_bytes(png(np.zeros((4, 4))))
    (batch,) = read(tmp_path, IMAGE, {"image": []})
    assert batch.ids == ["cats/1.png", "dog.png"]
    assert batch.inputs["image"][0, :, :, 0].tolist() == pixels
    assert [(file, record, reason[:20]) for _, file, record, reason in errors(batch)] == [
        ("big.png", 0, "the image is 4 x 4, "),
        ("cats/2.png", 0, "it is no image that "),
    ]
    spec = {"images": Spec("string", (None,))}
    (batch,) = read(tmp_path, spec, {"images": []})
    assert batch.ids == ["big.png", "cats/1.png", "cats/2.png", "dog.png"]
    assert batch.inputs["images"][2] == b"no image"


def test_a_file_that_is_gone_or_has_shrunk_since_it_was_counted(tmp_path):
    base, image = str(tmp_path), {"image": Spec("uint8", (None, 1, 1, 1))}
    read = readers.reader("images", image, {"image": []}, base=base, names=["gone.png"])
    (batch,) = read([shards.Span(0, 0, 1)], 4)
    assert [error.reason for error in batch.errors] == [
        "the file cannot be read: No such file or directory"
    ]
    write(tmp_path / "a.tfrecord", [example(x=[1.0, 2.0])])
    read = readers.reader("tfrecord", VECTOR, {"x": ["x"]}, base=base, names=["a.tfrecord"])
    (batch,) = read([shards.Span(0, 0, 3)], 4)
    assert batch.ids == ["a.tfrecord:0"]
    assert [error.record for error in batch.errors] == [1, 2]
