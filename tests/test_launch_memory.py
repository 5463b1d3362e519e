"""A task keeps the memory that it frees."""

import os
import subprocess
import sys

import pytest

from tfdp.launch import memory

# Twenty times 24 MB, as a step's gradients: what is given back comes with new pages each time.
SCRIPT = """
import os, resource
from tfdp.launch import memory
kept = memory.keep_freed(os.environ)
import numpy
for number in range(21):
    if number == 1:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    numpy.ones(6 << 20, numpy.float32)
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(**environment: str) -> tuple[bool, int]:
    own = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")}
    own |= {"PYTHONPATH": os.pathsep.join(sys.path), **environment}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, env=own, timeout=60
    )
    assert done.returncode == 0, done.stderr
    kept, count = done.stdout.split()
    return kept == "True", int(count)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc is Linux's")
def test_what_is_freed_is_used_again():
    kept, few = faults()
    assert kept
    left_alone, many = faults(MALLOC_TRIM_THRESHOLD_="131072")
    assert not left_alone
    assert few < many / 10


@pytest.mark.parametrize(
    "environment",
    [
        {"MALLOC_ARENA_MAX": "4"},
        {"GLIBC_TUNABLES": "glibc.malloc.trim_threshold=1"},
        {"LD_PRELOAD": "/usr/lib/libtcmalloc.so.4"},
    ],
)
def test_what_the_user_has_set_stays(environment, monkeypatch):
    monkeypatch.delitem(sys.modules, "tensorflow", raising=False)
    assert not memory.keep_freed(environment)
