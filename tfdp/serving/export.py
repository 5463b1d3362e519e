"""Export a trained model as a SavedModel that serves by itself.

folder = export(model, "models/digits", labels=["0", "1", ...])     # models/digits/1
served = tf.saved_model.load(folder).signatures["serving_default"]
served(image=images)["probabilities"]
"""

import json
import os
import pathlib
import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfdp import fit
from tfdp.compat import saved_models
from tfdp.error import Error
from tfdp.serving import manifest, request_inputs, warmup
from tfdp.version import VERSION

DEFAULT = "serving_default"
# What a run leaves beside its model: its config and the names of the labels.
RUN = "run.json"
_LABELS = "labels.txt"


def export(
    model: keras.Model,
    directory: str | os.PathLike[str],
    *,
    labels: Sequence[str] = (),
    second_signature: str = "none",
    config: Mapping[str, Any] | None = None,
) -> pathlib.Path:
    """Write a model as the next numbered version in `directory`.

    The signature "serving_default" takes the model's inputs by name, any number of rows, and
    returns its outputs by name: the keys of a dict, else the names of the last layers. Half
    precision stays inside: inputs and outputs are float32. The version appears by a rename, so
    that a server never sees half of one. It holds warm-up requests, and manifest.json with the
    SHA-256 of every other file.

    Args:
        model: A built Functional or Sequential model, with its preprocessing inside.
        directory: Holds the versions 1, 2, ...; its name is the model's.
        labels: Names of the classes, for assets/labels.txt, one a line.
        second_signature: "examples" for one on serialized tf.train.Example, "images" for one on
            encoded images, "none".
        config: What the model was trained with, for the manifest.

    Returns:
        The folder of the version.

    Raises:
        Error: If the model's inputs do not fit the second signature.
    """
    with fit.whole_variables(model):
        return _export(model, pathlib.Path(directory), labels, second_signature, config)


def _export(
    model: keras.Model,
    directory: pathlib.Path,
    labels: Sequence[str],
    second_signature: str,
    config: Mapping[str, Any] | None,
) -> pathlib.Path:
    served = _specs(model)
    inputs = [tf.TensorSpec(spec.shape, _at_the_edge(spec.dtype), spec.name) for spec in served]
    # A Sequential model has one input, and one output named by its last layer.
    sequential = isinstance(model, keras.Sequential)
    structure = model.inputs[0] if sequential else model.input
    names = [model.layers[-1].name] if sequential else model.output_names

    def serve(*tensors: tf.Tensor) -> dict[str, tf.Tensor]:
        taken = [tf.cast(tensor, spec.dtype) for tensor, spec in zip(tensors, served, strict=True)]
        outputs = model(keras.tree.pack_sequence_as(structure, taken), training=False)
        if not isinstance(outputs, dict):
            outputs = dict(zip(names, keras.tree.flatten(outputs), strict=True))
        return {name: tf.cast(y, _at_the_edge(y.dtype)) for name, y in outputs.items()}

    requests = {DEFAULT: {spec.name: _zeros(spec) for spec in inputs}}
    second = _second(second_signature, inputs)

    directory.mkdir(parents=True, exist_ok=True)
    archive = keras.export.ExportArchive()
    archive.track(model)
    archive.add_endpoint(DEFAULT, serve, input_signature=inputs)
    if second is not None:
        decode, sample = second
        strings = tf.TensorSpec((None,), tf.string, name=second_signature)
        archive.add_endpoint(
            second_signature, lambda rows: serve(*decode(rows)), input_signature=[strings]
        )
        requests[second_signature] = {second_signature: np.array([sample], object)}
    with tempfile.TemporaryDirectory(prefix=".exporting-", dir=directory) as folder:
        if labels:
            file = pathlib.Path(folder) / _LABELS
            file.write_text("".join(f"{label}\n" for label in labels))
            saved_models.add_asset(archive, "labels", os.fspath(file))
        beside = pathlib.Path(folder) / "version"
        archive.write_out(os.fspath(beside), verbose=False)
        warmup.write(beside, directory.name, requests)
        facts = {
            "versions": {
                "tfdp": VERSION,
                "tensorflow": tf.__version__,
                "keras": keras.version(),
            },
            "config": config,
            "signatures": describe(tf.saved_model.load(os.fspath(beside))),
        }
        manifest.write(beside, facts)
        # Two exports at once: the second finds the number taken, and takes the next.
        while True:
            version = directory / str(_next_version(directory))
            try:
                beside.rename(version)
                return version
            except OSError:
                if not version.exists():
                    raise


def check_second_signature(model: keras.Model, name: str) -> None:
    """Check, before it is trained, that a model can have a second signature.

    Raises:
        Error: If its inputs do not fit.
    """
    _second(name, _specs(model))


