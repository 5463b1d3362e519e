"""What a traced value is made of: the graph behind a tensor, read backwards.

A function of TensorFlow tells which operations made a tensor (`op.inputs`, public), but not where
the captured inputs of a function come from (`FuncGraph.captures`) nor where a variable's value was
read. Tried with TensorFlow 2.20 and 2.21.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import tensorflow as tf

# What hands a value on as it is.
_SAME = ("Identity", "IdentityN", "ReadVariableOp", "Cast", "StopGradient", "PreventGradient")


def depends_on(value: Any, sources: Iterable[Any]) -> bool:
    """Say whether a traced value is computed from any of `sources`.

    Args:
        value: A tensor of the graph that is being traced, or of a branch in it.
        sources: Tensors, and variables: reading one counts.

    Returns:
        True also where that cannot be known: for eager tensors, and for arguments of a function
        around this one.
    """
    if not tf.is_tensor(value) or not hasattr(value, "op") or _is_eager(value):
        return not isinstance(value, bool | int | float)
    wanted = {_key(source) for source in sources}
    seen: set[int] = set()
    todo = [value]
    while todo:
        tensor = todo.pop()
        if id(tensor) in seen:
            continue
        seen.add(id(tensor))
        if _key(tensor) in wanted:
            return True
        if _is_eager(tensor):
            continue  # a constant, or the handle of another variable
        outer = _captured(tensor)
        if outer is not None:
            todo.append(outer)
        elif tensor.op.type in ("Placeholder", "PlaceholderWithDefault"):
            if tensor.dtype != tf.resource:
                return True  # an argument of a function: nobody knows
        else:
            todo += tensor.op.inputs
    return False


def extreme_of(value: Any, before: Sequence[Any]) -> str | None:
    """Say whether a value is the "max" or "min" of one of `before` and something else, or None.

    Args:
        value: A tensor.
        before: What the variable held: the variable, and a tensor that stands for it.
    """
    kinds = {"Maximum": "max", "Minimum": "min"}
    return next((kinds[t] for t in _combination(value, before) if t in kinds), None)


def adds_to(value: Any, before: Sequence[Any]) -> bool:
    """Say whether a value is one of `before` plus something: see `extreme_of`."""
    return any(kind in ("AddV2", "Add", "Sub") for kind in _combination(value, before))


def _combination(value: Any, before: Sequence[Any]) -> list[str]:
    """Return [the type of the operation that made a value out of one of `before`], or []."""
    if not tf.is_tensor(value) or not hasattr(value, "op") or _is_eager(value):
        return []
    made = list(_chain(value))[-1]
    if _is_eager(made):
        return []
    wanted = {_key(one) for one in before}
    operands = [_key(one) for operand in made.op.inputs for one in _chain(operand)]
    return [made.op.type] if wanted & set(operands) else []


def is_in_branch(graph: Any) -> bool:
    """Say whether what is traced now belongs to a function inside `graph`: a cond, a loop."""
    return not tf.executing_eagerly() and tf.compat.v1.get_default_graph() is not graph


def _chain(tensor: Any) -> Iterator[Any]:
    """Yield a tensor and those it is handed on from."""
    while True:
        yield tensor
        if _is_eager(tensor):
            return
        outer = _captured(tensor)
        if outer is not None:
            tensor = outer
        elif tensor.op.type in _SAME and len(tensor.op.inputs) == 1:
            tensor = tensor.op.inputs[0]
        else:
            return


def _captured(tensor: Any) -> Any:
    """Return the tensor outside that stands behind a captured input of a function, or None."""
    if tensor.op.type != "Placeholder":
        return None
    for outer, inner in getattr(tensor.graph, "captures", ()):
        if inner is tensor:
            return outer
    return None


def _is_eager(tensor: Any) -> bool:
    return isinstance(tensor, tf.__internal__.EagerTensor)


def _key(source: Any) -> int:
    """Return what is the same for all tensors that stand for one source."""
    return id(source.handle) if isinstance(source, tf.Variable) else id(source)
