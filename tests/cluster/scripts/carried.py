"""Two workers and what may carry their sums, case after case; prints what comes of each."""

import hashlib
import json
import os
import pathlib
import time

import keras
import numpy as np
import tensorflow as tf

import tfdp
from tfdp.fit.replicas import gloo, shared_memory, transport

INDEX = json.loads(os.environ["TF_CONFIG"])["task"]["index"]
X = np.random.default_rng(0).normal(size=(70, 4)).astype("float32")
strategy = tfdp.strategy("multi_worker")


class Sleep(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        if INDEX == 1:
            while not pathlib.Path("given_up").exists():
                time.sleep(0.05)


def train(
    implementation, compression=None, timeout=None, sleeps=False, synchronized=False, rows=70
):
    """Return the weights after two epochs."""
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
    return model.get_weights()


def apart(ours, theirs):
    return max(float(np.max(np.abs(a - b))) for a, b in zip(ours, theirs, strict=True))


def tell(name, answer):
    print(f"{name}: {answer}", flush=True)


def attempt(name, *arguments, **named):
    transport._taken.pop(strategy, None)  # "auto" decides anew
    try:
        train(*arguments, **named)
        carrier = transport.of(strategy)
        tell(name, carrier.kind if carrier else "TensorFlow")
    except (ValueError, tf.errors.OpError) as error:
        tell(name, " ".join(f"{type(error).__name__}: {error}".split()))


binding, numeric, machine = gloo.binding, transport._numeric, shared_memory._machine
if INDEX == 1:
    shared_memory._machine = lambda: "another"
    gloo.binding = lambda: None
attempt("two machines", "shared_memory")
attempt("not everywhere", "gloo")
attempt("auto, not everywhere", "auto")
gloo.binding = binding
if INDEX == 1:
    transport._numeric = lambda host: "198.51.100.1"  # RFC 5737: nobody's
attempt("not connected", "gloo")
transport._numeric = numeric
attempt("auto, two machines", "auto")
shared_memory._machine = machine
# A layer that reduces by itself. Each worker has one CPU, and the first no row in the last batch: a
# sum by Gloo would wait for ever beside a collective of TensorFlow's.
attempt("synchronised layer", "gloo", synchronized=True, rows=33)
attempt("gloo", "gloo")
attempt("shared memory", "shared_memory")
attempt("synchronised layer in shared memory", "shared_memory", synchronized=True, rows=33)
attempt("auto", "auto")
exact = train("ring")
for compression in (None, "float16", "bfloat16"):
    for kind in ("gloo", "shared_memory"):
        weights = train(kind, compression)
        bits = hashlib.sha256(b"".join(w.tobytes() for w in weights)).hexdigest()
        tell(f"bits {kind} {compression}", bits)
        tell(f"{kind} {compression}", apart(weights, exact))
    tell(f"ring {compression}", apart(train("ring", compression), exact) if compression else 0.0)
kind = os.environ["LATE"]
begin = time.monotonic()
if INDEX == 0:
    attempt("late", kind, timeout=3.0, sleeps=True)
    tell("seconds", time.monotonic() - begin)
    pathlib.Path("given_up").touch()
    os._exit(0)
else:
    attempt("late", kind, sleeps=True)
