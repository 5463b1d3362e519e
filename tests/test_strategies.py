import json
import subprocess
import sys

import keras
import pytest
import tensorflow as tf

import tfdp
from tfdp import cluster as cluster_lib
from tfdp import fit, run, strategies
from tfdp.compat import distribute
from tfdp.error import Error


def tf_config(task_type="worker", index=0, **jobs):
    return json.dumps({"cluster": jobs, "task": {"type": task_type, "index": index}})


TWO = {"worker": ["a:1", "b:2"]}
SERVED = {"chief": ["a:1"], "worker": ["b:2"], "ps": ["c:3"]}


@pytest.fixture(autouse=True)
def stock_keras():
    """Undoes what strategy() does to Keras."""
    yield
    fit.disable()
    fit.set_evaluator(False)


@pytest.fixture
def seeds(monkeypatch):
    """The seeds that are set, in place of setting them."""
    given = []
    monkeypatch.setattr(distribute, "global_seed", lambda: given[-1] if given else None)
    monkeypatch.setattr(tf.random, "set_seed", given.append)
    monkeypatch.delenv("TFDP_SEED", raising=False)
    monkeypatch.delenv("TF_CONFIG", raising=False)
    return given


@pytest.fixture
def machine(monkeypatch, seeds):
    """A machine with so many GPUs, where strategies are only noted."""

    class Made:
        def __init__(self, name, devices=None, communication_options=None):
            self.name, self.devices, self.options = name, devices, communication_options

    monkeypatch.setenv("TFDP_START_TIMEOUT", "0")  # the others do not exist

    def set_up(gpus=0, config=None):
        counts = {"GPU": gpus, "CPU": 1}

        def physical(kind):
            return [f"{kind}:{i}" for i in range(counts[kind])]

        def logical(kind):
            return [tf.config.LogicalDevice(f"/{kind}:{i}", kind) for i in range(counts[kind])]

        monkeypatch.setattr(tf.config, "list_physical_devices", physical)
        monkeypatch.setattr(tf.config, "list_logical_devices", logical)
        for kind in ("OneDevice", "Mirrored", "MultiWorkerMirrored"):
            monkeypatch.setattr(
                tf.distribute,
                f"{kind}Strategy",
                lambda devices=None, kind=kind, **options: Made(kind, devices, **options),
            )
        if config is not None:
            monkeypatch.setenv("TF_CONFIG", config)

    return set_up


@pytest.mark.parametrize(
    ("name", "gpus", "config", "made", "devices"),
    [
        # Alone: one device, or all GPUs when there are several.
        ("auto", 0, None, "OneDevice", "/CPU:0"),
        ("auto", 1, None, "OneDevice", "/GPU:0"),
        ("auto", 2, None, "Mirrored", ["/GPU:0", "/GPU:1"]),
        ("auto", 2, "{}", "Mirrored", ["/GPU:0", "/GPU:1"]),
        ("one_device", 2, None, "OneDevice", "/GPU:0"),
        ("mirrored", 1, None, "Mirrored", ["/GPU:0"]),
        ("mirrored", 0, None, "Mirrored", ["/CPU:0"]),
        # In a cluster: all tasks that train together.
        ("auto", 0, tf_config(**TWO), "MultiWorkerMirrored", None),
        ("auto", 2, tf_config(**TWO), "MultiWorkerMirrored", None),
        ("multi_worker", 0, tf_config(**TWO), "MultiWorkerMirrored", None),
        ("auto", 0, tf_config("chief", chief=["a:1"], worker=["b:2"]), "MultiWorkerMirrored", None),
        # A cluster of one trains alone, unless asked.
        ("auto", 0, tf_config(worker=["a:1"]), "OneDevice", "/CPU:0"),
        ("auto", 2, tf_config(worker=["a:1"]), "Mirrored", ["/GPU:0", "/GPU:1"]),
        ("multi_worker", 0, tf_config(worker=["a:1"]), "MultiWorkerMirrored", None),
        # The evaluator is not part of the training, and runs the same script.
        ("multi_worker", 0, tf_config("evaluator", evaluator=["e:1"]), "OneDevice", "/CPU:0"),
        ("parameter_server", 0, tf_config("evaluator", evaluator=["e:1"]), "OneDevice", "/CPU:0"),
        ("auto", 0, tf_config("evaluator", evaluator=["e:1"], **TWO), "OneDevice", "/CPU:0"),
    ],
)
def test_which_strategy_is_made(name, gpus, config, made, devices, machine):
    machine(gpus, config)
    strategy = tfdp.strategy(name)
    assert (strategy.name, strategy.devices) == (made, devices)
    assert hasattr(keras.Model.fit, "tfdp")


