"""What servers.py checks: each function returns what a test compares."""

import contextlib
import io
import logging
import os
import pathlib
import shutil
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from fit import cases, script_cases
from fit import test_gradient_noise as noisy

import tfdp
from tfdp import fit
from tfdp.fit import call
from tfdp.fit.servers import worker_feed

STRATEGY = tfdp.strategy(
    "parameter_server",
    min_partition_bytes=64,
    max_partitions=int(os.environ.get("MAX_SHARDS", "3")),
)
ONE_DEVICE = tf.distribute.OneDeviceStrategy("/job:chief/replica:0/task:0/device:CPU:0")


def run(names: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    """Run the functions of these names; "synchronous GROUP-NAME" is a case of tests/fit."""
    for name in names:
        line: dict[str, Any] = {"check": name}
        begin = time.perf_counter()
        keras.utils.clear_session(free_memory=False)
        fit.enable()
        fit.set_server_options(STRATEGY, fit.ServerOptions())
        try:
            kind, _, case = name.partition(" ")
            line["found"] = globals()[kind](*filter(None, [case]))
        except Exception as error:
            line["error"] = f"{type(error).__name__}: {error}"[:2000]
            traceback.print_exc()
        yield {**line, "seconds": round(time.perf_counter() - begin, 1)}


def synchronous(name: str) -> dict[str, float]:
    """Return by how much synchronous training differs from one device, where that is too much."""
    group, _, wanted = name.partition("-")
    (case,) = [case for case in cases.TABLES[group]() if case.name == wanted]
    expected = cases.reference(case, ONE_DEVICE)
    fit.enable()
    fit.set_server_options(STRATEGY, fit.ServerOptions(max_staleness=0))
    outcome = cases.run(case, STRATEGY, logical=True)
    found = cases.differences(expected, outcome)
    return {name: value for name, value in found.items() if not value <= case.tolerance}


def counters() -> dict[str, float]:
    """Train 300 steps with a rate of 0, so that each batch has the metrics it has alone."""
    random = np.random.default_rng(0)
    x = random.normal(size=(1200, 6)).astype("float32")
    y = (x[:, 0] + random.normal(size=1200) > 0).astype("float32")
    weight = random.uniform(0.5, 2.0, 1200).astype("float32")

    def build() -> keras.Model:
        keras.utils.set_random_seed(1)
        model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(1, "sigmoid")])
        model.compile(
            keras.optimizers.SGD(0.0),
            "binary_crossentropy",
            metrics=["accuracy", keras.metrics.AUC(name="auc")],
            weighted_metrics=[keras.metrics.MeanSquaredError(name="mse")],
        )
        return model

    with STRATEGY.scope():
        model = build()
    history = model.fit(x, y, sample_weight=weight, batch_size=4, verbose=0, shuffle=False).history
    alone = build()
    expected = alone.evaluate(x, y, sample_weight=weight, batch_size=4, verbose=0, return_dict=True)
    wrong = {name: abs(history[name][0] - value) for name, value in expected.items()}
    return {"iterations": int(model.optimizer.iterations), "largest": max(wrong.values())}


def no_lost_updates() -> dict[str, float]:
    """Let every step subtract exactly 1 from a weight, and from row 3 of a table."""
    with STRATEGY.scope():
        ids = keras.Input((1,), dtype="int64")
        rows = tfdp.layers.Embedding(8, 4, embeddings_initializer="zeros")(ids)
        row = keras.layers.Flatten()(rows)
        out = keras.layers.Dense(1, use_bias=True, kernel_initializer="ones")(row)
        model = keras.Model(ids, out)
        model.compile(keras.optimizers.SGD(1.0), loss=lambda y, p: keras.ops.sum(p, axis=1))
        model.layers[-1].kernel.trainable = False
    model.fit(np.full((400, 1), 3), np.zeros((400, 1)), batch_size=1, verbose=0)
    table = model.layers[1].embeddings.numpy()
    return {
        "bias": float(model.layers[-1].bias.numpy()[0]),
        "row": table[3].tolist(),
        "others": float(np.abs(np.delete(table, 3, 0)).max()),
    }


def gathered() -> dict[str, float]:
    """Let every step have a gradient of 1, and every third apply the mean of three."""
    with STRATEGY.scope():
        model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, "linear")])
        optimizer = keras.optimizers.SGD(1.0, gradient_accumulation_steps=3)
        model.compile(optimizer, loss=lambda y, p: keras.ops.sum(p, axis=1))
    model.fit(np.zeros((300, 1)), np.zeros((300, 1)), batch_size=1, verbose=0)
    bias, waiting = (
        float(v.numpy()[0]) for v in (model.layers[-1].bias, optimizer._accumulated_gradients[1])
    )
    return {"bias": bias, "all": 3 * bias - waiting, "iterations": int(optimizer.iterations)}


def overflowing() -> dict[str, Any]:
    """Train with a loss scale on batches of which every tenth overflows."""
    x = np.ones((200, 1), "float32")
    x[5::10] = np.inf
    with STRATEGY.scope():
        model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, "linear")])
        optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(1.0))
        model.compile(optimizer, loss=lambda y, p: keras.ops.sum(p, axis=1))
    model.fit(x, x, batch_size=1, verbose=0, shuffle=False)
    return {
        "iterations": int(optimizer.iterations),
        "bias": float(model.layers[-1].bias.numpy()[0]),
        "scale": float(np.log2(optimizer.dynamic_scale.numpy())),
    }


