"""Prepared TFDS datasets, opened without a network: only their files and features are used.

builder = open_builder(config.data)
files, totals, format = files_of(builder, "train[:90%]")
decode, facts = describe(builder, config.data)
"""

import contextlib
import fcntl
import io
import logging
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds
from absl import logging as absl_logging

from tfdp import config as config_lib
from tfdp.data import counts, sharding
from tfdp.datasets import digits, fashion_mnist, textures
from tfdp.error import Error

_log = logging.getLogger("tfdp")
# The datasets that tfdp prepares itself: the builder, and how many files a split becomes.
_BUILT_IN: dict[str, tuple[Any, int]] = {
    digits.NAME: (digits.TfdpDigits, digits.SHARDS),
    fashion_mnist.NAME: (fashion_mnist.TfdpFashionMnist, fashion_mnist.SHARDS),
    textures.NAME: (textures.TfdpTextures, textures.SHARDS),
}


def open_builder(data: config_lib.Data) -> tfds.core.DatasetBuilder:
    """Open the dataset that a config names, whatever its features are.

    Raises:
        Error: If it is not prepared.
    """
    folder = os.path.expanduser(data.data_dir) or None
    with _quiet():
        if data.tfds_name in _BUILT_IN:
            return _open_built_in(data.tfds_name, folder)
        if data.download or data.manual_dir:
            return _prepare(data, folder)
        return _open_prepared(data.tfds_name, folder)


def _open_built_in(name: str, folder: str | None) -> tfds.core.DatasetBuilder:
    make, shards = _BUILT_IN[name]
    builder = make(data_dir=folder)
    if builder.is_prepared():
        return builder
    try:
        with _lock(builder.data_dir):
            # Another process may have prepared it while this one waited: a new builder sees that.
            builder = make(data_dir=folder)
            if not builder.is_prepared():
                _log.info("Preparing %s in %s.", name, builder.data_dir)
                # TFDS tells of downloads; there are none.
                with contextlib.redirect_stdout(io.StringIO()):
                    builder.download_and_prepare(
                        download_config=tfds.download.DownloadConfig(num_shards=shards)
                    )
    except OSError as error:
        raise Error(
            f"{name} cannot be prepared in {builder.data_dir}: {error.strerror or error}. "
            "Name another folder: --config.data.data_dir=..."
        ) from error
    return builder


def _prepare(data: config_lib.Data, folder: str | None) -> tfds.core.DatasetBuilder:
    """Prepare a dataset from files that TFDS downloads, or that lie in manual_dir."""
    name, manual = data.tfds_name, os.path.expanduser(data.manual_dir)
    try:
        builder = tfds.builder(name, data_dir=folder)
    except (ValueError, AssertionError) as error:
        why = str(error).partition("\n")[0]
        raise Error(f"TFDS cannot make the dataset {name!r}: {why}") from error
    if builder.is_prepared():
        return builder
    if not data.download:
        _check_manual(builder, manual)
    download = tfds.download.DownloadConfig(
        manual_dir=manual or None, try_download_gcs=data.download
    )
    try:
        with _lock(builder.data_dir):
            builder = tfds.builder(name, data_dir=folder)
            if not builder.is_prepared():
                _log.info("Preparing %s in %s.", name, builder.data_dir)
                with contextlib.redirect_stdout(io.StringIO()):
                    builder.download_and_prepare(download_config=download)
    except tfds.core.download.download_manager.NonMatchingChecksumError as error:
        why = str(error).partition("\n")[0].rstrip(":")
        raise Error(f"The files of {name!r} are not those that TFDS knows: {why}.") from error
    except (OSError, AssertionError) as error:  # no network is one
        why = str(error).partition("\n")[0]
        raise Error(f"The dataset {name!r} could not be prepared: {why}") from error
    return builder


def _check_manual(builder: tfds.core.DatasetBuilder, folder: str) -> None:
    """Refuse a folder without the files that TFDS would download: it would try for minutes."""
    listed = (builder.url_infos or {}).items()
    names = sorted({info.filename or os.path.basename(url) for url, info in listed})
    missing = [name for name in names if not os.path.exists(os.path.join(folder, name))]
    if missing or not os.path.isdir(folder):
        wanted = f"no {', '.join(missing[:3])}" if missing else "there is no such folder"
        raise Error(
            f"config.data.manual_dir={folder!r}: {wanted}. Put the files of {builder.name!r} there "
            "as they are published, unpacked or renamed in no way, or allow "
            "--config.data.download=True."
        )


def _open_prepared(name: str, folder: str | None) -> tfds.core.DatasetBuilder:
    where = folder or os.environ.get("TFDS_DATA_DIR") or str(tfds.core.constants.DATA_DIR)
    where = os.path.expanduser(where)
    try:
        # From its files alone: tfds.load would look for it on the network for minutes.
        return tfds.builder_from_directory(_newest(where, name))
    except Error:
        raise
    except (OSError, ValueError, AttributeError, tf.errors.OpError) as error:
        raise Error(
            f"The dataset {name!r} is not prepared in {where}. Prepare it there with TFDS, name "
            "its folder with --config.data.data_dir=..., or that of its published files with "
            "--config.data.manual_dir=..., or allow --config.data.download=True."
        ) from error


