"""Made images of 32 pixels in ten classes, as a TFDS dataset: to try a recipe without its data.

builder = Builder(data_dir=folder)
dataset = builder.as_dataset(split="train")     # {"image": uint8 (32, 32, 3), "label": int64}

A class is a texture: stripes, squares, rings or discs, coarse or fine, in two colours and at a
place that are drawn for each image, with noise. To mirror an image, or to move it by some pixels,
leaves it in its class, as the recipes' augmentation has to.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

NAME = "tfdp_textures"
SHARDS = 8
SIZE = 32
_RECORDS = {"train": 2_000, "test": 500}
_SEEDS = {"train": 1, "test": 2}
_NOISE = 12.0  # standard deviation, of 255
_KINDS = ("rows", "columns", "squares", "rings", "discs")
# Pixels of one period of each kind: coarse and fine.
_PERIODS = {
    "rows": (16, 6),
    "columns": (16, 6),
    "squares": (16, 6),
    "rings": (12, 5),
    "discs": (16, 8),
}
LABELS = tuple(f"{grain} {kind}" for kind in _KINDS for grain in ("coarse", "fine"))


class TfdpTextures(tfds.core.GeneratorBasedBuilder):
    """32x32 images of ten made textures, 2,000 to train on and 500 to test."""

    VERSION = tfds.core.Version("1.0.0")
    name = NAME

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=type(self).__doc__,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Tensor(shape=(SIZE, SIZE, 3), dtype=np.uint8),
                    "label": tfds.features.ClassLabel(names=list(LABELS)),
                }
            ),
            supervised_keys=("image", "label"),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        del dl_manager  # nothing to download
        return {split: _records(split) for split in _RECORDS}

    def _generate_examples(self, records: Any) -> Any:
        return records


def _records(split: str) -> Iterator[tuple[int, dict[str, Any]]]:
    random = np.random.default_rng(_SEEDS[split])
    for number in range(_RECORDS[split]):
        label = number % len(LABELS)
        yield number, {"image": image(label, random), "label": label}


def image(label: int, random: np.random.Generator) -> np.ndarray:
    """Return an image of a class: uint8 of shape (32, 32, 3)."""
    kind, period = _KINDS[label // 2], _PERIODS[_KINDS[label // 2]][label % 2]
    y, x = np.mgrid[:SIZE, :SIZE] + random.uniform(0, SIZE, (2, 1, 1))
    wave_x, wave_y = np.cos(2 * np.pi * x / period), np.cos(2 * np.pi * y / period)
    if kind == "rows":
        share = wave_y > 0
    elif kind == "columns":
        share = wave_x > 0
    elif kind == "squares":
        share = wave_x * wave_y > 0
    elif kind == "discs":
        share = wave_x + wave_y > 0.8
    else:
        middle = random.uniform(8, SIZE - 8, (2, 1, 1))
        rows, columns = np.mgrid[:SIZE, :SIZE] - middle
        share = np.cos(2 * np.pi * np.hypot(rows, columns) / period) > 0
    dark, light = random.uniform(0, 100, 3), random.uniform(155, 255, 3)
    if random.random() < 0.5:
        dark, light = light, dark
    pixels = np.where(share[..., np.newaxis], light, dark)
    pixels = pixels + random.normal(0, _NOISE, pixels.shape)
    return np.clip(np.round(pixels), 0, 255).astype(np.uint8)
