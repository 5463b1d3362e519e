"""The safetensors files that tfdp writes, read by the format's own package."""

import hashlib
import io

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from tfdp.checkpoints.tensors import FormatError, Reader, Spec, write

ARRAYS = {
    "weights": np.arange(12, dtype=np.float32).reshape(3, 4),
    "double": np.array(1.5),
    "half": np.array([[0.5, -2.0]], np.float16),
    "brain": np.array([1.0, 3.0], ml_dtypes.bfloat16),
    "count": np.array(2**60 + 1, np.int64),
    "seed": np.array([1, 2**32 - 1], np.uint32),
    "flags": np.array([True, False, True]),
    "none": np.zeros((0, 5), np.int8),
}


def specs(arrays=ARRAYS):
    return [Spec(name, value.dtype.name, value.shape) for name, value in arrays.items()]


@pytest.fixture
def path(tmp_path):
    with open(tmp_path / "a.safetensors", "wb") as file:
        write(file, specs(), ARRAYS.values(), {"made by": "a test"})
    return tmp_path / "a.safetensors"


def test_the_formats_own_package_reads_it(path):
    loaded = safetensors.numpy.load_file(path)
    assert set(loaded) == set(ARRAYS)
    for name, value in ARRAYS.items():
        np.testing.assert_array_equal(loaded[name].astype(value.dtype), value)
    with safetensors.safe_open(path, "numpy") as file:
        assert file.metadata() == {"made by": "a test"}


def test_what_the_formats_own_package_writes_is_read(tmp_path):
    arrays = {name: value for name, value in ARRAYS.items() if name != "brain"}
    safetensors.numpy.save_file(arrays, tmp_path / "b.safetensors")
    reader = Reader(tmp_path / "b.safetensors")
    for name, value in arrays.items():
        np.testing.assert_array_equal(reader.read(name), value)


def test_arrays_come_back_bit_by_bit(path):
    reader = Reader(path)
    assert list(reader.specs.values()) == specs()
    assert reader.metadata == {"made by": "a test"}
    for name, value in ARRAYS.items():
        found = reader.read(name)
        assert (found.dtype, found.shape) == (value.dtype, value.shape)
        assert found.tobytes() == value.tobytes()


def test_the_digest_is_that_of_the_file(tmp_path):
    with open(tmp_path / "a", "wb") as file:
        digest = write(file, specs(), ARRAYS.values())
    assert digest == hashlib.sha256((tmp_path / "a").read_bytes()).hexdigest()


def test_a_table_is_taken_in_parts_and_let_go_of(tmp_path):
    held = []

    def parts():
        for start in range(0, 100, 25):
            held.append(start)
            yield np.full((25, 3), start, np.float32)

    def values():
        yield np.ones(2, np.float32)
        assert held == []  # nothing of the table is read before what comes first is written
        yield parts()

    with open(tmp_path / "a", "wb") as file:
        table = Spec("table", "float32", (100, 3))
        write(file, [Spec("first", "float32", (2,)), table], values())
    found = Reader(tmp_path / "a").read("table")
    np.testing.assert_array_equal(found[:, 0], np.repeat([0, 25, 50, 75], 25))


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (np.zeros((2, 3), np.float32), "is float32"),
        (np.zeros((3, 4), np.float64), "is float64"),
        (iter([np.zeros((2, 4), np.float32)]), "has 32 bytes"),
    ],
)
def test_a_value_that_is_not_what_its_spec_says_is_refused(value, problem):
    with pytest.raises(ValueError, match=problem):
        write(io.BytesIO(), [Spec("w", "float32", (3, 4))], [value])


def test_two_arrays_of_one_name_are_refused():
    two = [Spec("w", "float32", (1,))] * 2
    with pytest.raises(ValueError, match="Two arrays have the name 'w'"):
        write(io.BytesIO(), two, [np.zeros(1, np.float32)] * 2)


@pytest.mark.parametrize("kept", [0, 4, 8, 40, 300])
def test_a_file_that_ends_too_early_is_no_such_file(kept, path):
    with open(path, "r+b") as file:
        file.truncate(kept)
    with pytest.raises(FormatError):
        [Reader(path).read(name) for name in ARRAYS]


@pytest.mark.parametrize("text", [b"[]", b"{", b'{"a": {}}', b'{"a": {"dtype": "X"}}', b"\xff\xfe"])
def test_a_header_that_makes_no_sense_is_named(text, tmp_path):
    (tmp_path / "a").write_bytes(len(text).to_bytes(8, "little") + text)
    with pytest.raises(FormatError, match="no header of the safetensors format"):
        Reader(tmp_path / "a")
