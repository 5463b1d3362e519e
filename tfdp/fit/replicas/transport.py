"""What carries sums between the workers: shared memory, Gloo, or TensorFlow's own collectives.

    choose(strategy, communication, "fit")      # when fit begins: every task
    carrier = of(strategy)                      # None: tf.distribute carries
    sums = carrier.sum([tensor, ...])           # in a replica's graph, or eagerly

TensorFlow's RING over gRPC copies each byte five or six times. Workers of one machine add up in
memory that they share; between machines Gloo (github.com/pytorch/gloo) sends from where the numbers
lie. They carry all that a step adds up, what layers and a user's train_step reduce by themselves
too (communication.reduced_by_carrier). The values of new variables stay with TensorFlow.
"""

import ipaddress
import itertools
import logging
import re
import time
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfdp.compat import coordination
from tfdp.fit.replicas import exchange, gloo, memory, shared_memory

_log = logging.getLogger("tfdp")

INSTALL = "pip install 'tfdp[gloo]' on every worker"
_COST = "takes about twice as long as Gloo. Gloo cannot be used:"
# What "auto" takes, the first that every task can use.
SHARED_MEMORY, GLOO = "shared_memory", "gloo"
KINDS = {SHARED_MEMORY: "shared memory", GLOO: "Gloo"}
# Of the collectives that a worker runs with itself; far from those of communication.BranchKeys.
_PULSE_KEYS = 1 << 26
# How long the heartbeats have to name who is lost when a connection is closed.
_EXPLAIN_SECONDS = 1.5
_ADDRESS = re.compile(r"\[([0-9A-Fa-f.:]+)\]:\d+")

# Those that are connected, by kind; what "auto" has taken, "" for TensorFlow; what carries now.
_carriers: "weakref.WeakKeyDictionary[Any, dict[str, Carrier]]" = weakref.WeakKeyDictionary()
_taken: "weakref.WeakKeyDictionary[Any, str]" = weakref.WeakKeyDictionary()
_current: "weakref.WeakKeyDictionary[Any, Carrier | None]" = weakref.WeakKeyDictionary()
_connections = itertools.count()


