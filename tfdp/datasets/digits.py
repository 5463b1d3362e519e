"""The built-in dataset: 1,797 hand-written digits as a TFDS dataset, prepared without a network.

builder = Builder(data_dir=folder)
builder.download_and_prepare(download_config=...)
dataset = builder.as_dataset(split="train")     # {"image": uint8 (8, 8, 1), "label": int64}
"""

import csv
import gzip
import importlib.resources
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

NAME = "tfdp_digits"
# So many TFRecord shards a split, enough to give 8 workers a file each.
SHARDS = 8
_TEST_EVERY = 5


class TfdpDigits(tfds.core.GeneratorBasedBuilder):
    """8x8 images of hand-written digits (UCI, Alpaydin and Kaynak 1998; CC BY 4.0).

    Every fifth image is in the test split: 1,437 to train on, 360 to test.
    """

    VERSION = tfds.core.Version("1.0.0")
    name = NAME

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=type(self).__doc__,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Tensor(shape=(8, 8, 1), dtype=np.uint8),
                    "label": tfds.features.ClassLabel(num_classes=10),
                }
            ),
            supervised_keys=("image", "label"),
            homepage="https://doi.org/10.24432/C50P49",
            license="CC BY 4.0",
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        del dl_manager  # nothing to download
        return {"train": _records(test=False), "test": _records(test=True)}

    def _generate_examples(self, records: Any) -> Any:
        return records


def _records(test: bool) -> Iterator[tuple[int, dict[str, Any]]]:
    source = importlib.resources.files("tfdp.datasets").joinpath("digits.csv.gz")
    with source.open("rb") as packed, gzip.open(packed, "rt", newline="") as rows:
        for number, row in enumerate(csv.reader(rows)):
            if (number % _TEST_EVERY == 0) == test:
                *pixels, label = map(int, row)
                image = np.array(pixels, np.uint8).reshape(8, 8, 1)
                yield number, {"image": image, "label": label}