def bounded_staleness() -> dict[str, int]:
    """Return the largest staleness with several bounds, where steps take more or less long."""
    random = np.random.default_rng(0)

    class Slow(keras.layers.Layer):
        def call(self, inputs: Any) -> Any:
            def wait(x: np.ndarray) -> np.ndarray:
                time.sleep(random.exponential(0.005))
                return x

            outputs = tf.numpy_function(wait, [inputs], tf.float32)
            outputs.set_shape(inputs.shape)
            return outputs

    class Told(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            told.append(record.getMessage())

    x, y = cases.arrays(120)
    found: dict[str, int] = {}
    log, handler = logging.getLogger("tfdp"), Told()
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    for bound in (1, 2, 4, None):
        told: list[str] = []
        fit.set_server_options(STRATEGY, fit.ServerOptions(max_staleness=bound))
        with STRATEGY.scope():
            model = cases.classifier(Slow())
        model.fit(x, y, batch_size=1, verbose=0)
        line = next(line for line in told if line.startswith("Epoch 1: 120 steps; "))
        found[str(bound)] = int(line.split("and ")[1].split()[0])
    log.removeHandler(handler)
    log.setLevel(level)
    return found


def moving_state() -> dict[str, Any]:
    """Train what forgets soon and a float that counts, on three workers at a time."""

    class Counter(keras.layers.Layer):
        def build(self, shape: Any) -> None:
            self.count = self.add_weight(shape=(20,), initializer="zeros", trainable=False)

        def call(self, inputs: Any, training: bool = False) -> Any:
            if training:
                self.count.assign(self.count + 1.0)
            return inputs

    random = np.random.default_rng(0)
    x = random.normal(3.0, 2.0, size=(300, 6)).astype("float32")
    found: dict[str, Any] = {}
    for momentum in (0.0, 0.5):
        with STRATEGY.scope():
            normal, counter = keras.layers.BatchNormalization(momentum=momentum), Counter()
            dense = keras.layers.Dense(16, "relu")
            model = keras.Sequential(
                [keras.Input((6,)), counter, normal, dense, keras.layers.Dense(1)]
            )
            model.compile("adam", "mse")
        model.fit(x, x.sum(axis=1), batch_size=2, verbose=0)
        found[str(momentum)] = {
            "variance": float(normal.moving_variance.numpy().min()),
            "mean": float(np.abs(normal.moving_mean.numpy()).max()),
            "counted": [float(counter.count.numpy().min()), float(counter.count.numpy().max())],
        }
    return found


def near_serial() -> dict[str, list[float]]:
    """Train a table with optimizers that divide by what they keep: at once, and step by step."""
    random = np.random.default_rng(0)
    ids = random.zipf(1.3, (600, 5)) % 500
    y = np.sin(ids.sum(axis=1, keepdims=True)).astype("float32")
    found: dict[str, list[float]] = {}
    for name in ("Adam", "Adamax", "Nadam"):
        for bound in (None, 1):
            keras.utils.set_random_seed(1)
            fit.set_server_options(STRATEGY, fit.ServerOptions(max_staleness=bound))
            with STRATEGY.scope():
                table = tfdp.layers.Embedding(500, 16)
                model = keras.Sequential(
                    [
                        keras.Input((5,), dtype="int64"),
                        table,
                        keras.layers.Flatten(),
                        keras.layers.Dense(16, "relu"),
                        keras.layers.Dense(1),
                    ]
                )
                model.compile(getattr(keras.optimizers, name)(), "mse")
            model.fit(ids, y, batch_size=4, verbose=0)
            found.setdefault(name, []).append(float(np.abs(table.embeddings.numpy()).max()))
    return found


def schedule() -> dict[str, float]:
    """Train with a rate of 1 for the first 200 steps and 0 after."""
    rate = keras.optimizers.schedules.PiecewiseConstantDecay([199], [1.0, 0.0])
    with STRATEGY.scope():
        model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, "linear")])
        model.compile(keras.optimizers.SGD(rate), loss=lambda y, p: keras.ops.sum(p, axis=1))
    model.fit(np.zeros((400, 1)), np.zeros((400, 1)), batch_size=1, verbose=0)
    return {"bias": float(model.layers[-1].bias.numpy()[0])}


OPTIMIZERS = {
    "sgd": lambda: keras.optimizers.SGD(0.5),
    "momentum": lambda: keras.optimizers.SGD(0.1, momentum=0.9),
    "adagrad": lambda: keras.optimizers.Adagrad(0.1),
    "adam": lambda: keras.optimizers.Adam(0.05),
    "rmsprop": lambda: keras.optimizers.RMSprop(0.02),
    "clipnorm": lambda: keras.optimizers.Adam(0.05, clipnorm=0.01),
    "accumulation": lambda: keras.optimizers.Adagrad(0.1, gradient_accumulation_steps=2),
}


