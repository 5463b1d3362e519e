"""From a run to its predictions: train, export, predict, with every strategy."""

import csv
import json
import pathlib
import subprocess

import numpy as np
import pytest
import tensorflow as tf

from cluster import processes

pytestmark = pytest.mark.cluster

DIGITS = str(pathlib.Path(__file__).parents[2] / "configs" / "digits.py")
SCRIPTS = pathlib.Path(__file__).with_name("scripts")
# How the model is trained: what one device trains, on whatever it is trained.
RUNS = {
    "one-device": ["--config.strategy=one_device"],
    "two-workers": ["--workers=2"],
}
SHORT = [
    f"--config={DIGITS}:quick",
    "--config.data.train_split=train[:256]",
    "--config.model.dropout=0.0",
    "--config.training.epochs=1",
    "--config.training.optimizer=sgd",
    "--config.training.learning_rate=0.01",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, environment):
    folder = tmp_path_factory.mktemp("exported")
    for name, flags in RUNS.items():
        done = processes.run(
            ["train", *SHORT, f"--config.run_dir={name}", *flags], folder, environment
        )
        assert done.returncode == 0, done.stderr
    # fit does not know parameter servers: there the loop is the script's own, and saves the model.
    cluster = ["launch", "--chief", "--workers=1", "--ps=2", "--log_dir=logs"]
    script = [str(SCRIPTS / "ps_digits.py"), DIGITS, "servers.keras"]
    done = processes.run([*cluster, "--", *script], folder, environment)
    assert done.returncode == 0, done.stderr
    assert "The first weights lie on /job:ps/" in done.stdout
    words = ["export", "--run=servers.keras", "--output=servers/export/digits"]
    done = processes.run(words, folder, environment)
    assert done.returncode == 0, done.stderr
    return folder


def test_models_of_all_strategies_predict_alike(folder):
    images = np.random.default_rng(0).integers(0, 17, (200, 8, 8, 1), dtype="uint8")
    found = {}
    for name in (*RUNS, "servers"):
        loaded = tf.saved_model.load(str(folder / name / "export" / "digits" / "1"))
        served = loaded.signatures["serving_default"]
        found[name] = served(image=tf.constant(images))["probabilities"].numpy()
    # The training has changed something, and the same.
    assert np.ptp(found["one-device"], axis=0).max() > 0.01
    for name in found:
        np.testing.assert_allclose(found[name], found["one-device"], rtol=0, atol=1e-6)


def test_a_run_is_exported_and_predicts_a_split_and_its_images(folder, environment):
    done = processes.run(
        ["export", "--run=two-workers", "--output=models/digits", "--second_signature=images"],
        folder,
        environment,
    )
    assert (done.returncode, done.stdout) == (0, "models/digits/1\n"), done.stderr
    checked = processes.run(["export", "--check=models/digits"], folder, environment)
    assert checked.stdout.splitlines()[1:] == [
        "images: one row gives probabilities: float32 (1, 10).",
        "serving_default: one row gives probabilities: float32 (1, 10).",
    ]

    words = ["predict", "--model=models/digits", "--workers=1", "--shard_rows=20"]
    split = [*words, "--input=tfds:tfdp_digits/test[:40]", "--output=split"]
    done = processes.run(split, folder, environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("40 rows: 40 predicted. 2 parts in split.")
    rows = [
        json.loads(line)
        for number in range(2)
        for line in (folder / "split" / f"part-{number:05}-of-00002.jsonl").open()
    ]
    assert rows[0]["id"] == "tfdp_digits-test.tfrecord-00000-of-00008:0"

    # The same images as files, in a folder, by way of the second signature.
    import tensorflow_datasets as tfds

    data = environment["TFDS_DATA_DIR"]
    builder = tfds.builder_from_directory(f"{data}/tfdp_digits/1.0.0")
    config = tfds.ReadConfig(interleave_cycle_length=1)
    records = builder.as_dataset(split="test[:40]", read_config=config, shuffle_files=False)
    (folder / "pictures").mkdir()
    for number, record in enumerate(records):
        png = tf.io.encode_png(record["image"]).numpy()
        (folder / "pictures" / f"{number:02}.png").write_bytes(png)
    (folder / "pictures" / "39.png").write_bytes(b"no image")
    images = [*words, "--input=pictures", "--output=images.csv", "--signature=images"]
    done = processes.run(images, folder, environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("40 rows: 39 predicted, 1 in errors.jsonl. 2 parts in images.csv")
    table = [
        row
        for number in range(2)
        for row in csv.DictReader((folder / "images.csv" / f"part-{number:05}-of-00002.csv").open())
    ]
    assert [row["id"] for row in table] == [f"{number:02}.png" for number in range(39)]
    np.testing.assert_allclose(
        [[float(row[f"probabilities_{n}"]) for n in range(10)] for row in table],
        [row["probabilities"] for row in rows[:39]],
        rtol=0,
        atol=1e-6,
    )
    (error,) = map(json.loads, (folder / "images.csv" / "errors.jsonl").open())
    assert (error["file"], error["record"]) == ("39.png", 0)
    assert "Unknown image file format" in error["reason"]


@pytest.mark.parametrize(
    ("words", "lines"),
    [
        (["--input=tfds:tfdp_digits/tset"], ["tfdp_digits: 'tset' is no split of it (Unknown "]),
        (["--input=tfds:tfdp_digits"], ["write tfds:NAME/SPLIT, as in tfds:mnist/test."]),
        (
            ["--input=rows.tfrecord"],
            ["The first records of rows.tfrecord have no feature 'image', but x, y. Name another "
             "with --map=INPUT=FEATURE. The model has: serving_default(image: uint8 (?, 8, 8, 1))"],
        ),
    ],
)  # fmt: skip
def test_inputs_that_only_a_worker_can_judge(words, lines, folder, environment):
    example = tf.train.Example()
    example.features.feature["x"].float_list.value.append(1.0)
    example.features.feature["y"].float_list.value.append(1.0)
    with tf.io.TFRecordWriter(str(folder / "rows.tfrecord")) as writer:
        writer.write(example.SerializeToString())
    model = "--model=one-device/export/digits"
    done = subprocess.run(
        [processes.TFDP, "predict", model, "--output=refused", *words],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1)
    assert all(line in done.stderr for line in lines)
