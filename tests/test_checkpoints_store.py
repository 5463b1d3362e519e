"""A folder of checkpoints: committed whole, verified, and written by one run."""

import contextlib
import hashlib
import json
import logging
import os
import pathlib
import subprocess
import sys
import time

import numpy as np
import pytest

from tfdp.checkpoints import disk
from tfdp.checkpoints import store as store_lib
from tfdp.checkpoints.lease import LeaseLost
from tfdp.checkpoints.store import DamagedError, Place, Store
from tfdp.checkpoints.tensors import Spec
from tfdp.error import Error

SCRIPTS = pathlib.Path(__file__).with_name("checkpoint_scripts")


def save(store, step, phase=0, values=3000):
    array = np.full(values, step, np.float32)
    return store.save(
        Place(step, phase), {"step": step}, [Spec("w", "float32", array.shape)], [array]
    )


@pytest.fixture
def store(tmp_path):
    made = Store(tmp_path / "backup", keep=3)
    made.claim()
    return made


def loads(store, step, phase=0):
    found = store.newest()
    assert found.place == Place(step, phase)
    assert found.run == {"step": step}
    assert set(found.arrays().read("w")) == {step}


def test_a_new_folder_holds_nothing(tmp_path):
    assert Store(tmp_path / "nowhere").newest() is None
    (tmp_path / "empty").mkdir()
    assert Store(tmp_path / "empty").newest() is None


def test_the_newest_is_the_one_of_most_steps(store):
    for step, phase in [(2, 0), (10, 2), (10, 0), (9, 0)]:
        save(store, step, phase)
    loads(store, 10, 2)
    # Clocks go forth and back.
    for place, days in zip(store.places(), (1, -1, 0), strict=True):
        seconds = time.time() + days * 86400
        os.utime(store.folder / place.name, (seconds, seconds))
    loads(store, 10, 2)


def test_the_oldest_go(store):
    for step in range(1, 7):
        save(store, step)
    assert [place.step for place in store.places()] == [4, 5, 6]
    assert not list(store.folder.glob(".tmp-*"))


def test_a_manifest_holds_sizes_and_digests(store):
    path = save(store, 7)
    manifest = json.loads((path / store_lib.MANIFEST).read_text())
    for name in (store_lib.STATE, store_lib.RUN):
        data = (path / name).read_bytes()
        digest = hashlib.sha256(data).hexdigest()
        assert manifest["files"][name] == {"bytes": len(data), "sha256": digest}


