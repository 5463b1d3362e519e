"""Run by test_sync_every.py in each of two workers that train by themselves between meetings.

    python -m tfdp.run apart.py FOLDER

Every worker writes FOLDER/worker-N.json: a value for each function below.
"""

import json
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

import keras
import tensorflow as tf
from fit import test_sync_every as problem

import tfdp

strategy = tfdp.strategy("multi_worker")
TASK = strategy.cluster_resolver.task_id
FOLDER = pathlib.Path(sys.argv[1])


class Steps(keras.callbacks.Callback):
    """Counts calls and notes the numbers of the steps."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def on_train_batch_end(self, batch, logs=None):
        self.seen.append(batch)


def fitted(communication, data=None, callbacks=(), epochs=2):
    tfdp.enable(communication)
    with strategy.scope():
        dense = keras.layers.Dense(1, use_bias=False)
        model = keras.Sequential([keras.Input((problem.WIDTH,)), dense])
        dense.set_weights([problem.START[:, None]])
        sgd = keras.optimizers.SGD(problem.RATE, momentum=problem.MOMENTUM)
        model.compile(sgd, "mse", metrics=["mae"])
    if data is None:
        data = tf.data.Dataset.from_tensor_slices(problem.rows()).batch(5)
    history = model.fit(data, epochs=epochs, callbacks=list(callbacks), verbose=0)
    optimizer = [v.numpy().tolist() for v in model.optimizer.variables]
    return {"weights": model.get_weights()[0].tolist(), "optimizer": optimizer, **history.history}


def shards(sizes, known=True):
    """Worker 0 reads the first rows, worker 1 those after them, two a step."""

    def function(context):
        begin = sum(sizes[: context.input_pipeline_id])
        mine = [part[begin : begin + sizes[context.input_pipeline_id]] for part in problem.rows()]
        dataset = tf.data.Dataset.from_tensor_slices(tuple(mine)).batch(2)
        return dataset if known else dataset.filter(lambda x, y: tf.shape(x)[0] > 0)

    return function


def shared_memory():
    return fitted(problem.periodic(4, sync_after=3))


def ring():
    return fitted(problem.periodic(4, sync_after=3, implementation="ring"))


def outer():
    sgd = keras.optimizers.SGD(0.7, momentum=0.9, nesterov=True)
    return fitted(problem.periodic(2, outer=sgd))


def uneven():
    steps = Steps()
    return {**fitted(problem.periodic(3), shards((17, 9), False), [steps]), "steps": steps.seen}


def uneven_at_a_meeting():
    steps = Steps()
    return {**fitted(problem.periodic(4), shards((16, 10), False), [steps]), "steps": steps.seen}


def stopped():
    """One worker asks for the end in step 2: all hear of it where they meet next."""

    class Stop(Steps):
        def on_train_batch_end(self, batch, logs=None):
            super().on_train_batch_end(batch, logs)
            if TASK == 1 and batch == 1:
                self.model.stop_training = True

    steps = Stop()
    data = tf.data.Dataset.from_tensor_slices(problem.rows()).repeat().batch(4)
    data = data.take(40)
    return {**fitted(problem.periodic(4), data, [steps]), "steps": len(steps.seen)}


def resumed():
    """Both workers end between two meetings, and go on."""
    unbroken = fitted(problem.periodic(4))
    for after in (3, 5, None):
        callbacks = [tfdp.callbacks.BackupAndRestore(str(FOLDER / "backup"), save_freq=1)]
        callbacks += [problem.Kill(after)] if after else []
        try:
            found = fitted(problem.periodic(4), None, callbacks)
        except problem.Killed:
            continue
    return {"unbroken": unbroken, "resumed": found}


def uneven_and_saved():
    """Saves, by Keras's callback too, while one worker has ended."""
    callbacks = [
        tfdp.callbacks.BackupAndRestore(str(FOLDER / "uneven"), save_freq=2),
        keras.callbacks.ModelCheckpoint(str(FOLDER / "model.keras"), save_freq=5),
    ]
    return fitted(problem.periodic(3), shards((17, 9), False), callbacks)


if __name__ == "__main__":
    names = (
        *("shared_memory", "ring", "outer", "uneven", "uneven_at_a_meeting", "stopped"),
        *("resumed", "uneven_and_saved"),
    )
    found = {}
    for name in names:
        found[name] = globals()[name]()
        print(name, "done", flush=True)
    (FOLDER / f"worker-{TASK}.json").write_text(json.dumps(found))