def embedding(optimizer: str) -> dict[str, float]:
    """Compare tfdp.layers.Embedding on partitions with itself on one device, after training."""
    random = np.random.default_rng(0)
    ids = random.integers(0, 50, (96, 5))
    y = random.normal(size=(96, 1)).astype("float32")

    def build() -> keras.Model:
        keras.utils.set_random_seed(5)
        model = keras.Sequential(
            [
                keras.Input((5,), dtype="int64"),
                tfdp.layers.Embedding(50, 8, mask_zero=True, name="table"),
                keras.layers.GlobalAveragePooling1D(),
                keras.layers.Dense(1),
            ]
        )
        model.compile(OPTIMIZERS[optimizer](), "mse")
        return model

    fit.disable()
    expected = build()
    expected.fit(ids, y, batch_size=16, epochs=2, verbose=0, shuffle=False)
    fit.enable()
    fit.set_server_options(STRATEGY, fit.ServerOptions(max_staleness=0))
    with STRATEGY.scope():
        model = build()
    model.fit(ids, y, batch_size=16, epochs=2, verbose=0, shuffle=False)
    pairs = zip(expected.get_weights(), model.get_weights(), strict=True)
    return {
        "difference": max(float(np.abs(a - b).max()) for a, b in pairs),
        "partitions": len(model.get_layer("table").embeddings.value.variables),
    }


def lazy_rows() -> dict[str, Any]:
    """Let Adam change the rows of a batch and no others."""
    fit.set_server_options(STRATEGY, fit.ServerOptions(lazy_rows=True))
    with STRATEGY.scope():
        model = keras.Sequential(
            [keras.Input((2,), dtype="int64"), tfdp.layers.Embedding(40, 4), keras.layers.Flatten()]
        )
        model.compile("adam", "mse")
    before = model.layers[0].embeddings.numpy()
    for ids in ([[1, 2]], [[7, 7]], [[1, 39]]):
        model.fit(np.array(ids), np.ones((1, 8)), verbose=0)
    changed = np.abs(model.layers[0].embeddings.numpy() - before).max(axis=1) > 0
    return {"changed": np.flatnonzero(changed).tolist()}


def saved_and_loaded() -> dict[str, float]:
    """Save a trained model with partitions; load it on one device, and on other partitions."""
    x, y = cases.arrays(64)
    with STRATEGY.scope():
        model = keras.Sequential(
            [keras.Input((6,)), keras.layers.Dense(9, "tanh"), keras.layers.Dense(3, "softmax")]
        )
        model.compile("adam", "sparse_categorical_crossentropy")
    model.fit(x, y, batch_size=8, epochs=2, verbose=0)
    expected = model.predict(x, verbose=0)
    found = {"partitions": len(model.layers[0].kernel.value.variables)}
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        model.save(folder / "model.keras")
        model.save_weights(folder / "model.weights.h5")
        model.export(folder / "export", verbose=False)
        fit.disable()
        alone = keras.models.load_model(folder / "model.keras")
        found["keras"] = float(np.abs(alone.predict(x, verbose=0) - expected).max())
        served = tf.saved_model.load(folder / "export")
        found["export"] = float(np.abs(np.array(served.serve(x)) - expected).max())
        slots: dict[str, Any] = {}
        model.optimizer.save_own_variables(slots)
        theirs = [v.numpy() for v in alone.optimizer.variables]
        pairs = zip(slots.values(), theirs, strict=True)
        found["optimizer"] = max(float(np.abs(a - b).max()) for a, b in pairs)
        fit.enable()
        with STRATEGY.scope():
            again = keras.models.load_model(folder / "model.keras")
        found["again"] = float(np.abs(again.predict(x, verbose=0) - expected).max())
        before = int(again.optimizer.iterations)
        again.fit(x, y, batch_size=8, verbose=0)
        found["steps"] = int(again.optimizer.iterations) - before
        again.load_weights(folder / "model.weights.h5")
        found["weights"] = float(np.abs(again.predict(x, verbose=0) - expected).max())
    return found


def backed_up(folder: pathlib.Path, last: int = 0) -> tuple[list[int], list[np.ndarray]]:
    """Train with backups in a folder, up to a step if one is given; return steps and weights."""
    steps: list[int] = []

    class Ends(keras.callbacks.Callback):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            steps.append(int(self.model.optimizer.iterations))
            if steps[-1] == last:
                raise InterruptedError

    fit.set_server_options(STRATEGY, fit.ServerOptions(max_staleness=0))
    keras.utils.set_random_seed(5)
    with STRATEGY.scope():
        layers = [keras.Input((6,)), keras.layers.Dense(9, "tanh"), keras.layers.Dense(3)]
        model = keras.Sequential(layers)
        model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    options = {"save_freq": 2, "asynchronous": False, "delete_checkpoint": False}
    backup = tfdp.callbacks.BackupAndRestore(str(folder), **options)
    x, y = cases.arrays(64)
    data = {"batch_size": 16, "epochs": 3, "shuffle": False, "verbose": 0}
    with contextlib.suppress(InterruptedError):
        model.fit(x, y, callbacks=[backup, Ends()], **data)
    return steps, model.get_weights()


