"""Input-bound training: decoding in the trainer against tf.data service beside it.

    python scripts/benchmarks/data_service.py            # about 5 minutes
    python scripts/benchmarks/data_service.py --rounds=3

Photos of 300 x 400 pixels are decoded, flipped and resized to 64 x 64 for a small model: `tfdp
train` on one worker without a service, and with two data workers in each mode, in turn. All
processes may use all cores. Shows examples/s; the first epoch, which traces, does not count.
"""

import argparse
import io
import os
import pathlib
import re
import statistics
import subprocess
import sys
import tempfile

FILES, EACH = 8, 64
CONFIG = """
from tfdp import config

def get_config(variant=""):
    run = config.Config(name="photos")
    run.data.source = "tfrecord"
    run.data.train_files, run.data.test_files = "train-*.tfrecord", "test-*.tfrecord"
    run.data.features = "image: image[300,400,3], label: int64"
    run.data.image_size = "64x64"
    run.data.classes = 10
    run.data.augment = "flip"
    run.data.global_batch_size = 32
    run.training.epochs = 4
    return run
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    rates: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        _write(pathlib.Path(folder))
        for number in range(options.rounds):
            for mode in ("off", "parallel_epochs", "distributed_epoch"):
                rate = _run(folder, mode, f"run-{mode}-{number}")
                rates.setdefault(mode, []).append(rate)
    print(f"{os.cpu_count()} cores; medians of {options.rounds} rounds")
    for mode, values in rates.items():
        ratio = statistics.median(a / b for a, b in zip(values, rates["off"], strict=True))
        print(f"  {mode:20} {statistics.median(values):8,.0f} examples/s   {ratio:.2f} x off")


def _run(folder: str, mode: str, run: str) -> float:
    words = ["--workers=1", f"--config.data.service={mode}", f"--config.run_dir={run}"]
    words += ["--data_workers=2"] if mode != "off" else []
    command = [sys.executable, "-m", "tfdp", "train", "--config=photos.py", *words]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    found = re.search(r"Throughput: +([\d,]+) examples/s", done.stdout)
    if found is None:
        sys.exit(done.stdout[-2000:] + done.stderr[-2000:])
    return float(found[1].replace(",", ""))


def _write(folder: pathlib.Path) -> None:
    import numpy as np
    import tensorflow as tf
    from PIL import Image

    (folder / "photos.py").write_text(CONFIG)
    random = np.random.default_rng(0)
    for split, files in (("train", FILES), ("test", 1)):
        for number in range(files):
            with tf.io.TFRecordWriter(str(folder / f"{split}-{number}.tfrecord")) as writer:
                for _ in range(EACH):
                    # Smooth, as photos are: noise would make files that take longer to decode.
                    small = random.integers(0, 256, (8, 10, 3)).astype("uint8")
                    photo = Image.fromarray(small).resize((400, 300), Image.Resampling.BICUBIC)
                    stored = io.BytesIO()
                    photo.save(stored, "JPEG", quality=90)
                    image = tf.train.BytesList(value=[stored.getvalue()])
                    label = tf.train.Int64List(value=[int(random.integers(0, 10))])
                    features = {
                        "image": tf.train.Feature(bytes_list=image),
                        "label": tf.train.Feature(int64_list=label),
                    }
                    example = tf.train.Example(features=tf.train.Features(feature=features))
                    writer.write(example.SerializeToString())


if __name__ == "__main__":
    main()
