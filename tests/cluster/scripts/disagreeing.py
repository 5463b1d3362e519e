"""Two workers that disagree, in one thing after the other. Prints what each is told.

They read different data ("rows"), call fit with different settings ("settings"; each ends before it
begins), make models of different shapes, and in the end the chief alone calls predict ("ended").
"""

import json
import os
import random
import time

import keras
import numpy as np
import tensorflow as tf

import tfdp

INDEX = json.loads(os.environ["TF_CONFIG"])["task"]["index"]
X = np.ones((32, 4), "float32")


def build(strategy, units=8, steps=1):
    with strategy.scope():
        model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(units)])
        model.compile("sgd", "mse", steps_per_execution=steps)
    return model


def attempt(name, function, *arguments, limit=10, **named):
    begin = time.monotonic()
    try:
        function(*arguments, **named)
        print(f"{name}: nothing", flush=True)
    except ValueError as error:
        assert time.monotonic() - begin < limit
        print(f"{name}: {type(error).__name__}: {error}", flush=True)


class Shuffled(keras.utils.PyDataset):
    """Sixteen batches that Keras shuffles with Python's random."""

    def __len__(self):
        return 16

    def __getitem__(self, index):
        rows = np.arange(2 * index, 2 * index + 2)
        return X[rows], rows[:, None] * np.ones((1, 8), "float32")


def rows(strategy):
    """Let both workers read data that differs in one thing after the other."""
    model = build(strategy)
    y = np.arange(32 * 8, dtype="float32").reshape(32, 8)
    dataset = tf.data.Dataset.from_tensor_slices((X, y))

    def fit(data, **named):
        model.fit(data, verbose=0, **named)

    print("drawn:", random.random(), np.random.random(), flush=True)
    attempt("pydataset", fit, Shuffled(workers=1), shuffle=True)
    order = np.random.permutation(32)
    attempt("permuted", fit, X[order], y=y[order], batch_size=8)
    attempt("shard", fit, dataset.shard(2, INDEX).batch(4))
    attempt("slices", fit, X[INDEX::2], y=y[INDEX::2], batch_size=4)
    attempt("labels_alone", fit, dataset.shuffle(32, seed=INDEX).batch(8))
    other = (X + INDEX, y)
    attempt("validation", fit, X, y=y, batch_size=8, validation_data=(X, y + INDEX))
    attempt("augmented", fit, other[0], y=y, batch_size=8)
    attempt("cache", fit, dataset.cache("cached").batch(8))
    attempt("own_cache", fit, dataset.cache(f"cached-{INDEX}").batch(8), epochs=2)
    attempt("predict", model.predict, X + INDEX, verbose=0)
    off = tf.data.Options()
    off.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    attempt("off", fit, dataset.shard(2, INDEX).batch(4).with_options(off))
    attempt("agreed", fit, dataset.batch(8))


def settings(strategy):
    """Let both workers call fit with settings of which one differs."""
    tf.random.set_seed(1)
    model = build(strategy)
    y = np.ones((32, 8), "float32")

    def fit(batch_size=8, epochs=1, **named):
        model.fit(X, y, batch_size=batch_size, epochs=epochs, verbose=0, **named)

    fit()
    attempt("batch", fit, batch_size=(8, 16)[INDEX])
    attempt("epochs", fit, epochs=(1, 2)[INDEX])
    attempt("validation", fit, validation_data=((X, y), None)[INDEX])
    tf.random.set_seed((1, 2)[INDEX])
    attempt("seed", fit)
    tf.random.set_seed(1)
    model.steps_per_execution = (1, 2)[INDEX]
    attempt("steps", fit)
    model.steps_per_execution = 1
    model.run_eagerly = bool(INDEX)
    attempt("eager", fit)
    model.run_eagerly = False
    attempt("frequency", fit, validation_data=(X, y), validation_freq=1 + INDEX)
    attempt("start", fit, epochs=3, initial_epoch=INDEX)
    stop = [keras.callbacks.EarlyStopping("loss")]
    attempt("callbacks", fit, callbacks=stop[INDEX:])
    often = [keras.callbacks.ModelCheckpoint("often.keras", save_freq=1)]
    attempt("save", fit, callbacks=often[INDEX:])
    log = [keras.callbacks.CSVLogger("log.csv")]
    attempt("writers", fit, callbacks=log[INDEX:])
    attempt("call", (fit, model.evaluate)[INDEX], **({}, {"x": X, "y": y, "verbose": 0})[INDEX])
    # All of this has touched nothing: training goes on.
    attempt("agreed", fit)


def ended(strategy):
    """Let the workers make different models, and then the chief alone call predict."""
    model = build(strategy)
    model.fit(X, np.ones((32, 8), "float32"), batch_size=8, verbose=0)
    attempt("model", build, strategy, units=(8, 16)[INDEX])
    if INDEX == 0:
        attempt("alone", model.predict, X, verbose=0, limit=15)


if __name__ == "__main__":
    strategy = tfdp.strategy()
    for part in (rows, settings, ended):
        print(f"part: {part.__name__}", flush=True)
        part(strategy)
