"""One meeting of the tasks of a cluster: connections to and from all others, and what they say.

    Meeting(cluster, task, facts).run(timeout_seconds=300)     # see rendezvous.meet
    Meeting(cluster, task, facts, both_ways=True).survey(10)   # see rendezvous.survey

A connection carries one line of JSON each way: the task's name, its clock, its facts, where it
looks for the others, and a number by which a task knows itself when an address leads back to it.
"""

import contextlib
import dataclasses
import errno
import json
import os
import secrets
import selectors
import socket
import time
from collections.abc import Callable, Mapping

from tfdp.cluster import Cluster, ClusterError, Task
from tfdp.launch import network

TIMEOUT_VARIABLE = "TFDP_START_TIMEOUT"

_LONGEST_HELLO = 1 << 20
_RETRY_SECONDS = 0.25
_ANSWER_SECONDS = 3.0
# How long the others are waited for when there is a difference, so that all get to know of it.
_LINGER_SECONDS = 5.0
_MOST_CONNECTIONS = 128
# How long the task that is named first lets the other come to it.
_FOLLOW_SECONDS = 1.0
# A server listens on its own port for a coordinator that may have come long ago.
_SERVER_SECONDS = 10.0


class MissingError(ClusterError):
    """A task did not come."""


@dataclasses.dataclass
class Found:
    """What a survey found out about another task.

    Attributes:
      facts: What it says of itself; None when it said nothing.
      clock_seconds: How far its clock is ahead of ours, as far as the network lets us see.
      is_reached: Whether we can connect to it.
      reaches_us: Whether it can connect to us.
      reason: Why it could not be reached.
    """

    facts: dict[str, str] | None = None
    clock_seconds: float = 0.0
    is_reached: bool = False
    reaches_us: bool = False
    reason: str = ""


@dataclasses.dataclass(eq=False)
class _Peer:
    """What is known of another task."""

    task: Task
    try_at: float
    is_met: bool = False
    reason: str = "it was not tried yet"
    silences: int = 0
    found: "Found" = dataclasses.field(default_factory=lambda: Found())


@dataclasses.dataclass(eq=False)
class _Talk:
    """One connection: what has come, what is to be sent."""

    sock: socket.socket
    peer: _Peer | None  # None for one that came to us
    until: float
    to_send: bytes | None = None  # before the connection is there
    received: bytes = b""


