"""What can be wrong with a job is said before a worker is started, and changes nothing."""

import json
import os
import shutil

import numpy as np
import pytest

from tfdp.inference import folder as folder_lib
from tfdp.inference import job, listing, shards
from tfdp.inference.errors import InferenceError, JobFailed
from tfdp.inference.settings import Settings
from tfdp.serving import manifest

SIGNATURES = {
    "serving_default": {
        "inputs": {"x": {"dtype": "float32", "shape": [None, 2]}},
        "outputs": {"y": {"dtype": "float32", "shape": [None, 1]}},
    },
    "fixed": {
        "inputs": {"x": {"dtype": "float32", "shape": [8, 2]}},
        "outputs": {"y": {"dtype": "float32", "shape": [8, 1]}},
    },
}
HAS = (
    "The model has: serving_default(x: float32 (?, 2)) -> y: float32 (?, 1); "
    "fixed(x: float32 (8, 2)) -> y: float32 (8, 1)."
)


def make_model(folder, content="graph"):
    """What looks like a model as long as it is not loaded."""
    (folder / "variables").mkdir(parents=True)
    (folder / "saved_model.pb").write_text(content)
    (folder / "variables" / "variables.index").write_text("index")
    (folder / "variables" / "variables.data-00000-of-00001").write_text("data")
    manifest.write(folder, {"signatures": SIGNATURES})


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def no_worker(*arguments, **named):
        raise AssertionError("a worker was started")

    monkeypatch.setattr(job, "Pool", no_worker)
    make_model(tmp_path / "models" / "a" / "2")
    np.save("x.npy", np.zeros((600, 2), "float32"))
    np.save("wide.npy", np.zeros((5, 3), "float32"))
    (tmp_path / "x.csv").write_text("key,x_0,x_1\na,1,2\n")
    (tmp_path / "1.png").write_text("")
    (tmp_path / "notes").mkdir()
    return tmp_path


def settings(**changes):
    return Settings(**{"model": "models/a", "input": "x.npy", "output": "out", **changes})


USAGE = "Write: tfdp predict --model=MODELS/NAME --input=PATTERN --output=DIR"
KINDS = "Name TFRecord, .csv, .npy, images, a folder of these, or tfds:NAME/SPLIT."


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"model": ""}, f"No --model. {USAGE}"),
        ({"input": ""}, f"No --input. {USAGE}"),
        ({"output": ""}, f"No --output. {USAGE}"),
        ({"workers": -1}, "--workers=-1: use 0 or more."),
        ({"batch_size": -1}, "--batch_size=-1: use 0 or more."),
        ({"timeout_seconds": 1.0}, "--timeout_seconds=1.0: use 3 or more."),
        ({"format": "xml"}, "--format='xml': use one of jsonl, csv, npy, tfrecord."),
        ({"model": "models/b"}, "There is no model in models/b: no such folder."),
        (
            {"model": "notes"},
            "There is no model in notes: neither saved_model.pb nor a folder with a number (1, 2, "
            "...). Make one with tfdp export.",
        ),
        ({"input": "y*.npy"}, "--input='y*.npy' matches no file in {place}. " + KINDS),
        ({"signature": "serve"}, f"--signature='serve' is none of this model's. {HAS}"),
        (
            {"signature": "fixed"},
            "The signature 'fixed' takes x: float32 (8, 2), which is no batch of rows: the first "
            f"dimension has to be free. {HAS}",
        ),
        (
            {"input": "wide.npy"},
            f"The input holds rows of float32 (3,), but x is float32 (?, 2). {HAS}",
        ),
        (
            {"input": "x.csv", "map": {"z": ("x_0",)}},
            "--map=z=...: the signature 'serving_default' has no input 'z'. " + HAS,
        ),
        (
            {"input": "x.csv", "map": {"x": ("x_0", "x_2")}},
            "The input has no column 'x_2' for x: float32 (?, 2). It has key, x_0, x_1. Name "
            f"others with --map=x=COLUMN,... {HAS}",
        ),
        (
            {"input": "1.png"},
            "Images are pixels (height, width, channels) or encoded strings, but x is "
            f"float32 (?, 2). {HAS}",
        ),
        (
            {"input": "x.csv", "id": "name"},
            "--id=name: the input has no such column. It has key, x_0, x_1.",
        ),
        ({"id": "name"}, "--id=name: npy have no columns; leave it out."),
    ],
)
def test_mistakes(changes, line, place):
    with pytest.raises((InferenceError, manifest.ManifestError)) as raised:
        job.run(settings(**changes))
    assert str(raised.value) == line.format(place=place)
    assert not os.path.exists("out")


