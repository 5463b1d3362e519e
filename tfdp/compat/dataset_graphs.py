"""Datasets as graphs: copies that stand on their own, and what a running one says of itself.

A dataset is a graph of operations (`DatasetToGraphV2`, `DatasetFromGraph`). Tried with TensorFlow
2.20 and 2.21.
"""

import dataclasses
from typing import Any

import tensorflow as tf

from tfdp.compat import data_adapters

# Each iterator of such a dataset moves what the next one begins with.
_KEEPS_A_PLACE = (
    "_ShuffleDataset",
    "_RandomDataset",
    "RandomDataset",
    "_DirectedInterleaveDataset",
)
_SERVICE = "DataServiceDataset"


def independent(dataset: tf.data.Dataset) -> tuple[tf.data.Dataset, str]:
    """Return a dataset with the same elements, whose iterators leave this one where it is.

    A shuffle draws the order of each iterator from a generator that all iterators of the dataset
    share, those of copies of its graph as well; here the copy has its own, which begins where the
    first iterator begins. A cache in memory likewise.

    Returns:
        The copy, or the dataset itself where iterators change nothing; and what stands against it,
        or "".
    """
    made_of = [type(one).__name__ for one in data_adapters.made_of(dataset)]
    if any(_SERVICE in name for name in made_of):
        return dataset, "it comes from tf.data service, which gives each batch once"
    if unfinished := data_adapters.unfinished_cache_files(dataset):
        return dataset, f"it would be cached in {unfinished[0]!r} by the bench"
    if not any(name in _KEEPS_A_PLACE for name in made_of):
        return dataset, ""
    try:
        graph = _graph(dataset)
        _give_own_resources(graph)
        return _copy(graph, dataset), ""
    except (tf.errors.OpError, ValueError) as error:
        return dataset, f"it cannot be copied ({str(error).splitlines()[0][:120]})"


def batches_to_cache(dataset: tf.data.Dataset) -> int:
    """Return how many elements of a dataset fill the caches in it; 0 without a cache.

    A large number where nobody has counted them.
    """
    made_of = list(data_adapters.made_of(dataset))
    if not any(type(one).__name__ == "CacheDataset" for one in made_of):
        return 0
    counts = [int(one.cardinality()) for one in made_of]
    finite = [count for count in counts if count >= 0]
    return finite[0] if finite else 1 << 30


# What stands for a resource of a dataset's own, as TensorFlow's Python code makes it.
_OWN = {
    "ShuffleDatasetV3": "DummySeedGenerator",
    "ShuffleAndRepeatDatasetV2": "DummySeedGenerator",
    "CacheDatasetV2": "DummyMemoryCache",
}


def _give_own_resources(graph: Any) -> None:
    nodes = {node.name: node for node in graph.node}
    for node in graph.node:
        if node.op not in _OWN:
            continue
        for name in node.input:
            source = nodes.get(name.partition(":")[0])
            if source is None or source.op != "Const":
                continue
            if source.attr["dtype"].type == tf.resource.as_datatype_enum:
                source.op = _OWN[node.op]
                source.attr.clear()


def _graph(dataset: tf.data.Dataset) -> Any:
    return tf.compat.v1.GraphDef.FromString(data_adapters.serialized(dataset).numpy())


def _copy(graph: Any, like: tf.data.Dataset) -> tf.data.Dataset:
    variant = tf.raw_ops.DatasetFromGraph(graph_def=tf.constant(graph.SerializeToString()))
    return tf.data.experimental.from_variant(variant, like.element_spec).with_options(
        like.options()
    )


