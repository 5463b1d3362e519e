"""What fit does in the task that evaluates."""

import os
import pathlib

import keras
import numpy as np
import pytest

from tfdp import fit
from tfdp.fit import dispatch, evaluator


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