def cases_of_damage():
    def truncated(name, size):
        def damage(path):
            with open(path / name, "r+b") as file:
                file.truncate(size)

        return damage

    def flipped(name):
        def damage(path):
            data = bytearray((path / name).read_bytes())
            data[len(data) // 2] ^= 1
            (path / name).write_bytes(data)

        return damage

    def missing(name):
        return lambda path: (path / name).unlink()

    def swapped(path):
        other = path.with_name(Place(1).name)
        (path / store_lib.MANIFEST).write_bytes((other / store_lib.MANIFEST).read_bytes())

    for size in range(0, 12_000, 4096):
        yield pytest.param(truncated(store_lib.STATE, size), id=f"state-cut-at-{size}")
    for name in (store_lib.STATE, store_lib.RUN, store_lib.MANIFEST):
        yield pytest.param(flipped(name), id=f"{name}-flipped")
        yield pytest.param(missing(name), id=f"{name}-missing")
    yield pytest.param(truncated(store_lib.RUN, 0), id="run-empty")
    yield pytest.param(truncated(store_lib.MANIFEST, 10), id="manifest-cut")
    yield pytest.param(swapped, id="manifest-of-another")


@pytest.mark.parametrize("damage", cases_of_damage())
def test_damage_is_noticed_and_the_one_before_is_taken(damage, store, caplog):
    save(store, 1)
    path = save(store, 2)
    damage(path)
    with caplog.at_level(logging.WARNING, "tfdp"):
        loads(store, 1)
    assert f"{path} is damaged and is not used" in caplog.text
    assert [p.name for p in store.folder.glob("*.damaged-*")]
    loads(store, 1)
    save(store, 2)  # the place is free again
    loads(store, 2)


def test_a_bit_that_is_flipped_anywhere_is_noticed(store):
    path = save(store, 5, values=40)
    for name in (store_lib.STATE, store_lib.RUN, store_lib.MANIFEST):
        data = (path / name).read_bytes()
        for at in range(0, len(data), 7):
            changed = bytearray(data)
            changed[at] ^= 4
            (path / name).write_bytes(changed)
            problem, run = store_lib._verify(path, Place(5))
            # What stands between the words of a JSON file may change: its meaning may not.
            assert problem or (name == store_lib.MANIFEST and run == {"step": 5})
        (path / name).write_bytes(data)
    loads(store, 5)


def test_nothing_starts_from_zero_in_silence(store):
    for step in (1, 2):
        (save(store, step) / store_lib.STATE).write_bytes(b"")
    for _ in range(2):  # the second time they have other names
        with pytest.raises(DamagedError, match=r"all are damaged\. To start from the beginning"):
            store.newest()


def test_the_format_of_a_later_version_is_left_alone(store):
    path = save(store, 3)
    facts = json.loads((path / store_lib.MANIFEST).read_text())
    del facts["sha256"]
    facts["format"] = 99
    facts["sha256"] = store_lib._digest(facts)
    (path / store_lib.MANIFEST).write_text(json.dumps(facts))
    with pytest.raises(Error, match="format 99, and this tfdp reads 1"):
        store.newest()
    assert path.exists()


def test_what_is_there_already_stays(store):
    path = save(store, 4)
    before = (path / store_lib.STATE).stat().st_ino
    assert save(store, 4) == path
    assert (path / store_lib.STATE).stat().st_ino == before


def test_clear_removes_all(store):
    save(store, 1)
    save(store, 2)
    (store.folder / "of the user's own").touch()
    store.clear()
    assert store.newest() is None
    assert [path.name for path in store.folder.iterdir()] == ["of the user's own"]


def test_clear_removes_the_folder_unless_another_run_has_it(store):
    save(store, 1)
    store.clear()
    assert not store.folder.exists()
    store.claim()
    other = store_lib.Store(store.folder)
    other.claim()
    save(other, 2)
    store.clear()
    assert [place.step for place in other.places()] == [2]
    save(other, 3)  # it has its lease still


# -- disks that fail ----------------------------------------------------------------------------


def run(script, *arguments, **more):
    return subprocess.run(
        [sys.executable, str(SCRIPTS / script), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        **more,
    )


def test_a_disk_that_takes_no_more_leaves_what_was_saved(tmp_path):
    done = run("full_disk.py", tmp_path)
    assert (done.returncode, done.stdout.split()) == (0, ["File", "too", "large"]), done.stderr
    made = Store(tmp_path)
    loads(made, 1)
    assert not list(tmp_path.glob(".tmp-*"))


def test_a_folder_that_cannot_be_written_is_named_with_the_remedy(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(Error, match=r"cannot be saved in .*file/a: Not a directory. Choose"):
        Store(tmp_path / "file" / "a").claim()


def test_what_is_committed_is_on_the_disk_before_and_its_name_after(store, monkeypatch):
    save(store, 1)  # what the first one alone does is done
    calls = []
    sync, rename = os.fsync, os.rename

    def fsync(descriptor):
        calls.append(("fsync", pathlib.Path(os.readlink(f"/proc/self/fd/{descriptor}"))))
        sync(descriptor)

    def renamed(old, new):
        calls.append(("rename", pathlib.Path(new)))
        rename(old, new)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "rename", renamed)
    save(store, 2)
    commit = calls.index(("rename", store.folder / Place(2, 0).name))
    synced = [path.name for call, path in calls[:commit] if call == "fsync"]
    # All files of it, and then the folder that holds their names.
    files = [name for name in synced if name in os.listdir(store.folder / Place(2, 0).name)]
    assert sorted(files) == ["manifest.json", "run.json", "state.safetensors"]
    assert any(name.startswith(disk.TEMPORARY) for name in synced)
    assert ("fsync", store.folder) in calls[commit:]


def test_a_kill_at_any_system_call_leaves_a_checkpoint_that_loads(tmp_path):
    """Step 2 is saved over and over, and killed one system call later each time."""
    done = run("killed.py", tmp_path)
    assert done.returncode == 0, done.stderr
    calls = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(calls) > 20
    assert {call["newest"] for call in calls[:5]} == {1}
    assert calls[-1] == {"calls": len(calls), "ended": True, "newest": 2}
    assert all(call["newest"] in (1, 2) for call in calls)


@pytest.mark.parametrize("error", ["EIO", pytest.param("ENOSPC", marks=pytest.mark.exhaustive)])
def test_a_disk_that_fails_at_any_call_is_noticed_and_leaves_what_loads(error, tmp_path):
    """Step 2 is saved over and over, with an error at one call later each time; then step 3."""
    done = run("failing.py", tmp_path, error)
    assert done.returncode == 0, done.stderr
    calls = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(calls) > 30
    for call in calls:
        # 0: saved; 3: an OSError. Behind the rename it may be there and not safe from a power cut.
        assert (call["code"], call["newest"]) in ((0, 2), (3, 1), (3, 2)), call
        assert call["next"] == 3, call
    for name in ("write", "fsync", "rename", "mkdir", "flock", "read"):
        assert {call["code"] for call in calls if call["call"] == name} == {3}, name


def test_a_disk_that_is_full_or_read_only_ends_the_training_after_three(tmp_path):
    command = ["unshare", "--user", "--map-root-user", "--mount", sys.executable]
    done = subprocess.run(
        [*command, str(SCRIPTS / "small_disk.py"), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "backup"
    failed = f"could not be saved in {folder}:"
    assert done.stdout.splitlines() == [
        "Step 1: [1]",
        f"The checkpoint of step 2 {failed} No space left on device. Training goes on.",
        "Step 2: [1]",
        f"The checkpoint of step 3 {failed} No space left on device. Training goes on.",
        "Step 3: [1]",
        "Step 4: [1, 4]",
        f"The checkpoint of step 5 {failed} Read-only file system. Training goes on.",
        "Step 5: [1, 4]",
        f"The checkpoint of step 6 {failed} Read-only file system. Training goes on.",
        "Step 6: [1, 4]",
        f"The checkpoint of step 7 {failed} Read-only file system. Training goes on no more.",
        f"Checkpoints could not be saved in {folder} 3 times in a row: training ends, because "
        "nothing after the last checkpoint would survive.",
        "Loaded: {4.0}",
    ]
    assert not list(tmp_path.iterdir())  # the disk was that process's alone


# -- two runs -----------------------------------------------------------------------------------


@contextlib.contextmanager
def _holder(folder):
    """Another process that has claimed a folder."""
    holder = subprocess.Popen(
        [sys.executable, str(SCRIPTS / "holder.py"), str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert holder.stdout.readline() == "claimed\n"
        yield holder
    finally:
        holder.kill()
        holder.wait()


def test_a_second_run_is_refused_while_the_first_lives(tmp_path):
    with _holder(tmp_path) as holder:
        with pytest.raises(Error, match=f"a run that goes on: process {holder.pid} on"):
            Store(tmp_path).claim()
        holder.kill()
        holder.wait()
        Store(tmp_path).claim()


def test_a_run_that_was_stopped_and_replaced_commits_nothing_when_it_wakes(tmp_path):
    with _holder(tmp_path) as holder:
        os.kill(holder.pid, 19)  # SIGSTOP
        _wait_until_stopped(holder.pid)
        mine = Store(tmp_path)
        mine.claim()
        save(mine, 1)
        os.kill(holder.pid, 18)  # SIGCONT
        told, _ = holder.communicate("save\n", timeout=30)
        assert "was taken over by another run" in told
        loads(mine, 1)
        assert [place.step for place in mine.places()] == [1]


def _wait_until_stopped(pid):
    for _ in range(200):
        if pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T":
            return
        time.sleep(0.01)
    raise AssertionError("it was not stopped")


def test_a_claim_counts_up(tmp_path):
    first = Store(tmp_path)
    first.claim()
    second = Store(tmp_path)
    second.claim()  # of this process: it is the same run
    save(second, 1)
    with pytest.raises(LeaseLost):
        save(first, 2)
    assert json.loads((tmp_path / "lease.json").read_text())["generation"] == 2
