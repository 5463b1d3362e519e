"""What this machine has to give: ports and GPUs. Found without TensorFlow.

    machine.free_ports(2)     # [14233, 20817]
    machine.gpus(os.environ)  # ("0", "1"), or () where there are none

What is found may be taken by somebody else the next moment; nothing is held.
"""

import pathlib
import random
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping

_EPHEMERAL = pathlib.Path("/proc/sys/net/ipv4/ip_local_port_range")
_LOWEST_PORT = 10000


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


def gpus(environ: Mapping[str, str], *, timeout_seconds: float = 10.0) -> tuple[str, ...]:
    """The ids of the GPUs, as CUDA_VISIBLE_DEVICES takes them.

    Args:
      environ: Where CUDA_VISIBLE_DEVICES is set, it says which there are.
      timeout_seconds: How long nvidia-smi may take; a broken driver hangs it.
    """
    if "CUDA_VISIBLE_DEVICES" in environ:
        return visible_gpus(environ["CUDA_VISIBLE_DEVICES"])
    program = shutil.which("nvidia-smi", path=environ.get("PATH"))
    if program is None:
        return ()
    try:
        listed = subprocess.run(
            [program, "-L"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_seconds,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        sys.stderr.write(f"GPUs are left undivided: nvidia-smi failed ({type(error).__name__}).\n")
        return ()
    return listed_gpus(listed.stdout) if listed.returncode == 0 else ()


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
