"""How much memory a process may take: made files of the kernel, and this process."""

import time

import pytest

from tfdp.tuning import memory_limit

V2 = "0::/a/b\n"
V1 = "4:memory:/a/b\n3:cpuset:/\n0::/\n"
MOUNT_V2 = "30 24 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup rw\n"
MOUNT_V1 = "33 31 0:29 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
# A container sees its own part of the tree alone.
MOUNT_PART = "33 31 0:29 /a /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
MEMINFO = "MemTotal:       8000000 kB\nMemAvailable:   4000000 kB\n"
LARGE = 10**15  # what this process has taken itself is not to matter


def files(root, made):
    for name, text in made.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def v2(folder, limit, taken, file):
    return {
        f"sys/fs/cgroup{folder}/memory.max": f"{limit}\n",
        f"sys/fs/cgroup{folder}/memory.current": f"{taken}\n",
        f"sys/fs/cgroup{folder}/memory.stat": f"anon 1\ninactive_file {file}\nactive_file 0\n",
    }


def v1(folder, limit, taken, file):
    return {
        f"sys/fs/cgroup/memory{folder}/memory.limit_in_bytes": f"{limit}\n",
        f"sys/fs/cgroup/memory{folder}/memory.usage_in_bytes": f"{taken}\n",
        f"sys/fs/cgroup/memory{folder}/memory.stat": f"cache 1\ntotal_inactive_file {file}\n",
    }


@pytest.mark.parametrize(
    ("groups", "mounts", "made", "rooms"),
    [
        (V2, MOUNT_V2, v2("/a/b", LARGE, 500, 200), [LARGE]),
        # The one above is narrower.
        (V2, MOUNT_V2, {**v2("/a/b", "max", 0, 0), **v2("/a", LARGE, 0, 0)}, [LARGE]),
        (V2, MOUNT_V2, v2("/a/b", "max", 5, 0), []),
        (V1, MOUNT_V1, v1("/a/b", LARGE, 500, 200), [LARGE]),
        (V1, MOUNT_V1, v1("/a/b", 9223372036854771712, 5, 0), []),  # no limit
        (V1, MOUNT_PART, v1("/b", LARGE, 0, 0), [LARGE]),
        ("0::/\n", MOUNT_V2, {}, []),
        ("", "", {}, []),
    ],
    ids=["v2", "above", "none", "v1", "v1 none", "part", "root", "no cgroups"],
)
def test_cgroups(groups, mounts, made, rooms, tmp_path):
    start = {"proc/self/cgroup": groups, "proc/self/mountinfo": mounts}
    files(tmp_path, {**start, "proc/meminfo": MEMINFO, **made})
    found = memory_limit.limits(root=tmp_path)
    assert [one.bytes for one in found if "cgroup" in one.source] == rooms
    machine = next(one for one in found if "machine" in one.source)
    assert machine.bytes >= 4_000_000 << 10  # with what this process has already
    assert {one.kind for one in found} == {memory_limit.RESIDENT}


def test_what_others_have_taken_is_left_out_and_tasks_share(tmp_path):
    start = {"proc/self/cgroup": V2, "proc/self/mountinfo": MOUNT_V2}
    files(tmp_path, {**start, **v2("/a/b", LARGE, LARGE // 4, 0)})
    mine = memory_limit.used()[memory_limit.RESIDENT]
    (one,) = memory_limit.limits(root=tmp_path)
    assert one.bytes == pytest.approx(LARGE * 3 / 4 + mine, rel=1e-6)
    (half,) = memory_limit.limits(tasks=2, root=tmp_path)
    assert half.bytes == pytest.approx(LARGE * 3 / 8 + mine, rel=1e-6)


def test_used_reads_the_kernels_words():
    status = "Name:\tpython\nVmSize:\t  300 kB\nRssAnon:\t 20 kB\nRssShmem:\t 4 kB\nVmData: 90 kB\n"
    assert memory_limit.used(status) == {
        memory_limit.RESIDENT: 24 << 10,
        memory_limit.DATA: 90 << 10,
        memory_limit.ADDRESS: 300 << 10,
    }


def test_peaks_see_what_was_freed():
    with memory_limit.Peaks() as peaks:
        before = memory_limit.used()
        block = bytearray(b"x") * (1 << 27)
        ended = time.monotonic() + 10
        while peaks.of(memory_limit.RESIDENT) < before[memory_limit.RESIDENT] + (1 << 26):
            assert time.monotonic() < ended
            time.sleep(0.01)
        del block
    for kind in (memory_limit.RESIDENT, memory_limit.DATA, memory_limit.ADDRESS):
        assert peaks.of(kind) >= before[kind] + (1 << 25)
