"""What can be wrong with a job is said before a worker is started, and changes nothing."""

import contextlib
import json
import os
import pathlib
import shutil
import types

import numpy as np
import pytest

from tfdp.error import Error
from tfdp.inference import folder as folder_lib
from tfdp.inference import input_files, job
from tfdp.inference.failures import InferenceError, JobFailed
from tfdp.inference.settings import Settings
from tfdp.inference.status import State
from tfdp.serving import manifest

SIGNATURES = {
    "serving_default": {
        "inputs": {"x": {"dtype": "float32", "shape": [None, 2]}},
        "outputs": {"y": {"dtype": "float32", "shape": [None, 1]}},
    },
}
HAS = "The model has: serving_default(x: float32 (?, 2)) -> y: float32 (?, 1)."


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
        ({"timeout_seconds": 1.0}, "--timeout_seconds=1.0: use 3 or more."),
        ({"format": "xml"}, "--format='xml': use one of jsonl, csv, npy, tfrecord."),
        ({"model": "models/b"}, "There is no model in models/b: no such folder."),
        (
            {"model": "x.npy"},
            "There is no model in x.npy: it is a file, and a SavedModel is a folder. Make one of a "
            ".keras file with tfdp export --run=FILE.keras --output=MODELS/NAME.",
        ),
        (
            {"model": "notes"},
            "There is no model in notes: neither saved_model.pb nor a folder with a number (1, 2, "
            "...). Make one with tfdp export.",
        ),
        ({"input": "y*.npy"}, "--input='y*.npy' matches no file in {place}. " + KINDS),
        ({"signature": "serve"}, f"--signature='serve' is none of this model's. {HAS}"),
        (
            {"input": "wide.npy"},
            f"The input holds rows of float32 (3,), but x is float32 (?, 2). {HAS}",
        ),
        (
            {"input": "x.csv", "id": "name"},
            "--id=name: the input has no such column. It has key, x_0, x_1.",
        ),
        ({"id": "name"}, "--id=name: npy have no columns; leave it out."),
    ],
)
def test_mistakes(changes, line, place):
    with pytest.raises(Error) as raised:
        job.run(settings(**changes))
    assert str(raised.value) == line.format(place=place)
    assert not os.path.exists("out")


@pytest.mark.parametrize("without", [[], [manifest.NAME]])
def test_a_model_with_missing_files_is_refused(without, place):
    line = "variables/variables.index is missing"
    for name in ("variables/variables.index", *without):
        os.remove(place / "models" / "a" / "2" / name)
    with pytest.raises(Error) as raised:
        job.run(settings(model="models/a/2"))
    assert str(raised.value) == f"The model models/a/2 is not whole: {line}."


def complete(place, errors=(), missing=(), rows=600):
    """An output folder as a job leaves it, made by hand."""
    out = place / "out"
    (out / ".tfdp").mkdir(parents=True, exist_ok=True)
    content = {
        "model": manifest.verify(place / "models" / "a" / "2"),
        "key": "k",
        "signature": "serving_default",
        "format": "jsonl",
        "id": "",
        "map": {},
        "jit_compile": False,
        "batch_size": 32,
        "shard_rows": 256,
        "input": {"rows": rows, **input_files.find("x.npy").described()},
        "columns": {"x": []},
        "header": None,
        "cut": [[[0, 0, 256, 0, 0]], [[0, 256, 256, 0, 0]], [[0, 512, 88, 0, 0]]],
    }
    folder_lib.write_job(out, content)
    parts = folder_lib.Parts.of(out, content)
    parts.errors.mkdir()
    parts.writing.mkdir()
    for number in {0, 1, 2} - set(missing):
        parts.path(number).write_text("a part\n")
    if errors:
        parts.errors_path(1).write_text("".join(f"{line}\n" for line in errors))
    return parts


def test_nothing_is_done_where_nothing_is_missing(place):
    out = complete(place, errors=["one", "two"]).folder
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
    complete(place, missing=[1])
    if change:
        change(place)
    with pytest.raises(InferenceError) as raised:
        job.run(settings(**changes))
    assert str(raised.value) == (
        f"--output=out holds parts of another job: {difference}. Choose another folder, or remove "
        "that one."
    )


