"""What the input costs: records/s of a pipeline, counting, shuffling, seeking.

    .venv/bin/python scripts/benchmarks/input.py --cache=/tmp/tfdp-input [--rounds=5] [--only=jpeg]

Parts:

- jpeg: made photos of 375 x 500 in TFRecord, decoded, resized to 224 x 224, batches of 32. One file
  and four pipelines: tfdp (HINT) against tf.data's DATA auto-sharding of a hand-written pipeline;
  sixteen files and four pipelines: tfdp (FILE) against a hand-written one; ArrayRecord beside both.
  Each pipeline runs in this process, on its own, one variant after the other in every round.
- count: MB/s of counting the records of that one file.
- seek: ten million tiny records in ArrayRecord. Seconds from nothing to the first batch in the
  middle of an epoch, whether what follows is what an unbroken run gives, and the memory of a full
  shuffle.

The photos are kept in the cache folder: 10,000 records of which 256 are distinct, 0.5 GB, twice.
"""

import argparse
import gc
import json
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import numpy as np
import tensorflow as tf

from tfdp import batching
from tfdp.config import Data
from tfdp.data import (
    array_files,
    array_records,
    counts,
    listing,
    pipeline,
    reshard,
    sharding,
    source,
    tfrecord,
)
from tfdp.data import records as records_lib

PHOTOS, DISTINCT, PIPELINES, BATCH = 10_000, 256, 4, 32
TINY = 10_000_000
FEATURES = "image: image[375,500,3], label: int64"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--cache", default="/tmp/tfdp-input")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batches", type=int, default=24, help="of a pipeline, in each round")
    parser.add_argument("--only", choices=["jpeg", "count", "seek"])
    flags = parser.parse_args()
    cache = pathlib.Path(flags.cache)
    cache.mkdir(parents=True, exist_ok=True)
    if flags.only is None:
        # A process for each part: the memory of one is not that of another.
        for part in ("jpeg", "count", "seek"):
            subprocess.run([sys.executable, __file__, *sys.argv[1:], f"--only={part}"], check=True)
        return
    parts = {
        "jpeg": lambda: measure_jpeg(cache, flags.rounds, flags.batches),
        "count": lambda: measure_count(cache),
        "seek": lambda: measure_seek(cache),
    }
    print(json.dumps({flags.only: parts[flags.only]()}, indent=1), flush=True)


# -- photos ----------------------------------------------------------------------------------------


def photos(cache: pathlib.Path) -> dict[str, str]:
    """Patterns of the photos: in one file, in sixteen, and in sixteen of ArrayRecord."""
    one = cache / "photos.tfrecord"
    if not one.exists():
        dice = np.random.default_rng(0)
        made = [photo(dice) for _ in range(DISTINCT)]
        part = cache / "photos.part"
        with open(part, "wb") as file:
            for number in range(PHOTOS):
                features = {
                    "image": tf.train.Feature(
                        bytes_list=tf.train.BytesList(value=[made[number % DISTINCT]])
                    ),
                    "label": tf.train.Feature(int64_list=tf.train.Int64List(value=[number])),
                }
                example = tf.train.Example(features=tf.train.Features(feature=features))
                file.write(tfrecord.frame(example.SerializeToString()))
        part.rename(one)
    patterns = {"one": str(one)}
    for format in ("tfrecord", "array_record"):
        folder = cache / f"sixteen_{format}"
        if not folder.exists():
            reshard.reshard(str(one), str(folder), 16, format)
        patterns[format] = str(folder / f"*.{format}-*")
    return patterns


