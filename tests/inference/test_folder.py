import json
import os

import pytest

from tfdp.inference import folder as folder_lib
from tfdp.inference.failures import InferenceError, JobFailed

FILES = [["a.csv", 100, 1, 0, 6], ["b.csv", 200, 1, 0, 4]]
JOB = {
    "model": "aa",
    "signature": "serving_default",
    "format": "csv",
    "key": "k",
    "batch_size": 64,
    "shard_rows": 4,
    "input": {"rows": 10, "kind": "csv", "files": FILES},
    "cut": [[[0, 0, 4, 0, 0]], [[0, 4, 2, 9, 0], [1, 0, 2, 0, 0]], [[1, 2, 2, 5, 1]]],
}


def of(kind, *files):
    return {"input": {"rows": 10, "kind": kind, "files": list(files)}}


@pytest.mark.parametrize(
    ("old", "new", "differences"),
    [
        ({}, {}, ""),
        # Without the counts, as they are known before anything is read.
        ({}, of("csv", ["a.csv", 100, 1], ["b.csv", 200, 1]), ""),
        ({}, {"model": "bb"}, "another model (its files differ)"),
        (
            {},
            {"signature": "examples", "batch_size": 32},
            "signature was 'serving_default', and is 'examples'; batch_size was 64, and is 32",
        ),
        ({}, of("csv", ["a.csv", 100, 2], ["b.csv", 200, 1]), "a.csv has changed"),
        (
            {},
            of("csv", ["b.csv", 200, 1], ["c.csv", 1, 1], ["d.csv", 1, 1]),
            "c.csv (and 1 more) was not in the input; a.csv is in the input no more",
        ),
        ({}, of("npy"), "the input was csv, and is npy"),
        (
            of("tfds", ["a", 9, 1, 0, 5], ["a", 9, 1, 7, 5]),
            of("tfds", ["a", 9, 1, 0, 5], ["a", 9, 1, 8, 4]),
            "a[8:12] was not in the input; a[7:12] is in the input no more",
        ),
    ],
)
def test_another_job_is_refused_with_the_difference(old, new, differences, tmp_path):
    if not differences:
        folder_lib.check_same_job(tmp_path, JOB | old, JOB | new)
        return
    with pytest.raises(InferenceError) as raised:
        folder_lib.check_same_job(tmp_path, JOB | old, JOB | new)
    assert str(raised.value) == (
        f"--output={tmp_path} holds parts of another job: {differences}. Choose another folder, or "
        "remove that one."
    )


def test_a_second_predictor_is_refused(tmp_path):
    with folder_lib.lock(tmp_path / "out"):
        with pytest.raises(InferenceError) as raised:
            with folder_lib.lock(tmp_path / "out"):
                raise AssertionError
        assert str(raised.value) == (
            f"--output={tmp_path}/out is being written by another tfdp predict (process "
            f"{os.getpid()}). Wait for it, or choose another folder."
        )
    with folder_lib.lock(tmp_path / "out"):
        pass


def test_an_output_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InferenceError) as raised:
        with folder_lib.lock(tmp_path / "file" / "out"):
            raise AssertionError
    assert str(raised.value) == f"--output={tmp_path}/file/out cannot be written: Not a directory."


def test_parts_of_an_unknown_job_are_refused(tmp_path):
    assert folder_lib.read_job(tmp_path) is None
    (tmp_path / "part-00000-of-00001.csv").touch()
    with pytest.raises(InferenceError) as raised:
        folder_lib.read_job(tmp_path)
    assert str(raised.value) == (
        f"--output={tmp_path} holds part-00000-of-00001.csv but no job.json: nobody knows what "
        "made it. Choose another folder."
    )
    (tmp_path / "job.json").write_text("{}")
    with pytest.raises(InferenceError, match=r"job.json cannot be read: it does not say which"):
        folder_lib.read_job(tmp_path)
    (tmp_path / "job.json").write_text("{")
    with pytest.raises(InferenceError, match=r"job.json cannot be read: Expecting property name"):
        folder_lib.read_job(tmp_path)


@pytest.fixture
def parts(tmp_path):
    """The three parts of JOB, in a folder where nothing has been done yet."""
    (tmp_path / ".tfdp").mkdir()
    folder_lib.write_job(tmp_path, JOB)
    assert folder_lib.read_job(tmp_path) == JOB
    parts = folder_lib.Parts.of(tmp_path, JOB)
    parts.writing.mkdir()
    parts.errors.mkdir()
    return parts


def test_parts(parts, tmp_path):
    for name in (
        "part-00000-of-00003.csv",
        "part-00002-of-00003.csv",
        "part-00001-of-00004.csv",
        "part-00001-of-00003.npy",
    ):
        (tmp_path / name).touch()
    assert parts.missing() == [1]
    assert parts.missing([0, 2]) == []
    assert [parts.rows_of(number) for number in range(parts.count)] == [4, 4, 2]


def test_what_other_jobs_have_left_is_removed(parts, tmp_path):
    other = folder_lib.Parts.of(tmp_path, JOB | {"key": "l"})
    for folder in (parts.writing, parts.errors, other.writing, other.errors):
        folder.mkdir(exist_ok=True)
        (folder / "00003").touch()
    folder_lib.clear(tmp_path, JOB)
    left = [
        folder.exists() for folder in (parts.writing, parts.errors, other.writing, other.errors)
    ]
    assert left == [True, True, False, False]
    folder_lib.clear(tmp_path, None)
    assert not parts.writing.exists()
    assert not parts.errors.exists()


def test_errors_are_in_the_order_of_the_input(parts, tmp_path):
    for path, text in {
        parts.errors_path(2): "e\n",
        parts.errors_path(0): "a\nb\n",
        # Of a part that is not there yet, made by two processes; a line is being written.
        parts.writing / "00001.77.errors": "c\n",
        parts.writing / "00001.88.errors": "c\nd\nx",
    }.items():
        path.write_text(text)
    assert parts.collect_errors(most=5) == 5
    assert (tmp_path / "errors.jsonl").read_text() == "a\nb\nc\nd\ne\n"
    folder_lib.clear(tmp_path, None)
    assert parts.collect_errors(most=0) == 0
    assert not (tmp_path / "errors.jsonl").exists()


def test_a_full_disk_leaves_no_half_file(tmp_path):
    # /dev/full answers every write with "No space left on device".
    (tmp_path / ".tfdp").mkdir()
    (tmp_path / ".tfdp" / f"job.json.{os.getpid()}").symlink_to("/dev/full")
    with pytest.raises(JobFailed) as raised:
        folder_lib.write_beside(tmp_path / "job.json", json.dumps(JOB))
    assert str(raised.value) == f"{tmp_path}/job.json cannot be written: No space left on device."
    assert not (tmp_path / "job.json").exists()
    assert os.listdir(tmp_path / ".tfdp") == []