@pytest.mark.parametrize(
    ("damage", "line"),
    [
        ("saved_model.pb", "saved_model.pb is missing"),
        ("variables", "variables/variables.data-00000-of-00001 is missing, "
                      "variables/variables.index is missing"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("has_manifest", [True, False])
def test_a_model_with_missing_files_is_refused(damage, line, has_manifest, place):
    version = place / "models" / "a" / "2"
    if not has_manifest:
        os.remove(version / manifest.NAME)
    path = version / damage
    if path.is_dir():
        for name in path.iterdir():
            name.unlink()
    else:
        path.unlink()
    if not has_manifest and damage == "saved_model.pb":
        line = None  # not even the folder of a version
    if not has_manifest and damage == "variables":
        line = (
            "variables/variables.index is missing, "
            "variables/variables.data-00000-of-00001 is missing"
        )
    with pytest.raises(manifest.ManifestError) as raised:
        job.run(settings(model="models/a/2"))
    if line is None:
        assert str(raised.value).startswith("There is no model in models/a/2: neither ")
    else:
        assert str(raised.value) == f"The model models/a/2 is not whole: {line}."


def complete(place, rows=600, shard_rows=256, errors=()):
    """An output folder as a job leaves it, made by hand."""
    out = place / "out"
    work = out / ".tfdp" / "errors"
    work.mkdir(parents=True)
    found = listing.find("x.npy")
    parts = shards.count(rows, shard_rows)
    (out / "job.json").write_text(
        json.dumps(
            {
                "model": manifest.verify(place / "models" / "a" / "2"),
                "signature": "serving_default",
                "format": "jsonl",
                "id": "",
                "map": {},
                "jit_compile": False,
                "batch_size": 32,
                "shard_rows": shard_rows,
                "input": folder_lib.describe_input("npy", found.names, found.stats, rows),
            }
        )
    )
    for number in range(parts):
        (out / shards.part_name(number, parts, "jsonl")).write_text("a part\n")
    if errors:
        folder_lib.errors_path(out, 1).write_text("".join(f"{line}\n" for line in errors))
    return out


def test_nothing_is_done_where_nothing_is_missing(place):
    out = complete(place, errors=["one", "two"])
    summary = job.run(settings())
    assert summary == job.Summary(rows=600, errors=2, parts=3, predicted=0, seconds=0.0)
    assert (out / "errors.jsonl").read_text() == "one\ntwo\n"
    assert json.loads((out / "summary.json").read_text()) == {
        "rows": 600,
        "predicted": 598,
        "errors": 2,
        "parts": 3,
    }
    with pytest.raises(JobFailed) as raised:
        job.run(settings(max_errors=1))
    assert str(raised.value) == (
        "2 rows cannot be read, which is more than --max_errors=1: see out/errors.jsonl."
    )


def other_model(place):
    shutil.rmtree(place / "models" / "a" / "2")
    make_model(place / "models" / "a" / "2", content="another graph")


def other_rows(place):
    np.save(place / "x.npy", np.zeros((601, 2), "float32"))


@pytest.mark.parametrize(
    ("change", "changes", "difference"),
    [
        (other_model, {}, "another model (its files differ)"),
        (other_rows, {}, "x.npy has changed"),
        (None, {"batch_size": 64}, "batch_size was 32, and is 64"),
        (None, {"shard_rows": 100}, "shard_rows was 256, and is 100"),
        (None, {"format": "csv"}, "format was 'jsonl', and is 'csv'"),
        (
            lambda place: np.save(place / "z.npy", np.zeros((6, 2), "float32")),
            {"input": "[xz].npy"},
            "z.npy was not in the input",
        ),
    ],
)
def test_parts_of_another_job_are_refused_with_the_difference(change, changes, difference, place):
    out = complete(place)
    os.remove(out / "part-00001-of-00003.jsonl")
    if change:
        change(place)
    with pytest.raises(InferenceError) as raised:
        job.run(settings(**changes))
    assert str(raised.value) == (
        f"--output=out holds parts of another job: {difference}. Choose another folder, or remove "
        "that one."
    )


def test_a_missing_part_needs_a_worker(place):
    os.remove(complete(place) / "part-00001-of-00003.jsonl")
    with pytest.raises(AssertionError, match="a worker was started"):
        job.run(settings())