@pytest.mark.parametrize(
    ("config", "name", "told"),
    [
        (None, "", (False, None)),
        (tf_config(**TWO), "", (False, None)),
        (tf_config(**TWO), "a-17", (False, "a-17")),
        (tf_config(evaluator=["e:1"], **TWO), "", (False, "")),
        (tf_config("evaluator", evaluator=["e:1"]), "a-17", (True, "a-17")),
        (tf_config("evaluator", **TWO), "", (True, "")),
    ],
)
# strategy() tells it; tfdp.run does where a script makes its strategy by itself.
@pytest.mark.parametrize("tell", [tfdp.strategy, run._teach_keras.__wrapped__])
def test_what_fit_is_told_of_the_evaluator(tell, config, name, told, machine, monkeypatch):
    machine(0, config)
    monkeypatch.setenv("TFDP_EVALUATOR", name)
    heard = []
    monkeypatch.setattr(fit, "set_evaluator", lambda *words: heard.append(words))
    tell()
    assert heard == [told]


@pytest.mark.parametrize(
    ("config", "told"),
    [
        (None, []),
        (tf_config(worker=["a:1"], evaluator=["e:1"]), [""]),
        (tf_config(**TWO), ["each of the 2 workers trains it by itself, on all rows."]),
        (tf_config("worker", 1, **TWO), []),
        (
            tf_config("chief", **SERVED),
            ["chief:0 trains it alone, and the other tasks get nothing to do."],
        ),
    ],
)
def test_what_fit_is_told_of_the_other_tasks(config, told, machine, monkeypatch):
    machine(0, config)
    heard = []
    monkeypatch.setattr(fit, "set_several", heard.append)
    run._teach_keras.__wrapped__()
    assert heard == told


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"min_partition_bytes": 1 << 20},
            "strategy('one_device') has no parameter servers: leave out min_partition_bytes, or "
            "start the script with tfdp launch --chief --workers=N --ps=M -- SCRIPT.py.",
        ),
        (
            {"lazy_rows": True},
            "strategy('one_device') has no parameter servers: leave out max_staleness, lazy_rows "
            "and reading, or start the script with tfdp launch --chief --workers=N --ps=M -- "
            "SCRIPT.py.",
        ),
        (
            {"max_staleness": -1},
            "max_staleness=-1: use a whole number of steps from 0 (0: synchronous), or None for "
            "no limit.",
        ),
        (
            {"reading": "workers"},
            "reading='workers': use one of coordinator, shard, replicated.",
        ),
        (
            {"reading": "shard", "max_staleness": 0},
            "reading='shard': max_staleness=0 splits each batch over the workers, so that the "
            "coordinator reads. Leave out one of the two.",
        ),
    ],
)
def test_options_of_parameter_servers(options, message, machine):
    machine()
    with pytest.raises(Error) as raised:
        tfdp.strategy("one_device", **options)
    assert str(raised.value) == message


@pytest.mark.parametrize(
    ("max_staleness", "workers", "ahead"),
    [
        # One that is out sees those before it and as many after it applied: 2 (ahead - 1) at most.
        (None, 3, 12),
        (1, 3, 1),
        (2, 3, 2),
        (4, 3, 3),
        (100, 2, 8),
    ],
)
def test_how_many_batches_are_out(max_staleness, workers, ahead):
    options = fit.ServerOptions(max_staleness)
    assert options.ahead(workers) == ahead
    assert max_staleness is None or 2 * (ahead - 1) <= max_staleness


@pytest.mark.parametrize(
    ("name", "config", "error", "message"),
    [
        (
            "horovod",
            None,
            Error,
            "strategy('horovod'): use one of auto, one_device, mirrored, multi_worker, "
            "parameter_server.",
        ),
        (
            "multi_worker",
            None,
            Error,
            "strategy('multi_worker') needs a cluster: start the script with "
            "tfdp launch --workers=N -- SCRIPT.py, or set TF_CONFIG.",
        ),
        (
            "parameter_server",
            None,
            Error,
            "strategy('parameter_server') needs a cluster: start the script with "
            "tfdp launch --workers=N --chief --ps=M -- SCRIPT.py, or set TF_CONFIG.",
        ),
        (
            "parameter_server",
            tf_config(**TWO),
            cluster_lib.ClusterError,
            "strategy=parameter_server needs a chief, a worker and a ps, but the cluster has 2 "
            "workers. Add chief and ps, or use strategy=multi_worker without ps.",
        ),
        (
            "mirrored",
            tf_config(**TWO),
            cluster_lib.ClusterError,
            "strategy=mirrored trains in one process, but the cluster has 2 workers. "
            "Use strategy=multi_worker, or unset TF_CONFIG.",
        ),
        (
            "auto",
            tf_config("worker", 2, **TWO),
            cluster_lib.ClusterError,
            "TF_CONFIG: The task index 2 is out of range: the cluster has 2 worker tasks. "
            "Count from 0 to 1, or add the task's address.",
        ),
    ],
)
def test_what_cannot_be_made(name, config, error, message, machine):
    machine(0, config)
    with pytest.raises(error) as raised:
        tfdp.strategy(name)
    assert str(raised.value) == message
    assert isinstance(raised.value, ValueError)
    assert not hasattr(keras.Model.fit, "tfdp")


