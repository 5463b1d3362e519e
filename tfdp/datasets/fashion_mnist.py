"""Fashion-MNIST from its four files as they are published, prepared as a TFDS dataset.

The files (train-images-idx3-ubyte.gz and so on) lie in TFDP_FASHION_MNIST, or where Debian's
package dataset-fashion-mnist puts them. Nothing is downloaded.
"""

import gzip
import os
import pathlib
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from tfdp.error import Error

NAME = "tfdp_fashion_mnist"
# So many files a split: 8 workers have one each.
SHARDS = 8
VARIABLE = "TFDP_FASHION_MNIST"
_DEBIAN = "/usr/share/datasets/fashion-mnist"
_NAMES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
    "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip


class TfdpFashionMnist(tfds.core.GeneratorBasedBuilder):
    """28x28 images of articles of clothing (Xiao, Rasul and Vollgraf 2017; MIT licence)."""

    VERSION = tfds.core.Version("1.0.0")
    name = NAME

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=type(self).__doc__,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(28, 28, 1), encoding_format="png"),
                    "label": tfds.features.ClassLabel(names=list(_NAMES)),
                }
            ),
            supervised_keys=("image", "label"),
            homepage="https://github.com/zalandoresearch/fashion-mnist",
            license="MIT",
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        del dl_manager  # nothing to download
        found = folder()
        return {"train": _records(found, "train"), "test": _records(found, "t10k")}

    def _generate_examples(self, records: Any) -> Any:
        return records


def folder() -> pathlib.Path:
    """Return the folder of the four files.

    Raises:
        Error: If they are not there, with where they can be had.
    """
    found = pathlib.Path(os.environ.get(VARIABLE) or _DEBIAN)
    for part in ("train", "t10k"):
        for kind in ("images-idx3", "labels-idx1"):
            if not (found / f"{part}-{kind}-ubyte.gz").exists():
                raise Error(
                    f"Fashion-MNIST is not there: no {part}-{kind}-ubyte.gz in {found}. Debian's "
                    f"dataset-fashion-mnist has it; {VARIABLE} names another folder."
                )
    return found


def _records(found: pathlib.Path, part: str) -> Iterator[tuple[int, dict[str, Any]]]:
    images = _read(found / f"{part}-images-idx3-ubyte.gz", 3)
    labels = _read(found / f"{part}-labels-idx1-ubyte.gz", 1)
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        yield number, {"image": image[..., np.newaxis], "label": int(label)}


def _read(path: pathlib.Path, dimensions: int) -> np.ndarray:
    """Return the bytes of an IDX file: a header of two zeros, type, rank and sizes before them."""
    content = gzip.decompress(path.read_bytes())
    head = 4 + 4 * dimensions
    if content[:4] != bytes((0, 0, 8, dimensions)):
        raise Error(f"{path} is no IDX file of bytes with {dimensions} dimensions.")
    shape = struct.unpack(f">{dimensions}I", content[4:head])
    if len(content) - head != np.prod(shape):
        raise Error(f"{path} holds {len(content) - head:,} bytes for a shape of {shape}.")
    return np.frombuffer(content, np.uint8, offset=head).reshape(shape)
