"""How gradients travel between replicas.

communication = Communication(implementation="ring", bytes_per_pack=1 << 20, compression="float16")
reduced = all_reduce(gradients, communication)      # on each replica
"""

import contextlib
import dataclasses
import itertools
import weakref
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf

from tfdp.compat import distribute
from tfdp.fit.replicas import memory, transport

_IMPLEMENTATIONS = ("auto", "ring", "nccl", "gloo", "shared_memory")
_NO_MPI = (
    "Communication(implementation='mpi'): MPI is not offered: it cannot join workers that were "
    "started one by one, and carries large gradients no faster than Gloo. Use 'gloo'."
)
_COMPRESSIONS = (None, "float16", "bfloat16")


@dataclasses.dataclass(frozen=True)
class Communication:
    """Options of the gradients' all-reduce.

    Attributes:
        implementation: "shared_memory" and "gloo" are for workers of MultiWorkerMirroredStrategy
            with one replica each, on CPUs, and add up where the gradients lie: shared memory for
            workers of one machine (Linux), Gloo between machines too
            (`pip install 'tfdp[gloo]'`). "ring" is TensorFlow's, gRPC between hosts, on CPUs and
            GPUs; "nccl" is for GPUs. "auto" takes shared memory between such workers if all run on
            one machine, else Gloo if it is installed on all of them, and lets TensorFlow choose
            otherwise.
        bytes_per_pack: Gradients travel in packs of at most about this many bytes; larger ones are
            split. Shared memory and Gloo need no packs.
        compression: None, or the type in which float32 gradients travel. Every replica's are
            weighted by its share of the batch before they travel, so that the sum is an average,
            no larger than the largest of them, for losses that are means. "float16" keeps 11 bits:
            a sum is off by at most 2**-11 of its terms' sizes for each addition, values below 6e-8
            are lost, and an average above 65,504 becomes infinite (a LossScaleOptimizer then skips
            the step).
            "bfloat16" keeps 8 bits (2**-8) over float32's whole range. Shared memory and Gloo add
            up in float32 and round once. Updates stay equal on all replicas.
        timeout_seconds: A collective that takes longer fails instead of waiting for ever;
            None for no limit.
        sync_every: In `fit`, replicas train by themselves for so many steps and then meet: each
            takes the mean of what they have made of the weights (Lin et al. 2018, "Don't Use Large
            Mini-Batches, Use Local SGD", https://arxiv.org/abs/1808.07217). Between two meetings
            nothing is exchanged, and the numbers are no longer those of one device. With 1 every
            step sums the gradients. Costs a copy of the weights. See docs/speed.md.
        sync_after: So many first steps, as the optimizer counts them, sum the gradients all the
            same (post-local SGD, the same paper).
        outer: A Keras optimizer that takes what a meeting found, the weights of the meeting before
            minus the mean, for a gradient (DiLoCo, Douillard et al. 2023,
            https://arxiv.org/abs/2311.08105: SGD with rate 0.7, momentum 0.9 and Nesterov). None:
            each takes the mean, as with SGD of rate 1 without momentum. Each model gets its own.

    Raises:
        ValueError: For a value that is not allowed.
    """

    implementation: str = "auto"
    bytes_per_pack: int = 1 << 22
    compression: str | None = None
    timeout_seconds: float | None = None
    sync_every: int = 1
    sync_after: int = 0
    outer: keras.optimizers.Optimizer | None = None

    def __post_init__(self) -> None:
        if self.implementation == "mpi":
            raise ValueError(_NO_MPI)
        if self.implementation not in _IMPLEMENTATIONS:
            raise ValueError(
                f"Communication(implementation={self.implementation!r}): "
                f"use one of {', '.join(map(repr, _IMPLEMENTATIONS))}."
            )
        if not isinstance(self.bytes_per_pack, int) or self.bytes_per_pack < 1:
            raise ValueError(
                f"Communication(bytes_per_pack={self.bytes_per_pack!r}): use a positive number of "
                "bytes, such as 1 << 20."
            )
        if self.compression not in _COMPRESSIONS:
            raise ValueError(
                f"Communication(compression={self.compression!r}): "
                f"use one of {', '.join(map(repr, _COMPRESSIONS))}."
            )
        if self.timeout_seconds is not None and not self.timeout_seconds > 0:
            raise ValueError(
                f"Communication(timeout_seconds={self.timeout_seconds!r}): use a positive number "
                "of seconds, or None for no limit."
            )
        for name, least in (("sync_every", 1), ("sync_after", 0)):
            steps = getattr(self, name)
            if isinstance(steps, bool) or not isinstance(steps, int) or steps < least:
                raise ValueError(
                    f"Communication({name}={steps!r}): use a number of steps, {least} or more."
                )
        if self.outer is not None and not isinstance(self.outer, keras.optimizers.Optimizer):
            raise ValueError(
                f"Communication(outer={self.outer!r}): use an optimizer of Keras, such as "
                "keras.optimizers.SGD(0.7, momentum=0.9, nesterov=True)."
            )
        if self.outer is not None and self.sync_every == 1:
            raise ValueError(
                "Communication(outer=...) needs sync_every, 2 or more: it moves the weights where "
                "replicas meet that have trained by themselves. Leave out one of the two."
            )

    def options(self) -> tf.distribute.experimental.CommunicationOptions:
        """Return these options in tf.distribute's form.

        Beside shared memory and Gloo it carries the values of new variables: by RING.
        """
        implementation = tf.distribute.experimental.CommunicationImplementation
        carried = self.implementation in ("gloo", "shared_memory")
        name = "RING" if carried else self.implementation.upper()
        return tf.distribute.experimental.CommunicationOptions(
            bytes_per_pack=self.bytes_per_pack,
            timeout_seconds=self.timeout_seconds,
            implementation=getattr(implementation, name),
        )