class Carrier:
    """Sums and gathers over the workers of a strategy with one replica each.

    Args:
        kind: "shared_memory" or "gloo".
        connection: To the other workers.
        addresses: Of all workers by their names, "worker:0": "10.0.0.1:2222".
        me: The name of this one.
        pulse: Raises when TensorFlow has found a worker lost.

    Attributes:
        timeout_seconds: The longest that one exchange may take; None for no limit.
        is_told: Whether the user knows that it carries the sums.
    """

    def __init__(
        self,
        kind: str,
        connection: Any,
        addresses: dict[str, str],
        me: str,
        pulse: Callable[[], None] = lambda: None,
    ):
        self.kind, self._connection = kind, connection
        self._pulse = pulse
        self._names = list(addresses)
        self._others = {name: at for name, at in addresses.items() if name != me}
        self.timeout_seconds: float | None = None
        self.is_told = False

    def sum(self, tensors: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        """Return the sums of tensors over all workers.

        In a graph it runs in the order in which it was traced: TensorFlow keeps operations with
        side effects in order, those of branches and loops too, so that all workers meet alike.
        """
        tensors = [tf.convert_to_tensor(tensor) for tensor in tensors]
        if not tensors:  # all gradients are sparse
            return []

        @tf.autograph.experimental.do_not_convert
        def body(*arrays: Any) -> list[np.ndarray]:
            given = [np.asarray(array) for array in arrays]
            # A trace shows it by this name: see bench/timeline.py.
            with tf.profiler.experimental.Trace("tfdp::all_reduce"):
                return self._explaining(lambda: self._connection.sum(given, self.timeout_seconds))

        # Not within XLA, which has no such operation: where a step communicates it is left.
        summed = tf.numpy_function(body, tensors, [tensor.dtype for tensor in tensors])
        if isinstance(summed, tf.Tensor):  # a list of one, eagerly
            summed = [summed]
        for one, tensor in zip(summed, tensors, strict=True):
            one.set_shape(tensor.shape)
        return list(summed)

    def concat(self, tensor: tf.Tensor) -> tf.Tensor:
        """Return every worker's rows, one after the other."""

        @tf.autograph.experimental.do_not_convert
        def body(array: Any) -> np.ndarray:
            return np.concatenate(self.gather(np.asarray(array)))

        rows = tf.numpy_function(body, [tensor], tensor.dtype)
        rows.set_shape([None, *tensor.shape[1:]])
        return rows

    def gather(self, array: np.ndarray) -> list[np.ndarray]:
        """Return every worker's array, now."""
        return self._explaining(lambda: self._connection.gather(array, self.timeout_seconds))

    def _explaining(self, call: Any) -> Any:
        try:
            return call()
        except memory.Late as error:
            raise tf.errors.DeadlineExceededError(None, None, str(error)) from None
        except memory.Failed as error:
            # A worker that ended because another was lost has closed its connections too.
            until = time.monotonic() + _EXPLAIN_SECONDS
            while time.monotonic() < until:
                self._pulse()
                time.sleep(0.1)
            raise tf.errors.UnavailableError(None, None, self._who(error)) from None

    def _who(self, error: memory.Failed) -> str:
        """Say which worker was lost, as far as that is known: Gloo knows the host."""
        found = _ADDRESS.search(str(error))
        names = list(self._others)
        if error.worker is not None:
            names = [self._names[error.worker]]
        elif found and len(names) > 1:
            names = [
                n for n, at in self._others.items() if at.startswith((found[1], f"[{found[1]}]"))
            ]
        who = names[0] if len(names) == 1 else "another worker"
        return f"{_capital(KINDS[self.kind])} lost {who}: {error}"

    def close(self) -> None:
        """Leave the other workers."""
        self._connection.close()


def of(strategy: tf.distribute.Strategy) -> Carrier | None:
    """Return what carries sums between the workers of a strategy; None for tf.distribute itself."""
    return _current.get(strategy)


def choose(strategy: tf.distribute.Strategy, communication: Any, call: str) -> None:
    """Let the tasks of a strategy agree on what carries their sums from now on.

    Every task calls it with the same options. The first time they connect. "auto" takes shared
    memory where all run on one machine, else Gloo where every task can, and says why where it was
    meant to and cannot.

    Args:
        strategy: The strategy.
        communication: A `communication.Communication`.
        call: What was called: "fit", "evaluate", ...

    Raises:
        ValueError: If one was asked for by name and cannot be had on every task.
        AgreementError: If the tasks ask for different ones.
    """
    _current[strategy] = None
    implementation = communication.implementation
    if implementation not in (*KINDS, "auto"):
        return
    tasks = exchange.members(strategy)
    if tasks is None:
        if implementation in KINDS and strategy.num_replicas_in_sync > 1:
            raise ValueError(_refusal(implementation, _unmeant(strategy)))
        return
    if implementation == "auto":
        if strategy not in _taken:
            _taken[strategy] = _best(strategy, call, *tasks)
        kind = _taken[strategy]
        if not kind:
            return
    elif problem := _decide(strategy, call, implementation, implementation, *tasks):
        raise ValueError(_refusal(implementation, problem))
    else:
        kind = implementation
    carrier = _carriers[strategy][kind]
    if not carrier.is_told:
        _log.info("Gradients and sums travel by %s.", KINDS[kind])
        carrier.is_told = True
    carrier.timeout_seconds = communication.timeout_seconds
    _current[strategy] = carrier


def carriers(strategy: tf.distribute.Strategy) -> dict[str, Carrier]:
    """Let the workers of a strategy connect in every way that all of them have.

    Every task calls it.

    Returns:
        Carriers by what they are called.
    """
    tasks = exchange.members(strategy)
    if tasks is not None:
        for kind in KINDS:
            _decide(strategy, "doctor", "auto", kind, *tasks)
    return {KINDS[kind]: one for kind, one in _carriers.get(strategy, {}).items()}


def _best(strategy: Any, call: str, me: str, names: list[str]) -> str:
    """Let the workers connect by the fastest that all of them have; "" for TensorFlow's own."""
    for kind in KINDS:
        problem = _decide(strategy, call, "auto", kind, me, names)
        if not problem:
            return kind
    if not _unmeant(strategy):
        _log.warning("Gradients and sums travel by TensorFlow's RING, which %s %s.", _COST, problem)
    return ""


def _decide(
    strategy: Any, call: str, implementation: str, kind: str, me: str, names: list[str]
) -> str:
    """Let the workers connect in one way; return what stands against it, or ""."""
    connected = _carriers.setdefault(strategy, {})
    if kind in connected:
        return ""
    option = f"Communication(implementation={implementation!r})"
    problem = _unmeant(strategy)
    if not problem and kind == GLOO and gloo.binding() is None:
        problem = f"it is not installed: {INSTALL}"
    found = exchange.first_problem(strategy, call, option, problem)
    if not found:
        problem = _connect(strategy, kind, me, names)
        found = exchange.first_problem(strategy, call, option, problem)
    if found and (lost := connected.pop(kind, None)):
        lost.close()
    return found


def _unmeant(strategy: Any) -> str:
    """Say why Gloo is not meant for such a strategy, "" if it is."""
    if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return f"{type(strategy).__name__} has no workers that it could connect"
    devices = strategy.extended.worker_devices
    if any("GPU" in device for device in devices):
        return "it is for CPUs, and this worker has GPUs. Use 'nccl' or 'auto'"
    if len(devices) > 1:
        return f"it takes one replica of each worker, and this one has {len(devices)}"
    return ""


def _refusal(kind: str, problem: str) -> str:
    option = f"Communication(implementation={kind!r})"
    return f"{option}: {_capital(KINDS[kind])} cannot be used. {problem}."


def _connect(strategy: Any, kind: str, me: str, names: list[str]) -> str:
    """Connect this worker with all others; return why that fails, or ""."""
    prefix = f"tfdp/{kind}/{next(_connections)}"
    spec = strategy.cluster_resolver.cluster_spec()
    addresses = {}
    for name in names:
        job, _, index = name.partition(":")
        addresses[name] = spec.task_address(job, int(index))
    host = addresses[me].rpartition(":")[0].strip("[]")
    pulse = _Pulse(strategy.extended.worker_devices[0], names.index(me))
    ways: dict[str, Any] = {
        "share": lambda key, text: coordination.share_text(f"{prefix}/{key}", text),
        "shared": lambda key, seconds: coordination.shared_text(f"{prefix}/{key}", seconds),
        "check": pulse,
    }
    rank, size = names.index(me), len(names)
    connection: Any
    try:
        if kind == GLOO:
            connection = gloo.Gloo(rank, size, _numeric(host), **ways)
        else:
            connection = shared_memory.SharedMemory(rank, size, **ways)
    except memory.Failed as error:
        return f"it cannot connect by {host}: {error}" if kind == GLOO else str(error)
    _carriers[strategy][kind] = Carrier(kind, connection, addresses, me, pulse)
    return ""


class _Pulse:
    """Asks TensorFlow whether all workers live, by a collective of this worker with itself.

    When the heartbeats of the coordination service find a worker lost TensorFlow aborts the
    collectives of the others, which says who it was. No public function tells, and a process that
    waits for Gloo takes part in none. Takes 2 ms.

    Args:
        device: Of this worker's replica.
        rank: The number of this worker.
    """

    def __init__(self, device: str, rank: int):
        self._device, self._group = device, _PULSE_KEYS + rank
        self._instances = itertools.count(_PULSE_KEYS)
        self()  # the first one asks the chief for its group

    def __call__(self) -> None:
        with tf.init_scope(), tf.device(self._device):
            result = tf.raw_ops.CollectiveReduceV2(
                input=tf.zeros([1]),
                group_size=1,
                group_key=self._group,
                instance_key=next(self._instances),
                ordering_token=[],
                merge_op="Add",
                final_op="Id",
            )
            result.numpy()  # it is there only now


def _numeric(host: str) -> str:
    """Return "127.0.0.1" for "localhost", which Gloo would look up as ::1 on some machines."""
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        return "127.0.0.1" if host == "localhost" else host


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]
