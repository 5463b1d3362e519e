"""From a cluster and this machine's devices to a tf.distribute strategy.

strategy = strategy()                   # what TF_CONFIG and the devices say
strategy = strategy("mirrored", communication=Communication(bytes_per_pack=1 << 19))
strategy = strategy("parameter_server", min_partition_bytes=1 << 20)    # on the chief
"""

import functools
import logging
import os

import tensorflow as tf

from tfdp import cluster as cluster_lib
from tfdp import fit
from tfdp.compat import collectives, distribute
from tfdp.error import Error
from tfdp.launch import discovery, rendezvous, seeds

_log = logging.getLogger("tfdp")

NAMES = ("one_device", "mirrored", "multi_worker", "parameter_server")
# The largest of those that were measured that stays in a core's cache (64 KiB to 1 MiB are alike).
_RECEIVE_CHUNK_BYTES = 1 << 18


MADE_TOO_LATE = (
    "TensorFlow was used before the strategy was made, and cannot join the cluster any more. Make "
    "the strategy first: before tensors, models, datasets and device lists."
)


def strategy(
    name: str = "auto",
    communication: fit.Communication | None = None,
    *,
    min_partition_bytes: int | None = None,
    max_partitions: int | None = None,
    max_staleness: int | None = None,
    lazy_rows: bool = False,
    reading: str = "coordinator",
) -> tf.distribute.Strategy:
    """Return the strategy for this task, and teach Keras's fit to use it.

    Args:
        name: "one_device", "mirrored" (all devices of this machine), "multi_worker" (the cluster
            in TF_CONFIG), "parameter_server" (the same, with ps), or "auto": what the cluster's
            tasks make, mirrored on several GPUs, else one_device. The evaluator of a cluster takes
            no part in its training: it gets what its own devices make.
        communication: How gradients travel between replicas.
        min_partition_bytes: Parameter servers: variables are cut along their first axis into
            partitions of at least so many bytes, one for each server at most. None, and
            max_partitions=None: each variable lies whole on one server.
        max_partitions: Parameter servers: at most so many partitions of a variable.
        max_staleness: Parameter servers: see fit.ServerOptions.
        lazy_rows: Parameter servers: see fit.ServerOptions.
        reading: Parameter servers: who reads what fit is given, "coordinator" (each batch once an
            epoch), "shard" or "replicated" (each worker its part, or all in its own order): see
            fit.ServerOptions.

    Raises:
        Error: For an unknown name, one that needs a cluster without one, or an option that
            the strategy does not have, or that needs a package which is not installed.
        ClusterError: If TF_CONFIG is bad, the strategy does not fit its cluster, a task of it is
            missing, or has other settings.
    """
    discovery.begin(os.environ)
    found = cluster_lib.from_environment(os.environ)
    if name not in ("auto", *NAMES):
        raise Error(f"strategy({name!r}): use one of {', '.join(('auto', *NAMES))}.")
    evaluates = found is not None and found.is_evaluator
    if name == "auto" or (evaluates and name in ("multi_worker", "parameter_server")):
        name = _choose(found)
    servers = _server_settings(name, evaluates, min_partition_bytes, max_partitions)
    try:
        server_options = fit.ServerOptions(max_staleness, lazy_rows, reading)
    except ValueError as error:
        raise Error(str(error)) from None
    if server_options != fit.ServerOptions() and name != "parameter_server" and not evaluates:
        raise Error(_no_servers(name, "max_staleness, lazy_rows and reading"))
    if found is not None:
        cluster_lib.check_strategy(found.cluster, name, found.task)
    elif name in ("multi_worker", "parameter_server"):
        flags = "--workers=N" + " --chief --ps=M" * (name == "parameter_server")
        raise Error(
            f"strategy({name!r}) needs a cluster: start the script with "
            f"tfdp launch {flags} -- SCRIPT.py, or set TF_CONFIG."
        )
    options = communication or fit.Communication()
    if name == "parameter_server" and options.sync_every > 1:
        raise Error(fit.servers_keep_no_weights(options.sync_every))
    if options.implementation in ("gloo", "shared_memory"):
        _check_carrier(name, options.implementation)
    if name in ("multi_worker", "parameter_server"):
        rendezvous.join(os.environ)
    begin()
    if name == "parameter_server":
        assert found is not None
        made = _parameter_server(found.cluster, *servers)
        fit.set_server_options(made, server_options)
    else:
        made = _make(name, options)
    if communication is not None:
        fit.set_communication(made, communication)
    return made


def begin() -> None:
    """Teach Keras's fit the strategies, and let this task be one of its cluster.

    A launched task begins when its script imports TensorFlow; any other when it makes a strategy.
    """
    fit.enable()
    logging.getLogger("tensorflow").addFilter(_is_worth_reading)
    _tell_place()
    _share_seed()
    _say_removed(cluster_lib.removed(os.environ))


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
    collectives.enlarge_receive_chunks(_RECEIVE_CHUNK_BYTES)


