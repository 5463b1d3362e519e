"""Two workers that disagree, in one thing after the other. Prints what each is told.

disagreeing.py settings     # all that fit compares, one after the other: each ends before it begins
disagreeing.py model        # models of different shapes
"""

import json
import os
import sys
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


def attempt(name, function, *arguments, **named):
    begin = time.monotonic()
    try:
        function(*arguments, **named)
        print(f"{name}: nothing", flush=True)
    except ValueError as error:
        assert time.monotonic() - begin < 10
        print(f"{name}: {type(error).__name__}: {error}", flush=True)


def main():
    tf.random.set_seed(1)
    strategy = tfdp.strategy()
    if sys.argv[1] == "model":
        attempt("model", build, strategy, units=(8, 16)[INDEX])
        return
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
    attempt("call", (fit, model.evaluate)[INDEX], **({}, {"x": X, "y": y, "verbose": 0})[INDEX])
    # All of this has touched nothing: training goes on.
    attempt("agreed", fit)


main()
