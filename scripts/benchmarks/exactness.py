"""What two replicas train, against one device: tfdp, Keras 3 by itself, and tf_keras.

    python scripts/benchmarks/exactness.py                            # 2 replicas in one process
    python scripts/benchmarks/exactness.py --strategy=multi_worker    # 2 worker processes
    python scripts/benchmarks/exactness.py --only=ragged --only=clip
    python scripts/benchmarks/exactness.py --write=docs/exactness.md  # both, into that page

Each feature trains one small problem for 3 epochs on one device and on 2 replicas, with the same
data and global batch, by the same library. What is shown is the largest absolute difference of
anything the training leaves: weights, logs, evaluate's results, predictions. "crash" is an
exception, "hang" is no answer within 60 s, "-" is what a library does not have. tf_keras is
installed when it is absent. Takes 5 minutes on 2 cores for one process, 15 for two. Exits 1 when
tfdp deviates anywhere by more than 1e-5, or than the tolerance that the feature has of its own.
"""

import argparse
import contextlib
import importlib.util
import itertools
import json
import os
import pathlib
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import traceback

HERE = pathlib.Path(__file__)
CONTESTANTS = ("tfdp", "keras", "tf_keras")
EPOCHS, FEATURES, CLASSES, BATCH, ROWS = 3, 6, 3, 6, 23
LIMIT = 1e-5
PATIENCE_SECONDS = 60
START_SECONDS = 120
# The columns of the page: title, contestant, strategy. (Keras 3 alone crashes on two workers.)
COLUMNS = (
    ("tfdp, mirrored", "tfdp", "mirrored"),
    ("tfdp, 2 workers", "tfdp", "multi_worker"),
    ("Keras 3, mirrored", "keras", "mirrored"),
    ("tf_keras, mirrored", "tf_keras", "mirrored"),
)
# The table stands between these lines of the page.
BEGIN = "<!-- table of scripts/benchmarks/exactness.py: begin -->"
END = "<!-- table of scripts/benchmarks/exactness.py: end -->"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--strategy", choices=["mirrored", "multi_worker"], default="mirrored")
    parser.add_argument("--only", action="append", help="part of a feature's name")
    parser.add_argument("--contestant", choices=CONTESTANTS, action="append")
    parser.add_argument("--write", metavar="PAGE", help="write the whole table into this page")
    parser.add_argument("--task", help=argparse.SUPPRESS)
    parser.add_argument("--output", help=argparse.SUPPRESS)
    parser.add_argument("--skip", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    names = [n for n in TABLE if not options.only or any(part in n for part in options.only)]
    if options.task:
        _measure(options.task, options.strategy, names[options.skip :], options.output)
        return
    if importlib.util.find_spec("tf_keras") is None:
        subprocess.run([sys.executable, "-m", "pip", "install", "-q", "tf_keras<2.22"], check=True)
    what = "2 replicas in one process" if options.strategy == "mirrored" else "2 workers"
    corner = f"off by, {what}"
    columns = [(c, c, options.strategy) for c in options.contestant or CONTESTANTS]
    if options.write:
        if options.only or options.contestant:
            parser.error("--write measures everything: leave out --only and --contestant")
        corner, columns = "", list(COLUMNS)
    found = [_collect(contestant, strategy, options, names) for _, contestant, strategy in columns]
    lines = [f"| {corner} | {' | '.join(title for title, *_ in columns)} |".replace("|  |", "| |")]
    lines.append("|---|" + "---|" * len(columns))
    for name in names:
        lines.append(f"| {name} | {' | '.join(_cell(results[name]) for results in found)} |")
    print("\n".join(lines))
    if options.write:
        _write(pathlib.Path(options.write), "\n".join(lines))
    wrong = {
        name
        for (_, contestant, _), results in zip(columns, found, strict=True)
        for name in names
        if contestant == "tfdp" and not _within(results[name], TABLE[name].tolerance)
    }
    if wrong:
        print(f"MISSED by tfdp: {', '.join(sorted(wrong))}.")
    sys.exit(bool(wrong))


def _write(page: pathlib.Path, table: str) -> None:
    """Put a table in the place of the one that a page holds."""
    before, begin, rest = page.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        sys.exit(f"{page} has no lines {BEGIN!r} and {END!r}.")
    page.write_text(f"{before}{BEGIN}\n\n{table}\n\n{END}{after}")


def _within(result: dict, tolerance: float) -> bool:
    return "off" in result and result["off"] is not None and result["off"] <= tolerance


def _cell(result: dict) -> str:
    if "off" in result:
        off = result["off"]
        return "NaN" if off is None else "0" if off == 0 else f"{off:.0e}"
    return result["failed"]


def _collect(contestant: str, strategy: str, options: argparse.Namespace, names: list[str]) -> dict:
    """Run the features in child processes; a new child follows one that crashed or hung."""
    found: dict = {}
    print(f"{contestant}, {strategy}:", end="", file=sys.stderr, flush=True)
    while len(found) < len(names):
        for name, result in _child(contestant, strategy, options, len(found)):
            found[name] = result
            print(f" {_cell(result)}", end="", file=sys.stderr, flush=True)
            if "detail" in result and os.environ.get("DETAILS"):
                print(f"\n{name}: {result['detail']}", file=sys.stderr)
    print(file=sys.stderr)
    return found


def _child(contestant: str, strategy: str, options: argparse.Namespace, skip: int):
    """Yield (feature, result) as a child writes them; end it when it is silent for too long."""
    own = [f"--task={contestant}", f"--strategy={strategy}", f"--skip={skip}"]
    own += [f"--only={part}" for part in options.only or []]
    names = [n for n in TABLE if not options.only or any(part in n for part in options.only)]
    with tempfile.TemporaryDirectory() as folder:
        pipe = pathlib.Path(folder) / "results"
        os.mkfifo(pipe)
        own.append(f"--output={pipe}")
        command = [sys.executable, str(HERE), *own]
        if strategy == "multi_worker":
            launch = [sys.executable, "-m", "tfdp", "launch", "--workers=2"]
            command = [*launch, f"--log_dir={folder}/logs", "--", str(HERE), *own]
        log = open(pathlib.Path(folder) / "log", "w+")
        child = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        lines: queue.Queue = queue.Queue()
        threading.Thread(target=_read, args=(pipe, lines), daemon=True).start()
        ended = threading.Thread(target=lambda: (child.wait(), lines.put(None)), daemon=True)
        ended.start()
        patience, at = START_SECONDS, skip
        try:
            while at < len(names):
                try:
                    line = lines.get(timeout=patience)
                except queue.Empty:
                    yield names[at], {"failed": "hang"}
                    return
                if line is None:
                    log.seek(0)
                    yield names[at], {"failed": "crash", "detail": log.read()[-2000:]}
                    return
                result = json.loads(line)
                yield result.pop("name"), result
                if "failed" in result and result["failed"] == "crash":
                    return  # what it left behind could spoil the next
                patience, at = PATIENCE_SECONDS, at + 1
        finally:
            if child.poll() is None:
                # The launcher ends its tasks; TensorFlow itself does not heed SIGTERM.
                os.killpg(child.pid, signal.SIGKILL)
            ended.join()
            log.close()


def _read(pipe: pathlib.Path, lines: queue.Queue) -> None:
    with open(pipe) as file:
        for line in file:
            lines.put(line)


# -- in a child -----------------------------------------------------------------------------------


def _measure(contestant: str, kind: str, names: list[str], output: str) -> None:
    os.environ["TF_USE_LEGACY_KERAS"] = "1" if contestant == "tf_keras" else "0"
    import tensorflow as tf

    cpu = tf.config.list_physical_devices("CPU")[0]
    if kind == "mirrored":
        tf.config.set_logical_device_configuration(
            cpu, [tf.config.LogicalDeviceConfiguration()] * 2
        )
        strategy = tf.distribute.MirroredStrategy(["cpu:0", "cpu:1"])
    else:
        strategy = tf.distribute.MultiWorkerMirroredStrategy()
    chief = kind == "mirrored" or strategy.cluster_resolver.task_id == 0
    if contestant == "tf_keras":
        import tf_keras as K
    else:
        import keras as K

        import tfdp

        (tfdp.enable if contestant == "tfdp" else tfdp.disable)()
    with open(output if chief else os.devnull, "w") as file:
        for name in names:
            result = {"name": name, **_compare(TABLE[name], K, contestant, strategy)}
            file.write(json.dumps(result) + "\n")
            file.flush()


def _compare(feature, K, contestant: str, strategy) -> dict:
    import numpy as np

    if contestant == "tf_keras" and feature.keras_3_only:
        return {"failed": "-"}
    import tfdp

    if contestant == "tfdp":
        tfdp.disable()
    expected = _outcome(feature, K, None)
    if contestant == "tfdp":
        tfdp.enable()
    try:
        got = _outcome(feature, K, strategy)
    except Exception:
        return {"failed": "crash", "detail": traceback.format_exc()[-1500:]}
    off = 0.0
    for a, b in itertools.zip_longest(expected, got):
        a, b = np.asarray(a, "float64"), np.asarray(b, "float64")
        if a.shape != b.shape:
            return {"failed": f"shape {b.shape} for {a.shape}"}
        if not np.isfinite(b).all():
            return {"off": None}
        off = max(off, float(np.abs(a - b).max(initial=0.0)))
    return {"off": off}


def _outcome(feature, K, strategy) -> list:
    K.utils.set_random_seed(7)
    K.backend.clear_session()
    policy = K.config.set_dtype_policy if hasattr(K, "config") else (
        K.mixed_precision.set_global_policy
    )  # fmt: skip
    policy(feature.policy)
    try:
        return feature.run(K, strategy.scope if strategy else contextlib.nullcontext)
    finally:
        policy("float32")


class Feature:
    """One problem.

    Args:
        run: Called with the library and the scope to build in; returns arrays.
        keras_3_only: Whether tf_keras does not have it.
        policy: The dtype policy.
        tolerance: What tfdp may be off by: more than float32's only in lower precision.
    """

    def __init__(self, run, keras_3_only=False, policy="float32", tolerance=LIMIT):
        self.run = run
        self.keras_3_only = keras_3_only
        self.policy = policy
        self.tolerance = tolerance


def _arrays(rows: int = ROWS):
    import numpy as np

    random = np.random.default_rng(3)
    x = random.normal(size=(rows, FEATURES)).astype("float32")
    y = (np.abs(x[:, 0] * 2 + x[:, 1]).astype("int64") + (x[:, 2] > 0)) % CLASSES
    return x, y


def _targets():
    x, _ = _arrays()
    return (x[:, :2] * 3 + x[:, 2:4] ** 2 + 1).astype("float32")


def _weights():
    import numpy as np

    weights = np.random.default_rng(5).uniform(0.0, 2.0, ROWS).astype("float32")
    weights[::5] = 0.0
    return weights


def _sized(sizes, known=True):
    import numpy as np
    import tensorflow as tf

    x, y = _arrays(sum(sizes))
    ends = np.cumsum([0, *sizes])
    data = tf.data.Dataset.from_generator(
        lambda: ((x[a:b], y[a:b]) for a, b in itertools.pairwise(ends)),
        output_signature=(
            tf.TensorSpec((None, FEATURES), tf.float32),
            tf.TensorSpec((None,), tf.int64),
        ),
    )
    return data.apply(tf.data.experimental.assert_cardinality(len(sizes))) if known else data


def _classifier(K, *hidden, optimizer=None, loss="sparse_categorical_crossentropy", **compile):
    layers = hidden or (K.layers.Dense(8, activation="tanh"),)
    head = K.layers.Dense(CLASSES, activation="softmax", dtype="float32")
    model = K.Sequential([K.layers.Input((FEATURES,)), *layers, head])
    model.compile(optimizer or K.optimizers.SGD(0.1), loss, metrics=["accuracy"], **compile)
    return model


def _trained(model, data, evaluate=None, **fit):
    """Fit and evaluate; return weights, logs and results."""
    options = {"epochs": EPOCHS, "verbose": 0, "shuffle": False, **data, **fit}
    history = model.fit(**options)
    names = ("x", "y", "sample_weight", "batch_size")
    given = evaluate or {k: v for k, v in data.items() if k in names}
    test = model.evaluate(**given, verbose=0)
    return [*model.get_weights(), *map(_numbers, history.history.values()), _numbers(test)]


def _numbers(values):
    import numpy as np

    return np.atleast_1d(np.asarray(values, "float64"))


def _labelled(**more):
    x, y = _arrays()
    return {"x": x, "y": y, "batch_size": BATCH, **more}


def _plain(data, **build):
    """Return a run: a classifier trained on `data()`."""

    def run(K, scope):
        with scope():
            model = _classifier(K, **{k: v(K) for k, v in build.items()})
        return _trained(model, data())

    return run


def _optimizer(make):
    return _plain(_labelled, optimizer=make)


def _unknown(K, scope):
    with scope():
        model = _classifier(K)
    model.fit(_sized([6, 6, 6, 4], known=False), epochs=EPOCHS, verbose=0)
    # Keras 3 counts too many on one device as well: what is right is known.
    steps = 4 * EPOCHS if _alone(scope) else int(model.optimizer.iterations.numpy())
    return [[steps]]


def _generator(K, scope):
    x, y = _arrays()

    def batches():
        for start in range(0, ROWS, BATCH):
            yield x[start : start + BATCH], y[start : start + BATCH]

    with scope():
        model = _classifier(K)
    if _alone(scope):  # what the generator holds, trained each once
        model.fit(x, y, batch_size=BATCH, shuffle=False, verbose=0)
    else:
        model.fit(batches(), verbose=0)
    return model.get_weights()


def _strings(K, scope):
    import numpy as np
    import tensorflow as tf

    words = np.array(["red", "green", "blue"])[np.random.default_rng(1).integers(0, 3, (ROWS, 3))]
    data = tf.data.Dataset.from_tensor_slices((words, _arrays()[1])).batch(BATCH)
    with scope():
        inputs = K.layers.Input((3,), dtype="string")
        ids = K.layers.StringLookup(vocabulary=["red", "green"])(inputs)
        h = K.layers.Flatten()(K.layers.Embedding(4, 4)(ids))
        model = K.Model(inputs, K.layers.Dense(CLASSES, activation="softmax")(h))
        model.compile(K.optimizers.SGD(0.1), "sparse_categorical_crossentropy")
    return _trained(model, {"x": data})


def _masked(K, scope):
    import numpy as np

    random = np.random.default_rng(2)
    ids = random.integers(1, 7, (ROWS, 5)) * (np.arange(5) < random.integers(1, 6, (ROWS, 1)))
    with scope():
        inputs = K.layers.Input((5,), dtype="int32")
        h = K.layers.Embedding(7, 4, mask_zero=True)(inputs)
        h = K.layers.TimeDistributed(K.layers.Dense(6, activation="tanh"))(h)
        model = K.Model(inputs, K.layers.Dense(CLASSES, activation="softmax")(h))
        model.compile(K.optimizers.SGD(0.1), "sparse_categorical_crossentropy")
    return _trained(model, {"x": ids.astype("int32"), "y": ids % CLASSES, "batch_size": BATCH})


def _regression(loss, **data):
    def run(K, scope):
        with scope():
            layers = [K.layers.Dense(8, activation="tanh"), K.layers.Dense(2)]
            model = K.Sequential([K.layers.Input((FEATURES,)), *layers])
            model.compile(K.optimizers.SGD(0.004), loss(K), metrics=["mae"])
        given = {"x": _arrays()[0], "y": _targets(), "batch_size": BATCH}
        return _trained(model, {**given, **{k: v() for k, v in data.items()}})

    return run


def _scalar_mean(K):
    import tensorflow as tf

    return lambda y_true, y_pred: tf.reduce_mean(tf.square(y_true - y_pred))


def _two_outputs(K, scope):
    with scope():
        inputs = K.layers.Input((FEATURES,))
        h = K.layers.Dense(6, activation="tanh")(inputs)
        label = K.layers.Dense(CLASSES, activation="softmax", name="label")(h)
        model = K.Model(inputs, [label, K.layers.Dense(1, name="value")(h)])
        losses = ["sparse_categorical_crossentropy", "mse"]
        model.compile(K.optimizers.SGD(0.05), losses, loss_weights=[1.0, 0.3])
    x, y = _arrays()
    import tensorflow as tf

    weights = (_weights(), _weights()[::-1].copy())
    data = tf.data.Dataset.from_tensor_slices((x, (y, _targets()[:, :1]), weights)).batch(BATCH)
    return _trained(model, {"x": data})


def _regularized(K, scope):
    with scope():
        hidden = K.layers.Dense(8, activation="tanh", kernel_regularizer="l2")
        model = _classifier(K, hidden)
    return _trained(model, _labelled())


def _synchronised(K, scope):
    with scope():
        norm = K.layers.BatchNormalization(synchronized=True)
        model = _classifier(K, K.layers.Dense(8), norm)
    return _trained(model, {"x": _sized([6, 5, 4])})


def _normalised(K, scope):
    """Each replica normalises its own rows: only whether numbers come out is compared."""
    import numpy as np

    with scope():
        model = _classifier(K, K.layers.Dense(8), K.layers.BatchNormalization())
    model.fit(_sized([6, 1, 6]), epochs=EPOCHS, verbose=0)
    finite = [np.isfinite(w).all() for w in model.get_weights()]
    return [[0.0 if all(finite) else np.nan]]


def _overflow(K, scope):
    x, y = _arrays()
    x[BATCH] = 3e38  # the first replica's, in the second batch
    wrapper = getattr(K, "mixed_precision", K.optimizers).LossScaleOptimizer
    with scope():
        model = _classifier(K, optimizer=wrapper(K.optimizers.Adam(0.02), initial_scale=1024.0))
    model.fit(x, y, batch_size=BATCH, epochs=EPOCHS, shuffle=False, verbose=0)
    return model.get_weights()


def _options(**compile):
    def run(K, scope):
        with scope():
            model = _classifier(K, **compile)
        return _trained(model, _labelled())

    return run


def _auc_logs(K, scope):
    seen = []

    class Watch(K.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            seen.append([logs["loss"], logs["auc"]])

    with scope():
        model = K.Sequential([K.layers.Input((FEATURES,)), K.layers.Dense(1, activation="sigmoid")])
        model.compile(
            K.optimizers.SGD(0.5), "binary_crossentropy", metrics=[K.metrics.AUC(name="auc")]
        )
    x, y = _arrays()
    # Across workers the logs are those of the last time that they were summed up: here the first.
    data = {"x": x, "y": (y > 0).astype("float32")[:, None], "batch_size": BATCH}
    model.fit(**data, epochs=1, shuffle=False, verbose=0, callbacks=[Watch()])
    return [seen[:1]] if _in_cluster() else [seen]


def _alone(scope) -> bool:
    return scope is contextlib.nullcontext


def _in_cluster() -> bool:
    return "TF_CONFIG" in os.environ


def _masks(K, scope):
    """0 when every replica draws a mask of its own."""
    import tensorflow as tf

    class Look(K.layers.Layer):
        def call(self, inputs):
            context = tf.distribute.get_replica_context()
            if context is not None and context.num_replicas_in_sync > 1:
                both = context.all_gather(tf.identity(inputs[:1]), axis=0)
                self.add_loss(tf.reduce_mean(tf.cast(tf.equal(both[0], both[1]), tf.float32)))
            else:
                self.add_loss(tf.zeros(()))
            return inputs * 0.0

    with scope():
        dropout = K.layers.Dropout(0.5, seed=1)
        model = K.Sequential([K.layers.Input((512,)), dropout, Look(), K.layers.Dense(1)])
        model.compile(K.optimizers.SGD(0.0), "mse")
    import numpy as np

    history = model.fit(
        np.ones((4, 512)), np.zeros((4, 1)), batch_size=4, epochs=1, verbose=0
    ).history
    return [[float(history["loss"][0] > 0.9)]]


def _predict_on_batch(K, scope):
    with scope():
        model = _classifier(K)
    return [model.predict_on_batch(_arrays()[0][:7])]


def _predict(K, scope):
    with scope():
        model = _classifier(K)
    return [model.predict(_arrays()[0], batch_size=BATCH, verbose=0)]


def _train_on_batch(K, scope):
    with scope():
        loss = K.losses.SparseCategoricalCrossentropy(reduction="sum")
        model = _classifier(K, loss=loss)
    x, y = _arrays()
    for start in range(0, ROWS, BATCH):
        model.train_on_batch(x[start : start + BATCH], y[start : start + BATCH])
    return model.get_weights()


def _own_train_step(K, scope):
    import tensorflow as tf

    class Own(K.Model):
        def __init__(self):
            super().__init__()
            self.head = K.layers.Dense(2)

        def call(self, inputs):
            return self.head(inputs)

        def train_step(self, data):
            x, y = data
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean(tf.square(y - self(x, training=True)))
            gradients = tape.gradient(loss, self.trainable_variables)
            self.optimizer.apply_gradients(zip(gradients, self.trainable_variables, strict=True))
            return {"loss": loss}

    with scope():
        model = Own()
        model.compile(K.optimizers.SGD(0.02))
    model.fit(_arrays()[0], _targets(), batch_size=BATCH, epochs=EPOCHS, shuffle=False, verbose=0)
    return model.get_weights()


def _checkpoint(K, scope):
    """Every epoch is saved, and the file holds what was trained."""
    # The workers of a cluster are children of one launcher: they name one file.
    owner = os.getpid() if _alone(scope) else os.getppid()
    folder = pathlib.Path(tempfile.gettempdir()) / f"exactness-{owner}"
    folder.mkdir(exist_ok=True)
    with scope():
        model = _classifier(K, optimizer=K.optimizers.Adam(0.02))
    save = K.callbacks.ModelCheckpoint(str(folder / "m.weights.h5"), save_weights_only=True)
    model.fit(**_labelled(), epochs=EPOCHS, shuffle=False, verbose=0, callbacks=[save])
    fresh = _classifier(K, optimizer=K.optimizers.Adam(0.02))
    if not _in_cluster() or json.loads(os.environ["TF_CONFIG"])["task"]["index"] == 0:
        fresh.load_weights(str(folder / "m.weights.h5"))
        return fresh.get_weights()
    return model.get_weights()


def _script(name):
    """Return what runs a case of tests/fit/script_cases.py."""

    def run(K, scope):
        sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "tests"))
        from fit import script_cases

        (case,) = [one for one in script_cases.script_cases() if one.name == name]
        with scope():
            model = case.build()
        history = model.fit(**case.fit(), epochs=EPOCHS, shuffle=False, verbose=0).history
        return [*model.get_weights(), *(_numbers(history[name]) for name in sorted(history))]

    return Feature(run, keras_3_only=True)


