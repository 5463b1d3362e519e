"""Callbacks see what they see on one device, and do what they do there."""

import csv

import keras
import numpy as np
import pytest

from fit import cases
from tfdp import fit
from tfdp.fit import callbacks as callbacks_lib


class Recorder(keras.callbacks.Callback):
    """Writes down every hook with its index and the names and values of its logs."""

    def __init__(self):
        super().__init__()
        self.events = []

    def __getattribute__(self, name):
        if name.startswith("on_"):
            return lambda *args, **kwargs: self._note(name, *args, **kwargs)
        return super().__getattribute__(name)

    def _note(self, name, *args, logs=None):
        if args and (args[-1] is None or isinstance(args[-1], dict)):
            *args, logs = args
        self.events.append((name, tuple(args), dict(logs or {})))


def events(strategy, **compile):
    recorder = Recorder()
    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(7)
    if strategy is None:
        model = cases.classifier(**compile)
    else:
        with strategy.scope():
            model = cases.classifier(**compile)
    data = cases.array_fit()()
    model.fit(
        **data,
        epochs=2,
        shuffle=False,
        verbose=0,
        validation_data=cases.arrays(8),
        callbacks=[recorder],
    )
    model.evaluate(**data, verbose=0, callbacks=[recorder])
    model.predict(data["x"], batch_size=8, verbose=0, callbacks=[recorder])
    return recorder.events


@pytest.mark.parametrize("steps_per_execution", [1, 2])
def test_hooks_come_in_keras_order_with_the_values_of_one_device(steps_per_execution, mirrored):
    fit.disable()
    expected = events(None, steps_per_execution=steps_per_execution)
    fit.enable()
    got = events(mirrored[2], steps_per_execution=steps_per_execution)
    # Keras names a step of predict that did not run: see the next test.
    assert [(n, a) for n, a, _ in got if n != "on_predict_batch_end"] == [
        (n, a) for n, a, _ in expected if n != "on_predict_batch_end"
    ]
    for (name, _, logs), (_, _, wanted) in zip(got, expected, strict=False):
        assert list(logs) == list(wanted), name
        for key in logs:
            if key != "outputs":
                assert logs[key] == pytest.approx(wanted[key], abs=1e-5), (name, key)


def test_batch_hooks_name_the_last_step_that_ran(mirrored):
    """Where steps_per_execution does not divide the steps, Keras names one that did not."""
    fit.enable()
    got = events(mirrored[2], steps_per_execution=3)
    ends = [args for name, args, _ in got if name == "on_train_batch_end"]
    assert ends == [(2,), (3,), (2,), (3,)]


def test_predict_calls_hooks_once_for_steps_per_execution(mirrored):
    fit.enable()
    seen = []
    hooks = keras.callbacks.LambdaCallback()
    hooks.on_predict_batch_begin = lambda step, logs=None: seen.append(step)
    hooks.on_predict_batch_end = lambda step, logs: seen.append((step, len(logs["outputs"])))
    with mirrored[2].scope():
        model = cases.classifier(steps_per_execution=3)
    x, _ = cases.arrays(13)
    predicted = model.predict(x, batch_size=2, verbose=0, callbacks=[hooks])
    assert seen == [0, (2, 6), 3, (5, 6), 6, (6, 1)]
    np.testing.assert_allclose(predicted, model(x), atol=1e-6)


def test_keras_own_callbacks(mirrored, tmp_path):
    fit.enable()
    with mirrored[2].scope():
        model = cases.classifier()
    data = cases.array_fit()()
    rates = []
    history = model.fit(
        **data,
        epochs=4,
        verbose=0,
        validation_data=cases.arrays(9),
        callbacks=[
            keras.callbacks.ModelCheckpoint(str(tmp_path / "best.keras"), save_best_only=True),
            keras.callbacks.ModelCheckpoint(
                str(tmp_path / "{epoch}.weights.h5"), save_weights_only=True
            ),
            keras.callbacks.CSVLogger(str(tmp_path / "log.csv")),
            keras.callbacks.TensorBoard(str(tmp_path / "board"), update_freq=2),
            keras.callbacks.TerminateOnNaN(),
            keras.callbacks.LearningRateScheduler(lambda epoch: 0.1 / (1 + epoch)),
            keras.callbacks.ReduceLROnPlateau(monitor="loss", patience=1, min_delta=10.0),
            keras.callbacks.LambdaCallback(
                on_epoch_end=lambda epoch, logs: rates.append(
                    float(model.optimizer.learning_rate.numpy())
                )
            ),
        ],
    )
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "1.weights.h5", "2.weights.h5", "3.weights.h5", "4.weights.h5",
        "best.keras", "board", "log.csv",
    ]  # fmt: skip
    rows = list(csv.DictReader((tmp_path / "log.csv").open()))
    assert [float(r["loss"]) for r in rows] == pytest.approx(history.history["loss"])
    best = keras.models.load_model(tmp_path / "best.keras")
    x, y = cases.arrays(9)
    assert best.evaluate(x, y, verbose=0)[0] == pytest.approx(
        min(history.history["val_loss"]), abs=1e-5
    )
    assert rates[0] == pytest.approx(0.1)
    assert rates[2] < 0.1 / 3


