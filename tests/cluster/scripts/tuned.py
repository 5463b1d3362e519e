"""Tunes two workers, of which the second may take less memory; writes what was found."""

import sys

WORKER_BYTES = (1_600_000_000, 1_100_000_000)


def build():
    import json
    import os
    import resource

    import keras

    index = json.loads(os.environ["TF_CONFIG"])["task"]["index"]
    resource.setrlimit(resource.RLIMIT_DATA, (WORKER_BYTES[index],) * 2)
    # 1.3 MB for each row, and little time.
    wide = [keras.layers.Dense(1 << 14, "tanh")]
    wide += [keras.layers.Activation("tanh") for _ in range(15)]
    model = keras.Sequential([keras.Input((4,)), *wide, keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    return model


def data(batch):
    import tensorflow as tf

    rows = tf.random.stateless_uniform((2048, 4), (0, 0))
    return tf.data.Dataset.from_tensor_slices((rows, rows[:, :1])).repeat().batch(batch)


if __name__ == "__main__":
    import tfdp

    tuned = tfdp.tune_batch(build, data, batch=64, workers=2, noise_seconds=0, folder=sys.argv[1])
    assert "tensorflow" not in sys.modules  # trials are processes of their own
    print("found", tuned.largest_per_replica)