def photo(dice: np.random.Generator) -> bytes:
    """A JPEG of 375 x 500 with shapes at all scales, about as large as a photo."""
    pixels = np.zeros((375, 500, 3), np.float32)
    for cells, weight in ((4, 90), (12, 50), (48, 28), (190, 16)):
        noise = dice.normal(size=(1, cells, cells * 4 // 3, 3)).astype(np.float32)
        pixels += weight * tf.image.resize(noise, (375, 500), "bicubic")[0].numpy()
    pixels = np.clip(pixels + 128, 0, 255).astype(np.uint8)
    return tf.io.encode_jpeg(pixels, quality=90).numpy()


def by_hand(pattern: str, pipelines: int = 1) -> tf.data.Dataset:
    """What a careful user writes, for the second of so many pipelines."""
    files = tf.data.Dataset.list_files(pattern, shuffle=False).shard(pipelines, pipelines > 1)
    files = files.shuffle(16, seed=0)
    records = files.interleave(
        tf.data.TFRecordDataset,
        cycle_length=16,
        block_length=4,
        num_parallel_calls=tf.data.AUTOTUNE,
    )
    return (
        records.shuffle(256, seed=0)
        .map(decode, num_parallel_calls=tf.data.AUTOTUNE)
        .batch(BATCH, num_parallel_calls=tf.data.AUTOTUNE)
        .repeat()
        .prefetch(tf.data.AUTOTUNE)
    )


def decode(serialized: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    stored = {
        "image": tf.io.FixedLenFeature((), tf.string),
        "label": tf.io.FixedLenFeature((), tf.int64),
    }
    found = tf.io.parse_single_example(serialized, stored)
    image = tf.io.decode_image(found["image"], channels=3, expand_animations=False)
    image.set_shape((375, 500, 3))
    resized = tf.image.resize(image, (224, 224), antialias=True)
    return tf.cast(tf.round(tf.clip_by_value(resized, 0, 255)), tf.uint8), found["label"]


def by_tfdp(pattern: str, kind: str, **more: object) -> tf.data.Dataset:
    settings = {
        "source": kind,
        "train_files": pattern,
        "test_files": pattern,
        "features": FEATURES,
        "classes": PHOTOS,
        "image_size": "224x224",
        "global_batch_size": BATCH * PIPELINES,
        "shuffle_buffer": 256,
        **more,
    }
    data = Data(**settings)
    opened = source.open_source(data)
    context = tf.distribute.InputContext(PIPELINES, 1)
    return pipeline.training(opened, data, 0, context)


def by_data_policy(pattern: str) -> tf.data.Dataset:
    """by_hand as the DATA policy leaves it to one of four workers: all decoded, a fourth kept.

    The operation that tf.distribute applies for AutoShardPolicy.DATA, on batches of one worker.
    """
    dataset = by_hand(pattern)
    leaves = tf.nest.flatten(dataset.element_spec)
    variant = tf.raw_ops.AutoShardDataset(
        input_dataset=tf.data.experimental.to_variant(dataset),
        num_workers=PIPELINES,
        index=1,
        output_types=[leaf.dtype for leaf in leaves],
        output_shapes=[leaf.shape for leaf in leaves],
        auto_shard_policy=tf.data.experimental.AutoShardPolicy.DATA.value,
        num_replicas=PIPELINES,
    )
    return tf.data.experimental.from_variant(variant, dataset.element_spec)


def rate(dataset: tf.data.Dataset, batches: int) -> float:
    """Records/s of the batches after the first four, which fill buffers."""
    iterator = iter(dataset)
    for _ in range(4):
        next(iterator)
    begin, rows = time.perf_counter(), 0
    for _ in range(batches):
        rows += int(next(iterator)[1].shape[0])
    return rows / (time.perf_counter() - begin)


def measure_jpeg(cache: pathlib.Path, rounds: int, batches: int) -> dict[str, object]:
    patterns = photos(cache)
    variants = {
        "one file: tf.data DATA": by_data_policy(patterns["one"]),
        "one file: tfdp HINT": by_tfdp(patterns["one"], "tfrecord"),
        "16 files: by hand": by_hand(patterns["tfrecord"], PIPELINES),
        "16 files: tfdp FILE": by_tfdp(patterns["tfrecord"], "tfrecord"),
        "16 files: tfdp ArrayRecord, full shuffle": by_tfdp(
            patterns["array_record"], "array_record"
        ),
    }
    rates: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(rounds):
        for name, dataset in variants.items():
            rates[name].append(rate(dataset, batches))
    found = {name: round(statistics.median(values), 1) for name, values in rates.items()}
    size = os.path.getsize(patterns["one"]) / PHOTOS
    ratios = [
        b / a for a, b in zip(rates["16 files: by hand"], rates["16 files: tfdp FILE"], strict=True)
    ]
    return {
        "bytes a record": round(size),
        "records/s": found,
        "HINT over DATA": round(found["one file: tfdp HINT"] / found["one file: tf.data DATA"], 2),
        "FILE over by hand": round(statistics.median(ratios), 3),
    }


def measure_count(cache: pathlib.Path) -> dict[str, float]:
    path = photos(cache)["one"]
    size, seconds = os.path.getsize(path), []
    for _ in range(5):
        begin = time.perf_counter()
        records = tfrecord.count(path)
        seconds.append(time.perf_counter() - begin)
    assert records == PHOTOS
    begin = time.perf_counter()
    counts.count([path], tfrecord.count)
    cached = time.perf_counter() - begin
    median = statistics.median(seconds)
    return {"MB/s": round(size / median / 1e6), "seconds": median, "remembered, seconds": cached}


# -- ten million records ---------------------------------------------------------------------------


def tiny(cache: pathlib.Path) -> str:
    """A pattern of ten million records of 8 bytes in 16 files."""
    folder = cache / "tiny"
    if not folder.exists():
        hidden = cache / "tiny.part"
        hidden.mkdir(exist_ok=True)
        number = 0
        for at, count in enumerate(batching.split(TINY, 16)):
            writer = array_files.writer(str(hidden / f"tiny.array_record-{at:05}-of-00016"))
            for _ in range(count):
                writer.write(number.to_bytes(8, "little"))
                number += 1
            writer.close()
        hidden.rename(folder)
    return str(folder / "*.array_record-*")


def open_tiny(pattern: str) -> source.Source:
    """The records as integers: no Example around 8 bytes."""
    names = listing.find(pattern)
    totals = counts.count(names, array_files.count)
    files = tuple(
        sharding.File(n, c, 0, counts.state(n)[0]) for n, c in zip(names, totals, strict=True)
    )

    def to_number(raw: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        number = tf.io.decode_raw(raw, tf.int64)[:, 0]
        return number, number

    reader = array_records.Reader(names, totals, [0] * len(names))
    split = records_lib.Records("tiny", files, reader, True, to_number, decodes_batches=True)
    return source.Source(split, split, (), TINY)


def measure_seek(cache: pathlib.Path) -> dict[str, object]:
    pattern = tiny(cache)
    counts.count(listing.find(pattern), array_files.count)  # counted once, remembered
    data = Data(source="array_record", global_batch_size=1024)
    steps = -(-TINY // 1024)
    middle = (3, steps // 2)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds, first, memory = [], None, 0.0
    opened = dataset = iterator = None
    for _ in range(3):
        # What the last one leaves behind is not part of a start from nothing.
        opened = dataset = iterator = None
        gc.collect()
        begin = time.perf_counter()
        opened = open_tiny(pattern)
        dataset = pipeline.training(opened, data, 0, epochs=4, start=middle)
        iterator = iter(dataset)
        first = next(iterator)[0].numpy()
        seconds.append(time.perf_counter() - begin)
        # Of one pipeline: the others of this loop hold the index of the files once more.
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        memory = memory or (after - before) * 1024 / TINY
    following = [first.tobytes()] + [next(iterator)[0].numpy().tobytes() for _ in range(200)]
    # An unbroken run, from a little before the middle on: 300 batches, of which 201 are the same.
    unbroken = iter(
        pipeline.training(open_tiny(pattern), data, 0, epochs=4, start=(3, middle[1] - 100))
    )
    for _ in range(100):
        next(unbroken)
    same = [next(unbroken)[0].numpy().tobytes() for _ in range(201)] == following
    begin, rows = time.perf_counter(), 0
    for _ in range(100):
        rows += len(next(iterator)[0])
    return {
        "seconds to the first batch": [round(one, 3) for one in seconds],
        "the 200 batches that follow are the same": same,
        "bytes of memory a record, all included": round(memory, 1),
        "records/s, full shuffle": round(rows / (time.perf_counter() - begin)),
    }


if __name__ == "__main__":
    main()