_is_left_out = False


@contextlib.contextmanager
def left_out() -> Iterator[None]:
    """Trace steps in here that exchange nothing: each replica takes its own sums for those of all.

    Between two meetings replicas train so (see meetings). And it measures what a step costs without
    the exchange; what a step of `Steps.train` trains then is of no use.
    """
    global _is_left_out
    before, _is_left_out = _is_left_out, True
    try:
        yield
    finally:
        _is_left_out = before


def all_sum(values: Any) -> Any:
    """Sum small tensors over all replicas; call it on each replica.

    Args:
        values: A structure of tensors.

    Returns:
        The same structure of sums.
    """
    context = tf.distribute.get_replica_context()
    if context.num_replicas_in_sync == 1 or _is_left_out:
        return values
    if carrier := transport.of(context.strategy):
        return tf.nest.pack_sequence_as(values, carrier.sum(tf.nest.flatten(values)))
    # tf.distribute asks a tensor for its device, which one from outside the replica has not.
    here = tf.nest.map_structure(tf.identity, values)
    return context.all_reduce(tf.distribute.ReduceOp.SUM, here)


@contextlib.contextmanager
def reduced_by_carrier(strategy: tf.distribute.Strategy) -> Iterator[None]:
    """Let layers and train_steps that reduce by themselves use what carries the gradients.

    Two systems side by side would wait for one another: on one CPU TensorFlow runs one operation
    at a time, and a worker that waits for others leaves no thread to the collective that another
    worker waits for.
    """
    if _is_left_out:
        with distribute.all_reduce_by(strategy, list, memory.DTYPES):
            yield
        return
    carrier = transport.of(strategy)
    if carrier is None:
        yield
        return
    with distribute.all_reduce_by(strategy, carrier.sum, memory.DTYPES):
        yield


