"""The order of trials, and what is made of how they end: processes are made up."""

import pathlib
import threading

import pytest

import tfdp
from tfdp.tuning import call, record, report, settings, told, trials

BASE, PER_ROW, LIMIT = 500_000_000, 1_000_000, 2_000_000_000


class Machine:
    """Starts trials that say what such a machine would; `ends` gives exit codes and last words."""

    def __init__(self, folder, tasks=1, records=100_000, ends=(), noise=86.0):
        self.folder, self.tasks, self.records = folder, tasks, records
        self.ends, self.noise = list(ends), noise
        self.asked = []

    def start(self, trial):
        self.asked.append(trial)
        folder = pathlib.Path(trial.folder)
        folder.mkdir(parents=True)
        code, words = self.ends.pop(0) if self.ends else (0, "")
        rows = trial.global_batch // self.tasks
        used = BASE + PER_ROW * rows
        if used > LIMIT:
            code = 137
        (folder / "worker-0.log").write_text(f"some lines\n{words}\n\n")
        if code == 0:
            for index in range(self.tasks):
                name = f"worker:{index}" if self.tasks > 1 else ""
                room = record.Room(name, "a limit", used, LIMIT + index)
                told.Told(
                    *(name, self.tasks, self.records, 0.005 + 1e-4 * trial.global_batch, 12),
                    (room,), self.noise, (40.0, 86.0), 400,
                ).write_into(folder)  # fmt: skip
        return code

    def tune(self, first=64, **more):
        workers = self.tasks if self.tasks > 1 else 0
        lines = []
        tuner = trials.Tuner(self.start, self.folder, workers, first, tell=lines.append, **more)
        return tuner.tune(), lines


