"""A served model in this process: its signatures, and one of them called batch by batch.

    served = Served("models/digits/1", "serving_default", batch_size=64)
    outputs, bad = served.run(batch.inputs)        # {"probabilities": array}, [(row, reason)]

Every call has the same number of rows: the last batch is filled up with copies of one of its rows,
so that one graph serves, and XLA compiles once.
"""

import contextlib
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from tfdp.inference import readers
from tfdp.inference.failures import InferenceError, JobFailed
from tfdp.inference.signature import Signature, Spec

_BAD_ROW = (tf.errors.InvalidArgumentError, tf.errors.DataLossError, tf.errors.OutOfRangeError)


def load(folder: str | os.PathLike[str]) -> tuple[Any, dict[str, Signature]]:
    """Load a version, which has to be kept as long as its functions are used.

    Raises:
        InferenceError: If TensorFlow cannot.
    """
    try:
        loaded = tf.saved_model.load(os.fspath(folder))
    except Exception as error:
        why = readers.first_line(error)
        raise InferenceError(f"The model {folder} cannot be loaded: {why}") from error
    return loaded, read_signatures(folder)


def read_signatures(folder: str | os.PathLike[str]) -> dict[str, Signature]:
    """Return the signatures of a version from its file alone: no device is used.

    Raises:
        InferenceError: If it is no SavedModel.
    """
    from tensorflow.core.protobuf import saved_model_pb2

    try:
        with open(os.path.join(folder, "saved_model.pb"), "rb") as file:
            saved = saved_model_pb2.SavedModel.FromString(file.read())
        definitions = saved.meta_graphs[0].signature_def
    except Exception as error:
        why = readers.first_line(error)
        raise InferenceError(f"The model {folder} cannot be loaded: {why}") from error

    def specs(tensors: Any) -> dict[str, Spec]:
        shapes = {name: tf.TensorShape(tensors[name].tensor_shape) for name in sorted(tensors)}
        return {
            name: Spec(
                tf.as_dtype(tensors[name].dtype).name,
                () if shape.rank is None else tuple(shape.as_list()),
            )
            for name, shape in shapes.items()
        }

    return {
        name: Signature(name, specs(definition.inputs), specs(definition.outputs))
        for name, definition in definitions.items()
        if not name.startswith("__")
    }


class Served:
    """One signature of a loaded model, for batches of one size."""

    def __init__(
        self, loaded: Any, signature: Signature, batch_size: int, jit_compile: bool = False
    ) -> None:
        self.signature = signature
        self.batch_size = batch_size
        self._loaded = loaded
        function = loaded.signatures[signature.name]
        if jit_compile:
            inner = function
            function = tf.function(lambda **inputs: inner(**inputs), jit_compile=True)
        self._function = function

    def run(
        self, inputs: Mapping[str, np.ndarray]
    ) -> tuple[dict[str, np.ndarray], list[tuple[int, str]]]:
        """Run up to batch_size rows.

        Returns:
            The outputs, and the rows that the model refuses with the reason: these have no row in
            the outputs. Without any, all rows are in the outputs, in order.

        Raises:
            JobFailed: If it fails whatever the rows are, or gives something else than rows.
        """
        rows = len(next(iter(inputs.values())))
        try:
            return self._call(inputs, rows), []
        except _BAD_ROW as error:
            if rows == 1:
                return {}, [(0, readers.first_line(error))]
        except (tf.errors.OpError, ValueError, TypeError) as error:
            raise JobFailed(f"The model has failed: {readers.first_line(error)}") from error
        # Halves of halves: a few bad rows among many cost a few calls.
        half = rows // 2
        first, bad = self.run({name: array[:half] for name, array in inputs.items()})
        second, more = self.run({name: array[half:] for name, array in inputs.items()})
        bad += [(half + row, reason) for row, reason in more]
        if not first or not second:
            return first or second, bad
        return {name: np.concatenate([first[name], second[name]]) for name in first}, bad

    def warm_up(self) -> None:
        """Call it once on zeros, since the first call of a graph takes long.

        What is no row to the model may fail: the rows themselves will tell.
        """
        inputs = {}
        for name, spec in self.signature.inputs.items():
            if spec.size is None or spec.dtype == "string":
                return
            shape = (1, *(size or 0 for size in spec.row))
            inputs[name] = np.zeros(shape, tf.as_dtype(spec.dtype).as_numpy_dtype)
        with contextlib.suppress(tf.errors.OpError, ValueError, TypeError, JobFailed):
            self._call(inputs, 1)

    def _call(self, inputs: Mapping[str, np.ndarray], rows: int) -> dict[str, np.ndarray]:
        missing = self.batch_size - rows
        tensors = {}
        for name, array in inputs.items():
            if missing:
                array = np.concatenate([array, np.repeat(array[:1], missing, axis=0)])
            tensors[name] = tf.constant(array, self.signature.inputs[name].dtype)
        outputs = {}
        for name, tensor in self._function(**tensors).items():
            if not tensor.shape.rank or tensor.shape[0] != self.batch_size:
                raise JobFailed(
                    f"The output {name!r} has the shape {tuple(tensor.shape)} for "
                    f"{self.batch_size} rows of input: it has no row for each."
                )
            outputs[name] = tensor.numpy()[:rows]
        return outputs
