"""How gradients travel between replicas.

communication = Communication(implementation="ring", pack_bytes=1 << 20, compression="float16")
reduced = all_reduce(gradients, communication)      # on each replica
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

_IMPLEMENTATIONS = ("auto", "ring", "nccl")
_COMPRESSIONS = (None, "float16", "bfloat16")


@dataclasses.dataclass(frozen=True)
class Communication:
    """Options of the gradients' all-reduce.

    Attributes:
        implementation: "auto" lets TensorFlow choose; "ring" is gRPC between hosts, on CPUs
            and GPUs; "nccl" is for GPUs.
        pack_bytes: Gradients travel in packs of about this many bytes.
        compression: None, "float16" or "bfloat16".
        timeout_seconds: A collective that takes longer fails instead of waiting for ever;
            None for no limit.

    Raises:
        ValueError: For a value that is not allowed.
    """

    implementation: str = "auto"
    pack_bytes: int = 1 << 20
    compression: str | None = None
    timeout_seconds: float | None = None

    def __post_init__(self) -> None:
        if self.implementation not in _IMPLEMENTATIONS:
            raise ValueError(
                f"Communication(implementation={self.implementation!r}): "
                f"use one of {', '.join(map(repr, _IMPLEMENTATIONS))}."
            )
        if not isinstance(self.pack_bytes, int) or self.pack_bytes < 1:
            raise ValueError(
                f"Communication(pack_bytes={self.pack_bytes!r}): use a positive number of bytes, "
                "such as 1 << 20."
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

    def options(self) -> tf.distribute.experimental.CommunicationOptions:
        """Return these options in tf.distribute's form."""
        implementation = tf.distribute.experimental.CommunicationImplementation
        return tf.distribute.experimental.CommunicationOptions(
            bytes_per_pack=self.pack_bytes,
            timeout_seconds=self.timeout_seconds,
            implementation=getattr(implementation, self.implementation.upper()),
        )


def all_sum(values: Any) -> Any:
    """Sum small tensors over all replicas; call it on each replica.

    Args:
        values: A structure of tensors.

    Returns:
        The same structure of sums.
    """
    context = tf.distribute.get_replica_context()
    if context.num_replicas_in_sync == 1:
        return values
    # tf.distribute asks a tensor for its device, which one from outside the replica has not.
    here = tf.nest.map_structure(tf.identity, values)
    return context.all_reduce(tf.distribute.ReduceOp.SUM, here)


def all_reduce(gradients: Sequence[Any], communication: Communication) -> list[Any]:
    """Sum gradients over all replicas; call it on each replica.

    Args:
        gradients: Tensors, IndexedSlices, or None for a variable without a gradient.
        communication: The options.

    Returns:
        The sums, in the order of `gradients`, None where it has None.
    """
    context = tf.distribute.get_replica_context()
    if context.num_replicas_in_sync == 1:
        return list(gradients)
    present = [g for g in gradients if g is not None]
    if not present:
        return list(gradients)
    summed = iter(
        context.all_reduce(tf.distribute.ReduceOp.SUM, present, options=communication.options())
    )
    return [None if g is None else next(summed) for g in gradients]
