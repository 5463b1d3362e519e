import io
import json
import os
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from tfdp import models
from tfdp.error import Error
from tfdp.serving import export, manifest

IMAGES = np.random.default_rng(0).integers(0, 17, (7, 8, 8, 1), dtype="uint8")

# Serves exported models in a process of its own, in which Keras cannot be imported.
SERVE = """
import json, sys
sys.modules["keras"] = sys.modules["tf_keras"] = None
import numpy as np
import tensorflow as tf
for folder in sys.argv[1:]:
    served = tf.saved_model.load(folder).signatures["serving_default"]
    inputs = {name: tf.constant(array) for name, array in np.load(folder + "-in.npz").items()}
    outputs = served(**inputs)
    np.savez(folder + "-out.npz", **{name: tensor.numpy() for name, tensor in outputs.items()})
"""

# Trains a model on two replicas of one process, and exports it.
MIRRORED = f"""
import sys
import numpy as np
import tensorflow as tf
import tfdp
from tfdp import models, strategies
from tfdp.serving import export
strategies.use_cpu_replicas(2)
strategy = tfdp.strategy("mirrored")
assert strategy.num_replicas_in_sync == 2
with strategy.scope():
    model = models.build("convnet", (8, 8, 1), 10, pixel_max=16.0, dropout=0.25)
    model.compile("adam", "sparse_categorical_crossentropy")
images = np.array({IMAGES.tolist()}, "uint8")
model.fit(images, np.arange(len(images)), batch_size=4, epochs=2, verbose=0)
folder = str(export.export(model, sys.argv[1]))
np.savez(folder + "-in.npz", image=images)
np.savez(folder + "-expected.npz", probabilities=model.predict(images, verbose=0))
"""


def convnet():
    return models.build("convnet", (8, 8, 1), 10, pixel_max=16.0, dropout=0.25)


def two_in_two_out():
    layers = keras.layers
    left = keras.Input((3,), name="left")
    right = keras.Input((2, 2), name="right", dtype="int32")
    both = layers.Concatenate()([left, layers.Flatten()(layers.Rescaling(0.5)(right))])
    outputs = {
        "total": layers.Dense(1, name="sum")(both),
        "choice": layers.Dense(4, activation="softmax", name="choice")(both),
    }
    return keras.Model({"left": left, "right": right}, outputs)


def signature(folder):
    """Names, types and shapes of what a version takes and gives."""
    served = tf.saved_model.load(str(folder)).signatures["serving_default"]
    inputs = served.structured_input_signature[1]
    return [
        {name: (spec.dtype.name, spec.shape.as_list()) for name, spec in specs.items()}
        for specs in (inputs, served.structured_outputs)
    ]


def test_a_sequential_model_is_served_by_the_names_of_its_ends(tmp_path):
    folder = export.export(convnet(), tmp_path / "digits")
    assert folder == tmp_path / "digits" / "1"
    assert signature(folder) == [
        {"image": ("uint8", [None, 8, 8, 1])},
        {"probabilities": ("float32", [None, 10])},
    ]


@pytest.mark.filterwarnings("error:The structure of")
def test_a_model_of_several_inputs_and_outputs_is_served_by_their_names(tmp_path):
    assert signature(export.export(two_in_two_out(), tmp_path)) == [
        {"left": ("float32", [None, 3]), "right": ("int32", [None, 2, 2])},
        {"total": ("float32", [None, 1]), "choice": ("float32", [None, 4])},
    ]


def test_any_number_of_rows_is_served_without_dropout(tmp_path):
    model = convnet()
    served = tf.saved_model.load(str(export.export(model, tmp_path))).signatures["serving_default"]
    for rows in (1, 2, 7):
        answer = served(image=tf.constant(IMAGES[:rows]))["probabilities"]
        expected = model.predict(IMAGES[:rows], verbose=0)
        np.testing.assert_allclose(answer, expected, rtol=0, atol=1e-6)


