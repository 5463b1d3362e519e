"""What fit, evaluate and predict are given."""

import re
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras.src.trainers import data_adapters
from keras.src.trainers.data_adapters import array_slicing
from keras.src.trainers.data_adapters.generator_data_adapter import GeneratorDataAdapter
from keras.src.utils import rng_utils
from tensorflow.python.data.util import structure

# Returns Keras's adapter from arrays, generators, PyDataset, ... to a tf.data.Dataset.
data_adapter = data_adapters.get_data_adapter
# Names of datasets and of operations whose next pass may give something else, or that hide what
# they are made of.
_DRAWS = re.compile(
    "Random|Shuffle|Rng|Stateful|Multinomial|Sample|Generator|PyFunc|Variable|VarHandle|Variant|"
    "Service|Snapshot"
)


def whole_batch(
    x: Any, y: Any = None, sample_weight: Any = None, class_weight: dict[int, float] | None = None
) -> Any:
    """Return arrays as one batch of tensors, checked and converted as fit does.

    Returns:
        The structure of (x, y, sample_weight) without what is not there; None for what has no
        plain arrays, which an adapter has to read.
    """
    leaves = keras.tree.flatten((x, y, sample_weight))
    if not all(leaf is None or isinstance(leaf, np.ndarray | tf.Tensor) for leaf in leaves):
        return None
    if keras.tree.is_nested(y) and isinstance(sample_weight, np.ndarray | tf.Tensor):
        # Weights of any shape for all outputs: train_on_batch takes them, arrays for fit are
        # refused unless there is one weight a row.
        sample_weight = keras.tree.map_structure(lambda _: sample_weight, y)
    adapter = data_adapters.ArrayDataAdapter(x, y, sample_weight, class_weight=class_weight)
    arrays = array_slicing.convert_to_sliceable(adapter._inputs, target_backend="tensorflow")
    return keras.tree.map_structure(tf.convert_to_tensor, arrays)


def is_generator_adapter(adapter: Any) -> bool:
    """Say whether an adapter reads a Python generator, which cannot start again."""
    return isinstance(adapter, GeneratorDataAdapter)


def reads_python(adapter: Any) -> bool:
    """Say whether an adapter reads batches that Python code makes: a generator, a PyDataset."""
    return isinstance(adapter, GeneratorDataAdapter | data_adapters.PyDatasetAdapter)


def has_enqueuer(adapter: Any) -> bool:
    """Say whether an adapter reads ahead in threads, which it stops between two epochs."""
    return getattr(adapter, "enqueuer", None) is not None


def is_dataset_adapter(adapter: Any) -> bool:
    """Say whether an adapter reads a tf.data.Dataset that a script has made."""
    return isinstance(adapter, data_adapters.TFDatasetAdapter)


def dataset(adapter: Any) -> tf.data.Dataset:
    """Return the adapter's dataset; of a generator, one that takes no batch before it is needed."""
    made = adapter.get_tf_dataset()
    # Keras ends a generator's dataset with prefetch: batches that nobody trains are lost.
    return made._input_dataset if is_generator_adapter(adapter) else made


def own_seed() -> int | None:
    """Return what a script has given to keras.utils.set_random_seed; None: it has not called it.

    Keras 3.13 and 3.15, utils/rng_utils.py, `get_random_seed`.
    """
    return rng_utils.get_random_seed()


def train_validation_split(arrays: Any, validation_split: float) -> tuple[Any, Any]:
    """Split arrays as fit(validation_split=) does: the last part is for validation."""
    return array_slicing.train_validation_split(arrays, validation_split=validation_split)


def is_none_spec(spec: Any) -> bool:
    """Say whether a spec stands for None in the elements of a dataset."""
    return isinstance(spec, structure.NoneTensorSpec)


def local_spec(spec: Any) -> Any:
    """Return the spec of one replica's batch out of a distributed dataset's element_spec."""

    def first(leaf: Any) -> Any:
        return leaf._value_specs[0] if hasattr(leaf, "_value_specs") else leaf

    return keras.tree.map_structure(first, spec)


def has_shard_hint(dataset: tf.data.Dataset) -> bool:
    """Say whether `shard(SHARD_HINT, SHARD_HINT)` stands in a dataset."""
    for nodes in _bodies(dataset):
        constants = {node.name: node.attr["value"].tensor for node in nodes if node.op == "Const"}
        for node in nodes:
            if node.op != "ShardDataset":
                continue
            shards = constants.get(node.input[1].partition(":")[0])
            if shards is not None and tf.make_ndarray(shards) == tf.data.experimental.SHARD_HINT:
                return True
    return False