class Packs:
    """Gradients in packs of about `bytes_per_pack`: small ones together, large ones in parts.

    Packing and unpacking are plain tensor operations, so XLA may compile them with what comes
    before and after; only `reduce` communicates.

        packs = Packs(gradients, communication)
        gradients = packs.unpack(packs.reduce(packs.pack(gradients)))

    Args:
        gradients: Tensors of known shape, IndexedSlices, or None for a variable without one.
        communication: The options.
        exact: Numbers of those that are not compressed: counts, which have to stay whole.
    """

    def __init__(
        self,
        gradients: Sequence[Any],
        communication: Communication,
        exact: Sequence[int] = (),
    ):
        self._communication = communication
        self._count = len(gradients)
        self._shapes: dict[int, tf.TensorShape] = {}
        self._dtypes: dict[int, tf.DType] = {}
        self._wires: dict[int, tf.DType] = {}
        self._groups: list[list[int]] = []  # small gradients that share a pack
        self._parts: dict[int, int] = {}  # large gradients: into how many packs
        self._alone: list[int] = []  # as they are: sparse, or no floats
        context = tf.distribute.get_replica_context()
        self._replicas = context.num_replicas_in_sync
        self._carrier = transport.of(context.strategy)
        open_groups: dict[tf.DType, list[int]] = {}
        filled: dict[tf.DType, int] = {}
        # Backwards: the last layers' gradients are ready first.
        for index in reversed(range(self._count)):
            gradient = gradients[index]
            if gradient is None:
                continue
            floats = isinstance(gradient, tf.Tensor) and gradient.dtype.is_floating
            packable = floats and gradient.shape.is_fully_defined()
            if not packable or self._replicas == 1:
                self._alone.append(index)
                continue
            wire = gradient.dtype if index in exact else self._wire(gradient.dtype)
            self._wires[index] = wire
            size = gradient.shape.num_elements() * wire.size
            self._shapes[index], self._dtypes[index] = gradient.shape, gradient.dtype
            if self._carrier is not None:  # it puts all of them together in its own memory
                self._groups.append([index])
                continue
            if size > communication.bytes_per_pack:
                self._parts[index] = -(-size // communication.bytes_per_pack)
                continue
            if wire not in open_groups or filled[wire] + size > communication.bytes_per_pack:
                self._groups.append([])
                open_groups[wire], filled[wire] = self._groups[-1], 0
            open_groups[wire].append(index)
            filled[wire] += size

    def pack(self, gradients: Sequence[Any]) -> list[Any]:
        """Return the packs, flat tensors in the type that travels."""
        packs: list[Any] = []
        for index, parts in self._parts.items():
            flat = self._to_wire(gradients[index], index)
            packs += tf.split(flat, _sizes(flat.shape[0], parts))
        for group in self._groups:
            flats = [self._to_wire(gradients[index], index) for index in group]
            packs.append(tf.concat(flats, 0) if len(flats) > 1 else flats[0])
        return packs + [gradients[index] for index in self._alone]

    def reduce(self, packs: Sequence[Any]) -> list[Any]:
        """Sum packs over all replicas; call it on each replica."""
        if self._replicas == 1 or not packs or _is_left_out:
            return list(packs)
        if self._carrier is not None:
            return _carried(self._carrier, packs)
        context = tf.distribute.get_replica_context()
        sums: list[Any] = [None] * len(packs)
        sparse = [i for i, p in enumerate(packs) if isinstance(p, tf.IndexedSlices)]
        if sparse and isinstance(context.strategy, tf.distribute.MirroredStrategy):
            for i in sparse:
                sums[i] = context.merge_call(_summed_on_one, args=(packs[i],))
        elif sparse and _is_on_cpus(context.strategy):
            keys = itertools.count(_new_keys(context.strategy))
            for i in sparse:
                sums[i] = _gathered(packs[i], self._communication, keys)
        rest = [pack for pack, done in zip(packs, sums, strict=True) if done is None]
        here = [p if isinstance(p, tf.IndexedSlices) else tf.identity(p) for p in rest]
        # One collective for each: tf.distribute would put several into one again.
        options = dataclasses.replace(self._communication, bytes_per_pack=1).options()
        reduced = iter(
            context.all_reduce(tf.distribute.ReduceOp.SUM, here, options=options) if here else []
        )
        return [next(reduced) if done is None else done for done in sums]

    def unpack(self, packs: Sequence[Any]) -> list[Any]:
        """Return the gradients, None where there was none."""
        gradients: list[Any] = [None] * self._count
        left = list(packs)
        for index, parts in self._parts.items():
            gradients[index] = self._from_wire(tf.concat(left[:parts], 0), index)
            left = left[parts:]
        for group in self._groups:
            flat = left.pop(0)
            sizes = [self._shapes[index].num_elements() for index in group]
            flats = tf.split(flat, sizes) if len(group) > 1 else [flat]
            for index, part in zip(group, flats, strict=True):
                gradients[index] = self._from_wire(part, index)
        for index in self._alone:
            gradients[index] = left.pop(0)
        return gradients

    def sizes(self) -> list[tuple[int, tf.DType]]:
        """Return the numbers in each pack, and their type as they travel.

        Gradients that travel alone, sparse ones, are left out: only the step knows their rows.
        """
        sizes: list[tuple[int, tf.DType]] = []
        for index, parts in self._parts.items():
            count = self._shapes[index].num_elements()
            sizes += [(size, self._wires[index]) for size in _sizes(count, parts)]
        for group in self._groups:
            count = sum(self._shapes[index].num_elements() for index in group)
            sizes.append((count, self._wires[group[0]]))
        return sizes

    def _wire(self, dtype: tf.DType) -> tf.DType:
        compression = self._communication.compression
        if compression is None or self._replicas == 1 or dtype.size <= 2:
            return dtype
        return tf.as_dtype(compression)

    def _to_wire(self, gradient: tf.Tensor, index: int) -> tf.Tensor:
        return tf.cast(tf.reshape(gradient, (-1,)), self._wires[index])

    def _from_wire(self, flat: tf.Tensor, index: int) -> tf.Tensor:
        return tf.reshape(tf.cast(flat, self._dtypes[index]), self._shapes[index])


def _carried(carrier: transport.Carrier, packs: Sequence[Any]) -> list[Any]:
    """Return packs summed over all workers: dense ones together, rows of sparse ones."""
    summed = iter(carrier.sum([p for p in packs if not isinstance(p, tf.IndexedSlices)]))
    return [
        tf.IndexedSlices(carrier.concat(p.values), carrier.concat(p.indices), p.dense_shape)
        if isinstance(p, tf.IndexedSlices)
        else next(summed)
        for p in packs
    ]


def all_reduce(gradients: Sequence[Any], communication: Communication) -> list[Any]:
    """Sum gradients over all replicas; call it on each replica.

    Args:
        gradients: Tensors, IndexedSlices, or None for a variable without a gradient.
        communication: The options.

    Returns:
        The sums, in the order of `gradients`, None where it has None.
    """
    packs = Packs(gradients, communication)
    return packs.unpack(packs.reduce(packs.pack(gradients)))


# Far above the keys that tf.distribute counts up from 1. Each strategy of several processes counts
# its own: what one process does alone, with a strategy of its own, must not move them.
_ACROSS, _WITHIN, _STRATEGY, _STEP = 1 << 28, 1 << 24, 1 << 22, 1 << 10
_across, _within = itertools.count(_ACROSS, _STRATEGY), itertools.count(_WITHIN, _STEP)
_keys: "weakref.WeakKeyDictionary[Any, Iterator[int]]" = weakref.WeakKeyDictionary()


def _new_keys(strategy: tf.distribute.Strategy) -> int:
    """Return the first of 1,024 keys that no other collectives have, the same on all processes."""
    if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return next(_within)
    if strategy not in _keys:
        _keys[strategy] = itertools.count(next(_across), _STEP)
    return next(_keys[strategy])


class BranchKeys:
    """Numbers that the replicas of one process use alike for the collectives of one traced step.

    Args:
        strategy: The strategy.
    """

    def __init__(self, strategy: tf.distribute.Strategy):
        self._first = _new_keys(strategy)

    def sequence(self) -> Iterator[int]:
        """Return what yields keys, the same for each replica."""
        return itertools.count(self._first)


def all_reduce_in_branch(
    gradients: Sequence[Any], communication: Communication, keys: Iterator[int]
) -> list[Any]:
    """Sum gradients over all replicas in a branch of a `tf.cond` that all of them take.

    tf.distribute's replicas meet in Python to reduce (merge_call), which no branch allows; here
    the collective operation itself stands in each replica's graph.
    """
    context = tf.distribute.get_replica_context()
    if context.num_replicas_in_sync == 1 or _is_left_out:
        return list(gradients)
    packs = Packs(gradients, communication)
    if transport.of(context.strategy) is not None:
        return packs.unpack(packs.reduce(packs.pack(gradients)))  # it does not meet in Python
    summed = []
    for pack in packs.pack(gradients):
        if isinstance(pack, tf.IndexedSlices) and _is_on_cpus(context.strategy):
            summed.append(_gathered(pack, communication, keys))
            continue
        summed.append(
            tf.raw_ops.CollectiveReduceV2(
                input=tf.convert_to_tensor(pack),
                instance_key=1,
                ordering_token=[],
                merge_op="Add",
                final_op="Id",
                **_group(communication, keys),
            )
        )
    return packs.unpack(summed)


def _is_on_cpus(strategy: tf.distribute.Strategy) -> bool:
    """Say whether the replicas are workers of one CPU each, which `_gathered` is for.

    On GPUs TensorFlow keeps NCCL's operations in one order.
    """
    devices = strategy.extended.worker_devices
    spans = isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)
    return spans and len(devices) == 1 and "CPU" in devices[0].upper()