def test_versions_count_on(tmp_path):
    model = keras.Sequential([keras.Input((2,), name="x"), keras.layers.Dense(1, name="y")])
    versions = tmp_path / "a" / "b"
    assert export.export(model, str(versions)) == versions / "1"
    assert export.export(model, versions) == versions / "2"
    (versions / "9").mkdir()
    (versions / "notes").mkdir()
    assert export.export(model, versions) == versions / "10"
    assert sorted(os.listdir(versions)) == ["1", "10", "2", "9", "notes"]


def test_a_failed_export_leaves_nothing(tmp_path, monkeypatch):
    model = keras.Sequential([keras.Input((2,), name="x"), keras.layers.Dense(1, name="y")])
    export.export(model, tmp_path)

    def fail(model, folder, **options):
        os.makedirs(folder)
        with open(os.path.join(folder, "saved_model.pb"), "w") as file:
            file.write("half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tf.saved_model, "save", fail)
    with pytest.raises(OSError, match="No space left"):
        export.export(model, tmp_path)
    assert os.listdir(tmp_path) == ["1"]


def test_served_by_plain_tensorflow_as_the_model_predicts(tmp_path):
    cases = {
        "one": (convnet(), {"image": IMAGES}),
        "several": (
            two_in_two_out(),
            {
                "left": np.linspace(-1, 1, 15, dtype="float32").reshape(5, 3),
                "right": np.arange(20, dtype="int32").reshape(5, 2, 2),
            },
        ),
    }
    folders = []
    for name, (model, inputs) in cases.items():
        folder = str(export.export(model, tmp_path / name))
        outputs = model.predict(inputs if len(inputs) > 1 else inputs["image"], verbose=0)
        outputs = outputs if isinstance(outputs, dict) else {"probabilities": outputs}
        np.savez(folder + "-in.npz", **inputs)
        np.savez(folder + "-expected.npz", **outputs)
        folders.append(folder)
    subprocess.run([sys.executable, "-c", MIRRORED, tmp_path / "mirrored"], check=True, timeout=120)
    folders.append(str(tmp_path / "mirrored" / "1"))

    subprocess.run([sys.executable, "-c", SERVE, *folders], check=True, timeout=120)
    for folder in folders:
        expected, served = np.load(folder + "-expected.npz"), np.load(folder + "-out.npz")
        assert sorted(served) == sorted(expected)
        for name in expected:
            assert served[name].shape == expected[name].shape
            np.testing.assert_allclose(served[name], expected[name], rtol=0, atol=1e-6)


@pytest.mark.parametrize("precision", ["mixed_float16", "mixed_bfloat16", "bfloat16"])
def test_half_precision_is_float32_at_the_edges(precision, tmp_path):
    keras.config.set_dtype_policy(precision)
    try:
        x = keras.Input((3,), name="x", dtype="bfloat16" if precision == "bfloat16" else None)
        y = keras.layers.Dense(2, name="y")(x)
        model = keras.Model(x, y)
    finally:
        keras.config.set_dtype_policy("float32")
    assert model.outputs[0].dtype in ("float16", "bfloat16")
    folder = export.export(model, tmp_path)
    assert signature(folder) == [
        {"x": ("float32", [None, 3])},
        {"y": ("float32", [None, 2])},
    ]
    x = np.linspace(-1, 1, 6, dtype="float32").reshape(2, 3)
    served = tf.saved_model.load(str(folder)).signatures["serving_default"](x=tf.constant(x))
    expected = np.asarray(model.predict(x, verbose=0)).astype("float32")
    np.testing.assert_allclose(served["y"], expected, rtol=1e-2)


def png(image):
    file = io.BytesIO()
    Image.fromarray(image[:, :, 0]).save(file, "png")
    return file.getvalue()


def test_second_signatures_give_what_the_first_gives(tmp_path):
    model = convnet()
    first = model.predict(IMAGES, verbose=0)
    examples = []
    for image in IMAGES:
        example = tf.train.Example()
        example.features.feature["image"].bytes_list.value.append(image.tobytes())
        examples.append(example.SerializeToString())
    for name, rows in (("images", [png(image) for image in IMAGES]), ("examples", examples)):
        folder = export.export(model, tmp_path / name, second_signature=name)
        signatures = tf.saved_model.load(str(folder)).signatures
        assert sorted(signatures) == sorted(["serving_default", name])
        found = signatures[name](**{name: tf.constant(rows)})["probabilities"]
        np.testing.assert_allclose(found, first, rtol=0, atol=1e-6)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """What a run leaves: its model, and its config and labels."""
    folder = tmp_path_factory.mktemp("run")
    model = convnet()
    model.save(folder / "model.keras")
    facts = {
        "config": {"name": "digits", "export": {"second_signature": "images"}},
        "labels": [str(number) for number in range(10)],
    }
    (folder / export.RUN).write_text(json.dumps(facts))
    expected = model.predict(IMAGES, verbose=0)
    return folder, expected


def probabilities(folder):
    served = tf.saved_model.load(str(folder)).signatures["serving_default"]
    return served(image=tf.constant(IMAGES))["probabilities"]


def test_the_export_of_a_run(run, tmp_path):
    folder, expected = run
    version = export.export_run(folder, tmp_path / "digits")
    np.testing.assert_allclose(probabilities(version), expected, rtol=0, atol=1e-6)
    content = manifest.read(version)
    assert sorted(content["versions"]) == ["keras", "tensorflow", "tfdp"]
    assert content["config"]["name"] == "digits"
    assert content["signatures"]["images"] == {
        "inputs": {"images": {"dtype": "string", "shape": [None]}},
        "outputs": {"probabilities": {"dtype": "float32", "shape": [None, 10]}},
    }
    assert (version / "assets" / "labels.txt").read_text().split() == list("0123456789")
    lines = export.check(tmp_path / "digits")
    assert [line.partition(":")[0] for line in lines] == [str(version), "images", "serving_default"]
    assert lines[1] == "images: one row gives probabilities: float32 (1, 10)."


def test_the_export_of_other_weights(run, tmp_path):
    folder, expected = run
    other = convnet()
    other.save_weights(tmp_path / "best.weights.h5")
    version = export.export_run(
        folder / "model.keras", tmp_path / "a", weights=str(tmp_path / "best.weights.h5")
    )
    found = probabilities(version)
    assert np.abs(found - expected).max() > 1e-3
    np.testing.assert_allclose(found, other.predict(IMAGES, verbose=0), rtol=0, atol=1e-6)
    small = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    small.save_weights(tmp_path / "small.weights.h5")
    with pytest.raises(Error) as raised:
        export.export_run(folder, tmp_path / "a", weights=str(tmp_path / "small.weights.h5"))
    line = f"--weights={tmp_path}/small.weights.h5 does not fit {folder}/model.keras: "
    assert str(raised.value).startswith(line)
    assert "\n" not in str(raised.value)


def test_what_cannot_be_exported(tmp_path):
    with pytest.raises(Error) as raised:
        export.export_run(tmp_path, tmp_path / "a")
    assert str(raised.value) == (
        f"There is no model in --run={tmp_path}: {tmp_path}/model.keras does not exist."
    )
    (tmp_path / "model.keras").write_text("no model")
    with pytest.raises(Error) as raised:
        export.export_run(tmp_path, tmp_path / "a")
    assert str(raised.value).startswith(f"{tmp_path}/model.keras cannot be loaded: ")
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "a").exists()


def test_what_is_not_sound(run, tmp_path):
    folder, _ = run
    version = export.export_run(folder, tmp_path / "digits")
    content = json.loads((version / "manifest.json").read_text())
    del content["signatures"]["images"]
    (version / "manifest.json").write_text(json.dumps(content))
    with pytest.raises(Error, match=r"other signatures than its manifest says\.$"):
        export.check(version)
    (version / "variables" / "variables.index").write_bytes(b"?")
    with pytest.raises(Error) as raised:
        export.check(version)
    assert str(raised.value) == (
        f"The model {version} is not whole: variables/variables.index was changed."
    )