def shards(dataset: tf.data.Dataset) -> list[tuple[int, int]]:
    """Return (number of shards, index) of each `shard` that a script put into a dataset."""
    return [
        (int(one._num_shards), int(one._index))
        for one in made_of(dataset)
        if type(one).__name__ == "_ShardDataset" and tf.executing_eagerly()
    ]


def cache_files(dataset: tf.data.Dataset) -> list[str]:
    """Return the names given to `cache(filename)` in a dataset."""
    names = [
        one._filename.numpy().decode()
        for one in made_of(dataset)
        if type(one).__name__ == "CacheDataset"
    ]
    return [name for name in names if name]


def unfinished_cache_files(dataset: tf.data.Dataset) -> list[str]:
    """Return the names given to `cache(filename)` whose files no pass has filled yet."""
    return [name for name in cache_files(dataset) if not tf.io.gfile.exists(f"{name}.index")]


def made_of(dataset: tf.data.Dataset) -> Iterator[tf.data.Dataset]:
    """Yield a dataset and those it was made of; its graph would hold its arrays as well."""
    yield dataset
    for one in dataset._inputs():
        yield from made_of(one)


def runs_python(dataset: tf.data.Dataset) -> bool:
    """Say whether a dataset calls Python functions, which live in this process alone."""
    return _calls_python(_bodies(dataset))


def maps_python(dataset: tf.data.Dataset) -> bool:
    """Say the same of the functions of its own maps, filters and generators.

    It does not see into datasets that such a function makes, but needs no graph, which would hold
    the arrays as well.
    """
    return _calls_python(_own_bodies(dataset))


def is_the_same_each_time(dataset: tf.data.Dataset) -> bool:
    """Say whether every pass over a dataset gives the same, whenever its elements are made.

    It holds no shuffle, no random numbers, no variable and no Python code, in its functions either.
    """
    if any(_DRAWS.search(type(one).__name__) for one in made_of(dataset)):
        return False
    nodes = (node.op for body in _own_bodies(dataset) for node in body)
    return not any(_DRAWS.search(name) for name in nodes)


def _own_bodies(dataset: tf.data.Dataset) -> list[Any]:
    """Return the nodes of the functions that a dataset and those it was made of call."""
    graphs = [
        function.function.graph.as_graph_def()
        for one in made_of(dataset)
        for function in one._functions()
    ]
    return [nodes for graph in graphs for nodes in _bodies_of(graph)]


def _calls_python(bodies: list[Any]) -> bool:
    calls = ("PyFunc", "PyFuncStateless", "EagerPyFunc")
    return any(node.op in calls for nodes in bodies for node in nodes)


def shardable(dataset: tf.data.Dataset) -> Callable[[int, int], tf.data.Dataset]:
    """Return a function of (shard_count, shard_index) that makes a shard where it is called.

    On a worker too: the dataset travels as a graph. Sharded is by its own auto_shard_policy.
    """
    policy = dataset.options().experimental_distribute.auto_shard_policy
    graph, spec = serialized(dataset, strip_devices=True), dataset.element_spec
    types = {
        "output_types": structure.get_flat_tensor_types(spec),
        "output_shapes": structure.get_flat_tensor_shapes(spec),
    }

    def shard(count: int, index: int) -> tf.data.Dataset:
        variant = tf.raw_ops.DatasetFromGraph(graph_def=graph)
        sharded = tf.raw_ops.AutoShardDataset(
            input_dataset=variant,
            num_workers=tf.constant(count, tf.int64),
            index=tf.constant(index, tf.int64),
            auto_shard_policy=policy.value,
            num_replicas=count,
            **types,
        )
        return tf.data.experimental.from_variant(sharded, spec)

    return shard


def serialized(dataset: tf.data.Dataset, strip_devices: bool = False) -> tf.Tensor:
    """Return a dataset as a serialized graph.

    Without devices it runs in other processes; TensorFlow crashes where a tf.py_function has one.
    """
    variant = tf.data.experimental.to_variant(dataset)
    return tf.raw_ops.DatasetToGraphV2(input_dataset=variant, strip_device_assignment=strip_devices)


def _bodies(dataset: tf.data.Dataset) -> list[Any]:
    """Return the nodes of a dataset's graph, and of each function in it."""
    return _bodies_of(tf.compat.v1.GraphDef.FromString(serialized(dataset).numpy()))


def _bodies_of(graph: Any) -> list[Any]:
    return [graph.node, *(function.node_def for function in graph.library.function)]
