"""Inference over shards, with real workers: whatever dies, the output is that of a quiet run."""

import contextlib
import json
import os
import re
import signal
import subprocess

import pytest

from cluster import kills, processes

pytestmark = pytest.mark.cluster

SHARDS = kills.SHARDS
ROWS = SHARDS * kills.ROWS_PER_SHARD - 7
PREDICTED = ROWS - len(kills.BAD)
DONE = f"{ROWS:,} rows: {PREDICTED:,} predicted, 3 in errors.jsonl. {SHARDS} parts in {{}}."


@pytest.fixture(scope="module")
def folder(tmp_path_factory, predicted):
    folder = tmp_path_factory.mktemp("predict")
    kills.give(predicted, folder)
    return folder


@pytest.fixture(scope="module")
def quiet(predicted):
    """The output of a run that nothing disturbs."""
    return kills.content(predicted / "quiet")


def wait_for_parts(folder, output, count, launcher):
    """Waits until a job has so many parts."""
    while len(list((folder / output).glob("part-*"))) < count:
        assert launcher.poll() is None, launcher.communicate()
        kills.wait(launcher, 0.02)


def test_every_row_is_there_once_and_in_order(quiet):
    parts = sorted(name for name in quiet if name.startswith("part-"))
    assert parts == [f"part-{number:05}-of-{SHARDS:05}.jsonl" for number in range(SHARDS)]
    rows = [json.loads(line) for name in parts for line in quiet[name].splitlines()]
    good = [number for number in range(ROWS) if number not in kills.BAD]
    assert [row["id"] for row in rows] == [f"rows.tfrecord:{number}" for number in good]
    assert all(len(row["y"]) == 4 for row in rows)
    assert [json.loads(line) for line in quiet["errors.jsonl"].splitlines()] == [
        {
            "file": "rows.tfrecord",
            "record": number,
            "reason": "the feature 'x' has 3 values, not 4",
        }
        for number in kills.BAD
    ]
    counts = {"rows": ROWS, "predicted": PREDICTED, "errors": len(kills.BAD), "parts": SHARDS}
    assert json.loads(quiet["summary.json"]) == counts


def test_kills_of_workers_and_launchers(folder, quiet, environment):
    killed = kills.killed_run(folder, folder / "killed", 4, environment)
    assert killed == 4
    assert kills.content(folder / "killed") == quiet
    begun = kills.begun(folder / "killed")
    assert len(set(begun)) == SHARDS
    assert len(begun) - SHARDS <= killed
    assert list((folder / "killed" / ".tfdp").glob("writing-*/*")) == []


def test_a_stopped_worker_is_replaced_and_spoils_nothing(folder, quiet, environment):
    words = [*kills.words("stopped"), "--timeout_seconds=3"]
    with processes.started(words, folder, environment) as launcher:
        wait_for_parts(folder, "stopped", 3, launcher)
        stopped = kills.workers_of(launcher)[0]
        os.kill(stopped, signal.SIGSTOP)
        with processes.watched([stopped]) as handles:
            out, err = launcher.communicate(timeout=60)
            assert processes.left_after(handles, 1) == []
    assert (launcher.returncode, out.startswith(DONE.format("stopped"))) == (0, True), err
    assert kills.content(folder / "stopped") == quiet


@pytest.mark.exhaustive  # inference/test_claims has its race
def test_a_worker_that_outlives_its_launcher_stopped_spoils_nothing(folder, quiet, environment):
    words = [*kills.words("stale"), "--timeout_seconds=3"]
    with processes.started(words, folder, environment) as launcher:
        wait_for_parts(folder, "stale", 3, launcher)
        stopped, other = kills.workers_of(launcher)
        os.kill(stopped, signal.SIGSTOP)
        with processes.watched([stopped]) as stale, processes.watched([other]) as handles:
            launcher.kill()
            try:
                # The other one finishes its shard and ends.
                assert processes.left_after(handles, 10) == []
                done = processes.run(words, folder, environment)
            finally:
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(stale[stopped], signal.SIGCONT)
            assert processes.left_after(stale, 10) == []
    assert done.returncode == 0, done.stderr
    assert kills.content(folder / "stale") == quiet


