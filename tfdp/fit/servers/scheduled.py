"""Work for the workers of parameter servers: handed out ahead, taken back in order.

    work = Work(strategy, coordinator, ahead=8)
    work.put(function, (number, *tensors))      # when work.full, first take one
    for report in work.drain(): ...

What a worker had when it died is given to another: a result is taken once, whoever computed it.
A parameter server that died has taken its variables with it: that is an error which names it.
"""

import collections
import contextlib
import logging
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import tensorflow as tf

from tfdp.compat import parameter_server

_log = logging.getLogger("tfdp")

# How long a result may take before it is looked who answers, and how often then.
_LOOK_SECONDS = 5.0
_CONNECT_SECONDS = 2.0
_SAY_SECONDS = 30.0
# Workers that may die one after the other, each with the result of the same call.
_RUNS_AGAIN = 5


class ServerLostError(RuntimeError):
    """A parameter server is gone, and its variables with it."""

    tells_who_was_lost = True


class Work:
    """What was handed out and has not been taken back.

    Args:
        strategy: A ParameterServerStrategy.
        coordinator: Its ClusterCoordinator.
        ahead: How many may be out at a time.
    """

    def __init__(self, strategy: tf.distribute.Strategy, coordinator: Any, ahead: int):
        self._addresses = parameter_server.addresses(strategy)
        self._coordinator = coordinator
        self._ahead = ahead
        self._out: collections.deque[Any] = collections.deque()

    @property
    def full(self) -> bool:
        """Whether as much is out as may be."""
        return len(self._out) >= self._ahead

    def __len__(self) -> int:
        return len(self._out)

    def put(self, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
        """Hand out one call."""
        try:
            remote = self._coordinator.schedule(function, args=args)
            self._out.append((remote, function, args))
        except tf.errors.OpError as error:
            raise self._explained(error) from None

    def take(self) -> Any:
        """Wait for the oldest result, and return it with arrays in place of tensors.

        Raises:
            ServerLostError: A parameter server does not answer.
            tf.errors.OpError: What the call raised.
        """
        remote, function, args = self._out.popleft()
        for _ in range(_RUNS_AGAIN):
            self._wait(remote)
            try:
                return tf.nest.map_structure(_to_array, remote.get())
            except Exception as error:
                # A worker that died after a call keeps what the call gave: it is run again.
                if not (parameter_server.call_succeeded(remote) and self._lost_with_worker(error)):
                    raise self._explained(error) from None
            _log.warning("The result of a batch was lost with its worker: it is run again.")
            remote = self._coordinator.schedule(function, args=args)
        raise self._explained(tf.errors.UnavailableError(None, None, "Workers die too often."))

    def _wait(self, remote: Any) -> None:
        """Wait until a result is there.

        Raises:
            ServerLostError: A parameter server does not answer.
        """
        said = time.monotonic()
        silent: dict[str, int] = {}
        while not parameter_server.is_ready(remote, _LOOK_SECONDS):
            missing = self._silent("ps")
            silent = {task: silent.get(task, 0) + 1 for task in missing}
            for task, times in silent.items():
                if times > 1:
                    self._out.clear()
                    raise ServerLostError(_lost(task, missing[task]))
            if time.monotonic() - said > _SAY_SECONDS:
                said = time.monotonic()
                away = [f"{task} ({address})" for task, address in self._silent("worker").items()]
                if away:
                    _log.warning("%s: no answer. The others go on.", ", ".join(away))

    def _lost_with_worker(self, error: Exception) -> bool:
        """Say whether a result could not be fetched because its worker died, and no server did."""
        return isinstance(error, tf.errors.OpError) and not self._silent("ps")

    def __enter__(self) -> "Work":
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        """Let what is out come to its end before an error (of a callback) reaches the user.

        Steps that arrive later would change weights that somebody looks at or sets by then.
        """
        if self._out:
            self._out.clear()
            with contextlib.suppress(Exception):
                self._coordinator.join()

    def drain(self) -> Iterator[Any]:
        """Take all that is out, the oldest first."""
        while self._out:
            yield self.take()

    def _explained(self, error: Exception) -> Exception:
        """Return what to raise for an error of a call."""
        self._out.clear()
        try:
            # A call that was cancelled is not the one that failed; and what failed is forgotten.
            self._coordinator.join()
        except Exception as first:
            error = first
        if isinstance(error, tf.errors.UnavailableError | tf.errors.AbortedError):
            for task, address in self._silent("ps").items():
                return ServerLostError(_lost(task, address))
        return error

    def _silent(self, job: str) -> dict[str, str]:
        """Return the tasks of a job whose port takes no connection, with their addresses."""
        silent = {}
        for index, address in enumerate(self._addresses.get(job, ())):
            host, _, port = address.rpartition(":")
            try:
                socket.create_connection((host.strip("[]"), int(port)), _CONNECT_SECONDS).close()
            except OSError:
                silent[f"{job}:{index}"] = address
        return silent


def _to_array(value: Any) -> Any:
    # fetch() would make an array of arrays out of a ragged tensor.
    return value.numpy() if isinstance(value, tf.Tensor) else value


def _lost(task: str, address: str) -> str:
    return (
        f"{task} ({address}) was lost, and the variables that lay on it. Start the cluster again: "
        "with the callback BackupAndRestore, fit goes on from its last backup."
    )
