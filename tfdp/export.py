"""Export a trained model as a SavedModel that serves by itself.

folder = export(model, "runs/a/export/digits")      # runs/a/export/digits/1
served = tf.saved_model.load(folder).signatures["serving_default"]
served(image=images)["probabilities"]
"""

import os
import pathlib
import tempfile

import keras
import tensorflow as tf


def export(model: keras.Model, directory: str | os.PathLike[str]) -> pathlib.Path:
    """Write a model as the next numbered version in `directory`.

    The signature "serving_default" takes the model's inputs by name, any number of rows, and
    returns its outputs by name: the keys of a dict, else the names of the last layers. The version
    appears by a rename, so that a server never sees half of one.

    Args:
        model: A built Functional or Sequential model, with its preprocessing inside.
        directory: Holds the versions 1, 2, ...

    Returns:
        The folder of the version.
    """
    directory = pathlib.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    inputs = [
        tf.TensorSpec((None, *tensor.shape[1:]), tensor.dtype, name=tensor.name)
        for tensor in model.inputs
    ]
    # A Sequential model has one input, and one output named by its last layer.
    sequential = isinstance(model, keras.Sequential)
    structure = model.inputs[0] if sequential else model.input
    names = [model.layers[-1].name] if sequential else model.output_names

    def serve(*tensors: tf.Tensor) -> dict[str, tf.Tensor]:
        outputs = model(keras.tree.pack_sequence_as(structure, tensors), training=False)
        if isinstance(outputs, dict):
            return outputs
        return dict(zip(names, keras.tree.flatten(outputs), strict=True))

    archive = keras.export.ExportArchive()
    archive.track(model)
    archive.add_endpoint("serving_default", serve, input_signature=inputs)
    with tempfile.TemporaryDirectory(prefix=".exporting-", dir=directory) as folder:
        beside = pathlib.Path(folder) / "version"
        archive.write_out(os.fspath(beside), verbose=False)
        version = _next_version(directory)
        beside.rename(directory / str(version))
    return directory / str(version)


def _next_version(directory: pathlib.Path) -> int:
    taken = [int(p.name) for p in directory.iterdir() if p.name.isdecimal()]
    return max(taken, default=0) + 1