def _dice(K, scope):
    with scope():
        model = K.Sequential([K.Input((FEATURES,)), K.layers.Dense(2, "sigmoid")])
        model.compile(K.optimizers.SGD(0.1), K.losses.Dice())
    x, _ = _arrays()
    y = (x[:, :2] > 0).astype("float32")
    model.fit(x, y, batch_size=BATCH, epochs=EPOCHS, shuffle=False, verbose=0)
    return model.get_weights()


def _sgd(**options):
    return _optimizer(lambda K: K.optimizers.SGD(0.1, **options))


TABLE = {
    "even batches": Feature(_plain(lambda: {"x": _sized([6, 6, 6])})),
    "ragged last batch": Feature(_plain(_labelled)),
    "first batch uneven": Feature(_plain(lambda: {"x": _sized([5, 6, 6])})),
    "a replica without a row": Feature(_plain(lambda: {"x": _sized([6, 1, 6])})),
    "the same, BatchNormalization (any number)": Feature(_normalised),
    "BatchNormalization(synchronized=True), ragged": Feature(_synchronised, tolerance=2e-5),
    "steps too many, dataset of unknown size": Feature(_unknown),
    "generator": Feature(_generator),
    "string inputs": Feature(_strings),
    "sample weights": Feature(_plain(lambda: _labelled(sample_weight=_weights()))),
    "class weights": Feature(_plain(lambda: _labelled(class_weight={0: 1.0, 1: 3.0, 2: 0.5}))),
    'reduction="mean_with_sample_weight"': Feature(
        _regression(
            lambda K: K.losses.MeanSquaredError(reduction="mean_with_sample_weight"),
            sample_weight=_weights,
        ),
        keras_3_only=True,
    ),
    "masked sequences": Feature(_masked),
    "two outputs, each with weights": Feature(_two_outputs),
    "a user's loss that returns a mean": Feature(_regression(_scalar_mean)),
    "regularizer": Feature(_regularized),
    "clipnorm": Feature(_sgd(clipnorm=0.05)),
    "global_clipnorm": Feature(_sgd(global_clipnorm=0.1)),
    "clipvalue": Feature(_sgd(clipvalue=0.02)),
    "gradient_accumulation_steps=3": Feature(
        _sgd(gradient_accumulation_steps=3), keras_3_only=True
    ),
    "ema_overwrite_frequency=2": Feature(
        _sgd(use_ema=True, ema_momentum=0.8, ema_overwrite_frequency=2)
    ),
    "loss scale, one replica overflows": Feature(_overflow),
    "steps_per_execution=3": Feature(_options(steps_per_execution=3)),
    "jit_compile": Feature(_options(jit_compile=True)),
    "jit_compile, mixed_float16": Feature(
        _options(jit_compile=True), policy="mixed_float16", tolerance=5e-3
    ),
    "run_eagerly": Feature(_options(run_eagerly=True)),
    "a user's train_step, ragged": Feature(_own_train_step),
    "AUC after each batch": Feature(_auc_logs),
    "Dropout: equal masks (1 = equal)": Feature(_masks),
    "predict, ragged": Feature(_predict),
    "predict_on_batch of 7 rows": Feature(_predict_on_batch),
    "train_on_batch, sum": Feature(_train_on_batch),
    "ModelCheckpoint": Feature(_checkpoint),
    "SpectralNormalization: a layer assigns a weight": _script("spectral_normalization"),
    "a layer counts rows, keeps a maximum": _script("layer_counts"),
    "weights clipped in a train_step (WGAN)": _script("clipped_weights"),
    "a teacher moved in a train_step": _script("teacher"),
    "learning rate assigned in a train_step": _script("learning_rate_in_step"),
    "a gradient after an assignment (SAM)": _script("sharpness"),
    "gradients accumulated by hand, in a tf.cond": _script("accumulation_by_hand"),
    "optimizers in a list, a dict, a submodel": _script("optimizers_everywhere"),
    "a metric whose result is a dict": _script("dict_metric"),
    # By design: each replica compares its own rows with one another.
    "keras.losses.Dice (looks at the whole batch)": Feature(
        _dice, keras_3_only=True, tolerance=1.0
    ),
}

if __name__ == "__main__":
    main()
