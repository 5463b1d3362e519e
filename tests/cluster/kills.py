"""A job of `tfdp predict` whose workers and launcher are killed in turn, against one left alone.

    python tests/cluster/kills.py --kills=20 --shards=160

Prints how many shards were run more than once, and whether the output is the same, byte for byte.
"""

import argparse
import os
import pathlib
import random
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from cluster import processes

ROWS_PER_SHARD = 32
# Of the job that tests compare with, and how long a batch of it takes.
SHARDS, LOOPS = 20, 1500
# Rows of the input that are damaged: they are in errors.jsonl, whatever happens.
BAD = (5, 70, 71)

MAKE = """
import sys
import numpy as np
import tensorflow as tf
from tfdp.data import tfrecord

folder, rows, bad = sys.argv[1], int(sys.argv[2]), [int(n) for n in sys.argv[3].split(",")]

class Slow(tf.Module):
    def __init__(self):
        self.w = tf.Variable(tf.linalg.qr(tf.random.stateless_normal([256, 256], [1, 2]))[0])

    @tf.function(input_signature=[tf.TensorSpec([None, 4], tf.float32, name="x")])
    def serve(self, x):
        y = tf.tile(x, [1, 64])
        step = lambda y: [tf.tanh(y @ self.w)]
        [y] = tf.while_loop(lambda y: True, step, [y], maximum_iterations=LOOPS)
        return {"y": y[:, :4]}

slow = Slow()
tf.saved_model.save(slow, folder + "/model/1", {"serving_default": slow.serve})
with open(folder + "/rows.tfrecord", "wb") as file:
    for row in range(rows):
        values = np.random.default_rng(row).normal(size=3 if row in bad else 4)
        example = tf.train.Example()
        example.features.feature["x"].float_list.value.extend(values)
        file.write(tfrecord.frame(example.SerializeToString()))
"""


def make(folder, shards, loops, environment):
    """Write a model that takes its time, and rows for so many shards."""
    rows = shards * ROWS_PER_SHARD - 7
    bad = ",".join(map(str, BAD))
    program = MAKE.replace("LOOPS", str(loops))
    subprocess.run(
        [sys.executable, "-c", program, str(folder), str(rows), bad],
        env=environment,
        check=True,
        capture_output=True,
    )
    return rows


def words(output, workers=2):
    """The command."""
    return [
        "predict",
        "--model=model",
        "--input=rows.tfrecord",
        f"--output={output}",
        f"--workers={workers}",
        "--batch_size=16",
        f"--shard_rows={ROWS_PER_SHARD}",
        "--threads=1",
    ]


def predict(folder, environment):
    """Make a folder with the model and its rows, and predict them undisturbed, into quiet/."""
    folder.mkdir()
    make(folder, SHARDS, LOOPS, environment)
    done = processes.run(words("quiet"), folder, environment)
    assert done.returncode == 0, done.stderr


def give(predicted, folder):
    """Copy the model and the rows of such a folder into another one."""
    ignore = shutil.ignore_patterns("quiet")
    shutil.copytree(predicted, folder, ignore=ignore, dirs_exist_ok=True)


def content(output):
    """Every file that a user reads, with its bytes."""
    return {path.name: path.read_bytes() for path in output.iterdir() if path.is_file()}


def begun(output):
    """The shards that were begun, one for each time."""
    path = output / ".tfdp" / "journal"
    return [line.split()[0] for line in path.read_text().splitlines()] if path.exists() else []


def workers_of(launcher):
    """The numbers of its worker processes."""
    commands = processes.family(launcher.pid)
    return sorted(pid for pid, command in commands.items() if "inference.worker" in command)


def killed_run(folder, output, kills, environment, seed=0, seconds=600):
    """Run the command; kill a worker and the launcher in turn, each while shards are run.

    Returns:
        How many were killed: fewer than asked for if the job was done before.
    """
    draw = random.Random(seed)
    until = time.monotonic() + seconds
    killed = 0
    while True:
        with processes.started(words(output.name), folder, environment) as launcher:
            while killed < kills and launcher.poll() is None:
                seen = len(begun(output))
                while len(begun(output)) == seen and launcher.poll() is None:
                    assert time.monotonic() < until, "no shard is begun"
                    wait(launcher, 0.02)
                wait(launcher, draw.uniform(0, 0.4))
                victims = workers_of(launcher)
                if launcher.poll() is not None or not victims:
                    continue
                is_launcher = killed % 2 == 1
                victim = launcher.pid if is_launcher else draw.choice(victims)
                os.kill(victim, signal.SIGKILL)
                killed += 1
                if is_launcher:
                    break
            out, err = launcher.communicate(timeout=max(1.0, until - time.monotonic()))
        if launcher.returncode != -signal.SIGKILL:
            assert launcher.returncode == 0, (out, err)
            return killed


def wait(launcher, seconds):
    """Wait for so long, or until the launcher has ended."""
    handle = os.pidfd_open(launcher.pid)
    try:
        select.select([handle], [], [], seconds)
    finally:
        os.close(handle)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--shards", type=int, default=160)
    parser.add_argument("--loops", type=int, default=1500)
    options = parser.parse_args()
    environment = dict(os.environ)
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        make(folder, options.shards, options.loops, environment)
        done = processes.run(words("alone"), folder, environment, seconds=600)
        assert done.returncode == 0, done.stderr
        print(done.stdout.strip())
        killed = killed_run(folder, folder / "killed", options.kills, environment)
        again = len(begun(folder / "killed")) - options.shards
        same = content(folder / "alone") == content(folder / "killed")
        print(f"{killed} kills, {again} shards run again, the same bytes: {same}")
        sys.exit(not (same and killed == options.kills and again <= killed))


if __name__ == "__main__":
    main()
