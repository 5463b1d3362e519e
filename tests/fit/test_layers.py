"""tfdp.layers.Embedding is Keras's, on one device and on replicas."""

import keras
import numpy as np
import pytest

import tfdp
from tfdp import fit

IDS = np.random.default_rng(0).integers(0, 30, (48, 5))
Y = np.random.default_rng(1).normal(size=(48, 1)).astype("float32")


def trained(layer, optimizer, strategy=None):
    """The weights after two epochs, in which batches name rows several times."""
    keras.utils.set_random_seed(5)

    def build():
        model = keras.Sequential(
            [
                keras.Input((5,), dtype="int64"),
                layer(30, 8, mask_zero=True),
                keras.layers.GlobalAveragePooling1D(),
                keras.layers.Dense(1),
            ]
        )
        model.compile(optimizer(), "mse")
        return model

    if strategy is None:
        model = build()
    else:
        with strategy.scope():
            model = build()
    model.fit(IDS, Y, batch_size=16, epochs=2, verbose=0, shuffle=False)
    return model.get_weights()


def largest(a, b):
    return max(float(np.abs(x - y).max()) for x, y in zip(a, b, strict=True))


class Dense(keras.layers.Embedding):
    """The same with a dense gradient."""

    def call(self, inputs):
        return keras.ops.matmul(keras.ops.one_hot(inputs, self.input_dim), self.embeddings)


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda: keras.optimizers.SGD(0.5),
        lambda: keras.optimizers.Adagrad(0.1),
        lambda: keras.optimizers.Adam(0.05),
        lambda: keras.optimizers.RMSprop(0.02, momentum=0.9),
    ],
    ids=["sgd", "adagrad", "adam", "rmsprop"],
)
def test_one_device_trains_what_a_dense_gradient_trains(optimizer):
    fit.disable()
    found = trained(tfdp.layers.Embedding, optimizer)
    assert largest(trained(Dense, optimizer), found) <= 1e-6


@pytest.mark.parametrize("replicas", [1, 2, 3])
def test_replicas_train_what_one_device_trains(replicas, mirrored):
    fit.disable()
    expected = trained(tfdp.layers.Embedding, lambda: keras.optimizers.SGD(0.5))
    fit.enable()
    found = trained(tfdp.layers.Embedding, lambda: keras.optimizers.SGD(0.5), mirrored[replicas])
    assert largest(expected, found) <= 1e-6


def test_shapes_masks_and_half_precision():
    layer = tfdp.layers.Embedding(30, 8, mask_zero=True, dtype="mixed_bfloat16")
    stock = keras.layers.Embedding(30, 8, mask_zero=True, dtype="mixed_bfloat16")
    for ids in (IDS, IDS[0], IDS[:, :, None], np.int64(3)):
        ids = np.asarray(ids)
        layer.build(ids.shape)
        stock.build(ids.shape)
        stock.set_weights(layer.get_weights())
        got, wanted = layer(ids), stock(ids)
        assert got.dtype == wanted.dtype
        assert tuple(got.shape) == tuple(wanted.shape)
        assert np.array_equal(keras.ops.convert_to_numpy(got), keras.ops.convert_to_numpy(wanted))
        assert np.array_equal(layer.compute_mask(ids), stock.compute_mask(ids))


def test_it_is_saved_and_loaded(tmp_path):
    model = keras.Sequential([keras.Input((5,), dtype="int64"), tfdp.layers.Embedding(30, 8)])
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    assert type(again.layers[0]) is tfdp.layers.Embedding
    assert np.array_equal(again.predict(IDS, verbose=0), model.predict(IDS, verbose=0))