class Meeting:
    """The state of one meeting, and its loop.

    Args:
      cluster: Who takes part.
      task: Who asks.
      facts: What it says of itself.
      report_seconds: How often to say who is missing.
      trust_network: Whether addresses that anybody in the internet can reach are allowed.
      say: Takes lines to show.
      both_ways: Whether a task is met only when each has connected to the other.
    """

    def __init__(
        self,
        cluster: Cluster,
        task: Task,
        facts: Mapping[str, str],
        report_seconds: float,
        trust_network: bool,
        say: Callable[[str], None],
        both_ways: bool = False,
    ) -> None:
        self._cluster, self._task = cluster, task
        # Not the addresses: a task may know itself as localhost. One that is wrong leads nowhere,
        # or to another task; those that are mixed up show in _compare_addresses.
        self._facts = {"cluster": str(dataclasses.replace(cluster, evaluator=())), **facts}
        self._report_seconds = report_seconds
        self._trust_network = trust_network
        self._say = say
        self._serves = task.type == "ps" or (task.type == "worker" and cluster.is_parameter_server)
        self._server_seconds = _SERVER_SECONDS
        self._both_ways = both_ways
        self._nonce = secrets.token_hex(16)
        others = [other for other in cluster.tasks if other.type != "evaluator"]
        now = time.monotonic()
        # Later tasks go to earlier ones; the others follow, in case that they cannot.
        later = () if both_ways else others[others.index(task) :]
        self._peers = {
            str(other): _Peer(other, now + (_FOLLOW_SECONDS if other in later else 0.0))
            for other in others
            if other != task
        }
        self._selector = selectors.DefaultSelector()
        self._talks: set[_Talk] = set()
        self._problems: list[tuple[int, str]] = []

    def survey(self, timeout_seconds: float) -> dict[Task, Found]:
        """Says of every other task what was found out in that time."""
        self._serves = True  # whoever is missing is no error here
        self._server_seconds = timeout_seconds
        self.run(timeout_seconds, stops=False)
        for peer in self._peers.values():
            peer.found.reason = "" if peer.found.is_reached else peer.reason
        return {peer.task: peer.found for peer in self._peers.values()}

    def run(self, timeout_seconds: float, *, stops: bool = True) -> None:
        """Returns when all are met; raises what rendezvous.meet does, unless it is not to stop."""
        begin = time.monotonic()
        seconds = min(timeout_seconds, self._server_seconds) if self._serves else timeout_seconds
        report_at, until = begin + self._report_seconds, begin + seconds
        try:
            listener = network.listen(self._cluster, self._task)
        except OSError as error:
            raise MissingError(self._why_not(error)) from None
        try:
            self._selector.register(listener, selectors.EVENT_READ, None)
            while missing := [peer for peer in self._peers.values() if not peer.is_met]:
                now = time.monotonic()
                if self._problems and stops:
                    until = min(until, now + _LINGER_SECONDS)
                if now >= until:
                    break
                if now >= report_at:
                    report_at += self._report_seconds
                    if not self._problems and not self._serves:
                        waited = f"{now - begin:.0f} of {timeout_seconds:.0f} s"
                        self._say(f"waiting for {self._names(missing)}, {waited}")
                self._step(missing, min(until, report_at))
        finally:
            for talk in list(self._talks):
                self._close(talk)
            self._selector.close()
            listener.close()
        if self._problems and stops:
            # Those of the first tasks first: everybody speaks of the same difference.
            raise ClusterError(min(self._problems)[1])
        if missing and not self._serves:
            raise MissingError(
                f"{self._names(missing)} did not come within {timeout_seconds:.0f} s "
                f"({missing[0].reason}). Start all tasks of the cluster, and let their ports "
                f"through the firewall; {TIMEOUT_VARIABLE} is the time to wait, in seconds."
            )

    def _step(self, missing: list[_Peer], wake_at: float) -> None:
        """Starts connections that are due, and takes what has come."""
        now = time.monotonic()
        for peer in missing:
            is_due = now >= peer.try_at and not peer.found.is_reached
            if is_due and len(self._talks) < _MOST_CONNECTIONS:
                self._connect(peer, now)
        tries = [peer.try_at for peer in missing if not peer.found.is_reached]
        times = [wake_at, *tries, *(talk.until for talk in self._talks)]
        if len(self._talks) >= _MOST_CONNECTIONS:
            times = [wake_at, *(talk.until for talk in self._talks)]
        for key, events in self._selector.select(max(0.0, min(times) - now)):
            if key.data is None:
                self._accept(key.fileobj)
            elif key.data in self._talks:
                self._talk(key.data, events)
        now = time.monotonic()
        for talk in [talk for talk in self._talks if now >= talk.until]:
            self._give_up(talk, "it does not answer")

    def _connect(self, peer: _Peer, now: float) -> None:
        peer.try_at = float("inf")  # until this try has ended
        try:
            family, address = network.resolve(self._cluster, peer.task, self._trust_network)
        except OSError as error:
            peer.reason, peer.try_at = f"its name is not found: {error.strerror}", now + 5.0
            return
        sock = socket.socket(family, socket.SOCK_STREAM)
        sock.setblocking(False)
        result = sock.connect_ex(address)
        talk = _Talk(sock, peer, now + _ANSWER_SECONDS)
        self._talks.add(talk)
        self._selector.register(sock, selectors.EVENT_READ | selectors.EVENT_WRITE, talk)
        if result not in (0, errno.EINPROGRESS):
            self._give_up(talk, os.strerror(result))

    def _accept(self, listener: object) -> None:
        assert isinstance(listener, socket.socket)
        try:
            sock, _ = listener.accept()
        except OSError:
            return
        sock.setblocking(False)
        if len(self._talks) >= 4 * _MOST_CONNECTIONS:
            sock.close()
            return
        talk = _Talk(sock, None, time.monotonic() + _ANSWER_SECONDS)
        self._talks.add(talk)
        self._selector.register(sock, selectors.EVENT_READ | selectors.EVENT_WRITE, talk)

    def _talk(self, talk: _Talk, events: int) -> None:
        try:
            if events & selectors.EVENT_WRITE and talk.to_send != b"":
                if talk.to_send is None:
                    talk.to_send = self._hello()
                talk.to_send = talk.to_send[talk.sock.send(talk.to_send) :]
                if not talk.to_send:
                    self._selector.modify(talk.sock, selectors.EVENT_READ, talk)
            if events & selectors.EVENT_READ:
                data = talk.sock.recv(1 << 16)
                talk.received += data
                if not data or len(talk.received) > _LONGEST_HELLO:
                    self._give_up(talk, "it answers something else")
                    return
        except BlockingIOError:
            return
        except OSError as error:
            self._give_up(talk, error.strerror or "the connection failed")
            return
        if b"\n" in talk.received and talk.to_send == b"":
            self._take(talk)

    def _take(self, talk: _Talk) -> None:
        """The other side has said all, and so have we."""
        try:
            hello = json.loads(talk.received.partition(b"\n")[0])
            name, facts, nonce = hello["task"], hello["facts"], hello["nonce"]
            ahead = float(hello.get("time", 0.0)) - time.time()
            facts = {str(key): str(value) for key, value in facts.items()}
            theirs = {str(key): str(value) for key, value in hello.get("addresses", {}).items()}
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            self._give_up(talk, "it answers something else")
            return
        self._close(talk)
        if nonce == self._nonce:
            # Seen from both ends; the one that was meant for somebody else knows for whom.
            if talk.peer is not None:
                self._wrong(
                    talk.peer,
                    f"The address of {talk.peer.task} ({self._address(talk.peer)}) leads to this "
                    f"task, {self._task}. Give each task its own address, and the index that "
                    f"belongs to it.",
                )
            return
        peer = self._peers.get(str(name))
        if talk.peer is not None and peer is not talk.peer:
            self._wrong(
                talk.peer,
                f"The task at {self._address(talk.peer)} is {str(name)[:60]!r} by its own account, "
                f"but {talk.peer.task} by that of {self._task}. Give all the same cluster, and "
                f"each its own index.",
            )
        elif str(name) == str(self._task):
            self._problems.append(
                (0, f"Two tasks were started as {self._task}. Give each its own type and index.")
            )
        mine = self._facts
        differing = sorted(key for key in {**mine, **facts} if mine.get(key) != facts.get(key))
        if differing:
            sides = ((str(self._task), mine), (str(name), facts))
            self._problems.append((self._rank(str(name)), _describe(differing, *sides)))
        self._compare_addresses(str(name), theirs)
        if peer is not None:
            peer.found.facts, peer.found.clock_seconds = facts, ahead
            peer.found.is_reached |= talk.peer is not None
            peer.found.reaches_us |= talk.peer is None
            peer.is_met = not self._both_ways or (peer.found.is_reached and peer.found.reaches_us)

    def _compare_addresses(self, name: str, theirs: Mapping[str, str]) -> None:
        """Refuses an address that this task has for one task, and the other for another.

        It need not lead either of them to a task that it is not: whoever has met all the others
        because they came to it has tried no address of its own.
        """
        mine = {address: task for task, address in self._addresses().items()}
        for task, address in theirs.items():
            if mine.get(address, task) != task:
                sides = sorted([(str(self._task), mine[address]), (name, task)])
                has = ", ".join(f"that of {other} for {one}" for one, other in sides)
                problem = f"The address {address} is {has}. Give all tasks the same cluster."
                self._problems.append((self._rank(name), problem))
                return

    def _addresses(self) -> dict[str, str]:
        """Where this task looks for the others."""
        return {str(peer.task): self._address(peer) for peer in self._peers.values()}

    def _why_not(self, error: OSError) -> str:
        port = self._cluster.port(self._task)
        if error.errno != errno.EADDRINUSE:
            return f"Port {port} of {self._task} cannot be used: {error.strerror}. Take another."
        return (
            f"Port {port} of {self._task} is taken by another program, or by another task that was "
            f"started as {self._task}. Free it, or give the task another port."
        )

    def _rank(self, name: str) -> int:
        return list(self._peers).index(name) if name in self._peers else len(self._peers)

    def _wrong(self, peer: _Peer, problem: str) -> None:
        peer.is_met = True
        self._problems.append((self._rank(str(peer.task)), problem))

    def _give_up(self, talk: _Talk, reason: str) -> None:
        peer, said = talk.peer, talk.received
        self._close(talk)
        if peer is None or peer.is_met:
            return
        peer.reason, peer.try_at = reason, time.monotonic() + _RETRY_SECONDS
        if reason.startswith("it "):
            peer.silences += 1
        if (said or peer.silences >= 3) and not self._both_ways:
            # TensorFlow's own server, or a task that has met the others long ago.
            peer.is_met = True
            self._say(
                f"{peer.task} ({self._address(peer)}) is there, but does not compare its settings: "
                f"it was not started by tfdp, or runs already."
            )

    def _close(self, talk: _Talk) -> None:
        self._talks.discard(talk)
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(talk.sock)
        talk.sock.close()
        if talk.peer is not None and talk.peer.try_at == float("inf"):
            talk.peer.try_at = time.monotonic() + _RETRY_SECONDS

    def _hello(self) -> bytes:
        hello = {"tfdp": 1, "task": str(self._task), "nonce": self._nonce, "time": time.time()}
        hello |= {"facts": self._facts, "addresses": self._addresses()}
        return json.dumps(hello).encode() + b"\n"

    def _address(self, peer: _Peer) -> str:
        return self._cluster.address(peer.task)

    def _names(self, peers: list[_Peer]) -> str:
        names = [f"{peer.task} ({self._address(peer)})" for peer in peers]
        return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _describe(differing: list[str], *sides: tuple[str, Mapping[str, str]]) -> str:
    """All differences between two tasks on one line, the same on both."""
    (first, a), (second, b) = sorted(sides, key=lambda side: side[0])
    parts = []
    for key in differing:
        parts.append(
            f"{key} differs: {first} has {_short(a.get(key))}, {second} has {_short(b.get(key))}"
        )
    return "; ".join(parts) + ". Start all tasks with the same."


def _short(value: str | None) -> str:
    if value is None:
        return "none"
    value = "".join(char if char.isprintable() else " " for char in value)
    return value if len(value) <= 300 else value[:297] + "..."