def _summed_on_one(
    strategy: tf.distribute.MirroredStrategy, gradient: tf.IndexedSlices
) -> tf.IndexedSlices:
    """Return a sparse gradient of all replicas of one process, put together on one device.

    MirroredStrategy's own collectives fail as `_gathered` says.
    """
    del strategy
    reduction = tf.distribute.ReductionToOneDevice()
    return reduction.reduce(tf.distribute.ReduceOp.SUM, gradient, gradient)


def _gathered(
    gradient: tf.IndexedSlices, communication: Communication, keys: Iterator[int]
) -> tf.IndexedSlices:
    """Return a sparse gradient with the rows of all replicas.

    TensorFlow's own way fails with "Shape mismatch in the collective instance" where the number of
    rows changes inside one call of a function: in the last batch of an epoch that runs several
    steps in one execution (TensorFlow 2.20 and 2.21; a key has one shape for a call, see
    core/common_runtime/collective_param_resolver_local.cc). Here the key says the number of rows.
    """

    def gather(here: tf.Tensor, key: Any) -> tf.Tensor:
        return tf.raw_ops.CollectiveGatherV2(
            input=here, instance_key=key, ordering_token=[], **_group(communication, keys)
        )

    rows = tf.size(gradient.indices)
    counts = gather(tf.reshape(rows, (1,)), 1)
    longest = tf.maximum(1, tf.reduce_max(counts))
    present = tf.ensure_shape(tf.reshape(tf.sequence_mask(counts, longest), (-1,)), (None,))

    def everywhere(here: tf.Tensor) -> tf.Tensor:
        missing = tf.zeros(tf.concat([[longest - rows], tf.shape(here)[1:]], 0), here.dtype)
        gathered = gather(tf.concat([here, missing], 0), longest)
        return tf.boolean_mask(tf.ensure_shape(gathered, (None, *here.shape[1:])), present)

    return tf.IndexedSlices(
        everywhere(gradient.values), everywhere(gradient.indices), gradient.dense_shape
    )


def _group(communication: Communication, keys: Iterator[int]) -> dict[str, Any]:
    """Return the arguments of a collective over all replicas that shares its group with no other.

    In a group of their own instances need to differ in nothing but the shape.
    """
    return {
        "group_size": tf.distribute.get_replica_context().num_replicas_in_sync,
        "group_key": next(keys),
        "timeout_seconds": communication.timeout_seconds or 0.0,
    }


def _sizes(size: int, parts: int) -> list[int]:
    """Return the sizes of `parts` nearly equal parts."""
    return [(i + 1) * size // parts - i * size // parts for i in range(parts)]
