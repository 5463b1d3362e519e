"""Files past the page cache: written whole, in whatever parts, with and without O_DIRECT."""

import errno
import fcntl
import os

import numpy as np
import pytest

from tfdp.checkpoints import disk

BUFFER = disk._BUFFER_BYTES


@pytest.fixture(params=["direct", "refused at the beginning", "refused at a write"])
def system(request, monkeypatch):
    """What the file system says to O_DIRECT."""
    own_open, own_write = os.open, os.write

    def opened(path, flag, *mode, **more):
        if request.param == "refused at the beginning" and flag & os.O_DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument")
        return own_open(path, flag, *mode, **more)

    def written(descriptor, data):
        if request.param == "refused at a write":
            if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECT:
                raise OSError(errno.EINVAL, "Invalid argument")
        return own_write(descriptor, data)

    monkeypatch.setattr(os, "open", opened)
    monkeypatch.setattr(os, "write", written)


@pytest.mark.parametrize("size", [0, 1, 4096, BUFFER - 1, BUFFER, BUFFER + 1, 2 * BUFFER + 5000])
def test_a_file_holds_all_that_it_was_given(size, system, tmp_path):
    data = np.random.default_rng(0).integers(256, size=size, dtype=np.uint8).tobytes()
    with disk.DirectFile(tmp_path / "file") as file:
        for begin in range(0, size, 1_000_003):
            file.write(data[begin : begin + 1_000_003])
        file.finish()
    assert file.written == size
    assert (tmp_path / "file").read_bytes() == data


def test_a_disk_that_takes_a_part_is_given_the_rest(monkeypatch, tmp_path):
    own_write = os.write

    def written(descriptor, data):
        return own_write(descriptor, data[: max(1, len(data) // 3)])

    monkeypatch.setattr(os, "write", written)
    data = os.urandom(BUFFER + 777)
    with disk.DirectFile(tmp_path / "file") as file:
        file.write(data)
        file.finish()
    assert (tmp_path / "file").read_bytes() == data


def test_another_error_is_raised(monkeypatch, tmp_path):
    def full(descriptor, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with disk.DirectFile(tmp_path / "file") as file:
        file.write(b"some")
        with pytest.raises(OSError, match="No space left"):
            file.finish()
