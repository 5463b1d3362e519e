import os
import socket
import subprocess
import sys

import pytest

# Enters a network of its own, as another user when asked, and tells what it finds there.
PROGRAM = """
import ctypes, encodings.idna, os, socket, sys
from tfdp.launch import isolation
if len(sys.argv) > 1:
    os.setgid(int(sys.argv[1])); os.setuid(int(sys.argv[1]))
    # /proc/self is root's after that, as it is not in a process that the user has started.
    ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)  # PR_SET_DUMPABLE
try:
    isolation.enter()
except OSError as error:
    print("not permitted:", error)
    sys.exit()
server = socket.create_server(("", 0))
port = server.getsockname()[1]
socket.create_connection(("127.0.0.1", port), timeout=10).close()
print([name for _, name in socket.if_nameindex()], isolation.is_exposed(), os.getuid(), port)
sys.stdout.flush()
sys.stdin.read()
"""


@pytest.mark.parametrize("user", [None, 65534])
def test_nobody_outside_reaches_what_listens_inside(user):
    if user is not None and os.geteuid() != 0:
        pytest.skip("only root can become another user")
    if sys.platform != "linux":
        pytest.skip("network namespaces are Linux's")
    words = [sys.executable, "-c", PROGRAM, *([str(user)] if user is not None else [])]
    started = subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        line = started.stdout.readline()
        if line.startswith("not permitted:"):
            pytest.skip(line.strip())
        port = int(line.split()[-1])
        assert line == f"['lo'] False {user if user is not None else os.getuid()} {port}\n"
        # The same port is free out here: what listens there is elsewhere.
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), timeout=10)
    finally:
        _, err = started.communicate(timeout=30)
    assert (started.returncode, err) == (0, "")
