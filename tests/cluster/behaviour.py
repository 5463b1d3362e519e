"""Run by test_behaviour.py in each of two workers: what only several processes can show.

    python -m tfdp.run behaviour.py FOLDER

Every worker writes FOLDER/worker-N.json: a value for each function below.
"""

import json
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

import keras
import numpy as np
import tensorflow as tf
from fit import cases

import tfdp

strategy = tfdp.strategy("multi_worker")
TASK = strategy.cluster_resolver.task_id
FOLDER = pathlib.Path(sys.argv[1])
SIZES = (9, 4, 5)  # records of three files: worker 0 reads the first and the last


def build(*hidden, optimizer=cases.sgd) -> keras.Model:
    """Return a model; layers and optimizer are made by the functions given, under scope."""
    keras.utils.set_random_seed(7)
    with strategy.scope():
        return cases.classifier(*[make() for make in hidden], optimizer=optimizer())


def weights(model: keras.Model) -> list:
    return [w.tolist() for w in model.get_weights()]


def files() -> tf.data.Dataset:
    """Return (x, y) read from three TFRecord files, batched by 4."""
    x, y = cases.arrays(sum(SIZES))
    start = 0
    for number, size in enumerate(SIZES):
        path = FOLDER / f"part-{number}-of-worker-{TASK}"
        with tf.io.TFRecordWriter(str(path)) as writer:
            for row in range(start, start + size):
                pair = np.append(x[row], y[row]).astype("float32")
                writer.write(tf.io.serialize_tensor(pair).numpy())
        start += size
    names = [str(FOLDER / f"part-{n}-of-worker-{TASK}") for n in range(len(SIZES))]

    def parse(record):
        pair = tf.ensure_shape(tf.io.parse_tensor(record, tf.float32), (cases.FEATURES + 1,))
        return pair[:-1], tf.cast(pair[-1], tf.int64)

    dataset = tf.data.Dataset.from_tensor_slices(names)
    dataset = dataset.flat_map(tf.data.TFRecordDataset).map(parse).batch(4)
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.FILE
    return dataset.with_options(options)


def file_sharding() -> dict:
    """Uneven files: one worker comes to its end first, and nothing is lost or hangs."""
    model = build()
    history = model.fit(files(), epochs=2, verbose=0)
    test = model.evaluate(files(), verbose=0, return_dict=True)
    steps = int(model.optimizer.iterations.numpy())
    return {"weights": weights(model), "loss": history.history["loss"], "test": test,
            "steps": steps}  # fmt: skip


def shards_by_function() -> dict:
    """Functions of InputContext whose shards have as many batches, and fewer, known or not."""
    x, y = cases.arrays(22)

    def shard(stop: int, known: bool = True):
        def function(context):
            own = slice(0, 12) if context.input_pipeline_id == 0 else slice(12, stop)
            data = tf.data.Dataset.from_tensor_slices((x[own], y[own])).batch(4)
            return data if known else data.filter(lambda x, y: True)

        return function

    results = {}
    for name, data, eagerly in (
        ("even", shard(22), False),
        ("uneven", shard(17), False),
        ("unknown", shard(17, known=False), False),
        ("eager", shard(17), True),
    ):
        model = build()
        model.run_eagerly = eagerly
        history = model.fit(data, validation_data=data, epochs=2, verbose=0).history
        results[name] = {
            "weights": weights(model),
            "losses": history["loss"] + history["val_loss"],
            "predicted": model.predict(data, verbose=0).tolist(),
            "steps": int(model.optimizer.iterations.numpy()),
        }
    return results


