"""tune-batch with real trials: under a limit of memory, and on two unequal workers."""

import json
import pathlib
import resource
import subprocess
import sys

import pytest

from cluster import processes
from tfdp.tuning import search
from tfdp.tuning.record import Tuned

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(400)]

HERE = pathlib.Path(__file__).parent
DIGITS = HERE.parents[1] / "configs" / "digits.py"
LIMIT = 1_500_000_000
STACK = 1 << 20


def little_memory():
    """Limits what a process and its children may take, and the stacks of its threads.

    tf.data starts dozens of threads, more where the machine is busy, and stacks count as data.
    """
    resource.setrlimit(resource.RLIMIT_STACK, (STACK, resource.getrlimit(resource.RLIMIT_STACK)[1]))
    resource.setrlimit(resource.RLIMIT_DATA, (LIMIT, LIMIT))


def small_stacks():
    resource.setrlimit(resource.RLIMIT_STACK, (STACK, resource.getrlimit(resource.RLIMIT_STACK)[1]))


@pytest.mark.exhaustive  # on two workers there are limits, too
def test_the_digits_under_a_limit(tmp_path, drawing):
    (tmp_path / "tuned_model.py").write_text((HERE / "tuned_model.py").read_text())
    words = ["tune-batch", f"--config={DIGITS}", "--config.model.name=tuned_model:wide"]
    words += ["--config.training.learning_rate=1e-4", "--config.run_dir=run", "--json"]
    words += ["--noise-seconds=2"]
    done = subprocess.run(
        [processes.TFDP, *words],
        cwd=tmp_path,
        env=drawing,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        preexec_fn=little_memory,
    )
    assert done.returncode == 0, done.stderr
    tuned = Tuned.from_json(done.stdout)
    assert tuned == Tuned.read(tmp_path / "run" / "tune_batch.json")
    assert json.loads(done.stdout)["schema_version"] == 1
    assert tuned.largest_is_held_by == "memory"
    assert tuned.records == 1437
    assert len(tuned.attempts) <= search.MOST_TRIALS
    limits = {room.limit_bytes for one in tuned.attempts for room in one.rooms}
    assert LIMIT in limits
    proved = [one for one in tuned.attempts if one.per_replica == tuned.largest_per_replica]
    assert proved[0].fits
    assert proved[0].steps >= 3
    line = min(tuned.lines, key=lambda one: one.largest)
    assert line.source == "RLIMIT_DATA (ulimit -d)"
    # 17 arrays of 2^14 numbers: in each step there are more, and fewer than twice as many.
    assert 17 * (1 << 16) * 0.5 < line.bytes_per_row < 17 * (1 << 16) * 2
    assert tuned.noise.global_batch == 64
    assert tuned.noise.scale is not None or tuned.noise.reason
    assert 1 <= tuned.recommendation.global_batch <= tuned.largest_global_batch
    assert "Recommended: a global batch of" in done.stderr
    assert (tmp_path / "run" / "tune-batch.svg").is_file()


def test_two_workers_take_the_smaller_of_what_fits(tmp_path, environment):
    done = subprocess.run(
        [sys.executable, str(HERE / "scripts" / "tuned.py"), "tuned"],
        cwd=tmp_path,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        preexec_fn=small_stacks,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    tuned = Tuned.read(tmp_path / "tuned" / "tune_batch.json")
    assert f"found {tuned.largest_per_replica}\n" in done.stdout
    assert tuned.replicas == 2
    assert len(tuned.attempts) <= search.MOST_TRIALS
    assert all(one.global_batch == 2 * one.per_replica for one in tuned.attempts)
    assert all({room.task for room in one.rooms} == {"worker:0", "worker:1"}
               for one in tuned.attempts if one.fits)  # fmt: skip
    most = {
        task: min(line.largest for line in tuned.lines if line.task == task)
        for task in ("worker:0", "worker:1")
    }
    assert most["worker:1"] < 0.8 * most["worker:0"]
    assert tuned.largest_per_replica <= 1.1 * most["worker:1"]
    assert tuned.largest_is_held_by == "memory"
    assert tuned.recommendation.reason.startswith("The gradient noise scale was not asked for.")


def test_a_trial_that_fails_for_another_reason_is_said_in_one_line(tmp_path, environment):
    words = ["tune-batch", f"--config={DIGITS}", "--config.model.name=no_such:model"]
    done = processes.run([*words, "--config.run_dir=run"], tmp_path, environment, seconds=120)
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if line]
    assert line.startswith("tfdp: config.model.name='no_such:model' cannot be imported")
    assert line.endswith("run/trial-1")
