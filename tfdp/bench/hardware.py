"""What devices can do at most, and what a process takes of its machine. No TensorFlow.

peak_flops_per_second("NVIDIA H100 80GB HBM3", "mixed_bfloat16")    # (989e12, "NVIDIA H100, ...")
"""

import os
import pathlib
import resource

# Dense, as the vendors' data sheets give them: in bfloat16 and float16 (tensor cores), and for
# float32, which TensorFlow multiplies in TF32 on these devices.
_PEAKS = {
    "B200": (2250e12, 1125e12),
    "H200": (989e12, 494.5e12),
    "H100 PCIe": (756e12, 378e12),
    "H100": (989e12, 494.5e12),
    "A100": (312e12, 156e12),
    "L40S": (362e12, 183e12),
    "L4": (121e12, 60e12),
    "A10G": (70e12, 35e12),
    "A10": (125e12, 62.5e12),
    "V100": (125e12, 15.7e12),
    "T4": (65e12, 8.1e12),
}


def peak_flops_per_second(device: str, precision: str) -> tuple[float, str]:
    """Return the most that one device can do, and of what that is said; (0, "") if unknown.

    Args:
        device: Its name, as TensorFlow gives it.
        precision: The dtype policy of the model: "float32", "mixed_bfloat16", ...
    """
    for name, (half, single) in _PEAKS.items():
        if all(word in device.replace("-", " ").split() for word in name.split()):
            if "16" in precision:
                return half, f"{name}, {precision.removeprefix('mixed_')}, dense"
            return single, f"{name}, float32 as TF32 where the device has it"
    return 0.0, ""


def processor() -> str:
    """Return the name of this machine's processor."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return "CPU"
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else "CPU"


def cores() -> int:
    """Return how many CPUs this process may use."""
    return len(os.sched_getaffinity(0))


def memory_bytes() -> int:
    """Return the most memory that this process has taken so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
