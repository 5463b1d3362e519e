"""Two workers with and without Gloo, one case after the other; prints what comes of each."""

import hashlib
import json
import os
import time

import keras
import numpy as np
import tensorflow as tf

import tfdp
from tfdp.fit.replicas import gloo, transport

INDEX = json.loads(os.environ["TF_CONFIG"])["task"]["index"]
X = np.random.default_rng(0).normal(size=(70, 4)).astype("float32")
strategy = tfdp.strategy("multi_worker")


class Sleep(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        if INDEX == 1:
            time.sleep(60)


def train(
    implementation, compression=None, timeout=None, sleeps=False, synchronized=False, rows=70
):
    tfdp.enable(tfdp.Communication(implementation, 1 << 20, compression, timeout))
    keras.utils.set_random_seed(1)
    with strategy.scope():
        layers = keras.layers
        normal = layers.BatchNormalization(synchronized=synchronized)
        hidden = [layers.Dense(300, "relu"), normal, layers.Dense(300, "relu")]
        model = keras.Sequential([keras.Input((4,)), *hidden, layers.Dense(1)])
        model.compile(keras.optimizers.SGD(0.01, momentum=0.9), "mse", metrics=["mae"])
    callbacks = [Sleep()] if sleeps else []
    x = X[:rows]
    model.fit(x, x[:, :1], batch_size=16, epochs=2, shuffle=False, verbose=0, callbacks=callbacks)
    return [*model.get_weights(), model.predict(X, batch_size=16, verbose=0)]


def apart(ours, theirs):
    return max(float(np.max(np.abs(a - b))) for a, b in zip(ours, theirs, strict=True))


def tell(name, answer):
    print(f"{name}: {answer}", flush=True)


def attempt(name, *arguments, **named):
    try:
        train(*arguments, **named)
        tell(name, "Gloo" if transport.of(strategy) else "TensorFlow")
    except (ValueError, tf.errors.OpError) as error:
        tell(name, " ".join(f"{type(error).__name__}: {error}".split()))


binding, numeric = gloo.binding, transport._numeric
if INDEX == 1:
    gloo.binding = lambda: None
attempt("not everywhere", "gloo")
attempt("auto, not everywhere", "auto")
gloo.binding = binding
if INDEX == 1:
    transport._numeric = lambda host: "198.51.100.1"  # RFC 5737: nobody's
attempt("not connected", "gloo")
transport._numeric = numeric
# A layer that reduces by itself. Each worker has one CPU, and the first no row in the last batch: a
# sum by Gloo would wait for ever beside a collective of TensorFlow's.
attempt("synchronised layer", "gloo", synchronized=True, rows=33)
attempt("gloo", "gloo")
attempt("auto", "auto")
exact = train("ring")
for compression in (None, "float16", "bfloat16"):
    by_gloo = train("gloo", compression)
    tell(f"bits {compression}", hashlib.sha256(b"".join(w.tobytes() for w in by_gloo)).hexdigest())
    tell(f"gloo {compression}", apart(by_gloo, exact))
    tell(f"ring {compression}", apart(train("ring", compression), exact) if compression else 0.0)
begin = time.monotonic()
if INDEX == 0:
    attempt("late", "gloo", timeout=3.0, sleeps=True)
    tell("seconds", time.monotonic() - begin)
    os._exit(0)
else:
    attempt("late", "gloo", sleeps=True)
