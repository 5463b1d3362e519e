"""One process with three logical CPU devices, and strategies of two sizes that can share it."""

import gc

import pytest
import tensorflow as tf

import tfdp
from fit import carriers

tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 3
)


@pytest.fixture(autouse=True)
def enabled() -> None:
    """Each test begins with tfdp's fit and its defaults, whatever another one has left."""
    tfdp.enable(tfdp.Communication())


@pytest.fixture(scope="session", autouse=True)
def few_collections():
    """What TensorFlow has made at its import is not looked through again and again: a tenth."""
    before = gc.get_threshold()
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 20, 20)
    yield
    gc.set_threshold(*before)
    gc.unfreeze()


@pytest.fixture(scope="module", autouse=True)
def plain_graphs(request):
    """Optimizing graphs that run a few steps takes longer than it saves.

    cluster/test_exactness compares numbers of the graphs that users run, and so does --all here.
    """
    if request.config.getoption("--all"):
        yield
        return
    before = tf.config.optimizer.get_experimental_options()
    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})
    yield
    off = before.get("disable_meta_optimizer", False)
    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": off})


@pytest.fixture(scope="session")
def one_device() -> tf.distribute.Strategy:
    return tf.distribute.OneDeviceStrategy("cpu:0")


@pytest.fixture(scope="session")
def mirrored() -> dict[int, tf.distribute.Strategy]:
    """Return MirroredStrategies by their number of replicas.

    Collectives of two sizes in one process clash ("joining a group with size 3, but that group
    has size 2"), so these reduce to one device.
    """
    reduce = tf.distribute.ReductionToOneDevice()
    return {
        n: tf.distribute.MirroredStrategy([f"cpu:{i}" for i in range(n)], cross_device_ops=reduce)
        for n in (1, 2, 3)
    }


@pytest.fixture
def workers(kind):
    """Returns what connects so many workers by the `kind` that a module of tests sets."""
    made = []

    def make(size):
        made.append(carriers.Workers(kind, size))
        return made[-1]

    yield make
    for one in made:
        one.close()
