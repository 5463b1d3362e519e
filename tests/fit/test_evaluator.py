"""What fit does in the task that evaluates."""

import os
import pathlib

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf

from tfdp import fit
from tfdp.compat import saved_models
from tfdp.fit import dispatch, evaluator


@pytest.fixture(autouse=True)
def no_evaluator():
    yield
    fit.set_evaluator(False)


@pytest.fixture
def data():
    x = np.random.default_rng(0).normal(size=(64, 4)).astype("float32")
    return x, x.sum(axis=1)


def made(strategy):
    with strategy.scope():
        model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
        model.compile("sgd", "mse")
    return model


def test_whole_models_are_evaluated_once_and_half_written_ones_later(one_device, data, tmp_path):
    fit.enable()
    trained = made(one_device)
    losses = []
    for name in ("01.keras", "02.keras"):
        trained.fit(*data, verbose=0)
        trained.save(tmp_path / name)
        losses.append(trained.evaluate(*data, verbose=0))
    whole = (tmp_path / "02.keras").read_bytes()
    (tmp_path / "02.keras").write_bytes(whole[: len(whole) // 2])
    asked = []

    def is_ended() -> bool:
        asked.append(sorted(path.name for path in tmp_path.iterdir()))
        if len(asked) == 3:
            (tmp_path / "02.keras").write_bytes(whole)
        return len(asked) == 4

    model = made(one_device)
    history = evaluator.Evaluator(dispatch.trainer_of(model), is_ended).fit(
        *data,
        validation_data=data,
        callbacks=[keras.callbacks.ModelCheckpoint(tmp_path / "{epoch:02d}.keras")],
    )
    assert history.history["loss"] == pytest.approx(losses, rel=1e-6)
    assert len(asked) == 4


def test_a_checkpoint_that_cannot_be_read_is_named(one_device, data, tmp_path):
    fit.enable()
    path = tmp_path / "a.weights.h5"
    path.write_bytes(b"no checkpoint")
    os.utime(path, (0, 0))
    with pytest.raises(OSError, match=r"The checkpoint .*a\.weights\.h5 cannot be read: "):
        evaluator.Evaluator(dispatch.trainer_of(made(one_device)), lambda: True).fit(
            *data,
            validation_data=data,
            callbacks=[keras.callbacks.ModelCheckpoint(path, save_weights_only=True)],
        )


@pytest.mark.parametrize(
    ("callbacks", "validation_data", "missing"),
    [
        ([], ([[1.0]], [1.0]), "callbacks=[ModelCheckpoint(...)]"),
        ([keras.callbacks.ModelCheckpoint("a.keras")], None, "validation_data"),
    ],
)
def test_what_an_evaluator_needs(callbacks, validation_data, missing, one_device):
    fit.enable()
    one = evaluator.Evaluator(dispatch.trainer_of(made(one_device)), lambda: True)
    with pytest.raises(ValueError) as caught:
        one.fit([[1.0]], [1.0], callbacks=callbacks, validation_data=validation_data)
    assert f"give fit {missing}, or start no evaluator." in str(caught.value)
    assert not pathlib.Path("a.keras").exists()


@pytest.mark.parametrize(
    ("name", "save_freq", "file", "epoch"),
    [
        # The name holds an epoch from 1, TensorBoard's axis begins with 0.
        ("{epoch}.weights.h5", "epoch", "12.weights.h5", 11),
        ("{epoch:03d}.keras", "epoch", "001.keras", 0),
        ("{epoch:3d}.keras", "epoch", "  7.keras", 6),
        ("a{epoch:02d}-{val_loss:.2f}.keras", "epoch", "a03-14.50.keras", 2),
        ("{val_loss:.2f}-{epoch:02d}.keras", "epoch", "0.03-14.keras", 13),
        ("{epoch:02d}.keras", "epoch", "02.keras.part", "another file"),
        ("{epoch:02d}.keras", "epoch", "02-keras", "another file"),
        ("{epoch:02d}.keras", "epoch", "best.keras", "another file"),
        ("{epochs:02d}.keras", "epoch", "02.keras", None),
        ("last.keras", "epoch", "last.keras", None),
        # Several in an epoch.
        ("{epoch:02d}-{batch:04d}.keras", 10, "02-0010.keras", None),
        ("{epoch:02d}.keras", 10, "02.keras", None),
        ("{epoch}-{epoch}.keras", "epoch", "2-2.keras", None),
    ],
)
def test_the_epoch_of_a_checkpoint(name, save_freq, file, epoch, tmp_path):
    (tmp_path / file).touch()
    callback = keras.callbacks.ModelCheckpoint(tmp_path / name, save_freq=save_freq)
    found = [(pathlib.Path(one.path).name, one.epoch) for one in evaluator._files([callback])]
    assert found == ([] if epoch == "another file" else [(file, epoch)])


def scalars(folder):
    """What TensorBoard shows of a folder: (tag, step, value)."""
    shown = []
    for path in folder.glob("events.out.tfevents.*"):
        for event in tf.compat.v1.train.summary_iterator(str(path)):
            for value in event.summary.value:
                shown.append((value.tag, event.step, float(tf.make_ndarray(value.tensor))))
    return shown


@pytest.mark.parametrize("name", ["a.weights.h5", "a.keras"])
@pytest.mark.parametrize(
    ("optimizer", "steps"),
    [
        (lambda: keras.optimizers.Adam(), 6),
        # It keeps the count in its inner optimizer.
        (lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(momentum=0.9)), 6),
        (lambda: None, None),
    ],
    ids=["Adam", "LossScaleOptimizer", "none"],
)
def test_how_many_steps_a_checkpoint_was_trained_for(name, optimizer, steps, tmp_path):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    if made := optimizer():
        model.compile(made, "mse")
        made.build(model.trainable_variables)
        made.iterations.assign(6)
    (model.save if name.endswith(".keras") else model.save_weights)(tmp_path / name)
    assert saved_models.saved_iterations(str(tmp_path / name)) == steps


def test_a_checkpoint_has_its_own_step_also_after_a_restart(one_device, data, tmp_path):
    fit.enable()

    def callbacks():
        checkpoint = keras.callbacks.ModelCheckpoint
        return [
            checkpoint(tmp_path / "{epoch:02d}.weights.h5", save_weights_only=True),
            checkpoint(tmp_path / "whole" / "{epoch:02d}.keras"),
            checkpoint(tmp_path / "last.weights.h5", save_weights_only=True),
            keras.callbacks.TensorBoard(tmp_path / "board"),
        ]

    settings = {"validation_data": data, "batch_size": 32}
    history = made(one_device).fit(*data, epochs=3, verbose=0, callbacks=callbacks(), **settings)
    losses = history.history["val_loss"]
    epochs = [("epoch_loss", epoch, losses[epoch]) for epoch in (0, 1, 2) for _ in range(2)]
    # Only the last of these is left, after 3 epochs of 2 steps.
    expected = [*epochs, ("evaluation_loss_vs_iterations", 6, losses[2])]
    for starts in (1, 2):
        one = evaluator.Evaluator(dispatch.trainer_of(made(one_device)), lambda: True)
        one.fit(*data, callbacks=callbacks(), **settings)
        shown = scalars(tmp_path / "board" / "evaluator")
        wanted = sorted(expected * starts)
        assert sorted(shown) == [(*place, pytest.approx(loss, rel=1e-5)) for *place, loss in wanted]


class TestTheEnd:
    """When the evaluator knows that the chief's fit has ended."""

    @pytest.fixture
    def callbacks(self, tmp_path):
        return [keras.callbacks.ModelCheckpoint(tmp_path / "a" / "{epoch}.keras")]

    @pytest.fixture
    def file(self, tmp_path):
        (tmp_path / "a").mkdir()
        return tmp_path / "a" / ".training_ended"

    def test_without_an_evaluator_there_is_no_file(self, one_device, data, tmp_path):
        fit.enable()
        path = tmp_path / "a" / "{epoch}.keras"
        for run, files in ((None, ["1.keras"]), ("r", [".training_ended", "1.keras"])):
            fit.set_evaluator(False, run)
            callbacks = [keras.callbacks.ModelCheckpoint(path)]
            made(one_device).fit(*data, verbose=0, callbacks=callbacks)
            assert sorted(entry.name for entry in path.parent.iterdir()) == files

    @pytest.mark.parametrize(
        ("run", "fits", "text", "is_over"),
        [
            ("r", 1, None, False),
            ("r", 1, "1 r", True),
            # The chief is in its second fit already, or still in its first.
            ("r", 1, "2 r", True),
            ("r", 2, "1 r", False),
            ("r", 2, "2 r", True),
            # An earlier run in this folder.
            ("r", 1, "1 earlier", False),
            ("r", 1, "1 ", False),
            ("", 1, "1 ", True),
            ("", 2, "1 ", False),
        ],
    )
    def test_is_seen_at_the_file(self, run, fits, text, is_over, callbacks, file, monkeypatch):
        monkeypatch.setattr(evaluator, "_run", run)
        monkeypatch.setattr(evaluator, "_fits", {file.parent: fits})
        if text is not None:
            file.write_text(f"{text}\n")
        assert evaluator._has_ended([file.parent]) == is_over

    def test_of_a_run_without_a_name_is_new(self, file, monkeypatch):
        monkeypatch.setattr(evaluator, "_run", "")
        monkeypatch.setattr(evaluator, "_fits", {file.parent: 1})
        file.write_text("1 \n")
        os.utime(file, (0, 0))
        assert not evaluator._has_ended([file.parent])

    def test_each_fit_is_told_and_an_earlier_run_forgotten(self, callbacks, file):
        fit.set_evaluator(False, "r")
        file.write_text("7 earlier\n")
        evaluator.begins(callbacks)
        assert not file.exists()
        evaluator.ended(callbacks)
        assert file.read_text() == "1 r\n"
        # The evaluator may not have seen it yet.
        evaluator.begins(callbacks)
        assert file.read_text() == "1 r\n"
        evaluator.ended(callbacks)
        assert file.read_text() == "2 r\n"
        assert [entry.name for entry in file.parent.iterdir()] == [file.name]


def test_the_chief_can_write_a_checkpoint_anew_while_it_is_read(
    one_device, data, tmp_path, monkeypatch
):
    fit.enable()
    trained, model = made(one_device), made(one_device)
    path = tmp_path / "last.weights.h5"
    trained.save_weights(path)
    load_weights = model.load_weights

    def load(given):
        with h5py.File(given):  # which locks it
            trained.save_weights(path)
        load_weights(given)

    monkeypatch.setattr(model, "load_weights", load, raising=False)
    one = evaluator.Evaluator(dispatch.trainer_of(model), lambda: True)
    checkpoint = keras.callbacks.ModelCheckpoint(path, save_weights_only=True)
    one.fit(*data, validation_data=data, callbacks=[checkpoint])
    np.testing.assert_array_equal(model.get_weights()[0], trained.get_weights()[0])


def test_a_folder_for_each_epoch_is_refused(one_device, data, tmp_path):
    fit.enable()
    one = evaluator.Evaluator(dispatch.trainer_of(made(one_device)), lambda: True)
    path = tmp_path / "{epoch}" / "a.keras"
    with pytest.raises(ValueError, match="looks for the files of ModelCheckpoint in one folder"):
        one.fit(*data, validation_data=data, callbacks=[keras.callbacks.ModelCheckpoint(path)])


def test_the_evaluator_does_not_train_where_there_is_no_strategy(data, tmp_path):
    fit.enable()
    fit.set_evaluator(True, "r")
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    checkpoint = keras.callbacks.ModelCheckpoint(tmp_path / "{epoch}.keras")
    before = model.get_weights()[0].copy()
    for callbacks in (checkpoint, [checkpoint]):
        with pytest.raises(ValueError, match=r"outside of any strategy's scope"):
            model.fit(*data, verbose=0, callbacks=callbacks)
    assert (model.get_weights()[0] == before).all()
    assert list(tmp_path.iterdir()) == []
    # What a script trains on the side, and every task by itself.
    model.fit(*data, verbose=0)
    assert (model.get_weights()[0] != before).any()
