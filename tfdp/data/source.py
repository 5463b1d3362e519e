"""Prepared TFDS datasets, opened without a network.

source = open_source(config.data)
source.records["train"], source.image_shape, source.classes
"""

import contextlib
import dataclasses
import fcntl
import logging
import os
from collections.abc import Iterator
from typing import Any

import tensorflow as tf
import tensorflow_datasets as tfds

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

    def files(self, split: str) -> int:
        """Return the number of files that a split is read from."""
        return len(self.builder.info.splits[split].filenames)


def open_source(data: config_lib.Data) -> Source:
    """Open the dataset that a config names; prepare the built-in one when it is absent.

    Raises:
        SourceError: If it is not prepared, or not what the pipeline reads.
    """
    folder = data.data_dir or None
    if data.tfds_name == digits.NAME:
        builder = digits.TfdpDigits(data_dir=folder)
        with _lock(builder.data_dir):
            if not builder.is_prepared():
                _prepare_digits(builder)
    else:
        builder = _open_prepared(data.tfds_name, folder, data.download)
    for split in (data.train_split, data.test_split):
        try:
            builder.info.splits[split]
        except (KeyError, ValueError) as error:
            known = ", ".join(builder.info.splits)
            raise SourceError(
                f"{data.tfds_name} has no split {split!r}: it has {known}."
            ) from error
    return _describe(builder, data.tfds_name)


def _open_prepared(name: str, folder: str | None, download: bool) -> tfds.core.DatasetBuilder:
    if download:
        builder = tfds.builder(name, data_dir=folder)
        with _lock(builder.data_dir):
            builder.download_and_prepare()
        return builder
    where = folder or os.environ.get("TFDS_DATA_DIR") or str(tfds.core.constants.DATA_DIR)
    try:
        # From its files alone: tfds.load would look for it on the network for minutes.
        return tfds.builder_from_directory(_newest(os.path.expanduser(where), name))
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
    versions = [v for v in os.listdir(base) if tfds.core.Version.is_valid(v)]
    if not versions:
        raise OSError(f"no version in {base}")
    return os.path.join(base, str(max(tfds.core.Version(v) for v in versions)))


def _prepare_digits(builder: tfds.core.DatasetBuilder) -> None:
    _log.info("Preparing the digits dataset in %s.", builder.data_dir)
    builder.download_and_prepare(
        download_config=tfds.download.DownloadConfig(num_shards=digits.SHARDS)
    )


def _describe(builder: tfds.core.DatasetBuilder, name: str) -> Source:
    features = builder.info.features
    keys = builder.info.supervised_keys
    if keys is None or len(keys) != 2:
        raise SourceError(
            f"{name} names no (input, label) pair (supervised_keys): tfdp train cannot tell "
            "which feature to learn. Train it with a script of your own: tfdp launch -- SCRIPT.py"
        )
    image, label = features[keys[0]], features[keys[1]]
    if not isinstance(label, tfds.features.ClassLabel):
        raise SourceError(f"{name}: the label {keys[1]!r} is no class label but {label!r}.")
    shape = tuple(image.shape)
    if None in shape:
        raise SourceError(
            f"{name}: the images have no fixed size ({shape}): resize them first, or train with "
            "a script of your own: tfdp launch -- SCRIPT.py"
        )
    pixel_max = 16.0 if name == digits.NAME else 255.0
    return Source(builder, shape, label.num_classes, tuple(label.names), pixel_max)


@contextlib.contextmanager
def _lock(folder: Any) -> Iterator[None]:
    """Let one process of this machine prepare a dataset while the others wait."""
    path = os.path.join(os.path.dirname(os.path.dirname(str(folder))), ".tfdp.lock")
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
