"""Classify a handful of digits with an exported model: TensorFlow alone, neither Keras nor tfdp.

python scripts/classify.py runs/.../export/digits/1
"""

import csv
import gzip
import os
import pathlib
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import tensorflow as tf

DIGITS = pathlib.Path(__file__).parent.parent / "tfdp" / "datasets" / "digits.csv.gz"
TEST_IMAGES = range(0, 1797, 225)  # every fifth image is in the test split


def main(folder: str) -> None:
    with gzip.open(DIGITS, "rt", newline="") as rows:
        table = np.array([[int(v) for v in row] for row in csv.reader(rows)])[list(TEST_IMAGES)]
    images = table[:, :-1].astype("uint8").reshape(-1, 8, 8, 1)
    signature = tf.saved_model.load(folder).signatures["serving_default"]
    probabilities = signature(image=tf.constant(images))["probabilities"].numpy()
    right = 0
    for label, row in zip(table[:, -1], probabilities, strict=True):
        right += int(row.argmax() == label)
        print(f"  a {label} is taken for a {row.argmax()} with probability {row.max():.3f}")
    print(f"  {right} of {len(table)} right")


if __name__ == "__main__":
    main(sys.argv[1])