def written() -> dict[str, int]:
    """Leave a trained model for clusters of other sizes, in the folder that FOLDER names."""
    x, y = cases.arrays(64)
    with STRATEGY.scope():
        model = keras.Sequential(
            [keras.Input((6,)), keras.layers.Dense(9, "tanh"), keras.layers.Dense(3, "softmax")]
        )
        model.compile("adam", "sparse_categorical_crossentropy")
    model.fit(x, y, batch_size=8, epochs=2, verbose=0)
    folder = pathlib.Path(os.environ["FOLDER"])
    model.save(folder / "model.keras")
    model.save_weights(folder / "model.weights.h5")
    np.save(folder / "predicted.npy", model.predict(x, verbose=0))
    slots: dict[str, Any] = {}
    model.optimizer.save_own_variables(slots)
    np.savez(folder / "slots.npz", **slots)
    np.savez(folder / "undisturbed.npz", *backed_up(folder / "whole")[1])
    backed_up(folder / "backup", last=7)
    return {"partitions": len(model.layers[0].kernel.value.variables)}


def read() -> dict[str, float]:
    """Load what `written` has left."""
    x, y = cases.arrays(64)
    folder = pathlib.Path(os.environ["FOLDER"])
    expected, wanted = np.load(folder / "predicted.npy"), np.load(folder / "slots.npz")
    with STRATEGY.scope():
        model = keras.models.load_model(folder / "model.keras")
    kernel = model.layers[0].kernel.value
    found: dict[str, float] = {"partitions": len(getattr(kernel, "variables", [kernel]))}
    found["keras"] = float(np.abs(model.predict(x, verbose=0) - expected).max())
    slots: dict[str, Any] = {}
    model.optimizer.save_own_variables(slots)
    assert sorted(slots) == sorted(wanted)
    found["optimizer"] = max(float(np.abs(slots[name] - wanted[name]).max()) for name in wanted)
    model.fit(x, y, batch_size=8, verbose=0)
    model.load_weights(folder / "model.weights.h5")
    found["weights"] = float(np.abs(model.predict(x, verbose=0) - expected).max())
    # A training that ended in its second epoch goes on here.
    own = shutil.copytree(folder / "backup", folder / f"backup-{os.getpid()}")
    undisturbed = np.load(folder / "undisturbed.npz")
    steps, weights = backed_up(own)
    assert steps == [*range(7, 13)]
    pairs = zip(weights, undisturbed.values(), strict=True)
    found["resumed"] = max(float(np.abs(a - b).max()) for a, b in pairs)
    return found


def evaluate_and_predict() -> dict[str, Any]:
    """Compare with Keras on one device, on ragged batches of a dataset."""
    x, y = cases.arrays(50)
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(7)

    def build() -> keras.Model:
        keras.utils.set_random_seed(3)
        return cases.classifier(metrics=("accuracy",))

    with STRATEGY.scope():
        model = build()
    found = model.evaluate(data, verbose=0, return_dict=True)
    rows = model.predict(data.map(lambda x, y: x), verbose=0)
    fit.disable()
    alone = build()
    expected = alone.evaluate(data, verbose=0, return_dict=True)
    difference = float(np.abs(rows - alone.predict(data.map(lambda x, y: x), verbose=0)).max())
    return {**{name: abs(found[name] - expected[name]) for name in expected}, "rows": difference}


