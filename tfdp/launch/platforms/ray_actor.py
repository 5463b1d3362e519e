"""What runs on a node of Ray: one actor for each task, which is a pipe to the agent beside it.

    actor = ray.remote(Pipe).options(...).remote()
    ray.get(actor.look.remote(question))        # see host_look.look
    ray.get(actor.open.remote())
    ray.get(actor.exchange.remote(b"beat\\n", 0.2))     # what the agent has written

The agent (tfdp.launch.agent) is the one that runs tasks on hosts that are reached by ssh. It ends
its task, and all that this has started, when the pipe is closed: so nothing is left when the actor,
its raylet or the launcher die (Ray leaves such processes behind, see ray#42861, #42992).
"""

import contextlib
import os
import select
import subprocess
import sys
from typing import Any

_READ_BYTES = 1 << 16
_AGENT = ("-m", "tfdp.launch.agent", "run")


class Pipe:
    """A pair of pipes to an agent."""

    def __init__(self) -> None:
        self._agent: subprocess.Popen[bytes] | None = None
        self._left = b""  # what the agent has not taken yet

    def look(self, question: dict[str, Any]) -> dict[str, Any]:
        """Return what this node is like, and the address by which others reach it."""
        import ray

        from tfdp.launch import host_look

        if not os.path.isdir(question["directory"]):
            # A folder that Ray has sent to the node (runtime_env) is the one that this runs in.
            question = {**question, "directory": os.getcwd()}
        return {**host_look.look(question, os.environ), "address": ray.util.get_node_ip_address()}

    def open(self) -> None:
        """Start an agent, in place of one that was here before."""
        self.close()
        self._left = b""
        self._agent = subprocess.Popen(
            [sys.executable, *_AGENT],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            start_new_session=True,
        )
        for pipe in (self._agent.stdin, self._agent.stdout):
            assert pipe
            os.set_blocking(pipe.fileno(), False)

    def exchange(self, data: bytes, seconds: float) -> bytes | None:
        """Give the agent some bytes; return those that it writes within some seconds.

        Returns:
            None when it has ended, and all that it wrote was returned.
        """
        assert self._agent is not None
        assert self._agent.stdin
        assert self._agent.stdout
        self._left += data
        with contextlib.suppress(BlockingIOError, BrokenPipeError):
            while self._left:
                self._left = self._left[os.write(self._agent.stdin.fileno(), self._left) :]
        select.select([self._agent.stdout], [], [], seconds)
        try:
            return os.read(self._agent.stdout.fileno(), _READ_BYTES) or None
        except BlockingIOError:
            return b""

    def close(self) -> None:
        """Let go of the agent, which ends its task."""
        if self._agent is None:
            return
        for pipe in (self._agent.stdin, self._agent.stdout):
            assert pipe
            pipe.close()
        self._agent = None