@pytest.mark.exhaustive  # inference/test_input_files has the check
def test_an_input_that_changes_makes_no_part(folder, quiet, environment):
    rows = folder / "rows.tfrecord"
    content, facts = rows.read_bytes(), rows.stat()
    with processes.started(kills.words("changed"), folder, environment) as launcher:
        wait_for_parts(folder, "changed", 3, launcher)
        try:
            rows.write_bytes(content[: len(content) // 2])
            _, err = launcher.communicate(timeout=60)
        finally:
            rows.write_bytes(content)
            os.utime(rows, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    assert launcher.returncode == 1
    assert "tfdp: rows.tfrecord has changed since its records were counted. " in err
    again = processes.run(kills.words("changed"), folder, environment)
    assert again.returncode == 0, again.stderr
    assert kills.content(folder / "changed") == quiet


def test_an_interrupted_job_goes_on_where_it_was(folder, quiet, environment):
    with processes.started(kills.words("ctrl-c"), folder, environment) as launcher:
        wait_for_parts(folder, "ctrl-c", 5, launcher)
        with processes.watched(processes.family(launcher.pid)) as handles:
            # A terminal sends it to the group of the launcher.
            os.killpg(launcher.pid, signal.SIGINT)
            assert processes.left_after(handles, 5) == []
        out, err = launcher.communicate(timeout=10)
    complete = len(list((folder / "ctrl-c").glob("part-*")))
    assert (launcher.returncode, out) == (130, "")
    assert err.splitlines()[-1] == (
        f"tfdp: Interrupted by SIGINT (Ctrl-C). {complete} of {SHARDS} parts are complete; the "
        "same command goes on from there."
    )
    again = processes.run(kills.words("ctrl-c"), folder, environment)
    assert again.returncode == 0, again.stderr
    now = ROWS - complete * kills.ROWS_PER_SHARD
    assert f" {now:,} rows now, " in again.stdout
    assert kills.content(folder / "ctrl-c") == quiet


def test_a_second_predictor_is_refused(folder, environment):
    with processes.started(kills.words("two"), folder, environment) as launcher:
        processes.wait_for_text(folder / "two" / ".tfdp" / "lock", str(launcher.pid), 30, launcher)
        second = processes.run(kills.words("two"), folder, environment)
        assert launcher.poll() is None
    assert (second.returncode, second.stdout) == (2, "")
    assert second.stderr == (
        f"tfdp: --output=two is being written by another tfdp predict (process {launcher.pid}). "
        "Wait for it, or choose another folder.\n"
    )


def test_a_full_disk_and_too_many_bad_rows_stop_a_job_that_then_goes_on(folder, quiet, environment):
    # The largest file is 2 KB: the job's own files fit, a part does not. As a full disk does.
    words = kills.words("stops")
    done = subprocess.run(
        ["bash", "-c", 'ulimit -f 2; exec "$@"', "bash", processes.TFDP, *words],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        f"tfdp: A part cannot be written to stops: File too large. 0 of {SHARDS} parts are "
        "complete; the same command goes on from there.\n"
    )
    assert sorted(kills.content(folder / "stops")) == ["job.json"]
    assert list((folder / "stops" / ".tfdp").glob("writing-*/*")) == []

    done = processes.run([*words, "--max_errors=2"], folder, environment)
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(
        r"tfdp: 3 rows cannot be read, which is more than --max_errors=2: see stops/errors.jsonl. "
        rf"\d+ of {SHARDS} parts are complete; the same command goes on from there.",
        done.stderr.splitlines()[-1],
    )
    assert (folder / "stops" / "errors.jsonl").read_bytes() == quiet["errors.jsonl"]

    done = processes.run([*words, "--max_errors=3"], folder, environment)
    assert done.returncode == 0, done.stderr
    assert kills.content(folder / "stops") == quiet