def batch_callbacks() -> dict[str, Any]:
    """Record what callbacks see of an epoch of 30 steps."""
    seen: list[Any] = []

    class Watch(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
            seen.append(("begin", batch))

        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            seen.append(("end", batch, sorted(logs)))

    x, y = cases.arrays(120)
    with STRATEGY.scope():
        model = cases.classifier()
    model.fit(x, y, batch_size=4, verbose=0, callbacks=[Watch()])
    lines = io.StringIO()
    with contextlib.redirect_stdout(lines):
        model.fit(cases.batches([6, 6, 4]), verbose=2)
    ends = [entry for entry in seen if entry[0] == "end"]
    ahead = max(
        sum(e[0] == "begin" for e in seen[:i]) - sum(e[0] == "end" for e in seen[:i])
        for i in range(len(seen) + 1)
    )
    return {
        "begins": [entry[1] for entry in seen if entry[0] == "begin"],
        "ends": [entry[1] for entry in ends],
        "logs": ends[-1][2],
        "ahead": ahead,
        "line": lines.getvalue().partition(" - ")[0],
    }


def own_train_step() -> dict[str, Any]:
    """Train with a train_step of the user's own, and logs that no metric holds."""

    class Own(keras.Model):
        def train_step(self, data: Any) -> dict[str, Any]:
            x, y = data
            with tf.GradientTape() as tape:
                loss = self.compute_loss(x, y, self(x, training=True))
            gradients = tape.gradient(loss, self.trainable_variables)
            self.optimizer.apply_gradients(zip(gradients, self.trainable_variables, strict=True))
            return {"loss": loss, "twice": 2.0 * loss}

    x, y = cases.arrays(40)
    with STRATEGY.scope():
        inputs = keras.Input((6,))
        outputs = keras.layers.Dense(2, "softmax", kernel_initializer="zeros")(inputs)
        model = Own(inputs, outputs)
        model.compile(keras.optimizers.SGD(0.0), "sparse_categorical_crossentropy")
    history = model.fit(x, y % 2, batch_size=10, verbose=0).history
    return {
        "loss": history["loss"][0],
        "twice": history["twice"][0],
        "iterations": int(model.optimizer.iterations),
    }


def two_optimizers() -> dict[str, Any]:
    """Train with a train_step that updates twice, with an optimizer that nobody has built."""

    def build() -> keras.Model:
        keras.utils.set_random_seed(2)
        inputs = keras.Input((6,))
        hidden = keras.layers.Dense(4, "tanh")(inputs)
        model = cases.TwoOptimizers(inputs, keras.layers.Dense(3, "softmax")(hidden))
        model.compile(keras.optimizers.SGD(0.1), "sparse_categorical_crossentropy")
        model.second = keras.optimizers.Adam(0.01)
        return model

    x, y = cases.arrays(40)
    fit.disable()
    alone = build()
    alone.fit(x, y, batch_size=10, verbose=0, shuffle=False)
    fit.enable()
    # One batch at a time is out: nothing is stale.
    fit.set_server_options(STRATEGY, fit.ServerOptions(max_staleness=1))
    with STRATEGY.scope():
        model = build()
    model.fit(x, y, batch_size=10, verbose=0, shuffle=False)
    pairs = zip(alone.get_weights(), model.get_weights(), strict=True)
    found: dict[str, Any] = {"largest": max(float(np.abs(a - b).max()) for a, b in pairs)}
    found["partitions"] = len(model.layers[1].kernel.value.variables)
    found["iterations"] = [int(model.optimizer.iterations), int(model.second.iterations)]
    fit.set_server_options(STRATEGY, fit.ServerOptions(max_staleness=0))
    try:
        model.fit(x, y, batch_size=10, verbose=0)
    except ValueError as error:
        found["refused"] = str(error)
    return found


def own_train_step_summed() -> dict[str, Any]:
    """Compare a train_step of the user's own with one device, on ragged batches."""

    class Own(keras.Model):
        def train_step(self, data: Any) -> dict[str, Any]:
            x, y = data
            with tf.GradientTape() as tape:
                y_pred = self(x, training=True)
                loss = self.compute_loss(x, y, y_pred)
            gradients = tape.gradient(loss, self.trainable_variables)
            self.optimizer.apply_gradients(zip(gradients, self.trainable_variables, strict=True))
            return {**self.compute_metrics(x, y, y_pred, None), "again": loss}

    def build() -> keras.Model:
        keras.utils.set_random_seed(2)
        inputs = keras.Input((6,))
        hidden = keras.layers.Dense(4, "tanh")(inputs)
        model = Own(inputs, keras.layers.Dense(3, "softmax")(hidden))
        loss = "sparse_categorical_crossentropy"
        model.compile(keras.optimizers.Adam(0.02), loss, metrics=["accuracy"])
        return model

    x, y = cases.arrays(46)
    settings = {"batch_size": 10, "epochs": 2, "verbose": 0, "shuffle": False}
    fit.disable()
    alone = build()
    expected = alone.fit(x, y, **settings).history
    fit.enable()
    fit.set_server_options(STRATEGY, fit.ServerOptions(max_staleness=0))
    with STRATEGY.scope():
        model = build()
    history = model.fit(x, y, **settings).history
    pairs = [*zip(alone.get_weights(), model.get_weights(), strict=True)]
    # Keras logs "again" of the last batch, this package the mean over the rows.
    pairs += [(np.array(expected["accuracy"]), np.array(history["accuracy"]))]
    refused = []
    for kind in (script_cases.Clipped, script_cases.Teacher, script_cases.Sharpness):
        with STRATEGY.scope():
            assigning = script_cases.stepping(kind)()
        try:
            assigning.fit(**script_cases.fit()(), verbose=0)
        except ValueError as error:
            refused.append("max_staleness=0 updates the weights when" in str(error))
    with STRATEGY.scope():
        halving = script_cases.stepping(script_cases.Halving)()
    halving.fit(**script_cases.fit()(), epochs=3, verbose=0)
    return {
        "refused": refused,
        "rate": float(halving.optimizer.learning_rate.numpy()) / 0.1 / 0.9**18,
        "largest": max(float(np.abs(a - b).max()) for a, b in pairs),
        "partitions": len(model.layers[1].kernel.value.variables),
        "logs": sorted(history),
    }


class Switch(keras.layers.Layer):
    """Has state that is no number."""

    def build(self, shape: Any) -> None:
        self.on = self.add_weight(shape=(), dtype="bool", initializer="zeros", trainable=False)

    def call(self, inputs: Any, training: bool = False) -> Any:
        if training:
            self.on.assign(keras.ops.convert_to_tensor(True))
        return inputs


def models_of_all_kinds() -> dict[str, Any]:
    """Compare with Keras on one device: both ways of training, step by step."""
    x, _ = cases.arrays(40)
    y = x.sum(axis=1, keepdims=True)
    switches: list[Switch] = []

    def autoencoder() -> keras.Model:
        model = cases.Autoencoder()
        model.compile(keras.optimizers.Adam(0.01))
        return model

    def own_loss() -> keras.Model:
        inputs = keras.Input((6,))
        model = cases.UnusedLoss(inputs, keras.layers.Dense(1)(inputs))
        model.compile("adam", "mse")
        return model

    def switched() -> keras.Model:
        switches.append(Switch())
        model = keras.Sequential([keras.Input((6,)), switches[-1], keras.layers.Dense(1)])
        model.compile(keras.optimizers.Nadam(0.01), "mse")
        return model

    found: dict[str, Any] = {}
    for build, target in ((autoencoder, None), (own_loss, y), (switched, y)):
        fit.disable()
        expected = cases.trained_weights(build, contextlib.nullcontext(), x, target)
        fit.enable()
        for bound in (0, 1):
            fit.set_server_options(STRATEGY, fit.ServerOptions(max_staleness=bound))
            weights = cases.trained_weights(build, STRATEGY.scope(), x, target)
            pairs = zip(expected, weights, strict=True)
            different = max(float(np.abs(np.float32(a) - np.float32(b)).max()) for a, b in pairs)
            found[f"{build.__name__} {bound}"] = different
    found["on"] = [bool(switch.on.numpy()) for switch in switches]
    return found


def loaded_again() -> dict[str, float]:
    """Train on what was loaded into partitions, and export what was never trained."""
    x, _ = cases.arrays(40)
    y = x.sum(axis=1, keepdims=True)
    fit.set_server_options(STRATEGY, fit.ServerOptions(max_staleness=0))
    with STRATEGY.scope():
        model = keras.Sequential(
            [keras.Input((6,)), keras.layers.Dense(16, "tanh"), keras.layers.Dense(1)]
        )
        model.compile(keras.optimizers.Nadam(0.01), "mse")
    model.fit(x, y, verbose=0, epochs=2)
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        model.save(folder / "model.keras")
        with STRATEGY.scope():
            again = keras.models.load_model(folder / "model.keras")
        again.export(folder / "export", verbose=False)
        served = tf.saved_model.load(folder / "export")
        rows = again.predict(x, verbose=0)
        found = {"export": float(np.abs(np.array(served.serve(x)) - rows).max())}
        again.fit(x, y, verbose=0, shuffle=False)
        again.save(folder / "again.keras")
        fit.disable()
        alone = keras.models.load_model(folder / "model.keras")
        alone.fit(x, y, verbose=0, shuffle=False)
        read = keras.models.load_model(folder / "again.keras")
    fit.enable()
    for name, ours, theirs in (
        ("weights", read.get_weights(), alone.get_weights()),
        ("optimizer", *([v.numpy() for v in m.optimizer.variables] for m in (read, alone))),
    ):
        pairs = zip(ours, theirs, strict=True)
        found[name] = max(float(np.abs(a - b).max()) for a, b in pairs)
    return found


def callback_that_fails() -> dict[str, int]:
    """Let a callback raise while steps are under way; count the steps then, and later."""

    class Fails(keras.callbacks.Callback):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            if batch == 2:
                raise RuntimeError("enough")

    x, y = cases.arrays(120)
    with STRATEGY.scope():
        model = cases.classifier()
    found = {}
    try:
        model.fit(x, y, batch_size=4, verbose=0, callbacks=[Fails()])
    except RuntimeError:
        found["then"] = int(model.optimizer.iterations)
    model.evaluate(x, y, verbose=0)
    found["later"] = int(model.optimizer.iterations)
    return found


def worker_reads() -> dict[str, Any]:
    """Give a function of InputContext: each worker reads its own shard."""

    def numbers(context: tf.distribute.InputContext) -> tf.data.Dataset:
        pipeline, count = context.input_pipeline_id, context.num_input_pipelines
        assert isinstance(pipeline, int)
        data = tf.data.Dataset.range(24).shard(count, pipeline).batch(2)
        return data.map(lambda n: (tf.cast(n, tf.float32)[:, None], tf.zeros((2, 1))))

    with STRATEGY.scope():
        model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
        model.compile(keras.optimizers.SGD(0.0), "mse", steps_per_execution=4)
    history = model.fit(numbers, epochs=2, verbose=0).history
    model.fit(numbers, steps_per_epoch=5, verbose=0)
    return {"epochs": len(history["loss"]), "iterations": int(model.optimizer.iterations)}


def readings() -> dict[str, Any]:
    """Train 15 passes over what workers read themselves, and count how often each row came."""

    class Counts(keras.layers.Layer):
        def build(self, shape: Any) -> None:
            self.seen = self.add_weight(shape=(24,), initializer="zeros", trainable=False)

        def call(self, inputs: Any, training: bool = False) -> Any:
            if training:
                rows = keras.ops.one_hot(keras.ops.cast(inputs[:, 0], "int32"), 24)
                self.seen.assign(self.seen + keras.ops.sum(rows, axis=0))
            return inputs

    rows = np.arange(24, dtype="float32")[:, None]
    batches = tf.data.Dataset.from_tensor_slices((rows, rows)).shuffle(24).batch(2)
    orders = worker_feed.reader("replicated", call.Data(rows, rows, batch_size=24, shuffle=True))
    firsts = [
        next(iter(orders.function(tf.distribute.InputContext(3, i, 1))))[0][:, 0].numpy().tolist()
        for i in range(3)
    ]
    found: dict[str, Any] = {"orders": len({tuple(order) for order in firsts})}
    for reading, x, y in (
        ("shard", rows, rows),
        ("replicated", rows, rows),
        ("shard", batches, None),
    ):
        fit.set_server_options(STRATEGY, fit.ServerOptions(reading=reading))
        with STRATEGY.scope():
            layer = Counts()
            model = keras.Sequential([keras.Input((1,)), layer, keras.layers.Dense(1)])
            model.compile("sgd", "mse", metrics=["mae"])
        settings = {} if y is None else {"y": y, "batch_size": 2}
        history = model.fit(x, epochs=15, verbose=0, **settings).history
        seen = layer.seen.numpy()
        name = f"{reading} of {'arrays' if y is not None else 'a dataset'}"
        found[name] = {
            "epochs": len(history["mae"]),
            "steps": int(model.optimizer.iterations),
            "seen": float(seen.sum()),
            "least": float(seen.min()),
        }
    return found


def refused() -> dict[str, str]:
    """Return the messages of what cannot be."""
    x, y = cases.arrays(8)

    class Batches(keras.utils.PyDataset):
        def __len__(self) -> int:
            return 1

        def __getitem__(self, index: int) -> Any:
            return x, y

    with STRATEGY.scope():
        model = cases.classifier()
    batches = tf.data.Dataset.from_tensor_slices((x, y)).batch(2)
    off = tf.data.Options()
    off.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF

    def through_python(x: Any, y: Any) -> Any:
        return tf.ensure_shape(tf.numpy_function(lambda x: x, [x], tf.float32), x.shape), y

    def eagerly(x: Any, y: Any) -> Any:
        return tf.ensure_shape(tf.py_function(lambda x: x, [x], tf.float32), x.shape), y

    attempts: dict[str, Callable[[], Any]] = {
        "generator": lambda: model.fit(pair for pair in [(x, y)]),
        "PyDataset": lambda: model.fit(Batches()),
        "endless": lambda: model.fit(tf.data.Dataset.from_tensors((x, y)).repeat()),
        "shard: endless": lambda: model.fit(batches.repeat()),
        "shard: Python": lambda: model.fit(batches.map(through_python)),
        "shard: eager Python": lambda: model.fit(batches.map(eagerly)),
        "shard: empty": lambda: model.fit(x[:0], y[:0]),
        "shard: list": lambda: model.fit([[1.0, 2.0]], [0]),
        "shard: OFF": lambda: model.fit(batches.with_options(off)),
        "shard: few": lambda: model.fit(x[:2], y[:2]),
        "replicated: dataset": lambda: model.fit(batches),
        "replicated: order": lambda: model.fit(x, y, shuffle=False),
    }
    found = {}
    for name, attempt in attempts.items():
        reading, colon, _ = name.partition(":")
        options = fit.ServerOptions(reading=reading) if colon else fit.ServerOptions()
        fit.set_server_options(STRATEGY, options)
        try:
            attempt()
            found[name] = ""
        except ValueError as error:
            found[name] = str(error)
    return found


def refused_optimizers() -> dict[str, str]:
    """What is said where a variable is cut whose norm an optimizer needs."""
    fit.set_server_options(STRATEGY, fit.ServerOptions())
    x, y = cases.arrays(24)
    found = {}
    for make in (tfdp.optimizers.LARS, tfdp.optimizers.LAMB):
        keras.utils.clear_session(free_memory=False)
        with STRATEGY.scope():
            model = cases.classifier(optimizer=make(0.1))
        try:
            model.fit(x, y, batch_size=8, verbose=0)
            found[make.__name__] = ""
        except tfdp.Error as error:
            found[make.__name__] = str(error)
    return found


def assigned_in_steps() -> dict[str, Any]:
    """What layers and train_steps assign, with workers that do not wait for one another."""
    fit.set_server_options(STRATEGY, fit.ServerOptions())

    def trained(build: Callable[[], keras.Model], epochs: int = 3) -> keras.Model:
        keras.utils.set_random_seed(7)
        with STRATEGY.scope():
            model = build()
        model.fit(**script_cases.fit()(), epochs=epochs, verbose=0)
        return model

    clipped = trained(script_cases.stepping(script_cases.Clipped))
    teacher = trained(script_cases.stepping(script_cases.Teacher))
    keras.utils.set_random_seed(7)
    start = script_cases.stepping(script_cases.Teacher)().teacher.get_weights()
    halving = trained(script_cases.stepping(script_cases.Halving))
    sharpness = trained(script_cases.stepping(script_cases.Sharpness), epochs=8)
    spectral = trained(script_cases.spectral)
    counted = trained(script_cases.counted)
    counts = trained(script_cases.sequential(script_cases.RowCounter)).layers[0]
    x, y = script_cases.arrays()
    return {
        "largest": max(float(np.abs(w).max()) for w in clipped.get_weights()),
        "teacher": max(
            float(np.abs(a - b).max())
            for a, b in zip(teacher.teacher.get_weights(), start, strict=True)
        ),
        "rate": float(halving.optimizer.learning_rate.numpy()) / 0.1 / 0.9**18,
        "sharpness": sharpness.history.history["loss"],
        # The largest singular value of what was normalized, but for the last update.
        "norm": float(np.linalg.norm(spectral.layers[0].kernel.numpy())),
        "spectral": spectral.history.history["loss"],
        "rows": counted.history.history["rows"],
        "evaluated": counted.evaluate(x, y, verbose=0, return_dict=True)["rows"],
        "counted": [float(counts.rows.numpy()), int(counts.whole_rows.numpy())],
        "largest_input": abs(float(counts.largest.numpy()) - float(x.max())),
    }


def large_table() -> dict[str, Any]:
    """What is said of an optimizer that moves a large table for the rows of a batch."""
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("tfdp").addHandler(handler)
    found = {}
    try:
        for name, lazy in (("whole", False), ("lazy", True)):
            said.clear()
            fit.set_server_options(STRATEGY, fit.ServerOptions(lazy_rows=lazy))
            with STRATEGY.scope():
                table = tfdp.layers.Embedding(80_000, 64)
                model = keras.Sequential([keras.Input((2,), dtype="int64"), table])
                model.compile("adam", "mse")
            model.fit(np.ones((8, 2), "int64"), np.ones((8, 2, 64), "float32"), verbose=0)
            found[name] = [line for line in said if "moves every row" in line]
    finally:
        logging.getLogger("tfdp").removeHandler(handler)
    return found


def looked_up() -> dict[str, Any]:
    """A function of InputContext that looks up in a layer made under scope; a None in predict."""
    fit.set_server_options(STRATEGY, fit.ServerOptions())
    words = np.array(["a", "b", "c", "d"])
    with STRATEGY.scope():
        lookup = keras.layers.StringLookup(vocabulary=["a", "b", "c"])
        inputs = keras.Input((), dtype="int64")
        outputs = keras.layers.Dense(1)(keras.layers.Embedding(5, 2)(inputs))
        model = keras.Model(inputs, outputs)
        model.compile("sgd", "mse")

    def read(context: tf.distribute.InputContext) -> tf.data.Dataset:
        del context
        data = tf.data.Dataset.from_tensor_slices((words, np.ones((4, 1), "float32")))
        return data.repeat().map(lambda x, y: (lookup(x), y)).batch(2)

    found = {"loss": model.fit(read, steps_per_epoch=4, verbose=0).history["loss"]}
    with STRATEGY.scope():
        first = keras.Input((4,), name="first")
        second = keras.Input((4,), name="second", optional=True)

        class Either(keras.layers.Layer):
            def call(self, inputs: Any) -> Any:
                one, other = inputs
                return one if other is None else one + other

        two = keras.Model([first, second], Either()([first, second]))
    x, _ = script_cases.arrays()
    found["none"] = float(np.abs(two.predict([x, None], verbose=0) - x).max())
    return found


def step_that_fails() -> dict[str, Any]:
    """Let a step fail on a worker, and train on."""

    class Picky(keras.layers.Layer):
        def call(self, inputs: Any) -> Any:
            tf.debugging.assert_less(inputs, 100.0, message="too large for Picky")
            return inputs

    x, y = cases.arrays(80)
    bad = x.copy()
    bad[41] = 1000.0
    with STRATEGY.scope():
        model = cases.classifier(Picky())
    try:
        model.fit(bad, y, batch_size=4, verbose=0, shuffle=False)
        message = ""
    except tf.errors.InvalidArgumentError as error:
        message = str(error)
    history = model.fit(x, y, batch_size=4, verbose=0).history
    return {
        "told": message.count("too large for Picky") >= 1,
        "where": "servers_checks.py" in message,
        "goes_on": len(history["loss"]),
    }


def gradient_noise() -> dict[str, Any]:
    """Measure the noise scale of gradients that the chief sums: dense, scaled, and of rows."""
    found: dict[str, Any] = {}
    synchronous = fit.ServerOptions(max_staleness=0)
    fit.set_server_options(STRATEGY, synchronous)
    for name, steps, make in (
        ("ragged", 300, noisy.still),
        ("plain", 10, noisy.still),
        ("loss scale", 10, noisy.scaled),
    ):
        callback, history = noisy.measured(STRATEGY, 20, steps, make)
        found[name] = [callback.measured, callback.squared_gradient, callback.trace]
        found[f"{name}: logged"] = history.get("gradient_noise_scale") == [callback.scale]
    ids = np.array([0, 1, 1, 1, 4, 4, 0])
    with STRATEGY.scope():
        model = keras.Sequential([keras.Input((), dtype="int32"), tfdp.layers.Embedding(5, 1)])
        model.compile(keras.optimizers.SGD(0.0), "mse")
    each = np.zeros((7, 5))
    each[np.arange(7), ids] = 2 * model.get_weights()[0][ids, 0] - 2
    parts = [each[0:2], each[2:4], each[4:7]]
    small = sum(len(part) / 7 * np.sum(part.mean(0) ** 2) for part in parts)
    expected = (small - np.sum(each.mean(0) ** 2)) * 7 / 2
    callback = tfdp.callbacks.GradientNoiseScale(smoothing=1.0)
    model.fit(ids, np.ones((7, 1)), batch_size=7, shuffle=False, verbose=0, callbacks=[callback])
    found["rows"] = [callback.trace, float(expected)]
    fit.set_server_options(STRATEGY, fit.ServerOptions())
    try:
        noisy.measured(STRATEGY, 4, 1)
    except tfdp.Error as error:
        found["refused"] = str(error)
    tfdp.enable(tfdp.Communication(sync_every=4))
    try:
        model.evaluate(ids, np.ones((7, 1)), verbose=0)
    except tfdp.Error as error:
        found["sync_every"] = str(error)
    tfdp.enable(tfdp.Communication())
    return found