def callbacks() -> dict:
    """Every worker takes the same decisions; files come from the chief alone."""
    folder = FOLDER / "callbacks"
    model = build(optimizer=lambda: cases.sgd(3.0))
    seen = []
    k = keras.callbacks

    class ChiefReads(k.Callback):
        """Reads and saves on the chief alone: no other worker may be needed for that."""

        def on_train_batch_end(self, batch, logs=None):
            if TASK == 0:
                self.model.get_metrics_result()
                [m.result() for m in self.model.metrics]

        def on_epoch_end(self, epoch, logs=None):
            seen.append(logs["loss"])
            if TASK == 0:
                self.model.get_weights()
                self.model.save(folder / "chief.keras")
            self.model.save(folder / "all.keras")

    stop = k.EarlyStopping("loss", patience=2, min_delta=0.2, restore_best_weights=True)
    history = model.fit(
        **cases.array_fit()(),
        epochs=20,
        shuffle=False,
        verbose=0,
        validation_data=cases.arrays(9),
        callbacks=[
            ChiefReads(),
            k.ModelCheckpoint(str(folder / "best.keras"), save_best_only=True),
            k.ModelCheckpoint(str(folder / "last.weights.h5"), save_weights_only=True),
            k.CSVLogger(str(folder / "log.csv")),
            k.TensorBoard(str(folder / "board")),
            k.ReduceLROnPlateau("loss", patience=1),
            stop,
        ],
    )
    return {
        "history": history.history,
        "seen": seen,
        "stopped": stop.stopped_epoch,
        "rate": float(model.optimizer.learning_rate.numpy()),
        "weights": weights(model),
    }


def stop_on_one_worker() -> dict:
    """stop_training set by one worker stops all, at the same step."""

    class Stop(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if TASK == 1 and batch == 2:
                self.model.stop_training = True

    model = build()
    data = cases.dataset(12).repeat(40)
    history = model.fit(data, epochs=5, verbose=0, callbacks=[Stop()])
    return {"steps": int(model.optimizer.iterations.numpy()), "epochs": history.epoch}


def backup_and_restore() -> dict:
    """After a crash all workers go on from the chief's backup."""

    class Crash(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2:
                raise RuntimeError("crash")

    def train(crash):
        model = build(optimizer=lambda: keras.optimizers.Adam(0.02))
        backup = keras.callbacks.BackupAndRestore(str(FOLDER / "backup"))
        given = [backup, Crash()] if crash else [backup]
        history = model.fit(
            **cases.array_fit()(), epochs=4, shuffle=False, verbose=0, callbacks=given
        )
        return model, history.epoch

    try:
        train(crash=True)
    except RuntimeError:
        pass
    resumed, epochs = train(crash=False)
    unbroken, _ = train(crash=False)
    return {"epochs": epochs, "resumed": weights(resumed), "unbroken": weights(unbroken)}


def batch_normalization() -> dict:
    """Statistics are the average over the workers; synchronised, they are one device's."""
    layers = keras.layers
    result = {}
    for synchronized in (False, True):
        model = build(
            lambda: layers.Dense(8),
            lambda s=synchronized: layers.BatchNormalization(synchronized=s),
        )
        model.fit(**cases.array_fit()(), shuffle=False, verbose=0)
        result[str(synchronized)] = weights(model)
    return result


def dropout() -> dict:
    """Each worker draws its own mask, and the seeds stay equal."""
    drawn = []

    class Keep(keras.layers.Layer):
        def call(self, inputs):
            if not isinstance(inputs, keras.KerasTensor):
                tf.py_function(lambda t: drawn.append(t.numpy()), [inputs], [])
            return inputs

    model = build(lambda: keras.layers.Dropout(0.5, seed=3), Keep)
    model.fit(np.ones((8, cases.FEATURES)), np.ones(8), batch_size=8, verbose=0)
    masks = [d[0].tolist() for d in drawn if len(d) == 4 and (d == 0).any()]
    return {"mask": masks[-1], "seed": model.layers[0].seed_generator.state.numpy().tolist()}


def predict() -> dict:
    """Every worker gets all rows, in order: floats, strings and ragged rows too."""

    class Ids(keras.Model):
        def call(self, inputs):
            ids = tf.cast(inputs[:, 0], tf.int64)
            return {
                "id": ids,
                "name": tf.strings.as_string(ids),
                "list": tf.ragged.range(ids % 3),
            }

    with strategy.scope():
        model = Ids()
    x = np.arange(11, dtype="float32")[:, None]
    got = model.predict(x, batch_size=4, verbose=0)
    return {
        "id": got["id"].tolist(),
        "name": [n.decode() for n in got["name"].tolist()],
        "list": got["list"].to_list(),
    }


FUNCTIONS = (
    file_sharding,
    shards_by_function,
    callbacks,
    stop_on_one_worker,
    backup_and_restore,
    batch_normalization,
    dropout,
    predict,
)

if __name__ == "__main__":
    results = {function.__name__: function() for function in FUNCTIONS}
    (FOLDER / f"worker-{TASK}.json").write_text(json.dumps(results))