def export_run(
    run: str | os.PathLike[str],
    directory: str | os.PathLike[str],
    *,
    weights: str = "",
    second_signature: str = "",
) -> pathlib.Path:
    """Export what a run has saved; see export.

    Args:
        run: The folder of a run, or a .keras file.
        directory: Holds the versions.
        weights: A .weights.h5 file to take instead of the weights of the run's end.
        second_signature: "" takes what the run's config says.

    Raises:
        Error: If there is no model, or it cannot be loaded.
    """
    run = pathlib.Path(run)
    file = run if run.suffix == ".keras" else run / "model.keras"
    if not file.is_file():
        raise Error(f"There is no model in --run={run}: {file} does not exist.")
    try:
        facts = json.loads((file.parent / RUN).read_text())
    except FileNotFoundError:
        facts = {}
    except (OSError, ValueError) as error:
        raise Error(f"{file.parent / RUN} cannot be read: {error}.") from error
    config = facts.get("config")
    try:
        model = keras.models.load_model(file, compile=False)
    except Exception as error:
        why = " ".join(str(error).split())[:300]
        raise Error(f"{file} cannot be loaded: {why}") from error
    if not getattr(model, "inputs", None):
        raise Error(f"{file} is a {type(model).__name__} without named inputs.")
    if weights:
        try:
            model.load_weights(weights)
        except Exception as error:
            why = " ".join(str(error).split())[:300]
            raise Error(f"--weights={weights} does not fit {file}: {why}") from error
    second = second_signature or ((config or {}).get("export") or {}).get("second_signature")
    return export(
        model,
        directory,
        labels=facts.get("labels", ()),
        second_signature=second or "none",
        config=config,
    )


def check(model: str | os.PathLike[str]) -> list[str]:
    """Check a version by its manifest, and run one row through each signature.

    Returns:
        What was found, line by line.

    Raises:
        Error: If files are missing or changed, or a signature fails or is not what the manifest
            says.
    """
    folder = manifest.version_folder(model)
    manifest.verify(folder)
    facts = manifest.read(folder)
    count = len(manifest.files(folder))
    if facts:
        versions = ", ".join(f"{name} {text}" for name, text in facts["versions"].items())
        lines = [f"{folder}: {count} files as they were exported by {versions}."]
    else:
        lines = [f"{folder}: {count} files, no manifest."]
    try:
        loaded = tf.saved_model.load(os.fspath(folder))
    except Exception as error:
        raise Error(f"{folder} cannot be loaded: {_first_line(error)}") from error
    found = describe(loaded)
    if facts and found != facts["signatures"]:
        raise Error(f"{folder} has other signatures than its manifest says.")
    for name in sorted(loaded.signatures):
        function = loaded.signatures[name]
        specs = list(function.structured_input_signature[1].values())
        try:
            outputs = function(**{spec.name: tf.constant(_row(spec, loaded)) for spec in specs})
        except Exception as error:
            raise Error(f"{name} of {folder} fails: {_first_line(error)}") from error
        told = ", ".join(f"{key}: {y.dtype.name} {tuple(y.shape)}" for key, y in outputs.items())
        lines.append(f"{name}: one row gives {told}.")
    return lines


def describe(loaded: Any) -> dict[str, Any]:
    """Return the signatures of a loaded model as they stand in the manifest, sorted by name."""

    def specs(tensors: Mapping[str, Any]) -> dict[str, Any]:
        return {
            name: {"dtype": tensors[name].dtype.name, "shape": tensors[name].shape.as_list()}
            for name in sorted(tensors)
        }

    return {
        name: {
            "inputs": specs(loaded.signatures[name].structured_input_signature[1]),
            "outputs": specs(loaded.signatures[name].structured_outputs),
        }
        for name in sorted(loaded.signatures)
    }


def _specs(model: keras.Model) -> list[tf.TensorSpec]:
    return [
        tf.TensorSpec((None, *tensor.shape[1:]), tensor.dtype, name=tensor.name)
        for tensor in model.inputs
    ]


def _second(
    name: str, inputs: Sequence[tf.TensorSpec]
) -> tuple[Callable[[tf.Tensor], list[tf.Tensor]], bytes] | None:
    """Return what makes the inputs of the strings of a second signature, and one such string."""
    if name == "none":
        return None
    if name == "images":
        return request_inputs.images(inputs), request_inputs.sample_image(inputs[0])
    if name == "examples":
        return request_inputs.examples(inputs), request_inputs.sample_example(inputs)
    raise Error(f"second_signature={name!r}: use one of none, examples, images.")


def _at_the_edge(dtype: Any) -> tf.DType:
    dtype = tf.as_dtype(dtype)
    return tf.float32 if dtype in (tf.float16, tf.bfloat16) else dtype


def _zeros(spec: tf.TensorSpec) -> np.ndarray:
    """Return one row of zeros; a free dimension gets one."""
    shape = (1, *(size or 1 for size in spec.shape[1:]))
    if spec.dtype == tf.string:
        return np.full(shape, b"", object)
    return np.zeros(shape, spec.dtype.as_numpy_dtype)


def _row(spec: tf.TensorSpec, loaded: Any) -> np.ndarray:
    """Return one row that a signature of `export` accepts."""
    if spec.dtype == tf.string and spec.name in ("images", "examples"):
        inputs = list(loaded.signatures[DEFAULT].structured_input_signature[1].values())
        make = request_inputs.sample_example
        sample = request_inputs.sample_image(inputs[0]) if spec.name == "images" else make(inputs)
        return np.array([sample], object)
    return _zeros(spec)


def _first_line(error: BaseException) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _next_version(directory: pathlib.Path) -> int:
    taken = [int(p.name) for p in directory.iterdir() if p.name.isdecimal()]
    return max(taken, default=0) + 1
