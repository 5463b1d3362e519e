"""What a host is like, for a launcher elsewhere that asks before a run. Without TensorFlow.

look(question, os.environ)["python"]     # "3.11.7"
"""

import contextlib
import hashlib
import pathlib
import platform
import socket
import time
from collections.abc import Mapping
from typing import Any

from tfdp.launch import machine, rendezvous
from tfdp.version import VERSION

_POLL_SECONDS = 0.05


def look(question: Mapping[str, Any], environ: Mapping[str, str]) -> dict[str, Any]:
    """Find out what this host is like, without TensorFlow.

    Args:
        question: directory: where tasks would run; make_directory: whether to make it; script: the
            file that they would run there, "" for none; ports: those that they would take;
            free_ports: how many others to look for; mark: a file in it that shows that the folder
            is shared, "" for none; wait_seconds: how long to wait until those ports are free.
        environ: The environment that tasks would have.
    """
    directory = pathlib.Path(question["directory"]).expanduser().absolute()
    if question["make_directory"]:
        with contextlib.suppress(OSError):  # then it is not there, which is what is told
            directory.mkdir(parents=True, exist_ok=True)
    script = directory / question["script"] if question["script"] else None
    digest = ""
    with contextlib.suppress(OSError):
        digest = hashlib.sha256(script.read_bytes()).hexdigest() if script else ""
    versions = rendezvous.versions()
    until = time.monotonic() + question["wait_seconds"]
    while not all(map(_is_free, question["ports"])) and time.monotonic() < until:
        time.sleep(_POLL_SECONDS)
    try:
        free = machine.free_ports(question["free_ports"])
    except OSError:
        free = []
    return {
        "host": socket.gethostname(),
        # "client port server port": where this host was reached.
        "address": (environ.get("SSH_CONNECTION", "").split() + [""] * 3)[2],
        "python": platform.python_version(),
        "tfdp": VERSION,
        "tensorflow": versions["tensorflow"],
        "keras": versions["keras"],
        "gpus": list(machine.gpus(environ)),
        "cores": machine.cores(),
        "free_ports": free,
        "taken_ports": [port for port in question["ports"] if not _is_free(port)],
        "directory": str(directory),
        "has_directory": directory.is_dir(),
        "script_digest": digest,
        "sees_mark": bool(question["mark"]) and (directory / question["mark"]).exists(),
    }


def _is_free(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # A port whose last connection has just ended is free: TensorFlow's server takes it.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError:
            return False
    return True
