"""Is it the data that the training began with?

found = of(data, feed.spec)             # plain data, kept in each checkpoint
other, values = difference(then, found)

A dataset is not read for it: its elements are compared and, where its maker says more
(`tfdp_fingerprint`), what it is made of. Of arrays the shapes are, and some thousand values.
"""

import zlib
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfdp.fit import call

# So many elements of an array, evenly spread, tell whether its values are the same.
_ELEMENTS = 4096
_NAMES = ("x", "y", "sample_weight")
_VALUES = "values of "


def of(data: call.Data, spec: Any) -> dict[str, Any]:
    """Return what is known of data without reading it.

    Args:
        data: What fit was given. An `x` with an attribute `tfdp_fingerprint`, a dict of names and
            plain values, says by it what it is made of.
        spec: The structure of a batch, as `tf.TypeSpec`s.
    """
    elements = []
    for leaf in tf.nest.flatten(spec):
        shape = getattr(leaf, "shape", None)
        inner = "?" if shape is None or shape.rank is None else str(tuple(shape[1:]))
        elements.append(f"{getattr(leaf, 'dtype', None) and leaf.dtype.name} {inner}")
    facts: dict[str, Any] = {"elements of a batch": elements}
    for name, part in zip(_NAMES, (data.x, data.y, data.sample_weight), strict=True):
        for path, leaf in keras.tree.flatten_with_path(part):
            if isinstance(leaf, np.ndarray | tf.Tensor):
                where = name + "".join(f"[{step!r}]" for step in path)
                facts[f"shape of {where}"] = list(leaf.shape)
                facts[_VALUES + where] = _checksum(np.asarray(leaf))
    return facts | getattr(data.x, "tfdp_fingerprint", {})


def difference(then: dict[str, Any], now: dict[str, Any]) -> tuple[str, str]:
    """Return what is of another kind; if nothing is, whose values are others. In words, or ""."""
    # The same data may be given in another way: compare what is known of both.
    differing = [name for name in then if name in now and then[name] != now[name]]
    values = [name.removeprefix(_VALUES) for name in differing if name.startswith(_VALUES)]
    kinds = [
        f"{name}: {_short(then[name])} then, {_short(now[name])} now"
        for name in differing
        if not name.startswith(_VALUES)
    ]
    return "; ".join(kinds), "" if kinds else ", ".join(values)


def _checksum(array: np.ndarray) -> int:
    flat = array.flat[:: max(1, array.size // _ELEMENTS)]  # copies no array, however it lies
    raw = repr(flat.tolist()).encode() if flat.dtype.hasobject else flat.tobytes()
    return zlib.crc32(raw)


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 80 else text[:77] + "..."