@pytest.fixture(autouse=True)
def no_gpus(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")


def test_the_trials_of_one_process(tmp_path):
    machine = Machine(tmp_path)
    tuned, lines = machine.tune()
    assert [one.global_batch for one in machine.asked] == [64, 256, 1312, 64]
    assert [one.kind for one in machine.asked] == ["room", "room", "room", "noise"]
    assert tuned.largest_per_replica == 1312
    assert tuned.largest_is_held_by == "memory"
    assert tuned.throughput.fixed_seconds == pytest.approx(0.005)
    assert tuned.noise == record.Noise(86.0, 64, 12, 400, (40.0, 86.0))
    assert tuned.recommendation.global_batch == 96
    assert lines[0] == "Trial 1: 64 rows on a replica ran, 5,614 examples/s."
    told_all = report.text(tuned)
    assert "Recommended: a global batch of 96" in told_all
    assert "Largest that fits: 1,312 rows; memory ends there." in told_all
    assert "the scale grows while the loss falls" in " ".join(told_all.split())


def test_workers_get_equal_shares(tmp_path):
    machine = Machine(tmp_path, tasks=2)
    tuned, _ = machine.tune(first=64, noise_seconds=0)
    assert [one.global_batch for one in machine.asked] == [64, 256, 2624]
    assert [one.per_replica for one in tuned.attempts] == [32, 128, 1312]
    assert {one.tasks for one in machine.asked} == {2}
    assert tuned.largest_global_batch == 2624
    assert [line.task for line in tuned.lines] == ["worker:0", "worker:1"]


@pytest.mark.parametrize(
    ("records", "max_batch", "largest", "held_by"),
    [
        (1437, 0, 718, "records"),  # two steps an epoch
        (1437, 100, 100, "max_batch"),
        (None, 0, 1312, "memory"),
    ],
)
def test_what_holds_the_largest_up(records, max_batch, largest, held_by, tmp_path):
    machine = Machine(tmp_path, records=records)
    tuned, _ = machine.tune(max_batch=max_batch, noise_seconds=0)
    assert (tuned.largest_per_replica, tuned.largest_is_held_by) == (largest, held_by)
    assert report.text(tuned)


@pytest.mark.parametrize(
    ("code", "words", "reason"),
    [
        (137, "", "ended by signal 9, as a process does that gets no memory"),
        (1, "tensorflow.errors.ResourceExhaustedError: OOM", "no memory: ResourceExhausted"),
        (134, "terminate called: std::bad_alloc", "no memory: std::bad_alloc"),
        (1, "MemoryError", "no memory: MemoryError"),
    ],
)
def test_a_trial_that_gets_no_memory(code, words, reason, tmp_path):
    tuned, lines = Machine(tmp_path, ends=[(code, words)]).tune()
    assert tuned.attempts[0] == record.Attempt(64, 64, False, reason=reason)
    assert lines[0] == f"Trial 1: 64 rows on a replica do not fit ({reason})."
    assert [one.per_replica for one in tuned.attempts][:2] == [64, 8]
    assert tuned.largest_per_replica > 8


@pytest.mark.parametrize(
    ("code", "words", "message"),
    [
        (1, "ValueError: no such layer", "exit code 1, and not for want of memory: ValueError"),
        (2, "tfdp: config.a cannot be. Use b.", "^config.a cannot be. Use b. Logs: "),
        (139, "", "exit code 139, and not for want of memory: some lines"),  # the first one crashes
    ],
)
def test_a_trial_that_fails_for_another_reason(code, words, message, tmp_path):
    with pytest.raises(tfdp.Error, match=message):
        Machine(tmp_path, ends=[(code, words)]).tune()


def test_nothing_fits(tmp_path):
    ends = [(137, "")] * 3
    with pytest.raises(tfdp.Error, match="A batch of 1 for each replica does not fit into memory"):
        Machine(tmp_path, ends=ends).tune()


def test_without_a_noise_scale_the_rest_is_found(tmp_path):
    ends = [(0, "")] * 3 + [(2, "tfdp: GradientNoiseScale: a train_step of its own.")]
    tuned, _ = Machine(tmp_path, ends=ends).tune()
    assert tuned.noise.scale is None
    assert "a train_step of its own" in tuned.noise.reason
    assert tuned.largest_per_replica == 1312
    hidden, _ = Machine(tmp_path / "again", noise=None).tune()
    assert hidden.noise.reason == "After 12 steps the noise still hides the gradient."


def build():
    """Never called here."""


X = [[1.0], [2.0]]
LOCK = threading.Lock()
GOOD = {"build": build, "data": (X, X)}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"build": 3}, "build is a int: give a function that returns the compiled model"),
        ({"data": X[0]}, "data is a list: give arrays"),
        ({"data": 7}, "data is a int: give arrays"),
        ({"data": (X, X[:1])}, r"data holds arrays of \[1, 2\] rows"),
        ({"batch": 0}, "batch=0 is not a whole number from 1 up"),
        ({"batch": True}, "batch=True is not a whole number"),
        ({"max_batch": -1}, "max_batch=-1 is not a whole number from 0 up"),
        ({"workers": 3}, "global_batch_size=64 does not divide over 3 replicas"),
        ({"noise_seconds": -1}, "noise_seconds=-1: use 0"),
        ({"data": (X for _ in X)}, "data is a generator: give arrays"),
        ({"data": lambda batch, lock=LOCK: lock}, "cannot be sent to the workers"),
    ],
)
def test_bad_arguments(changes, message, tmp_path):
    given = {**GOOD, **changes}
    functions = given.pop("build"), given.pop("data")
    with pytest.raises(tfdp.Error, match=message):
        tfdp.tune_batch(*functions, folder=tmp_path / "none", **given)
    assert not (tmp_path / "none").exists()


def test_a_task_of_a_cluster_tunes_nothing(monkeypatch):
    monkeypatch.setenv("TF_CONFIG", "{}")
    with pytest.raises(tfdp.Error, match="this process is a task of a cluster already"):
        call.tune_batch(build, (X, X))


def test_a_trial_travels_in_a_variable():
    trial = settings.Trial("room", "a folder", 64, tasks=2, steps=5)
    assert settings.of({settings.VARIABLE: trial.to_text()}) == trial
    assert settings.of({}) is None
    with pytest.raises(tfdp.Error, match="tfdp sets that itself"):
        settings.of({settings.VARIABLE: "no"})


def test_a_trial_that_is_asked_to_end_ends_all(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(trials.local, "run", lambda *words, **named: 143)
    with pytest.raises(SystemExit) as exited:
        trials.launch(["script.py"], 0, settings.Trial("room", str(tmp_path / "a"), 8))
    assert exited.value.code == 143
    assert capsys.readouterr().err == "tfdp: Interrupted by SIGTERM: the trial was ended.\n"


def test_a_folder_that_cannot_be_made_is_said(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(tfdp.Error, match=r"file/a cannot be made: Not a directory\. Choose one"):
        trials.launch(["script.py"], 0, settings.Trial("room", str(tmp_path / "file" / "a"), 8))
