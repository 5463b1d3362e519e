"""What a task knows of its machine, without TensorFlow.

facts = collect("runs")     # {"host": "a", "python": "3.11.7", "tensorflow": "2.21.0", ...}
"""

import contextlib
import ctypes
import importlib.metadata
import pathlib
import platform
import shutil
import socket
import subprocess

_PACKAGES = {
    "tensorflow": ("tensorflow", "tensorflow-cpu", "tf-nightly"),
    "keras": ("keras", "keras-nightly"),
    "tfdp": ("tfdp",),
    "nccl": ("nvidia-nccl-cu12", "nvidia-nccl-cu13"),
}


def collect(directory: str) -> dict[str, str]:
    """Collect the facts of this machine; "" for what it does not have.

    Args:
        directory: The folder that a run would write to; the nearest that exists is measured.
    """
    facts = {"host": socket.gethostname(), "python": platform.python_version()}
    for name, packages in _PACKAGES.items():
        facts[name] = ""
        for package in packages:
            with contextlib.suppress(importlib.metadata.PackageNotFoundError):
                facts[name] = facts[name] or importlib.metadata.version(package)
    gpus, driver = _gpus()
    facts.update(gpus=gpus, driver=driver, nccl=facts["nccl"] or _system_nccl())
    folder = pathlib.Path(directory).absolute()
    while not folder.exists():
        folder = folder.parent
    with contextlib.suppress(OSError):
        facts["free_disk_gigabytes"] = f"{shutil.disk_usage(folder).free / 1e9:.1f}"
    return facts


def _gpus() -> tuple[str, str]:
    """The names of the GPUs and the version of their driver, from nvidia-smi."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return "", ""
    try:
        listed = subprocess.run(
            [program, "--query-gpu=name,driver_version", "--format=csv,noheader"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError) as error:
        return "", f"nvidia-smi failed ({type(error).__name__})"
    rows = [line.rpartition(",") for line in listed.stdout.splitlines() if "," in line]
    drivers = sorted({driver.strip() for _, _, driver in rows})
    return ", ".join(name.strip() for name, _, _ in rows), ", ".join(drivers)


def _system_nccl() -> str:
    with contextlib.suppress(OSError, AttributeError):
        version = ctypes.c_int()
        ctypes.CDLL("libnccl.so.2").ncclGetVersion(ctypes.byref(version))
        # 2.27.5 is 22705.
        major, rest = divmod(version.value, 10000)
        return f"{major}.{rest // 100}.{rest % 100}"
    return ""
