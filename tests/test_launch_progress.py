import os

import pytest

from tfdp.launch import progress


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.setenv(progress.FILE_VARIABLE, str(tmp_path / "a.step"))
    yield tmp_path / "a.step"
    progress._open.cache_clear()


def test_what_is_reported_is_read(file):
    assert progress.read(file) is None
    for epoch, step in ((0, 1), (12, 345_678_901), (3, 4)):
        progress.report_progress(step, epoch)
        assert progress.read(file) == (epoch, step)


def test_without_a_launcher_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.delenv(progress.FILE_VARIABLE, raising=False)
    monkeypatch.chdir(tmp_path)
    progress.report_progress(1)
    assert os.listdir(tmp_path) == []


def test_a_file_that_cannot_be_written_ends_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv(progress.FILE_VARIABLE, str(tmp_path / "missing" / "a.step"))
    progress.report_progress(1)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"", None),
        (b"12\n", (12,)),
        (b"1 2\n", (1, 2)),
        (b"half of it", None),
        (b"\xff", None),
        (b"9" * 5000, None),
    ],
)
def test_what_any_program_writes(tmp_path, text, expected):
    (tmp_path / "a").write_bytes(text)
    got = progress.read(tmp_path / "a")
    assert got == expected or (expected is None and got == (int(b"9" * 200),))


def test_words():
    assert progress.describe(None) == "before any reported step"
    assert progress.describe((7,)) == "step 7"
    assert progress.describe((2, 7)) == "epoch 2, step 7"
