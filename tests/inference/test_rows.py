"""tfdp.predict in Python: rows in the order in which they were given."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfdp
from tfdp.inference.failures import InferenceError, JobFailed
from tfdp.serving import export

X = np.random.default_rng(0).normal(size=(300, 4)).astype("float32")


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    layers = keras.layers
    x = keras.Input((4,), name="x")
    return keras.Model(x, layers.Dense(3, name="y")(layers.Dense(8, activation="relu")(x)))


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "dense"
    export.export(model, folder)
    return folder


def forms():
    yield "an array", X
    yield "a dict", {"x": X}
    yield "float64", X.astype("float64")
    batches = tf.data.Dataset.from_tensor_slices(X)
    yield "batches of another size", batches.batch(47)
    yield "inputs and labels", tf.data.Dataset.zip(batches, batches).batch(64)
    yield "a dict in batches", tf.data.Dataset.from_tensor_slices({"x": X}).batch(100)


@pytest.mark.parametrize("name", [name for name, _ in forms()])
def test_rows_in_order(name, model, folder):
    y = tfdp.predict(folder, dict(forms())[name], batch_size=32)
    assert y.shape == (300, 3)
    np.testing.assert_allclose(y, model.predict(X, verbose=0), rtol=0, atol=1e-6)


def test_a_keras_model(model):
    y = tfdp.predict(model, X)
    np.testing.assert_allclose(y, model.predict(X, verbose=0), rtol=0, atol=1e-6)


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.cluster)])
def test_no_rows(workers, folder):
    assert tfdp.predict(folder, X[:0], workers=workers).shape == (0, 3)


@pytest.mark.cluster
def test_rows_of_several_processes(model, folder):
    dataset = tf.data.Dataset.from_tensor_slices(X).batch(47)
    y = tfdp.predict(folder, dataset, workers=2)
    np.testing.assert_allclose(y, model.predict(X, verbose=0), rtol=0, atol=1e-6)


class Lengths(tf.Module):
    """The lengths of strings, and their sum with a number."""

    @tf.function(
        input_signature=[
            tf.TensorSpec([None], tf.string, name="text"),
            tf.TensorSpec([None, 2], tf.int32, name="n"),
        ]
    )
    def serve(self, text, n):
        length = tf.strings.length(text)
        return {"length": length, "sum": n + length[:, None]}


@pytest.mark.cluster
def test_strings_and_several_inputs_and_outputs(tmp_path):
    module = Lengths()
    tf.saved_model.save(module, str(tmp_path / "1"), {"serving_default": module.serve})
    text = [b"", b"abc", b"zeros at the end\0\0", "äh"]
    rows = {"text": np.array(text, object), "n": np.arange(8, dtype="int32").reshape(4, 2)}
    for workers in (1, 2):
        found = tfdp.predict(tmp_path, rows, workers=workers)
        assert found["length"].tolist() == [0, 3, 18, 3]
        assert found["sum"].tolist() == [[0, 1], [5, 6], [22, 23], [9, 10]]


@pytest.mark.parametrize(
    ("dataset", "options", "line"),
    [
        (X, {"workers": 0}, "workers=0: use 1 or more."),
        (X, {"batch_size": 0}, "batch_size=0: use 1 or more."),
        (
            X[:, :3],
            {},
            "The input holds rows of float32 (3,), but x is float32 (?, 4). The model has: "
            "serving_default(x: float32 (?, 4)) -> y: float32 (?, 3).",
        ),
        (
            {"z": X},
            {"workers": 2},
            "The input has no field 'x' for x: float32 (?, 4). It has z. Name another with "
            "--map=x=FIELD. The model has: "
            "serving_default(x: float32 (?, 4)) -> y: float32 (?, 3).",
        ),
        (
            X,
            {"signature": "serve"},
            "--signature='serve' is none of this model's. The model has: "
            "serving_default(x: float32 (?, 4)) -> y: float32 (?, 3).",
        ),
        (
            {"x": X, "z": X[:7]},
            {},
            "The dataset gives x: (300, 4), z: (7, 4): every input needs the same number of rows. "
            "Batch it: dataset.batch(64).",
        ),
        ("nothing/*.npy", {}, "--input='nothing/*.npy' matches no file in "),
    ],
)
def test_mistakes(dataset, options, line, folder):
    with pytest.raises(InferenceError) as raised:
        tfdp.predict(folder, dataset, **options)
    assert str(raised.value).startswith(line)


def test_a_row_that_the_model_refuses(tmp_path):
    class Refuses(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, name="x")])
        def serve(self, x):
            with tf.control_dependencies([tf.debugging.assert_non_negative(x, "below 0")]):
                return {"y": tf.identity(x)}

    module = Refuses()
    tf.saved_model.save(module, str(tmp_path / "1"), {"serving_default": module.serve})
    with pytest.raises(JobFailed, match=r"^The model refuses row 6: .*below 0"):
        tfdp.predict(tmp_path, np.array([1, 2, 3, 4, 5, 6, -7, 8], "float32"), batch_size=4)