def _newest(folder: str, name: str) -> str:
    """Return the folder of a prepared dataset: FOLDER/NAME[/CONFIG]/VERSION."""
    name, _, version = name.partition(":")
    base = os.path.join(folder, *name.split("/"))
    if version:
        return os.path.join(base, version)
    found = sorted(os.listdir(base))
    versions = [v for v in found if tfds.core.Version.is_valid(v)]
    if versions:
        return os.path.join(base, str(max(tfds.core.Version(v) for v in versions)))
    configs = [c for c in found if os.path.isdir(os.path.join(base, c))]
    if configs:
        names = ", ".join(f"{name}/{c}" for c in configs)
        raise Error(f"The dataset {name!r} has configurations: use one of {names}.")
    raise OSError(f"no version in {base}")


def files_of(
    builder: tfds.core.DatasetBuilder, split: str
) -> tuple[list[sharding.File], list[int], str]:
    """Return the files of a split or sub-split, the records of each whole file, and their format.

    Returns:
        Files with what the split has of them; the records of each file; "tfrecord" or
        "array_record".

    Raises:
        Error: If there is no such split, if it is empty, or in another format.
    """
    name = builder.info.full_name
    try:
        parts = builder.info.splits[split].file_instructions
    except (KeyError, ValueError) as error:
        why = str(error).strip("'").partition("\n")[0].partition(" See format")[0]
        known = ", ".join(builder.info.splits)
        raise Error(
            f"{builder.info.name}: {split!r} is no split of it ({why.rstrip('.')}). It has "
            f"{known}; a part is written like 'train[:90%]'."
        ) from error
    parts = [part for part in parts if part.take]
    if not parts:
        raise Error(f"{builder.info.name}: the split {split!r} holds no record.")
    kind = builder.info.file_format.value
    if kind not in ("tfrecord", "array_record"):
        raise Error(
            f"{name} is prepared as {kind}; tfdp reads tfrecord and array_record. Prepare it with "
            "tfds.builder(..., file_format='array_record')."
        )
    files = [
        sharding.File(str(one.filename), one.take, one.skip, counts.state(str(one.filename))[0])
        for one in parts
    ]
    return files, [one.examples_in_shard for one in parts], kind


def describe(
    builder: tfds.core.DatasetBuilder, data: config_lib.Data
) -> tuple[Callable[[Any], tuple[Any, Any]], dict[str, Any]]:
    """Return what makes (image, label) of a serialized record, and what is known of them.

    Raises:
        Error: If the dataset is not what tfdp train can learn.
    """
    name = data.tfds_name
    script = "Train it with a script of your own: tfdp launch -- SCRIPT.py"
    features = builder.info.features
    keys = builder.info.supervised_keys
    if keys is None or len(keys) != 2:
        raise Error(
            f"{name} names no (input, label) pair (supervised_keys): tfdp train cannot tell "
            f"which feature to learn. {script}"
        )
    image, label = features[keys[0]], features[keys[1]]
    if not isinstance(label, tfds.features.ClassLabel):
        kind = type(label).__name__
        raise Error(f"{name}: the label {keys[1]!r} is a {kind}, no ClassLabel. {script}")
    shape = image.shape
    if not isinstance(shape, tuple) or len(shape) != 3 or image.np_dtype != np.uint8:
        kind = type(image).__name__
        raise Error(
            f"{name}: the input {keys[0]!r} is a {kind} of shape {shape}, no images of bytes. "
            f"{script}"
        )
    if None in shape and not data.image_size:
        raise Error(
            f"{name}: the images have no fixed size ({shape}). Set one: "
            "--config.data.image_size=224x224."
        )
    facts = {
        "input_shape": shape,
        "classes": label.num_classes,
        "label_names": tuple(label.names),
        "pixel_max": 16.0 if name == digits.NAME else 255.0,
    }

    def decode(serialized: Any) -> tuple[Any, Any]:
        record = features.deserialize_example(serialized)
        return record[keys[0]], record[keys[1]]

    return decode, facts


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep TFDS from warning that nothing is prepared yet, and from drawing bars in log files."""
    level = absl_logging.get_verbosity()
    absl_logging.set_verbosity(absl_logging.ERROR)
    if not sys.stderr.isatty():
        tfds.disable_progress_bar()
    try:
        yield
    finally:
        absl_logging.set_verbosity(level)


@contextlib.contextmanager
def _lock(folder: Any) -> Iterator[None]:
    """Let one process of this machine prepare a dataset while the others wait."""
    path = os.path.join(os.path.dirname(os.path.dirname(str(folder))), ".tfdp.lock")
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
