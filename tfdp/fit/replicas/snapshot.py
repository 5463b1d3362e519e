"""All that the replicas of a model hold, as arrays, and back again.

    arrays = take(replicas, copy)   # every process calls it; what it returns counts on the chief
    put(replicas, arrays, ways)     # the same

Taking changes nothing: BatchNormalization's statistics, the metrics and what else each replica
keeps for itself are stored for each of them, and averaged only where the number of replicas is
another one when they come back.

    variable/00012/dense/kernel         the same on all replicas: weights, optimizers, seeds
    replica/00001/variable/00014        what replica 1 keeps of a variable
    replica/00001/base/00014            what that was when all were the same (counters)
    replica/00001/metric/00003          what replica 1 has measured
"""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import tensorflow as tf

from tfdp.checkpoints import tensors
from tfdp.compat import keras_optimizers, keras_variables
from tfdp.error import Error
from tfdp.fit import optimizers
from tfdp.fit.replicas import gather
from tfdp.fit.replicas import replica as replica_lib

Copy: TypeAlias = Callable[[str, np.ndarray], np.ndarray]
_MOVES = "moves in/"
_OPTIMIZERS = "optimizers"


def variables(replicas: replica_lib.Replicas) -> list[Any]:
    """Return all variables of a model and of its optimizers, those of the model first."""
    all_optimizers = optimizers.of(replicas.model)
    if replicas.outer is not None:  # the last: a run without it knows nothing of it
        all_optimizers.append(replicas.outer)
    more = [v for o in all_optimizers for v in keras_optimizers.optimizer_variables(o)]
    measured = {id(v) for v in replicas.metrics}
    found = keras_variables.unique([*replicas.variables, *more])
    return [v for v in found if id(v) not in measured]


def take(replicas: replica_lib.Replicas, copy: Copy) -> dict[str, np.ndarray]:
    """Return copies of all values: on the chief, those of every replica.

    In several processes it is a collective.

    Args:
        replicas: The replicas.
        copy: Copies an array, given its name.
    """
    everything = variables(replicas)
    differing = _differing(replicas, everything)
    arrays: dict[str, np.ndarray] = {}
    if replicas.first == 0:
        for index, variable in enumerate(everything):
            if index not in differing:
                name = f"variable/{index:05d}/{variable.path}"
                arrays[name] = copy(name, np.asarray(replicas.copy(variable, 0).value()))
    own = [_own(replicas, local, differing) for local in range(replicas.count)]
    every = own
    if replicas.several_processes:
        messages = gather.exchange(replicas.strategy, [_joined(one) for one in own])
        every = [_split(message, own[0]) for message in messages]
    if replicas.first == 0:
        for number, values in enumerate(every):
            arrays |= {f"replica/{number:05d}/{name}": value for name, value in values.items()}
    return arrays


def ways(replicas: replica_lib.Replicas) -> dict[str, str]:
    """Return how the values of several replicas become one: see view.View; by their names."""
    found = {
        f"variable/{int(index):05d}": how
        for index, how in replicas.moving.items()
        if how != "same" and replicas.in_sync > 1
    }
    # Steps that were not traced yet cannot say it, where all of an epoch are done.
    found |= {f"{_MOVES}{kind}": "" for kind in replicas.moves_in}
    for index, metric in enumerate(replicas.metrics):
        found[f"metric/{index:05d}"] = str(metric.aggregation)
    found[_OPTIMIZERS] = json.dumps(optimizers.built_on(replicas.model))
    return found


def put(
    replicas: replica_lib.Replicas,
    arrays: Mapping[str, np.ndarray],
    how: Mapping[str, str],
) -> None:
    """Give the replicas of this process what `take` returned.

    Args:
        replicas: The replicas.
        arrays: On the chief all of it; on others what `shares` says.
        how: What `ways` returned.

    Raises:
        Error: If the arrays are those of another model.
    """
    with replicas.strategy.scope():
        optimizers.build_on(replicas.model, json.loads(how[_OPTIMIZERS]))
    if replicas.in_sync > 1:
        replicas.moves_in |= {n.removeprefix(_MOVES) for n in how if n.startswith(_MOVES)}
        for name, way in how.items():
            kind, _, number = name.partition("/")
            if kind == "variable":
                replicas.moving.setdefault(str(int(number)), way)
    everything = variables(replicas)
    saved = {name.split("/")[1]: name for name in arrays if name.startswith("variable/")}
    rows = _rows(arrays)
    for index, variable in enumerate(everything):
        number = f"{index:05d}"
        if number in saved:
            name = saved[number]
            _check(variable, name.split("/", 2)[2], arrays[name])
            for local in range(replicas.count):
                replicas.copy(variable, local).assign(arrays[name])
        elif each := rows.get(f"variable/{number}"):
            bases = rows.get(f"base/{number}", [])
            way = how.get(f"variable/{number}", "mean")
            own = replicas.trains_apart or index < len(replicas.variables)
            values = _spread(each, way, replicas.in_sync, bases, own)
            for local in range(replicas.count):
                value = values[replicas.first + local]
                _check(variable, variable.path, value)
                replicas.copy(variable, local).assign(value)
                if (base := replicas.bases(index, local)) is not None:
                    same = len(each) == replicas.in_sync and bases
                    base.assign(bases[replicas.first + local] if same else value)
    for index, metric in enumerate(replicas.metrics):
        each = rows.get(f"metric/{index:05d}", [])
        if not each:
            continue
        way = "mean" if metric.aggregation == "mean" else str(metric.aggregation)
        values = _measured(each, way, replicas.in_sync)
        for local in range(replicas.count):
            accumulator = replicas.accumulator(index, local)
            if tuple(accumulator.shape) == values[replicas.first + local].shape:
                accumulator.assign(values[replicas.first + local])


