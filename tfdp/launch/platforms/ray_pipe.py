"""Stands where ssh stands for a host that is reached by ssh: a pair of pipes to a task's agent.

    python -m tfdp.launch.platforms.ray_pipe SOCKET NUMBER

What it reads goes to the launcher, which hands it to the task's actor of Ray; what the agent writes
comes back the same way. When the other end is closed with a reason, that is its last line.
"""

import os
import selectors
import socket
import struct
import sys

NUMBER = struct.Struct("!I")
# From the launcher: b"o" and bytes of the agent, b"e" and why there are no more.
HEAD = struct.Struct("!cI")
OUTPUT, ENDED = b"o", b"e"
_READ_BYTES = 1 << 16


def main(path: str, number: int) -> int:
    """Pass bytes on until one side is closed; return the exit code."""
    with socket.socket(socket.AF_UNIX) as channel:
        channel.connect(path)
        channel.sendall(NUMBER.pack(number))
        selector = selectors.DefaultSelector()
        selector.register(0, selectors.EVENT_READ)
        selector.register(channel, selectors.EVENT_READ)
        stream = channel.makefile("rb")
        while True:
            for key, _ in selector.select():
                if key.fd == 0:
                    data = os.read(0, _READ_BYTES)
                    if not data:
                        return 0  # the relay is gone
                    channel.sendall(data)
                    continue
                head = stream.read(HEAD.size)
                if len(head) < HEAD.size:
                    return 1
                kind, length = HEAD.unpack(head)
                data = stream.read(length)
                if kind == ENDED:
                    os.write(2, data)
                    return 1 if data else 0
                while data:
                    data = data[os.write(1, data) :]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2])))
