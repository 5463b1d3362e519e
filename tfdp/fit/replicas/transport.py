"""What carries sums between the workers: Gloo, or TensorFlow's own collectives.

    choose(strategy, communication, "fit")      # when fit begins: every task
    carrier = of(strategy)                      # None: tf.distribute carries
    sums = carrier.sum([tensor, ...])           # in a replica's graph, or eagerly

TensorFlow's RING over gRPC copies each byte five or six times. Gloo (github.com/pytorch/gloo) sends
from where the numbers lie. It carries all that a step adds up, what layers and a user's train_step
reduce by themselves too (communication.reduced_by_carrier). The values of new variables stay with
TensorFlow.
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
from tfdp.fit.replicas import exchange, gloo

_log = logging.getLogger("tfdp")

INSTALL = "pip install 'tfdp[gloo]' on every worker"
_COST = "takes about twice as long as Gloo. Gloo cannot be used:"
# Of the collectives that a worker runs with itself; far from those of communication.BranchKeys.
_PULSE_KEYS = 1 << 26
# How long the heartbeats have to name who is lost when a connection is closed.
_EXPLAIN_SECONDS = 1.5
_ADDRESS = re.compile(r"\[([0-9A-Fa-f.:]+)\]:\d+")

_carriers: "weakref.WeakKeyDictionary[Any, Carrier]" = weakref.WeakKeyDictionary()
_current: "weakref.WeakKeyDictionary[Any, Carrier | None]" = weakref.WeakKeyDictionary()
# Why "auto" leaves the sums of a strategy with TensorFlow.
_without: "weakref.WeakKeyDictionary[Any, str]" = weakref.WeakKeyDictionary()
_connections = itertools.count()


class Carrier:
    """Sums and gathers over the workers of a strategy with one replica each, by Gloo.

    Args:
        connection: To the other workers.
        addresses: Of all workers by their names, "worker:0": "10.0.0.1:2222".
        me: The name of this one.
        pulse: Raises when TensorFlow has found a worker lost.

    Attributes:
        timeout_seconds: The longest that one exchange may take; None for no limit.
    """

    def __init__(
        self,
        connection: gloo.Gloo,
        addresses: dict[str, str],
        me: str,
        pulse: Callable[[], None] = lambda: None,
    ):
        self._gloo = connection
        self._pulse = pulse
        self._others = {name: at for name, at in addresses.items() if name != me}
        self.timeout_seconds: float | None = None

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
            return self._explaining(lambda: self._gloo.sum(given, self.timeout_seconds))

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
        return self._explaining(lambda: self._gloo.gather(array, self.timeout_seconds))

    def _explaining(self, call: Any) -> Any:
        try:
            return call()
        except gloo.Late as error:
            raise tf.errors.DeadlineExceededError(None, None, str(error)) from None
        except gloo.Failed as error:
            # A worker that ended because another was lost has closed its connections too.
            until = time.monotonic() + _EXPLAIN_SECONDS
            while time.monotonic() < until:
                self._pulse()
                time.sleep(0.1)
            raise tf.errors.UnavailableError(None, None, self._who(str(error))) from None

    def _who(self, problem: str) -> str:
        """Say which worker was lost, as far as Gloo can tell: it knows the host."""
        found = _ADDRESS.search(problem)
        names = list(self._others)
        if found and len(names) > 1:
            names = [
                n for n, at in self._others.items() if at.startswith((found[1], f"[{found[1]}]"))
            ]
        who = names[0] if len(names) == 1 else "another worker"
        return f"Gloo lost {who}: {problem}"


def of(strategy: tf.distribute.Strategy) -> Carrier | None:
    """Return what carries sums between the workers of a strategy; None for tf.distribute itself."""
    return _current.get(strategy)


def choose(strategy: tf.distribute.Strategy, communication: Any, call: str) -> None:
    """Let the tasks of a strategy agree on what carries their sums from now on.

    Every task calls it with the same options. The first time they connect. "auto" takes Gloo where
    every task can, and says why where it was meant to and cannot.

    Args:
        strategy: The strategy.
        communication: A `communication.Communication`.
        call: What was called: "fit", "evaluate", ...

    Raises:
        ValueError: If Gloo was asked for and cannot be had on every task.
        AgreementError: If the tasks ask for different ones.
    """
    _current[strategy] = None
    implementation = communication.implementation
    if implementation not in ("gloo", "auto"):
        return
    tasks = exchange.members(strategy)
    if tasks is None:
        if implementation == "gloo" and strategy.num_replicas_in_sync > 1:
            raise ValueError(_refusal(_unmeant(strategy)))
        return
    if strategy not in _carriers:
        if implementation == "auto" and strategy in _without:
            return
        if problem := _decide(strategy, call, implementation, *tasks):
            if implementation == "gloo":
                raise ValueError(_refusal(problem))
            _without[strategy] = problem
            return
    carrier = _carriers[strategy]
    carrier.timeout_seconds = communication.timeout_seconds
    _current[strategy] = carrier


def gloo_carrier(strategy: tf.distribute.Strategy) -> Carrier | None:
    """Let the workers of a strategy connect by Gloo; None where one of them cannot.

    Every task calls it.
    """
    tasks = exchange.members(strategy)
    if tasks is not None and strategy not in _carriers:
        _decide(strategy, "doctor", "auto", *tasks)
    return _carriers.get(strategy)


def _decide(strategy: Any, call: str, implementation: str, me: str, names: list[str]) -> str:
    """Let the workers connect by Gloo; return what stands against it, or ""."""
    option = f"Communication(implementation={implementation!r})"
    unmeant = _unmeant(strategy)
    problem = unmeant
    if not unmeant and gloo.binding() is None:
        problem = f"it is not installed: {INSTALL}"
    found = exchange.first_problem(strategy, call, option, problem)
    if not found:
        problem = _connect(strategy, me, names)
        found = exchange.first_problem(strategy, call, option, problem)
    if not found:
        _log.info("Gradients and sums travel by Gloo.")
        return ""
    if lost := _carriers.pop(strategy, None):
        lost._gloo.close()
    if implementation == "auto" and not unmeant:
        _log.warning("Gradients and sums travel by TensorFlow's RING, which %s %s.", _COST, found)
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


def _refusal(problem: str) -> str:
    return f"Communication(implementation='gloo'): Gloo cannot be used. {problem}."


def _connect(strategy: Any, me: str, names: list[str]) -> str:
    """Connect this worker with all others; return why that fails, or ""."""
    prefix = f"tfdp/gloo/{next(_connections)}"
    spec = strategy.cluster_resolver.cluster_spec()
    addresses = {}
    for name in names:
        job, _, index = name.partition(":")
        addresses[name] = spec.task_address(job, int(index))
    host = addresses[me].rpartition(":")[0].strip("[]")
    pulse = _Pulse(strategy.extended.worker_devices[0], names.index(me))
    try:
        connection = gloo.Gloo(
            names.index(me),
            len(names),
            _numeric(host),
            share=lambda key, text: coordination.share_text(f"{prefix}/{key}", text),
            shared=lambda key, seconds: coordination.shared_text(f"{prefix}/{key}", seconds),
            check=pulse,
        )
    except gloo.Failed as error:
        return f"it cannot connect by {host}: {error}"
    _carriers[strategy] = Carrier(connection, addresses, me, pulse)
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
