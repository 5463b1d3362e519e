"""What an agent on another host and its launcher say to each other over a pair of pipes.

    os.write(1, frames.MARKER)
    os.write(1, frames.encode(frames.STDOUT, b"step 41\\n"))

    reader = frames.Reader()
    reader.feed(data)               # [(b"o", b"step 41\\n")]

What a login shell prints of its own stands before the marker: it is no part of this. From the
launcher to the agent there are lines of JSON: what is to be done, then a sign of life each second.
"""

import struct

MARKER = b"\n\x01tfdp agent 1\x01\n"
STDOUT, STDERR = b"o", b"e"
PROGRESS, ENDED, ALIVE, ANSWER = b"p", b"x", b"h", b"a"

# How often each side shows that it lives, and after how long without it takes the other for lost.
BEAT_SECONDS = 1.0
SILENCE_SECONDS = 10.0

_HEAD = struct.Struct(">cI")
# What is kept of the time before the marker, to tell what came in place of it.
_KEPT_BYTES = 1 << 12


def encode(kind: bytes, data: bytes = b"") -> bytes:
    """Return a frame of that kind."""
    return _HEAD.pack(kind, len(data)) + data


class Reader:
    """Takes frames out of bytes that come in pieces, wherever they are cut.

    Attributes:
        before: The last of what came before the marker.
        has_begun: Whether the marker has come.
    """

    def __init__(self) -> None:
        self.before = b""
        self.has_begun = False
        self._held = bytearray()

    def feed(self, data: bytes) -> list[tuple[bytes, bytes]]:
        """Return the frames that are complete now: their kinds, and what they hold."""
        self._held += data
        if not self.has_begun:
            at = self._held.find(MARKER)
            if at < 0:
                self.before = bytes(self._held[-_KEPT_BYTES:])
                del self._held[: -max(_KEPT_BYTES, len(MARKER))]
                return []
            self.has_begun = True
            self.before = bytes(self._held[:at][-_KEPT_BYTES:])
            del self._held[: at + len(MARKER)]
        found = []
        while len(self._held) >= _HEAD.size:
            kind, size = _HEAD.unpack_from(self._held)
            end = _HEAD.size + size
            if len(self._held) < end:
                break
            found.append((kind, bytes(self._held[_HEAD.size : end])))
            del self._held[:end]
        return found
