import pytest

from tfdp.inference import signature
from tfdp.inference.failures import InferenceError
from tfdp.inference.signature import Signature, Spec

OUTPUTS = {"p": Spec("float32", (None, 10))}


def of(**inputs):
    return Signature("serving_default", inputs, OUTPUTS)


IMAGE = of(image=Spec("uint8", (None, 8, 8, 1)))
VECTOR = of(x=Spec("float32", (None, 3)))
TWO = of(left=Spec("float32", (None,)), right=Spec("int32", (None, 2)))
TEXT = of(text=Spec("string", (None,)))
SERIALIZED = of(examples=Spec("string", (None,)))
FREE = of(x=Spec("float32", (None, None)))

HAS_IMAGE = "The model has: serving_default(image: uint8 (?, 8, 8, 1)) -> p: float32 (?, 10)."
HAS_VECTOR = "The model has: serving_default(x: float32 (?, 3)) -> p: float32 (?, 10)."
HAS_TWO = (
    "The model has: serving_default(left: float32 (?,), right: int32 (?, 2)) -> p: float32 (?, 10)."
)


def array(dtype, *shape):
    return {"dtype": dtype, "shape": list(shape), "fields": {}}


@pytest.mark.parametrize(
    ("model", "kind", "header", "mapping", "expected"),
    [
        (VECTOR, "csv", {"columns": ["id", "x_0", "x_1", "x_2"]}, {}, {"x": ["x_0", "x_1", "x_2"]}),
        (VECTOR, "csv", {"columns": ["a", "b", "c"]}, {"x": ("c", "b", "a")}, {"x": list("cba")}),
        (
            TWO,
            "csv",
            {"columns": ["right_0", "right_1", "left"]},
            {},
            {"left": ["left"], "right": ["right_0", "right_1"]},
        ),
        (IMAGE, "npy", array("uint8", 8, 8, 1), {}, {"image": []}),
        (VECTOR, "npy", array("float64", 3), {}, {"x": []}),
        (VECTOR, "npy", array("int64", 3), {}, {"x": []}),
        (FREE, "npy", array("float32", 5), {}, {"x": []}),
        (
            TWO,
            "npy",
            {"fields": {"left": ["float32", []], "r": ["int16", [2]]}},
            {"right": ("r",)},
            {"left": ["left"], "right": ["r"]},
        ),
        (IMAGE, "images", None, {}, {"image": []}),
        (TEXT, "images", None, {}, {"text": []}),
        (TWO, "tfrecord", None, {}, {"left": ["left"], "right": ["right"]}),
        (TEXT, "tfrecord", None, {}, {"text": ["text"]}),
        (TEXT, "tfrecord", None, {"text": ("@record",)}, {"text": ["@record"]}),
        (SERIALIZED, "tfrecord", None, {}, {"examples": ["@record"]}),
        (
            IMAGE,
            "tfds",
            {"features": {"image": ["uint8", [8, 8, 1]], "label": ["int64", []]}},
            {},
            {"image": ["image"]},
        ),
    ],
)
def test_bind(model, kind, header, mapping, expected):
    assert signature.bind(model, kind, header, mapping) == expected


@pytest.mark.parametrize(
    ("model", "kind", "header", "mapping", "line"),
    [
        (
            VECTOR,
            "csv",
            {"columns": ["id", "x_0", "x_1"]},
            {},
            "The input has no column 'x_2' for x: float32 (?, 3). It has id, x_0, x_1. Name others "
            f"with --map=x=COLUMN,... {HAS_VECTOR}",
        ),
        (
            VECTOR,
            "csv",
            {"columns": ["a", "b"]},
            {"x": ("a", "b")},
            f"--map=x=... names 2 columns, but x is float32 (?, 3). {HAS_VECTOR}",
        ),
        (
            VECTOR,
            "csv",
            {"columns": ["a", "b"]},
            {"xs": ("a", "b")},
            "--map=xs=...: the signature 'serving_default' has no input 'xs'. Did you mean 'x'? "
            f"{HAS_VECTOR}",
        ),
        (
            IMAGE,
            "npy",
            array("uint8", 8, 8),
            {},
            "The input holds rows of uint8 (8, 8), but image is uint8 (?, 8, 8, 1). " + HAS_IMAGE,
        ),
        (
            IMAGE,
            "npy",
            array("float32", 8, 8, 1),
            {},
            "The input holds rows of float32 (8, 8, 1), but image is uint8 (?, 8, 8, 1): it would "
            f"lose what it holds. Convert it first. {HAS_IMAGE}",
        ),
        (
            TWO,
            "npy",
            array("float32", 3),
            {},
            "A plain array has one input, but the signature 'serving_default' takes 2: name them "
            f"as fields of a structured array. {HAS_TWO}",
        ),
        (
            VECTOR,
            "images",
            None,
            {},
            "Images are pixels (height, width, channels) or encoded strings, but x is "
            f"float32 (?, 3). {HAS_VECTOR}",
        ),
        (
            IMAGE,
            "tfds",
            {"features": {"picture": ["uint8", [8, 8, 1]], "label": ["int64", []]}},
            {},
            "The input has no feature 'image' for image: uint8 (?, 8, 8, 1). It has picture, "
            f"label. Name another with --map=image=FEATURE. {HAS_IMAGE}",
        ),
    ],
)
def test_what_does_not_fit(model, kind, header, mapping, line):
    with pytest.raises(InferenceError) as raised:
        signature.bind(model, kind, header, mapping)
    assert str(raised.value) == line


@pytest.mark.parametrize(
    ("signatures", "name", "line"),
    [
        (
            {"serving_default": VECTOR},
            "serve",
            f"--signature='serve' is none of this model's. {HAS_VECTOR}",
        ),
        (
            {"serving_default": of(x=Spec("float32", (8, 3)))},
            "serving_default",
            "The signature 'serving_default' takes x: float32 (8, 3), which is no batch of rows: "
            "the first dimension has to be free. The model has: "
            "serving_default(x: float32 (8, 3)) -> p: float32 (?, 10).",
        ),
        (
            {"serving_default": of()},
            "serving_default",
            "The signature 'serving_default' takes no input. The model has: "
            "serving_default() -> p: float32 (?, 10).",
        ),
    ],
)
def test_choose(signatures, name, line):
    with pytest.raises(InferenceError) as raised:
        signature.choose(signatures, name)
    assert str(raised.value) == line


@pytest.mark.parametrize(
    ("dtype", "wanted", "expected"),
    [
        ("uint8", "uint8", True),
        ("uint8", "int16", True),
        ("uint8", "int8", False),
        ("int8", "uint8", False),
        ("uint32", "int64", True),
        ("uint64", "int64", False),
        ("int64", "int32", False),
        ("int64", "float32", True),
        ("float64", "float32", True),
        ("float32", "int64", False),
        ("bool", "uint8", True),
        ("bytes56", "float32", False),
    ],
)
def test_castable(dtype, wanted, expected):
    assert signature.castable(dtype, wanted) is expected


def test_signatures_of_a_manifest():
    manifest = {
        "two": {
            "inputs": {
                "left": {"dtype": "float32", "shape": [None]},
                "right": {"dtype": "int32", "shape": [None, 2]},
            },
            "outputs": {"p": {"dtype": "float32", "shape": [None, 10]}},
        }
    }
    expected = Signature("two", TWO.inputs, OUTPUTS)
    assert signature.from_json(manifest) == {"two": expected}
