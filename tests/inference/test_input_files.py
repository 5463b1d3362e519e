import os

import numpy as np
import pytest

from tfdp.inference import input_files
from tfdp.inference.failures import InferenceError


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in (
        "one/b.tfrecord",
        "one/a.tfrecord-00001-of-00002",
        "one/.hidden.tfrecord",
        "one/__pycache__/c.tfrecord",
        "one/notes.txt",
        "pictures/cats/2.PNG",
        "pictures/cats/10.jpg",
        "pictures/dogs/1.jpeg",
        "mixed/a.csv",
        "mixed/b.csv",
        "mixed/c.png",
        "texts/a.txt",
    ):
        os.makedirs(os.path.dirname(name), exist_ok=True)
        with open(name, "w") as file:
            file.write("x" * len(name))
    os.makedirs("empty")
    return tmp_path


@pytest.mark.parametrize(
    ("pattern", "kind", "base", "names"),
    [
        ("one", "tfrecord", "one", ["a.tfrecord-00001-of-00002", "b.tfrecord"]),
        ("one/*.tfrecord", "tfrecord", "one", ["b.tfrecord"]),
        ("mixed/a.csv", "csv", "mixed", ["a.csv"]),
        ("mixed/[ab].csv", "csv", "mixed", ["a.csv", "b.csv"]),
        ("pictures", "images", "pictures", ["cats/10.jpg", "cats/2.PNG", "dogs/1.jpeg"]),
        ("pictures/**/*.jp*g", "images", "pictures", ["cats/10.jpg", "dogs/1.jpeg"]),
        ("*/a.csv", "csv", "", ["mixed/a.csv"]),
    ],
)
def test_find(pattern, kind, base, names, folder):
    found = input_files.find(pattern)
    assert (found.kind, found.base, list(found.names)) == (kind, base, names)
    sizes = [len(found.path(name)) for name in names]
    assert [size for size, _ in found.stats] == sizes


KINDS = "TFRecord, .csv, .npy, images, a folder of these, or tfds:NAME/SPLIT"


@pytest.mark.parametrize(
    ("pattern", "line"),
    [
        ("nothing/*.csv", "matches no file in {folder}. Name {kinds}."),
        ("empty", "matches no file in {folder}. Name {kinds}."),
        (
            "texts",
            "matches 'texts/a.txt', which is none of the kinds that are read. Name {kinds}.",
        ),
        ("mixed", "matches files of several kinds: 2 csv and 1 images."),
        ("*/a.*", "matches 'texts/a.txt' beside csv files. Name {kinds}."),
    ],
)
def test_mistakes(pattern, line, folder):
    if pattern == "*/a.*":
        os.remove("one/a.tfrecord-00001-of-00002")
    with pytest.raises(InferenceError) as raised:
        input_files.find(pattern)
    expected = line.format(folder=folder, kinds=KINDS)
    assert str(raised.value) == f"--input={pattern!r} {expected}"


def test_arrays(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((5, 2, 3), "float32"))
    np.save(tmp_path / "b.npy", np.zeros((7, 2, 3), "float32"))
    found = input_files.find(str(tmp_path))
    assert input_files.header(found) == {"dtype": "float32", "shape": [2, 3], "fields": {}}
    files = [(os.path.basename(file.name), file.records) for file in input_files.scan(found)]
    assert files == [("a.npy", 5), ("b.npy", 7)]
    fields = np.dtype([("x", "float32", (4,)), ("name", "S7"), ("n", "int64")])
    np.save(tmp_path / "c.npy", np.zeros(3, fields))
    assert input_files.header(input_files.find(str(tmp_path / "c.npy")))["fields"] == {
        "x": ["float32", [4]],
        "name": ["bytes56", []],
        "n": ["int64", []],
    }


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (
            lambda path: np.save(path, np.zeros((5, 4), "float32")),
            "{folder}/b.npy has rows of float32 (4,), but a.npy has float64 (3,): one input has to "
            "be alike in all files.",
        ),
        (
            lambda path: np.save(path, np.float32(3)),
            "{folder}/b.npy holds a single value: its first dimension has to be rows.",
        ),
        (
            lambda path: np.save(path, np.array([{}]), allow_pickle=True),
            "{folder}/b.npy is no array that can be read: ",
        ),
        (
            lambda path: path.write_bytes((path.parent / "a.npy").read_bytes()[:-9]),
            "{folder}/b.npy is no array that can be read: ",
        ),
    ],
)
def test_bad_arrays(make, line, tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((5, 3)))
    make(tmp_path / "b.npy")
    with pytest.raises(InferenceError) as raised:
        input_files.header(input_files.find(str(tmp_path)))
    assert str(raised.value).startswith(line.format(folder=tmp_path))


def test_csv_files_of_other_columns(tmp_path):
    (tmp_path / "a.csv").write_text("x,y\n1,2\n")
    (tmp_path / "b.csv").write_text("y,x\n1,2\n")
    with pytest.raises(InferenceError) as raised:
        input_files.header(input_files.find(str(tmp_path)))
    assert str(raised.value) == (
        f"{tmp_path}/b.csv has the columns y, x, but a.csv has x, y: one input has to be alike in "
        "all files."
    )