def test_a_missing_part_needs_a_worker(place):
    complete(place, missing=[1])
    with pytest.raises(AssertionError, match="a worker was started"):
        job.run(settings())


class Pool:
    """Plays one worker: what it tells at each look, or how it has ended."""

    def __init__(self, story):
        self.workers = []
        self.started = 0
        self._story = iter(story)
        self.start(0)

    def start(self, slot):
        log = pathlib.Path("worker-0.log")
        self.workers.append(types.SimpleNamespace(slot=slot, log=log, state=State()))
        self.started += 1

    def wait(self, seconds):
        told = next(self._story)
        if callable(told):
            told()
        elif isinstance(told, State):
            self.workers[0].state = told
        else:
            return [(self.workers.pop(), told)]
        return []


@pytest.fixture
def play(place, monkeypatch):
    """Runs a job whose worker is played."""

    def run(*story, **changes):
        pool = Pool(story)
        monkeypatch.setattr(job, "Pool", lambda *arguments: contextlib.nullcontext(pool))
        monkeypatch.setattr(job, "_LOOK_SHARE", 1e9)
        return pool, job.run(settings(**changes))

    return run


def test_a_job_ends_when_its_last_part_is_there(place, play):
    parts = complete(place, missing=[0, 2])
    pool, summary = play(
        State(ready=True, began=1.0, part=0, rows=200),
        "was killed by SIGKILL",
        parts.path(0).touch,
        State(ready=True, began=9.0, finished=11.0, part=2),
        lambda: parts.errors_path(2).write_text("bad\n"),
        parts.path(2).touch,
    )
    assert pool.started == 2
    assert (summary.rows, summary.errors, summary.parts, summary.predicted) == (600, 1, 3, 344)
    assert summary.seconds == 10.0
    assert not parts.writing.exists()


def killed_at(number, times):
    return [State(ready=True, part=number), "was killed by SIGSEGV"] * times


FAR = "2 of 3 parts are complete; the same command goes on from there."


def test_a_part_that_ends_every_worker_ends_the_job(place, play):
    parts = complete(place, missing=[0, 2])
    # One that has finished its part does not count.
    before = [*killed_at(0, 4), *killed_at(2, 4), parts.path(2).touch]
    with pytest.raises(JobFailed) as raised:
        play(*before, *killed_at(2, 9), *killed_at(0, 1))
    assert str(raised.value) == (
        f"Shard 0 has ended 5 workers: the last one was killed by SIGSEGV. Log: worker-0.log. {FAR}"
    )


def test_workers_that_never_become_ready_end_the_job(place, play):
    (place / "worker-0.log").write_text("Traceback:\nno memory\n")
    ends = "exited with code 1"
    with pytest.raises(JobFailed) as raised:
        # Two, then one that is ready, then three.
        play(ends, ends, State(ready=True), State(), ends, ends, ends)
    assert str(raised.value) == (
        "Workers end before they have loaded the model: the last one exited with code 1. It said: "
        "no memory Log: worker-0.log. No part has been begun; the same command starts again."
    )


def test_a_worker_that_begins_and_fails_between_two_looks_has_begun(place, play):
    def begin_and_fail():
        complete(place, missing=[0, 2])
        raise JobFailed("A part cannot be written to out: File too large.")

    with pytest.raises(JobFailed) as raised:
        play(begin_and_fail, batch_size=32)
    assert str(raised.value) == (
        "A part cannot be written to out: File too large. 1 of 3 parts are complete; the same "
        "command goes on from there."
    )


def test_too_many_errors_end_the_job_at_once_and_are_written(place, play):
    parts = complete(place, missing=[2], errors=["one"])
    bad = parts.writing / "00002.77.errors"
    with pytest.raises(JobFailed) as raised:
        play(
            State(ready=True, part=2),
            lambda: bad.write_text("two\n"),
            lambda: bad.write_text("two\nthree\n"),
            max_errors=2,
        )
    assert str(raised.value) == (
        "3 rows cannot be read, which is more than --max_errors=2: see out/errors.jsonl. " + FAR
    )
    assert (parts.folder / "errors.jsonl").read_text() == "one\ntwo\nthree\n"
