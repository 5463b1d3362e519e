"""`tfdp train --data_workers=2`: data workers that are killed, and what is left of them."""

import os
import pathlib
import signal

import pytest
import tensorflow as tf

from cluster import processes

pytestmark = pytest.mark.cluster

CONFIG = """
from tfdp import config

def get_config(variant=""):
    run = config.Config(name="records")
    run.data.source = "tfrecord"
    run.data.train_files, run.data.test_files = "train-*.tfrecord", "test.tfrecord"
    run.data.features = "image: image[8,8,1], label: int64"
    run.data.classes = 10
    run.data.service = "distributed_epoch"
    run.data.global_batch_size = 16
    run.training.epochs = 11
    return run
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("service")
    (made / "records.py").write_text(CONFIG)
    for name in (*(f"train-{number}" for number in range(6)), "test"):
        with tf.io.TFRecordWriter(str(made / f"{name}.tfrecord")) as writer:
            for number in range(64):
                label = number % 10
                image = tf.io.encode_png(tf.fill((8, 8, 1), tf.cast(label * 25, tf.uint8))).numpy()
                features = {
                    "image": tf.train.Feature(bytes_list=tf.train.BytesList(value=[image])),
                    "label": tf.train.Feature(int64_list=tf.train.Int64List(value=[label])),
                }
                example = tf.train.Example(features=tf.train.Features(feature=features))
                writer.write(example.SerializeToString())
    return made


def words(run, *given):
    cluster = ["--workers=2", "--data_workers=2", f"--log_dir={run}-logs"]
    return ["train", "--config=records.py", *cluster, f"--config.run_dir={run}", *given]


def process_of(launcher, task):
    """Return the process of a data task, by its command line."""
    kind = "dispatcher" if task == 0 else "worker"
    found = sorted(
        pid
        for pid, command in processes.family(launcher.pid).items()
        if f"tfdp.data.service_task {kind} " in command
    )
    return found[max(0, task - 1)]


def test_the_training_goes_on_when_servers_were_killed(folder, environment):
    run = words("lost")
    with processes.started(run, folder, environment) as launcher:
        for epoch, task in ((2, 2), (5, 0)):
            log = folder / "lost-logs" / "worker-0.log"
            processes.wait_for_text(log, f"Epoch {epoch}/", 120, launcher)
            os.kill(process_of(launcher, task), signal.SIGKILL)
        processes.wait_for_text(folder / "lost-logs" / "worker-0.log", "Epoch 8/", 120, launcher)
        with processes.watched(processes.family(launcher.pid)) as handles:
            out, err = launcher.communicate(timeout=240)
            assert processes.left_after(handles, 5) == []
    assert launcher.returncode == 0, err
    for task in ("data:2", "data:0"):
        assert f"{task} exited with code 137 (killed by SIGKILL), " in err
    assert err.count("It starts again in 1 s (restart 1 of 3).") == 2
    assert "Test accuracy" in out
    assert "gives batches in any order; the data workers share them out" in out + err


@pytest.mark.exhaustive  # test_failures shows it of other tasks
def test_a_killed_launcher_leaves_no_server(folder, environment):
    run = words("killed", "--config.training.epochs=1000")
    with processes.started(run, folder, environment) as launcher:
        processes.wait_for_text(folder / "killed-logs" / "worker-0.log", "Epoch 2/", 120, launcher)
        with processes.watched(processes.family(launcher.pid)) as handles:
            launcher.kill()
            assert processes.left_after(handles, 5) == []


@pytest.mark.parametrize("flag", ["--max_restarts=1", "--resume=lost"])
def test_what_would_go_on_at_a_record_is_refused(flag, folder, environment):
    given = [flag] if "resume" in flag else ["--config=records.py", flag]
    done = processes.run(["train", *given], folder, environment)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[-1] == (
        f"tfdp: {flag.partition('=')[0]}: with config.data.service='distributed_epoch' batches "
        "come in no fixed order, so that a run has no place at which it could go on. Leave the "
        "service off."
    )


def test_the_dry_run_shows_the_servers(folder, environment):
    done = processes.run([*words("dry"), "--dry_run"], folder, environment)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert sum("tfdp.data.service_task worker 127.0.0.1:" in line for line in lines) == 2
    assert sum("TFDP_DATA_SERVICE=grpc://127.0.0.1:" in line for line in lines) == 2
    assert not pathlib.Path(folder, "dry").exists()
