"""From a cluster and this machine's devices to a tf.distribute strategy.

strategy = strategy()                   # what TF_CONFIG and the devices say
strategy = strategy("mirrored", communication=Communication(pack_bytes=1 << 19))
"""

import logging
import os
import zlib

import tensorflow as tf

from tfdp import cluster as cluster_lib
from tfdp import compat, fit
from tfdp.fit import agreement
from tfdp.launch import rendezvous

_log = logging.getLogger("tfdp")

NAMES = ("one_device", "mirrored", "multi_worker")
# The largest of those that were measured that stays in a core's cache (64 KiB to 1 MiB are alike).
_RECEIVE_CHUNK_BYTES = 1 << 18


class StrategyError(ValueError):
    """A strategy that cannot be made, with what to do."""


def strategy(
    name: str = "auto", communication: fit.Communication | None = None
) -> tf.distribute.Strategy:
    """Return the strategy for this task, and teach Keras's fit to use it.

    Args:
        name: "one_device", "mirrored" (all devices of this machine), "multi_worker" (the cluster
            in TF_CONFIG), or "auto": multi_worker in a cluster of several training tasks,
            mirrored on several GPUs, else one_device.
        communication: How gradients travel between replicas.

    Raises:
        StrategyError: For an unknown name, or multi_worker without a cluster.
        ClusterError: If TF_CONFIG is bad, the strategy does not fit its cluster, a task of it is
            missing, or has other settings.
    """
    found = cluster_lib.from_environment(os.environ)
    if name == "auto":
        name = _choose(found)
    if name == "parameter_server":
        raise StrategyError(
            "strategy('parameter_server') is not there yet: use a ClusterCoordinator of "
            "tf.distribute, or multi_worker in a cluster without ps."
        )
    if name not in NAMES:
        raise StrategyError(f"strategy({name!r}): use one of {', '.join(('auto', *NAMES))}.")
    if found is not None:
        cluster_lib.check_strategy(found[0], name, found[1])
    elif name == "multi_worker":
        raise StrategyError(
            "strategy('multi_worker') needs a cluster: start the script with "
            "tfdp launch --workers=N -- SCRIPT.py, or set TF_CONFIG."
        )
    if name == "multi_worker":
        rendezvous.join(os.environ)
    fit.enable()
    share_seed()
    options = communication or fit.Communication()
    made = _make(name, options)
    if communication is not None:
        fit.set_communication(made, communication)
    return made


def use_cpu_replicas(count: int) -> None:
    """Make `count` logical devices of the CPU, for mirrored replicas on a machine without GPUs.

    Raises:
        RuntimeError: If TensorFlow has been used already.
    """
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(
        cpu, [tf.config.LogicalDeviceConfiguration()] * count
    )


def tune_collectives() -> None:
    """Let collectives between hosts move large chunks; without effect once TensorFlow was used."""
    compat.enlarge_receive_chunks(_RECEIVE_CHUNK_BYTES)


def share_seed() -> None:
    """Give all tasks of a cluster one seed, unless the script has set one.

    Every worker reads the same global batches and keeps its rows: a shuffle without a seed has to
    draw the same order everywhere.
    """
    if compat.global_seed() is not None:
        return
    seed = os.environ.get("TFDP_SEED", "")
    if seed.isdecimal():  # drawn by the launcher, which has said so
        tf.random.set_seed(int(seed))
    elif (found := cluster_lib.from_environment(os.environ)) is not None:
        tf.random.set_seed(zlib.crc32(repr(found[0].spec()).encode()) & 0x7FFFFFFF)
        _log.info(
            "No seed was set: every task takes %d, so that their shuffles agree. "
            "keras.utils.set_random_seed(...) sets yours.",
            compat.global_seed(),
        )


def _choose(found: tuple[cluster_lib.Cluster, cluster_lib.Task] | None) -> str:
    if found is not None and found[1].type != "evaluator":
        if found[0].is_parameter_server:
            return "parameter_server"
        if found[0].num_workers_in_sync > 1:
            return "multi_worker"
    return "mirrored" if len(tf.config.list_physical_devices("GPU")) > 1 else "one_device"


def _make(name: str, communication: fit.Communication) -> tf.distribute.Strategy:
    if name == "multi_worker":
        tune_collectives()
        try:
            made = tf.distribute.MultiWorkerMirroredStrategy(
                communication_options=communication.options()
            )
            agreement.watch(made)
            return made
        except RuntimeError as error:
            if "program startup" not in str(error):
                raise
            raise RuntimeError(
                "TensorFlow was used before the strategy was made, and cannot join the cluster any "
                "more. Make the strategy first: before tensors, models, datasets and device lists."
            ) from error
    kind = "GPU" if tf.config.list_physical_devices("GPU") else "CPU"
    devices = [device.name for device in tf.config.list_logical_devices(kind)]
    if name == "one_device":
        return tf.distribute.OneDeviceStrategy(devices[0])
    return tf.distribute.MirroredStrategy(devices)
