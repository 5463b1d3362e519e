"""A served model called batch by batch."""

import numpy as np
import pytest
import tensorflow as tf

from tfdp.inference import model
from tfdp.inference.failures import InferenceError, JobFailed
from tfdp.inference.signature import Signature, Spec


class Module(tf.Module):
    """Twice x; refuses rows below 0; tells the sizes of its batches."""

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, name="x")])
    def serve(self, x):
        with tf.control_dependencies([tf.debugging.assert_non_negative(x, "x is below 0")]):
            return {"y": 2 * x, "rows": tf.fill(tf.shape(x), tf.shape(x)[0])}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, name="x")])
    def total(self, x):
        return {"sum": tf.reduce_sum(x)}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, name="x")])
    def twice(self, x):
        return {"y": 2 * x}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("model"))
    module = Module()
    names = ("serve", "total", "twice")
    tf.saved_model.save(module, folder, {name: getattr(module, name) for name in names})
    return folder


def served(folder, name, **options):
    loaded, signatures = model.load(folder)
    return model.Served(loaded, signatures[name], 4, **options)


def test_signatures(folder):
    _, signatures = model.load(folder)
    x = {"x": Spec("float32", (None,))}
    assert signatures["serve"] == Signature(
        "serve", x, {"rows": Spec("int32", (None,)), "y": Spec("float32", (None,))}
    )


@pytest.mark.parametrize("jit_compile", [False, True])
def test_every_call_has_the_same_number_of_rows(folder, jit_compile):
    name = "twice" if jit_compile else "serve"
    made = served(folder, name, jit_compile=jit_compile)
    for rows in (4, 1, 3):
        x = np.arange(rows, dtype="float32")
        outputs, bad = made.run({"x": x})
        assert bad == []
        assert outputs["y"].tolist() == (2 * x).tolist()
        if not jit_compile:
            assert outputs["rows"].tolist() == [4] * rows


@pytest.mark.parametrize("x", [[1, 2, 3, -4], [-1, 2, -3, 4], [-1, -2], [-1], [1, -2, 3]])
def test_rows_that_the_model_refuses_are_told_from_the_others(folder, x):
    outputs, bad = served(folder, "serve").run({"x": np.array(x, "float32")})
    assert [row for row, _ in bad] == [row for row, value in enumerate(x) if value < 0]
    assert all("x is below 0" in reason for _, reason in bad)
    assert (outputs["y"].tolist() if outputs else []) == [2 * value for value in x if value >= 0]


def test_a_model_without_a_row_for_each_row(folder):
    with pytest.raises(JobFailed) as raised:
        served(folder, "total").run({"x": np.zeros(3, "float32")})
    assert str(raised.value) == (
        "The output 'sum' has the shape () for 4 rows of input: it has no row for each."
    )


def test_a_model_that_cannot_be_loaded(tmp_path):
    (tmp_path / "saved_model.pb").write_bytes(b"nothing")
    with pytest.raises(InferenceError, match=f"The model {tmp_path} cannot be loaded: "):
        model.load(tmp_path)