@pytest.mark.parametrize(
    ("name", "config", "binding", "message"),
    [
        (
            "multi_worker",
            tf_config(**TWO),
            None,
            "Communication(implementation='gloo'): Gloo is not installed: pip install 'tfdp[gloo]' "
            "on every worker.",
        ),
        (
            "mirrored",
            None,
            "pygloo.so",
            "Communication(implementation='gloo') connects the workers of 'multi_worker', and "
            "strategy('mirrored') has none that sum gradients. Use 'auto'.",
        ),
    ],
)
def test_gloo_is_refused_where_it_cannot_be(name, config, binding, message, machine, monkeypatch):
    machine(0, config)
    monkeypatch.setattr(fit, "gloo_binding", lambda: binding)
    with pytest.raises(Error) as raised:
        tfdp.strategy(name, tfdp.Communication(implementation="gloo"))
    assert str(raised.value) == message
    assert not hasattr(keras.Model.fit, "tfdp")


def test_a_script_with_gloo_runs_on_one_device_too(machine, monkeypatch):
    machine(0, None)
    monkeypatch.setattr(fit, "gloo_binding", lambda: None)
    made = tfdp.strategy(communication=tfdp.Communication(implementation="gloo"))
    assert made.name == "OneDevice"


def test_beside_gloo_tensorflow_uses_ring(machine, monkeypatch):
    machine(0, tf_config(**TWO))
    monkeypatch.setattr(fit, "gloo_binding", lambda: "pygloo.so")
    options = tfdp.strategy(communication=tfdp.Communication(implementation="gloo")).options
    assert options.implementation == tf.distribute.experimental.CollectiveCommunication.RING


def test_mpi_is_refused_with_the_reason():
    with pytest.raises(ValueError, match=r"MPI is not offered: it cannot join .* Use 'gloo'\."):
        tfdp.Communication(implementation="mpi")


def test_communication_reaches_the_strategy(machine):
    machine(0, tf_config(**TWO))
    ours = tfdp.Communication(implementation="ring", bytes_per_pack=3, timeout_seconds=7.0)
    options = tfdp.strategy(communication=ours).options
    assert options.bytes_per_pack == 3
    assert options.timeout_seconds == 7.0
    assert options.implementation == tf.distribute.experimental.CollectiveCommunication.RING


def test_devices_of_this_process(seeds):
    one = tfdp.strategy("one_device")
    assert type(one) is tf.distribute.OneDeviceStrategy
    assert one.num_replicas_in_sync == 1
    mirrored = tfdp.strategy("mirrored")
    assert type(mirrored) is tf.distribute.MirroredStrategy
    assert mirrored.num_replicas_in_sync == len(tf.config.list_logical_devices("CPU"))


def test_cpu_replicas_and_receive_chunks_are_as_asked():
    # In a process of its own: both are fixed when TensorFlow is first used.
    program = (
        "import tensorflow as tf\n"
        "from tfdp import strategies\nfrom tfdp.compat import collectives\n"
        "strategies.use_cpu_replicas(3)\n"
        "strategies.tune_collectives()\n"
        "tf.config.threading.set_intra_op_parallelism_threads(1)\n"
        "print(tf.__internal__.eager_context.get_config().experimental.recv_buf_max_chunk)\n"
        "print(strategies.strategy('mirrored').num_replicas_in_sync)\n"
        "print(strategies.strategy('one_device').num_replicas_in_sync)\n"
        "print(collectives.enlarge_receive_chunks(4096))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.split() == ["262144", "3", "1", "False"]


@pytest.mark.parametrize(
    ("set_before", "environment", "set_now"),
    [
        ([], {}, []),
        ([], {"TFDP_SEED": "7"}, [7]),
        ([], {"TFDP_SEED": "7", "TF_CONFIG": tf_config(**TWO)}, [7]),
        ([3], {"TFDP_SEED": "7", "TF_CONFIG": tf_config(**TWO)}, []),
        ([], {"TFDP_SEED": "", "TF_CONFIG": "{}"}, []),
    ],
)
def test_seed_of_the_launcher_unless_the_script_has_set_one(
    set_before, environment, set_now, seeds, monkeypatch
):
    seeds.extend(set_before)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    strategies._share_seed()
    assert seeds == set_before + set_now


def test_without_a_launcher_the_tasks_of_a_cluster_agree_on_a_seed(seeds, monkeypatch):
    def seed_of(config):
        seeds.clear()
        monkeypatch.setenv("TF_CONFIG", config)
        strategies._share_seed()
        (seed,) = seeds
        return seed

    seed = seed_of(tf_config("worker", 0, **TWO))
    assert 0 <= seed < 2**31
    assert seed_of(tf_config("worker", 1, **TWO)) == seed
    assert seed_of(tf_config("worker", 1, evaluator=["e:1"], **TWO)) == seed
    assert seed_of(tf_config("worker", 0, worker=["a:1", "b:3"])) != seed
