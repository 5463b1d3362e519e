import json
import os
import pathlib
import stat

import pytest

from tfdp.data import counts
from tfdp.error import Error


class Lines:
    """Counts lines, and how often it is asked."""

    def __init__(self):
        self.asked = []

    def __call__(self, path):
        self.asked.append(os.path.basename(path))
        return pathlib.Path(path).read_text().count("\n")


def write(path, lines):
    path.write_text("x\n" * lines)
    return str(path)


def test_a_file_is_counted_once_until_it_changes(tmp_path):
    a, b = write(tmp_path / "a", 3), write(tmp_path / "b", 5)
    lines = Lines()
    assert counts.count([a, b], lines) == [3, 5]
    assert counts.count([b, a], lines) == [5, 3]
    assert lines.asked == ["a", "b"]
    write(tmp_path / "a", 4)
    assert counts.count([a, b], lines) == [4, 5]
    assert lines.asked == ["a", "b", "a"]
    entries = json.loads((tmp_path / ".tfdp-counts.json").read_text())
    assert {name: entry[2] for name, entry in entries.items()} == {"a": 4, "b": 5}


def test_a_file_that_was_cut_is_refused(tmp_path):
    a = write(tmp_path / "a", 3)
    counts.count([a], Lines())
    write(tmp_path / "a", 2)
    for _ in range(2):  # and stays refused
        with pytest.raises(Error) as raised:
            counts.count([a], Lines())
        assert str(raised.value) == (
            f"{a} holds 2 records, and held 3 when they were counted before: it has been cut. If "
            f"that is meant, remove {tmp_path}/.tfdp-counts.json."
        )
    (tmp_path / ".tfdp-counts.json").unlink()
    assert counts.count([a], Lines()) == [2]


@pytest.mark.parametrize("content", ["", "{", '{"a": [1, 2]}', "[]", '{"a": 3}'])
def test_counts_that_cannot_be_understood_are_made_anew(tmp_path, content):
    a = write(tmp_path / "a", 3)
    (tmp_path / ".tfdp-counts.json").write_text(content)
    assert counts.count([a], Lines()) == [3]


def test_a_folder_that_cannot_be_written(tmp_path, monkeypatch):
    folder = tmp_path / "read_only"
    folder.mkdir()
    a = write(folder / "a", 3)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    access = os.access
    # Whoever runs the tests may be allowed to write everywhere.
    monkeypatch.setattr(
        counts.os,
        "access",
        lambda path, mode: not str(path).startswith(str(folder)) and access(path, mode),
    )
    lines = Lines()
    assert counts.count([a], lines) == counts.count([a], lines) == [3]
    assert lines.asked == ["a"]
    assert not (folder / ".tfdp-counts.json").exists()
    (kept,) = (tmp_path / "cache" / "tfdp").iterdir()
    assert stat.S_ISREG(kept.stat().st_mode)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "{path} cannot be read: No such file or directory."),
        (lambda path: path.write_text(""), "{path} is empty: remove it, or write it again."),
    ],
)
def test_a_file_that_is_not_there_or_empty(tmp_path, make, message):
    path = tmp_path / "a"
    make(path)
    with pytest.raises(Error) as raised:
        counts.count([str(path)], Lines())
    assert str(raised.value) == message.format(path=path)