def for_every_process(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return what each process needs of the arrays beside the variables that are all the same."""
    return {name: value for name, value in arrays.items() if not name.startswith("variable/")}


def from_chief(
    strategy: tf.distribute.Strategy,
    chief: bool,
    replicas: int,
    arrays: Mapping[str, np.ndarray],
) -> dict[str, np.ndarray]:
    """Return the chief's arrays on every process; a collective.

    Args:
        strategy: The strategy.
        chief: Whether this process is the chief.
        replicas: Replicas of this process.
        arrays: On the chief.
    """
    facts = [[name, value.dtype.name, list(value.shape)] for name, value in arrays.items()]
    header = json.dumps(facts).encode()
    header += b" " * (-len(header) % 4)
    mine = [np.zeros(0, np.int32)] * replicas
    if chief:
        length = np.array([len(header)], np.int32)
        mine[0] = np.concatenate([length, np.frombuffer(header, np.int32), _joined(arrays)])
    message = gather.exchange(strategy, mine)[0]
    end = 4 + int(np.frombuffer(message, np.int32, 1)[0])
    like = {
        name: np.empty(shape, tensors.numpy_dtype(dtype))
        for name, dtype, shape in json.loads(message[4:end])
    }
    return _split(message[end:], like)


def _differing(replicas: replica_lib.Replicas, everything: Sequence[Any]) -> dict[int, Any]:
    """Return the variables, by their numbers, of which each replica keeps a value of its own.

    They are what layers assign, and where replicas train apart what optimizers keep for weights.
    """
    if replicas.in_sync == 1:
        return {}
    slots: set[int] = set()
    if replicas.trains_apart:
        slots = {id(v) for v in optimizers.kept(replicas.model)[0]}
    return {
        index: variable
        for index, variable in enumerate(everything)
        if id(variable) in slots or replicas.moving.get(str(index), "same") != "same"
    }


def _own(
    replicas: replica_lib.Replicas, local: int, differing: Mapping[int, Any]
) -> dict[str, np.ndarray]:
    """Return what one replica keeps for itself."""
    values: dict[str, np.ndarray] = {}
    for index, variable in differing.items():
        values[f"variable/{index:05d}"] = _copy(replicas.copy(variable, local))
        if (base := replicas.bases(index, local)) is not None:
            values[f"base/{index:05d}"] = _copy(base)
    for index in range(len(replicas.metrics)):
        values[f"metric/{index:05d}"] = _copy(replicas.accumulator(index, local))
    return values


def _copy(variable: tf.Variable) -> np.ndarray:
    # A step may assign while the file is being written.
    return np.array(variable.value())


def _rows(arrays: Mapping[str, np.ndarray]) -> dict[str, list[np.ndarray]]:
    """Return, by name, what each replica kept, in their order."""
    rows: dict[str, list[np.ndarray]] = {}
    for name in sorted(arrays):
        if name.startswith("replica/"):
            rows.setdefault(name.split("/", 2)[2], []).append(arrays[name])
    return rows


def _spread(
    each: Sequence[np.ndarray], way: str, replicas: int, bases: Sequence[np.ndarray], own: bool
) -> list[np.ndarray]:
    """Return the value of each replica now, out of those of the replicas then.

    Where a replica may have none of its `own` all get the same.
    """
    if len(each) == replicas and own:
        return list(each)
    stacked = np.stack(each)
    one: Any
    if way == "sum" and bases:
        base = bases[0]
        one = base + np.sum([value - base for value in each], 0, dtype=np.float64)
    elif way in ("max", "min"):
        one = getattr(np, way)(stacked, axis=0)
    elif way == "first":
        one = each[0]
    else:
        one = np.mean(stacked, 0, dtype=np.float64)
    return [np.asarray(one).astype(each[0].dtype)] * replicas


def _measured(each: Sequence[np.ndarray], way: str, replicas: int) -> list[np.ndarray]:
    """Return what each replica has measured now: the sum over all stays what it was."""
    if len(each) == replicas:
        return list(each)
    if way == "mean":
        return [np.mean(np.stack(each), 0, dtype=np.float64).astype(each[0].dtype)] * replicas
    first = way == "only_first_replica"
    total: Any = each[0] if first else np.sum(np.stack(each), 0, dtype=np.float64)
    return [np.asarray(total).astype(each[0].dtype)] + [np.zeros_like(each[0])] * (replicas - 1)


def _check(variable: Any, path: str, value: np.ndarray) -> None:
    if tuple(variable.shape) != value.shape:
        raise Error(
            f"The checkpoint is of another model: it holds {path} of shape {value.shape} where "
            f"this one has {variable.path} of shape {tuple(variable.shape)}. Choose another folder."
        )


def _joined(values: Mapping[str, np.ndarray]) -> np.ndarray:
    raw = b"".join(np.ascontiguousarray(value).tobytes() for value in values.values())
    return np.frombuffer(raw + b"\0" * (-len(raw) % 4), np.int32)


def _split(message: bytes, like: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    found, start = {}, 0
    for name, value in like.items():
        part = np.frombuffer(message, np.uint8, value.nbytes, start)
        found[name] = part.view(value.dtype).reshape(value.shape)
        start += value.nbytes
    return found
