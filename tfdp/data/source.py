"""Prepared TFDS datasets, opened without a network.

source = open_source(config.data)
source.records["train"], source.image_shape, source.classes
"""

import contextlib
import dataclasses
import fcntl
import io
import logging
import os
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds
from absl import logging as absl_logging

from tfdp import config as config_lib
from tfdp.data import digits

_log = logging.getLogger("tfdp")


class SourceError(ValueError):
    """A dataset that cannot be opened, with what to do."""


@dataclasses.dataclass(frozen=True)
class Source:
    """A prepared dataset.

    Attributes:
        builder: TFDS's builder of it.
        image_shape: Shape of an input, (height, width, channels).
        classes: Number of labels.
        label_names: Their names, in order.
        pixel_max: The largest value of a pixel.
    """

    builder: tfds.core.DatasetBuilder
    image_shape: tuple[int, ...]
    classes: int
    label_names: tuple[str, ...]
    pixel_max: float

    def records(self, split: str) -> int:
        """Return the number of records of a split or sub-split."""
        return self.builder.info.splits[split].num_examples


def open_source(data: config_lib.Data) -> Source:
    """Open the dataset that a config names; prepare the built-in one when it is absent.

    Raises:
        SourceError: If it is not prepared, or not what the pipeline reads.
    """
    builder = open_builder(data)
    for split in (data.train_split, data.test_split):
        try:
            records = builder.info.splits[split].num_examples
        except (KeyError, ValueError) as error:
            why = str(error).strip("'").partition("\n")[0].partition(" See format")[0]
            known = ", ".join(builder.info.splits)
            raise SourceError(
                f"{data.tfds_name}: {split!r} is no split of it ({why.rstrip('.')}). It has "
                f"{known}; a part is written like 'train[:90%]'."
            ) from error
        if not records:
            raise SourceError(f"{data.tfds_name}: the split {split!r} holds no record.")
    return _describe(builder, data.tfds_name)


def open_builder(data: config_lib.Data) -> tfds.core.DatasetBuilder:
    """Open the dataset that a config names, whatever its features are.

    Raises:
        SourceError: If it is not prepared.
    """
    folder = os.path.expanduser(data.data_dir) or None
    with _quiet():
        if data.tfds_name == digits.NAME:
            return _open_digits(folder)
        if data.download:
            return _download(data.tfds_name, folder)
        return _open_prepared(data.tfds_name, folder)


def _open_digits(folder: str | None) -> tfds.core.DatasetBuilder:
    builder = digits.TfdpDigits(data_dir=folder)
    if builder.is_prepared():
        return builder
    try:
        with _lock(builder.data_dir):
            # Another process may have prepared it while this one waited: a new builder sees that.
            builder = digits.TfdpDigits(data_dir=folder)
            if not builder.is_prepared():
                _log.info("Preparing the digits dataset in %s.", builder.data_dir)
                # TFDS tells of downloads; this is half a second, and none.
                with contextlib.redirect_stdout(io.StringIO()):
                    builder.download_and_prepare(
                        download_config=tfds.download.DownloadConfig(num_shards=digits.SHARDS)
                    )
    except OSError as error:
        raise SourceError(
            f"The digits cannot be prepared in {builder.data_dir}: {error.strerror or error}. "
            "Name another folder: --config.data.data_dir=..."
        ) from error
    return builder


def _download(name: str, folder: str | None) -> tfds.core.DatasetBuilder:
    try:
        builder = tfds.builder(name, data_dir=folder)
    except (ValueError, AssertionError) as error:
        why = str(error).partition("\n")[0]
        raise SourceError(f"TFDS cannot make the dataset {name!r}: {why}") from error
    if builder.is_prepared():
        return builder
    try:
        with _lock(builder.data_dir):
            builder = tfds.builder(name, data_dir=folder)
            builder.download_and_prepare()
    except OSError as error:  # no network is one
        why = str(error).partition("\n")[0]
        raise SourceError(f"The dataset {name!r} could not be prepared: {why}") from error
    return builder


def _open_prepared(name: str, folder: str | None) -> tfds.core.DatasetBuilder:
    where = folder or os.environ.get("TFDS_DATA_DIR") or str(tfds.core.constants.DATA_DIR)
    where = os.path.expanduser(where)
    try:
        # From its files alone: tfds.load would look for it on the network for minutes.
        return tfds.builder_from_directory(_newest(where, name))
    except SourceError:
        raise
    except (OSError, ValueError, AttributeError, tf.errors.OpError) as error:
        raise SourceError(
            f"The dataset {name!r} is not prepared in {where}. Prepare it there with TFDS, name "
            "its folder with --config.data.data_dir=..., or allow --config.data.download=True."
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
        raise SourceError(f"The dataset {name!r} has configurations: use one of {names}.")
    raise OSError(f"no version in {base}")


def _describe(builder: tfds.core.DatasetBuilder, name: str) -> Source:
    script = "Train it with a script of your own: tfdp launch -- SCRIPT.py"
    features = builder.info.features
    keys = builder.info.supervised_keys
    if keys is None or len(keys) != 2:
        raise SourceError(
            f"{name} names no (input, label) pair (supervised_keys): tfdp train cannot tell "
            f"which feature to learn. {script}"
        )
    image, label = features[keys[0]], features[keys[1]]
    if not isinstance(label, tfds.features.ClassLabel):
        kind = type(label).__name__
        raise SourceError(f"{name}: the label {keys[1]!r} is a {kind}, no ClassLabel. {script}")
    shape = image.shape
    if not isinstance(shape, tuple) or len(shape) != 3 or image.np_dtype != np.uint8:
        kind = type(image).__name__
        raise SourceError(
            f"{name}: the input {keys[0]!r} is a {kind} of shape {shape}, no images of bytes. "
            f"{script}"
        )
    if None in shape:
        raise SourceError(
            f"{name}: the images have no fixed size ({shape}), and tfdp train does not resize. "
            f"{script}"
        )
    pixel_max = 16.0 if name == digits.NAME else 255.0
    return Source(builder, shape, label.num_classes, tuple(label.names), pixel_max)


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
