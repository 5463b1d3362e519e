"""What this machine has to give: ports, GPUs and cores. Found without TensorFlow.

    machine.free_ports(2)     # [14233, 20817]
    machine.gpus(os.environ)  # ("0", "1"), or () where there are none
    machine.cores()           # [(0, 4), (1, 5), (2, 6), (3, 7)]: 4 cores of 2 CPUs each

What is found may be taken by somebody else the next moment; nothing is held.
"""

import os
import pathlib
import random
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence

_EPHEMERAL = pathlib.Path("/proc/sys/net/ipv4/ip_local_port_range")
_LOWEST_PORT = 10000
# How long nvidia-smi may take: a broken driver hangs it.
_SMI_SECONDS = 10.0
_TOPOLOGY = pathlib.Path("/sys/devices/system/cpu")


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on.

    They lie below those that the kernel gives to outgoing connections. A task starts listening
    seconds after its port was chosen, and by then another task may have connected from it.

    Raises:
      OSError: There are not so many.
    """
    candidates = list(range(_LOWEST_PORT, _first_ephemeral_port()))
    random.SystemRandom().shuffle(candidates)
    found: list[int] = []
    for port in candidates:
        if len(found) == count:
            break
        # On all interfaces, as TensorFlow's server does.
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            try:
                probe.bind(("", port))
            except OSError:
                continue
        found.append(port)
    if len(found) < count:
        raise OSError(f"{count} ports are needed, but only {len(found)} are free. Use fewer tasks.")
    return found


def gpus(environ: Mapping[str, str]) -> tuple[str, ...]:
    """The ids of the GPUs, as CUDA_VISIBLE_DEVICES takes them.

    Args:
      environ: Where CUDA_VISIBLE_DEVICES is set, it says which there are.
    """
    if "CUDA_VISIBLE_DEVICES" in environ:
        return visible_gpus(environ["CUDA_VISIBLE_DEVICES"])
    return listed_gpus(_nvidia_smi(["-L"], environ))


def _nvidia_smi(arguments: Sequence[str], environ: Mapping[str, str]) -> str:
    """What nvidia-smi prints; nothing where it is not installed, or fails."""
    program = shutil.which("nvidia-smi", path=environ.get("PATH"))
    if program is None:
        return ""
    try:
        told = subprocess.run(
            [program, *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_SMI_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        sys.stderr.write(f"GPUs are left undivided: nvidia-smi failed ({type(error).__name__}).\n")
        return ""
    return told.stdout if told.returncode == 0 else ""


def gpu_memory_bytes(environ: Mapping[str, str]) -> tuple[int, ...]:
    """The memory of each GPU that a process sees, in its order; () where nvidia-smi does not say.

    Args:
      environ: Where CUDA_VISIBLE_DEVICES is set, it says which there are.
    """
    ids = gpus(environ)
    if not ids:
        return ()
    query = ["--query-gpu=index,uuid,memory.total", "--format=csv,noheader,nounits"]
    return listed_memory(_nvidia_smi(query, environ), ids)


def listed_memory(text: str, ids: Sequence[str]) -> tuple[int, ...]:
    """The bytes of GPUs in "INDEX, UUID, MEBIBYTES" lines; () if one is not there (as with MIG)."""
    sizes: dict[str, int] = {}
    for line in text.splitlines():
        index, uuid, size, *_ = [part.strip() for part in line.split(",")] + [""] * 3
        if size.isdecimal():
            sizes[index] = sizes[uuid] = int(size) << 20
    return tuple(sizes[one] for one in ids) if all(one in sizes for one in ids) else ()


def cores() -> list[tuple[int, ...]]:
    """The CPUs that this process may run on, by physical core.

    Those that share a socket, and then a last-level cache, stand beside each other. What a cgroup,
    Slurm or taskset leaves out is left out.

    Returns:
      [] on systems that cannot say which they are.
    """
    if not hasattr(os, "sched_getaffinity"):
        return []
    places: dict[tuple[int, ...], list[int]] = {}
    for cpu in sorted(os.sched_getaffinity(0)):
        folder = _TOPOLOGY / f"cpu{cpu}"
        names = ("topology/physical_package_id", "cache/index3/id", "topology/core_id")
        place = [_number(folder / name) for name in names]
        # Without a core's number a CPU is a core.
        key = tuple(0 if n is None else n for n in place[:2])
        key += (place[2],) if place[2] is not None else (-1, cpu)
        places.setdefault(key, []).append(cpu)
    return [tuple(cpus) for _, cpus in sorted(places.items())]


def _number(path: pathlib.Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def visible_gpus(text: str) -> tuple[str, ...]:
    """The ids in a CUDA_VISIBLE_DEVICES, up to the first that is none, which is CUDA's reading."""
    ids: list[str] = []
    for name in text.split(","):
        if not re.fullmatch(r"[0-9]+|(GPU|MIG)-\S+", name.strip()):
            break
        ids.append(name.strip())
    return tuple(ids)


def listed_gpus(text: str) -> tuple[str, ...]:
    """The ids in what `nvidia-smi -L` prints; of a GPU cut in slices (MIG), those of its slices."""
    ids: list[str] = []
    for line in text.splitlines():
        if gpu := re.match(r"GPU ([0-9]+):", line):
            whole = gpu[1]
            ids.append(whole)
        elif piece := re.match(r"\s+MIG .*\(UUID: (MIG-[^)\s]+)\)", line):
            if ids and ids[-1] == whole:
                ids.pop()
            ids.append(piece[1])
    return tuple(ids)


def _first_ephemeral_port() -> int:
    try:
        first = int(_EPHEMERAL.read_text().split()[0])
    except (OSError, ValueError, IndexError):
        first = 32768
    # A machine set up to give out nearly all of them leaves no room below.
    return first if first >= _LOWEST_PORT + 1000 else 65536