def test_each_epoch_of_a_dataset_without_a_length_has_its_line(mirrored, capsys):
    """As Keras's, which learns of the steps where a bar would show each of them."""
    with mirrored[2].scope():
        model = cases.classifier()
    data = cases.batches([6, 6, 6, 4])
    model.fit(data, epochs=2, verbose=2, validation_data=data)
    model.evaluate(data, verbose=2)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" - ")[0] for line in lines] == [
        "Epoch 1/2",
        "4/4",
        "Epoch 2/2",
        "4/4",
        "4/4",
    ]
    assert all(" - loss: " in line for line in lines if line.startswith("4/4"))
    assert "val_loss" in lines[3]


def test_early_stopping_restores_the_best_weights(mirrored):
    fit.enable()
    with mirrored[2].scope():
        model = cases.classifier(optimizer=cases.sgd(3.0))
    data = cases.array_fit()()
    stop = keras.callbacks.EarlyStopping("loss", patience=2, restore_best_weights=True)
    history = model.fit(**data, epochs=40, shuffle=False, verbose=0, callbacks=[stop])
    losses = history.history["loss"]
    assert len(losses) < 40
    assert stop.best_epoch == int(np.argmin(losses))
    assert len(losses) == stop.best_epoch + 3


def test_terminate_on_nan(mirrored):
    fit.enable()
    with mirrored[2].scope():
        model = cases.regressor(optimizer=cases.sgd(1e30))
    data = cases.regression_fit()()
    history = model.fit(**data, epochs=5, verbose=0, callbacks=[keras.callbacks.TerminateOnNaN()])
    assert len(history.epoch) == 1


@pytest.mark.parametrize("where", ["batch", "epoch"])
def test_stop_training_stops(where, mirrored):
    fit.enable()
    with mirrored[2].scope():
        model = cases.classifier()

    class Stop(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if where == "batch" and batch == 1:
                self.model.stop_training = True

        def on_epoch_end(self, epoch, logs=None):
            if where == "epoch" and epoch == 1:
                self.model.stop_training = True

    model.fit(**cases.array_fit()(), epochs=5, verbose=0, callbacks=[Stop()])
    assert model.optimizer.iterations.numpy() == {"batch": 2, "epoch": 8}[where]


def test_backup_and_restore_goes_on_where_it_was(mirrored, tmp_path):
    fit.enable()

    class Crash(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2:
                raise RuntimeError("crash")

    def train(crash):
        keras.utils.clear_session(free_memory=False)
        keras.utils.set_random_seed(7)
        with mirrored[2].scope():
            model = cases.classifier(optimizer=keras.optimizers.Adam(0.02))
        backup = keras.callbacks.BackupAndRestore(str(tmp_path / "backup"))
        callbacks = [backup, Crash()] if crash else [backup]
        history = model.fit(
            **cases.array_fit()(), epochs=4, shuffle=False, verbose=0, callbacks=callbacks
        )
        return model, history

    with pytest.raises(RuntimeError, match="crash"):
        train(crash=True)
    resumed, history = train(crash=False)
    assert history.epoch == [0, 1, 2, 3]
    unbroken, _ = train(crash=False)
    for a, b in zip(unbroken.get_weights(), resumed.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_swap_ema_weights(mirrored):
    fit.disable()
    got = []
    for strategy in (None, mirrored[2]):
        fit.disable() if strategy is None else fit.enable()

        def build():
            return cases.classifier(optimizer=cases.sgd(use_ema=True, ema_momentum=0.8))

        case = cases.Case(
            "swap",
            build,
            cases.array_fit(
                validation_data=cases.arrays(9),
                callbacks=[keras.callbacks.SwapEMAWeights(swap_on_epoch=True)],
            ),
        )
        got.append(cases.run(case, strategy))
    assert max(cases.differences(*got).values()) <= 1e-5


def test_only_the_chief_writes(tmp_path):
    """What the processes that are not the chief do with callbacks that write."""
    k = keras.callbacks
    given = [
        k.CSVLogger(str(tmp_path / "a.csv")),
        [k.TensorBoard(str(tmp_path / "b")), k.EarlyStopping()],
        k.BackupAndRestore(str(tmp_path / "c")),
    ]
    *others, last = callbacks_lib.prepare(given, chief=True)
    assert others == keras.tree.flatten(given)[:-1]
    assert last.settings.folder == str(tmp_path / "c")
    kept = callbacks_lib.prepare(given, chief=False)
    assert [type(c).__name__ for c in kept] == ["EarlyStopping", "InPlace"]

    class Own(k.BackupAndRestore):
        pass

    given = [Own(str(tmp_path / "c"))]
    assert callbacks_lib.prepare(given, chief=True) == given
    kept = callbacks_lib.prepare(given, chief=False)
    assert [type(c).__name__ for c in kept] == ["_RestoreOnly"]
    model = cases.classifier()
    with callbacks_lib.chief_writes(model, chief=False):
        model.save(tmp_path / "m.keras")
        model.save_weights(tmp_path / "m.weights.h5")
    assert list(tmp_path.iterdir()) == []
    model.save(tmp_path / "m.keras")
    assert [p.name for p in tmp_path.iterdir()] == ["m.keras"]


def test_save_points():
    class Saves:
        def __init__(self, frequency):
            self.save_freq = frequency

    points = callbacks_lib.SavePoints([Saves("epoch"), Saves(3), object()])
    assert [points.reached(1) for _ in range(7)] == [
        False, False, True, False, False, True, False,
    ]  # fmt: skip
    assert [points.reached(2) for _ in range(3)] == [True, False, True]
