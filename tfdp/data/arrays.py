"""NumPy arrays and folders of images: records that are read by index.

reader, names, records = open_arrays("train.npz", inputs=[], label="label")
reader, names, labels, classes = open_images("photos/train")
"""

import glob
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfdp.data.errors import DataError
from tfdp.error import Error

IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".gif", ".bmp")


class Arrays:
    """Rows of arrays (see records.ByIndex): `(x, y)`, x an array or a dict of them."""

    def __init__(self, x: Any, y: Any) -> None:
        self._x, self._y = x, y
        self.spec = tf.nest.map_structure(
            lambda array: tf.TensorSpec(array.shape[1:], array.dtype), (x, y)
        )

    def read(self, places: np.ndarray) -> Any:
        """Return the rows at these places."""
        return tf.nest.map_structure(
            lambda array: np.ascontiguousarray(array[places]), (self._x, self._y)
        )


class Images:
    """Encoded images in files (see records.ByIndex): `(bytes, label)`."""

    spec = (tf.TensorSpec((), tf.string), tf.TensorSpec((), tf.int64))

    def __init__(
        self, names: Sequence[str], labels: Sequence[int], check: Callable[[int], None]
    ) -> None:
        self._names, self._labels, self._check = names, np.asarray(labels, np.int64), check

    def read(self, places: np.ndarray) -> Any:
        """Return the contents of the files at these places, and their labels."""
        contents = np.empty(len(places), object)
        for row, at in enumerate(places.tolist()):
            self._check(at)
            try:
                with open(self._names[at], "rb") as file:
                    contents[row] = file.read()
            except OSError as error:
                raise DataError(f"{self._names[at]} cannot be read: {error.strerror}.") from error
        return contents, self._labels[places]


def open_arrays(text: str, inputs: Sequence[str], label: str) -> tuple[Arrays, str, int]:
    """Open "FILE.npz", or "X.npy,Y.npy"; .npy files are mapped, not read.

    Returns:
        What reads them, a name for it, and the number of rows.

    Raises:
        Error: If they cannot be read, or differ in their rows.
    """
    paths = [path.strip() for path in text.split(",")]
    try:
        if len(paths) == 1 and paths[0].endswith(".npz"):
            with np.load(paths[0], allow_pickle=False) as archive:
                found = {name: archive[name] for name in archive.files}
        elif len(paths) == 2 and all(path.endswith(".npy") for path in paths):
            x, y = (np.load(path, mmap_mode="r", allow_pickle=False) for path in paths)
            found, inputs = {"x": x, label: y}, ["x"]
        else:
            raise Error(f"{text!r}: use one .npz file, or a .npy of inputs and one of labels.")
    except Error:
        raise
    except (OSError, ValueError, EOFError) as error:
        raise Error(f"{text} cannot be read: {error}.") from error
    inputs = list(inputs) or [name for name in found if name != label]
    for name in (*inputs, label):
        if name not in found:
            raise Error(f"{text} has no array {name!r}: it has {', '.join(found)}.")
    rows = {name: len(found[name]) if found[name].ndim else 0 for name in (*inputs, label)}
    if len(set(rows.values())) != 1 or not all(rows.values()):
        counts = ", ".join(f"{name} {count:,}" for name, count in rows.items())
        raise Error(f"{text}: its arrays need the same number of rows, but have: {counts}.")
    x = found[inputs[0]] if len(inputs) == 1 else {name: found[name] for name in inputs}
    return Arrays(x, found[label]), paths[0], rows[label]


def open_images(folder: str) -> tuple[list[str], list[int], tuple[str, ...]]:
    """Find the images of a folder that has a folder for each class.

    Returns:
        The files by class and name, the label of each, and the names of the classes, sorted.

    Raises:
        Error: If there are none.
    """
    classes = sorted(
        entry for entry in os.listdir(folder) if os.path.isdir(os.path.join(folder, entry))
    ) if os.path.isdir(folder) else []  # fmt: skip
    names: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        pattern = os.path.join(glob.escape(os.path.join(folder, name)), "**", "*")
        found = [p for p in glob.glob(pattern, recursive=True) if p.lower().endswith(IMAGE_ENDINGS)]
        if not found:
            raise Error(f"{os.path.join(folder, name)} holds no image ({_endings()}).")
        names += sorted(found)
        labels += [label] * len(found)
    if not names:
        raise Error(
            f"{folder!r} has no folders with images: it needs one for each class, {_endings()}."
        )
    return names, labels, tuple(classes)


def _endings() -> str:
    return ", ".join(IMAGE_ENDINGS)