def in_parallel(dataset: tf.data.Dataset) -> tuple[tf.data.Dataset, int]:
    """Return a dataset whose own maps run in parallel and ahead, in the same order.

    What TensorFlow's optimizer does with maps without side effects (map_parallelization), here with
    the others too: those that call Python.

    Returns:
        The dataset, and how many maps were changed.
    """
    graph = _graph(dataset)
    _give_own_resources(graph)
    changed = 0
    automatic = graph.node.add()
    automatic.name, automatic.op = "tfdp/automatic", "Const"
    automatic.attr["dtype"].type = tf.int64.as_datatype_enum
    automatic.attr["value"].tensor.CopyFrom(
        tf.make_tensor_proto(tf.data.AUTOTUNE, tf.int64, shape=())
    )
    for node in graph.node:
        if node.op == "MapDataset":
            node.op = "ParallelMapDatasetV2"
            # Inputs of data stand before those of control ("^name").
            data = [one for one in node.input if not one.startswith("^")]
            control = [one for one in node.input if one.startswith("^")]
            del node.input[:]
            node.input.extend([*data, automatic.name, *control])
            if "force_synchronous" in node.attr:
                del node.attr["force_synchronous"]
            node.attr["deterministic"].s = b"true"
            changed += 1
        elif node.op == "ParallelMapDatasetV2":
            data = [i for i, one in enumerate(node.input) if not one.startswith("^")]
            node.input[data[-1]] = automatic.name
            changed += 1
    made = _copy(graph, dataset)
    return made.prefetch(tf.data.AUTOTUNE), changed


def stages(iterator: Any) -> list[tuple[str, float, int]]:
    """Return what a running pipeline says of its stages, from its end to its source.

    tf.data's autotuner keeps a model of the pipeline: the time that each stage takes for an element
    of its own, without those before it ("Plumber", Kuchnik et al. 2022, reads the same).

    Returns:
        (name, seconds of its own for one batch, parallelism); [] where there is no model.
    """
    try:
        model = tf.data.experimental.get_model_proto(iterator)
    except (tf.errors.OpError, ValueError, AttributeError):
        return []
    nodes = model.nodes
    if model.output not in nodes:
        return []
    batches = max(1, nodes[model.output].num_elements)
    found: list[tuple[str, float, int]] = []
    todo = [model.output]
    while todo:
        node = nodes[todo.pop(0)]
        parallel = [p.value for p in node.parameters if p.name == "parallelism"]
        seconds = node.processing_time * 1e-9 / batches
        found.append((node.name, seconds, int(parallel[0]) if parallel else 1))
        todo = [*node.inputs, *todo]
    return found


# Datasets that hand on as many elements as they take.
_ONE_TO_ONE = (
    "_MapDataset", "_ParallelMapDataset", "_ShuffleDataset", "_PrefetchDataset", "_OptionsDataset",
    "_RepeatDataset", "_TakeDataset", "_SkipDataset", "_AssertCardinalityDataset",
)  # fmt: skip
_BATCHES = ("_BatchDataset", "_ParallelBatchDataset", "_PaddedBatchDataset")


@dataclasses.dataclass(frozen=True)
class Link:
    """One dataset of a chain.

    Attributes:
        dataset: The dataset: it and all before it.
        name: Its kind: "ParallelMap".
        function: The Python function that it calls, or None.
        elements: How many of its elements the last one of the chain takes for one of its own.
        parallelism: How many it makes at the same time; 0: tf.data chooses.
    """

    dataset: tf.data.Dataset
    name: str
    function: Any
    elements: int
    parallelism: int


def chain(dataset: tf.data.Dataset) -> list[Link]:
    """Return the datasets that a dataset is made of, from its end to its source.

    The chain ends where nobody can say how many elements go into one (filter, flat_map, zip), and
    at a cache: what is before it is not read again.
    """
    links: list[Link] = []
    elements = 1
    while True:
        name = type(dataset).__name__
        functions = dataset._functions()
        function = getattr(functions[0], "_func", None) if functions else None
        calls = getattr(dataset, "_num_parallel_calls", None)
        parallel = 1 if calls is None else max(0, int(calls))
        kind = name.strip("_").removesuffix("Dataset")
        if name != "_OptionsDataset":
            links.append(Link(dataset, kind, function, elements, parallel))
        inputs = dataset._inputs()
        if len(inputs) != 1 or name not in (*_ONE_TO_ONE, *_BATCHES):
            return links
        if name in _BATCHES:
            elements *= int(dataset._batch_size)
        (dataset,) = inputs
