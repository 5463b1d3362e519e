import fcntl
import json
import os

import pytest

from tfdp.inference import folder as folder_lib
from tfdp.inference.errors import InferenceError, JobFailed

JOB = {
    "model": "aa",
    "signature": "serving_default",
    "batch_size": 64,
    "input": {
        "kind": "csv",
        "rows": 10,
        "count": 2,
        "files": {"a.csv": [100, 1], "b.csv": [200, 1]},
    },
}


@pytest.mark.parametrize(
    ("change", "differences"),
    [
        ({}, ""),
        ({"model": "bb"}, "another model (its files differ)"),
        (
            {"signature": "examples", "batch_size": 32},
            "signature was 'serving_default', and is 'examples'; batch_size was 64, and is 32",
        ),
        (
            {"input": {**JOB["input"], "files": {"a.csv": [100, 2], "b.csv": [200, 1]}}},
            "a.csv has changed",
        ),
        (
            {"input": {**JOB["input"], "files": {"b.csv": [200, 1], "c.csv": [1, 1], "d": [1, 1]}}},
            "c.csv (and 1 more) was not in the input; a.csv is in the input no more",
        ),
        (
            {"input": {"kind": "images", "rows": 9, "count": 20000, "sha256": "0123456789abcdef"}},
            "a.csv (and 1 more) is in the input no more",
        ),
    ],
)
def test_another_job_is_refused_with_the_difference(change, differences, tmp_path):
    if not differences:
        folder_lib.check_same_job(tmp_path, JOB, {**JOB, **change})
        return
    with pytest.raises(InferenceError) as raised:
        folder_lib.check_same_job(tmp_path, JOB, {**JOB, **change})
    assert str(raised.value) == (
        f"--output={tmp_path} holds parts of another job: {differences}. Choose another folder, or "
        "remove that one."
    )


def test_many_files_are_told_by_a_hash():
    def describe(size):
        names = [f"{number}.png" for number in range(10_001)]
        return folder_lib.describe_input("images", names, [(size, 1)] * len(names), 10_001)

    assert "files" not in describe(1)
    assert describe(1) == describe(1)
    assert describe(1)["sha256"] != describe(2)["sha256"]


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
    (tmp_path / "job.json").write_text("{")
    with pytest.raises(InferenceError, match=r"job.json cannot be read: Expecting property name"):
        folder_lib.read_job(tmp_path)


def test_complete_parts_are_those_of_this_number_and_kind(tmp_path):
    for name in (
        "part-00000-of-00003.csv",
        "part-00002-of-00003.csv",
        "part-00001-of-00004.csv",
        "part-00001-of-00003.npy",
    ):
        (tmp_path / name).touch()
    assert folder_lib.complete_parts(tmp_path, 3, "csv") == {0, 2}


def test_what_a_living_worker_writes_stays(tmp_path):
    mine = folder_lib.writing_folder(tmp_path, "a" * 64)
    other = folder_lib.writing_folder(tmp_path, "b" * 64)
    for writing in (mine, other):
        writing.mkdir(parents=True)
        (writing / "00003.77").touch()
        (writing / "00004.88").touch()
    with open(mine / "00003.77") as file, open(other / "00003.77") as stale:
        fcntl.flock(file, fcntl.LOCK_EX)
        fcntl.flock(stale, fcntl.LOCK_EX)
        assert folder_lib.being_finished(mine) == {3: [77]}
        folder_lib.clear(tmp_path, "a" * 64)
        assert [path.name for path in mine.iterdir()] == ["00003.77"]
        # What was written for another job can never become a part.
        assert not other.exists()
    assert folder_lib.being_finished(mine) == {}


def test_errors_are_in_the_order_of_the_input(tmp_path):
    for number, lines in {2: ["e"], 0: ["a", "b"]}.items():
        path = folder_lib.errors_path(tmp_path, number)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(line + "\n" for line in lines))
    assert folder_lib.count_errors(tmp_path, [0, 1]) == 2
    unfinished = {1: ["c", "d"], 2: ["old"]}
    assert folder_lib.collect_errors(tmp_path, [0, 2], unfinished) == 5
    assert (tmp_path / "errors.jsonl").read_text() == "a\nb\nc\nd\ne\n"
    assert folder_lib.collect_errors(tmp_path, [1], {}) == 0
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
