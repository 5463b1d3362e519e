"""Keeping the servers of TensorFlow on this machine to this machine.

    isolation.enter()            # this process, and all it starts, are alone on a loopback network
    isolation.is_exposed()       # whether anybody outside could reach a port of this machine

TensorFlow's server listens on every interface and asks for no password: whoever reaches its port
can run code in it (SECURITY.md of TensorFlow). In a network namespace of its own there is nobody
else, and nothing outside either: no downloads, no buckets.
"""

import ctypes
import fcntl
import os
import pathlib
import socket
import struct
import sys

_CLONE_NEWUSER = 0x10000000  # <linux/sched.h>
_CLONE_NEWNET = 0x40000000
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 0x1  # <linux/sockios.h>, <linux/if.h>


def enter() -> None:
    """Moves this process into a network of its own that has the loopback interface alone.

    As root directly; else by way of a user namespace, where files keep their owner. Call it before
    threads are started.

    Raises:
      OSError: It is not permitted here, or this is not Linux.
    """
    if sys.platform != "linux":
        raise OSError("network namespaces are Linux's")
    user, group = os.geteuid(), os.getegid()
    try:
        _unshare(_CLONE_NEWNET)
    except PermissionError:
        _unshare(_CLONE_NEWUSER | _CLONE_NEWNET)
        _write("setgroups", "deny")
        _write("uid_map", f"{user} {user} 1")
        _write("gid_map", f"{group} {group} 1")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        request = struct.pack("16sh14x", b"lo", 0)
        (_, flags) = struct.unpack("16sh14x", fcntl.ioctl(sock, _SIOCGIFFLAGS, request))
        fcntl.ioctl(sock, _SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", flags | _IFF_UP))


def is_exposed() -> bool:
    """Whether this machine has an interface besides loopback."""
    try:
        return any(name != "lo" for _, name in socket.if_nameindex())
    except OSError:
        return True


def _unshare(flags: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(flags) != 0:
        number = ctypes.get_errno()
        if number in (1, 13):
            raise PermissionError(number, os.strerror(number))
        raise OSError(number, os.strerror(number))


def _write(name: str, text: str) -> None:
    pathlib.Path("/proc/self", name).write_text(text)