def _tell_place() -> None:
    """Tell fit whether this task evaluates or has an evaluator, and whether there are others."""
    found = cluster_lib.from_environment(os.environ)
    evaluates = found is not None and found.is_evaluator
    fit.set_evaluator(evaluates, cluster_lib.evaluated_run(os.environ))
    if found is not None and found.is_chief:
        lost = ""
        if found.cluster.is_parameter_server:
            lost = f"{found.task} trains it alone, and the other tasks get nothing to do."
        elif (workers := found.cluster.num_workers_in_sync) > 1:
            lost = f"each of the {workers} workers trains it by itself, on all rows."
        fit.set_several(lost)


@functools.cache
def _say_removed(problem: str) -> None:
    """Warn once of what cluster.removed says, if anything."""
    if problem:
        _log.warning(problem)


def _is_worth_reading(record: logging.LogRecord) -> bool:
    """Say no to what TensorFlow logs for each function that reduces, and for each that ends."""
    text = str(record.msg)
    return not text.startswith(("Collective all_reduce", "Failed to clear function handle cache"))


def _share_seed() -> None:
    """Give all tasks of a cluster one seed of TensorFlow, unless the script has set one.

    See `seeds`: Python and NumPy got theirs when the task began, or get it with the strategy.
    """
    seed = seeds.shared(os.environ)
    if seed is None or distribute.global_seed() is not None:
        return
    tf.random.set_seed(seed)
    if not os.environ.get("TFDP_SEED", "").isdecimal():  # else the launcher has said so
        _log.info(
            "No seed was set: every task takes %d, so that their shuffles agree. "
            "keras.utils.set_random_seed(...) sets yours.",
            seed,
        )


def _share_random_state(strategy: tf.distribute.Strategy) -> None:
    """Let Python and NumPy draw alike on all workers, where a script has not seen to it."""
    seed = seeds.shared(os.environ)
    if seed is not None and not fit.same_everywhere(strategy, "random", seeds.state()):
        seeds.take(seed)


def _choose(found: cluster_lib.Place | None) -> str:
    if found is not None and not found.is_evaluator:
        if found.cluster.is_parameter_server:
            return "parameter_server"
        if found.cluster.num_workers_in_sync > 1:
            return "multi_worker"
    return "mirrored" if len(tf.config.list_physical_devices("GPU")) > 1 else "one_device"


def _check_carrier(name: str, implementation: str) -> None:
    """Refuse what has no workers to connect, or is not installed."""
    if name in ("mirrored", "parameter_server"):
        raise Error(
            f"Communication(implementation={implementation!r}) connects the workers of "
            f"'multi_worker', and strategy({name!r}) has none that sum gradients. Use 'auto'."
        )
    if implementation == "gloo" and name == "multi_worker" and fit.gloo_binding() is None:
        raise Error(
            f"Communication(implementation='gloo'): Gloo is not installed: {fit.INSTALL_GLOO}."
        )


def _server_settings(
    name: str, evaluates: bool, min_partition_bytes: int | None, max_partitions: int | None
) -> tuple[int | None, int | None]:
    """Check how variables are to be cut, and return it."""
    for option, value in (
        ("min_partition_bytes", min_partition_bytes),
        ("max_partitions", max_partitions),
    ):
        if value is None:
            continue
        if name != "parameter_server" and not evaluates:
            raise Error(_no_servers(name, option))
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise Error(f"{option}={value!r}: use a whole number from 1 up.")
    return min_partition_bytes, max_partitions


def _no_servers(name: str, option: str) -> str:
    return (
        f"strategy({name!r}) has no parameter servers: leave out {option}, or start the script "
        "with tfdp launch --chief --workers=N --ps=M -- SCRIPT.py."
    )


def _parameter_server(
    cluster: cluster_lib.Cluster, min_partition_bytes: int | None, max_partitions: int | None
) -> tf.distribute.Strategy:
    partitioner = None
    if min_partition_bytes is not None or max_partitions is not None:
        partitioner = tf.distribute.experimental.partitioners.MinSizePartitioner(
            min_partition_bytes or 256 << 10, max_partitions or len(cluster.ps)
        )
    # What it tells at this level are protocol buffers of every task.
    logging.getLogger("tensorflow").setLevel(logging.WARNING)
    made = tf.distribute.ParameterServerStrategy(
        tf.distribute.cluster_resolver.TFConfigClusterResolver(), variable_partitioner=partitioner
    )
    fit.initialize_by_partition(made)
    return made


def _make(name: str, communication: fit.Communication) -> tf.distribute.Strategy:
    if name == "multi_worker":
        tune_collectives()
        try:
            made = tf.distribute.MultiWorkerMirroredStrategy(
                communication_options=communication.options()
            )
            fit.watch(made)
            _share_random_state(made)
            return made
        except RuntimeError as error:
            if "program startup" not in str(error):
                raise
            raise RuntimeError(MADE_TOO_LATE) from error
    kind = "GPU" if tf.config.list_physical_devices("GPU") else "CPU"
    devices = [device.name for device in tf.config.list_logical_devices(kind)]
    if name == "one_device":
        return tf.distribute.OneDeviceStrategy(devices[0])
    return tf.distribute.MirroredStrategy(devices)
