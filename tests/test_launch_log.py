import os

import pytest

from tfdp.launch.log import Log


@pytest.mark.parametrize(
    ("writes", "max_bytes", "keep", "files"),
    [
        ([b"a\n", b"b\n"], 0, 3, {"log": b"a\nb\n"}),
        ([b"aaaa\n", b"bbbb\n", b"cccc\n"], 10, 3, {"log": b"cccc\n", "log.1": b"aaaa\nbbbb\n"}),
        # A line that was begun ends in the file it was begun in.
        ([b"aaaa", b"aaaa\nbb", b"bb\n"], 8, 3, {"log": b"bbbb\n", "log.1": b"aaaaaaaa\n"}),
        (
            [b"%d\n" % number for number in range(10)],
            4,
            2,
            {"log": b"8\n9\n", "log.1": b"6\n7\n", "log.2": b"4\n5\n"},
        ),
        ([b"1\n", b"2\n", b"3\n"], 4, 0, {"log": b"3\n"}),
        # One endless line is cut: else nothing would ever limit it.
        ([b"x" * 4, b"x" * 4, b"y" * 4], 4, 1, {"log": b"y" * 4, "log.1": b"x" * 4}),
    ],
)
def test_rotation(tmp_path, writes, max_bytes, keep, files):
    descriptors = os.listdir("/proc/self/fd")
    log = Log(tmp_path / "log", max_bytes, keep)
    for data in writes:
        log.write(data)
    log.close()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == files
    assert len(os.listdir("/proc/self/fd")) == len(descriptors)


def test_a_log_of_before_counts(tmp_path):
    (tmp_path / "log").write_bytes(b"old\n")
    log = Log(tmp_path / "log", 8, 1)
    log.write(b"new\n")
    log.write(b"more\n")
    log.close()
    assert (tmp_path / "log").read_bytes() == b"more\n"
    assert (tmp_path / "log.1").read_bytes() == b"old\nnew\n"
