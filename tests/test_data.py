import collections
import csv
import dataclasses
import gzip
import io
import itertools
import os
import pathlib
import socket
import subprocess
import sys
import tarfile

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from tfdp.config import Data
from tfdp.data import pipeline, prepared
from tfdp.data import source as source_lib
from tfdp.datasets import digits
from tfdp.error import Error

ROWS = pathlib.Path(digits.__file__).with_name("digits.csv.gz")


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*arguments, **named):
        raise AssertionError(f"The network was asked for {arguments}")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def digits(folder):
    return source_lib.open_source(Data(data_dir=str(folder)))


def rows_of_the_csv():
    """(pixels, label) of each row, in order."""
    with gzip.open(ROWS, "rt", newline="") as rows:
        table = [tuple(map(int, row)) for row in csv.reader(rows)]
    return [(row[:-1], row[-1]) for row in table]


def records(dataset):
    """(pixels, label) of each record, in order."""
    return [
        (tuple(image.ravel().tolist()), int(label))
        for images, labels in dataset.as_numpy_iterator()
        for image, label in zip(images, labels, strict=True)
    ]


def files_in_order(folder, split):
    """The records of a split as they lie in its files, read without TFDS."""
    files = sorted(str(path) for path in folder.glob(f"tfdp_digits/1.0.0/*-{split}.tfrecord-*"))
    features = {
        "image": tf.io.FixedLenFeature((64,), tf.int64),
        "label": tf.io.FixedLenFeature((), tf.int64),
    }
    found = []
    for serialized in tf.data.TFRecordDataset(files):
        record = tf.io.parse_single_example(serialized, features)
        found.append((tuple(record["image"].numpy().tolist()), int(record["label"])))
    return found


# -- the digits --------------------------------------------------------------------------------


def test_digits_lie_in_eight_shards_a_split(digits, folder):
    names = [path.name for path in (folder / "tfdp_digits" / "1.0.0").iterdir()]
    assert sorted(name for name in names if "tfrecord" in name) == sorted(
        f"tfdp_digits-{split}.tfrecord-{shard:05}-of-00008"
        for split in ("train", "test")
        for shard in range(8)
    )
    assert (digits.train.count, digits.test.count) == (1437, 360)
    part = source_lib.open_source(Data(data_dir=str(folder), train_split="train[:100]"))
    assert part.train.count == 100


def test_what_the_digits_say_of_themselves(digits, folder):
    assert digits.input_shape == (8, 8, 1)
    assert digits.classes == 10
    assert digits.label_names == tuple("0123456789")
    assert digits.pixel_max == 16.0
    builder = prepared.open_builder(Data(data_dir=str(folder)))
    assert builder.info.redistribution_info.license == "CC BY 4.0"


def test_every_row_is_in_one_split_once_as_it_was(digits, folder):
    rows = rows_of_the_csv()
    assert len(rows) == 1797
    assert max(max(pixels) for pixels, _ in rows) == 16
    test = [row for number, row in enumerate(rows) if number % 5 == 0]
    train = [row for number, row in enumerate(rows) if number % 5 != 0]
    # TFDS writes them in an order of its own: compared with all repeats, in no order.
    assert sorted(files_in_order(folder, "train")) == sorted(train)
    assert sorted(files_in_order(folder, "test")) == sorted(test)
    assert sorted(records(pipeline.evaluation(digits, Data()))) == sorted(test)


def test_two_processes_that_prepare_at_once_do_not_clash(tmp_path):
    program = (
        "import sys\n"
        "from tfdp.config import Data\n"
        "from tfdp.data import pipeline, source\n"
        "print('ready', flush=True)\n"
        "sys.stdin.readline()\n"
        "found = source.open_source(Data(data_dir=sys.argv[1]))\n"
        "print(sum(1 for _ in pipeline.evaluation(found, Data(global_batch_size=1))))\n"
        "print(found.train.count, found.test.count)\n"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program, tmp_path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    try:
        for process in processes:
            assert process.stdout.readline() == "ready\n"
        for process in processes:
            process.stdin.write("\n")
            process.stdin.flush()
        answers = [process.communicate(timeout=60)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert answers == ["360\n1437 360\n"] * 2
    assert [process.returncode for process in processes] == [0, 0]
    assert os.listdir(tmp_path / "tfdp_digits") == ["1.0.0"]


def test_prepared_digits_are_read_from_a_folder_that_cannot_be_written(digits, folder, monkeypatch):
    def refuse(*arguments):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(prepared.fcntl, "flock", refuse)
    assert source_lib.open_source(Data(data_dir=str(folder))).train.count == 1437


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(Error) as raised:
        source_lib.open_source(Data(data_dir=str(tmp_path / "file")))
    assert str(raised.value) == (
        f"tfdp_digits cannot be prepared in {tmp_path}/file/tfdp_digits/1.0.0: File exists. "
        "Name another folder: --config.data.data_dir=..."
    )


# -- other datasets ------------------------------------------------------------------------------


def prepare(dataset, folder, features, supervised, record):
    """Prepares a dataset of three equal records."""

    class Tiny(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")
        name = dataset

        def _info(self):
            return tfds.core.DatasetInfo(
                builder=self,
                features=tfds.features.FeaturesDict(features),
                supervised_keys=supervised,
            )

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples(), "validation": self._generate_examples()}

        def _generate_examples(self):
            return ((number, record) for number in range(3))

    Tiny(data_dir=folder).download_and_prepare()


IMAGE = np.arange(12, dtype="uint8").reshape(2, 2, 3)
CLASS = tfds.features.ClassLabel(names=["cat", "dog"])


@pytest.fixture(scope="module")
def others(tmp_path_factory):
    folder = tmp_path_factory.mktemp("others")
    image = tfds.features.Image(shape=(2, 2, 3))
    pair = ("image", "label")
    tables = {
        "good": ({"image": image, "label": CLASS}, pair, {"image": IMAGE, "label": "dog"}),
        "without_keys": ({"image": image, "label": CLASS}, None, {"image": IMAGE, "label": 0}),
        "of_any_size": (
            {"image": tfds.features.Image(shape=(None, None, 3)), "label": CLASS},
            pair,
            {"image": IMAGE, "label": 0},
        ),
        "of_floats": (
            {"image": tfds.features.Tensor(shape=(2, 2, 1), dtype=np.float32), "label": CLASS},
            pair,
            {"image": np.zeros((2, 2, 1), "float32"), "label": 0},
        ),
        "of_texts": (
            {"text": tfds.features.Text(), "label": CLASS},
            ("text", "label"),
            {"text": "a", "label": 0},
        ),
        "of_numbers": (
            {"image": image, "label": tfds.features.Scalar(np.float32)},
            pair,
            {"image": IMAGE, "label": 0.5},
        ),
    }
    for name, (features, supervised, record) in tables.items():
        prepare(name, folder, features, supervised, record)
    for config in ("small", "large"):
        (folder / "configured" / config / "1.0.0").mkdir(parents=True)
    (folder / "empty").mkdir()
    return folder


def test_a_prepared_dataset_is_opened_by_its_name(others, no_network):
    data = Data(tfds_name="good", data_dir=str(others), test_split="validation")
    found = source_lib.open_source(data)
    assert (found.input_shape, found.classes, found.pixel_max) == ((2, 2, 3), 2, 255.0)
    assert found.label_names == ("cat", "dog")
    assert found.train.count == 3
    assert records(pipeline.evaluation(found, data)) == [(tuple(range(12)), 1)] * 3


SCRIPT = "Train it with a script of your own: tfdp launch -- SCRIPT.py"


@pytest.mark.parametrize(
    ("name", "splits", "message"),
    [
        (
            "mnist",
            ("train", "test"),
            "The dataset 'mnist' is not prepared in {folder}. Prepare it there with TFDS, name its "
            "folder with --config.data.data_dir=..., or that of its published files with "
            "--config.data.manual_dir=..., or allow --config.data.download=True.",
        ),
        (
            "good:9.9.9",
            ("train", "validation"),
            "The dataset 'good:9.9.9' is not prepared in {folder}. Prepare it there with TFDS, "
            "name its folder with --config.data.data_dir=..., or that of its published files with "
            "--config.data.manual_dir=..., or allow --config.data.download=True.",
        ),
        (
            "empty",
            ("train", "test"),
            "The dataset 'empty' is not prepared in {folder}. Prepare it there with TFDS, name its "
            "folder with --config.data.data_dir=..., or that of its published files with "
            "--config.data.manual_dir=..., or allow --config.data.download=True.",
        ),
        (
            "configured",
            ("train", "test"),
            "The dataset 'configured' has configurations: use one of configured/large, "
            "configured/small.",
        ),
        (
            "good",
            ("train", "test"),
            "good: 'test' is no split of it (Unknown split 'test'. Should be one of "
            "['train', 'validation']). It has train, validation; a part is written like "
            "'train[:90%]'.",
        ),
        (
            "good",
            ("train[:90%", "validation"),
            "good: 'train[:90%' is no split of it (Error parsing split 'train[:90%'). It has "
            "train, validation; a part is written like 'train[:90%]'.",
        ),
        ("good", ("train[:0]", "validation"), "good: the split 'train[:0]' holds no record."),
        (
            "without_keys",
            ("train", "validation"),
            "without_keys names no (input, label) pair (supervised_keys): tfdp train cannot tell "
            f"which feature to learn. {SCRIPT}",
        ),
        (
            "of_any_size",
            ("train", "validation"),
            "of_any_size: the images have no fixed size ((None, None, 3)). Set one: "
            "--config.data.image_size=224x224.",
        ),
        (
            "of_floats",
            ("train", "validation"),
            "of_floats: the input 'image' is a Tensor of shape (2, 2, 1), no images of bytes. "
            f"{SCRIPT}",
        ),
        (
            "of_texts",
            ("train", "validation"),
            f"of_texts: the input 'text' is a Text of shape (), no images of bytes. {SCRIPT}",
        ),
        (
            "of_numbers",
            ("train", "validation"),
            f"of_numbers: the label 'label' is a Scalar, no ClassLabel. {SCRIPT}",
        ),
    ],
)
def test_what_cannot_be_read_is_said_at_once(name, splits, message, others):
    data = Data(tfds_name=name, data_dir=str(others), train_split=splits[0], test_split=splits[1])
    with pytest.raises(Error) as raised:
        source_lib.open_source(data)
    assert str(raised.value) == message.replace("{folder}", str(others))


def test_download_of_a_dataset_that_nobody_knows(tmp_path):
    with pytest.raises(Error) as raised:
        source_lib.open_source(
            Data(tfds_name="no_such_dataset", data_dir=str(tmp_path), download=True)
        )
    assert str(raised.value) == (
        "TFDS cannot make the dataset 'no_such_dataset': Dataset no_such_dataset not found."
    )


def test_a_download_without_a_network(tmp_path, monkeypatch):
    class Builder:
        data_dir = str(tmp_path / "mnist" / "3.0.1")

        def is_prepared(self):
            return False

        def download_and_prepare(self, download_config):
            raise ConnectionError("Failed to resolve the host.\nAnd much more.")

    monkeypatch.setattr(tfds, "builder", lambda name, data_dir: Builder())
    with pytest.raises(Error) as raised:
        source_lib.open_source(Data(tfds_name="mnist", download=True))
    assert str(raised.value) == (
        "The dataset 'mnist' could not be prepared: Failed to resolve the host."
    )


@pytest.mark.parametrize(
    ("versions", "newest"), [(("1.9.0", "1.10.0", "1.2.11"), "1.10.0"), (("2.0.0", "x"), "2.0.0")]
)
def test_the_newest_version_is_read(versions, newest, tmp_path):
    for version in versions:
        (tmp_path / "name" / version).mkdir(parents=True)
    assert prepared._newest(str(tmp_path), "name") == str(tmp_path / "name" / newest)
    assert prepared._newest(str(tmp_path), "name:1.0.0") == str(tmp_path / "name" / "1.0.0")


# -- the pipeline ------------------------------------------------------------------------------


def test_batches_are_global_and_the_last_is_ragged(digits):
    sizes = [len(labels) for _, labels in pipeline.training(digits, Data(), seed=0)]
    assert sizes == [64] * 22 + [29]
    sizes = [len(labels) for _, labels in pipeline.evaluation(digits, Data(global_batch_size=100))]
    assert sizes == [100, 100, 100, 60]


def epochs_of(source, data, seed, count):
    """The records of each epoch, in order."""
    batches = list(pipeline.training(source, data, seed, epochs=count).as_numpy_iterator())
    steps = len(batches) // count
    return [
        [
            (tuple(image.ravel().tolist()), int(label))
            for images, labels in batches[epoch * steps : (epoch + 1) * steps]
            for image, label in zip(images, labels, strict=True)
        ]
        for epoch in range(count)
    ]


def test_each_epoch_has_every_record_once_in_an_order_of_its_own(digits, folder):
    everything = files_in_order(folder, "train")
    epochs = epochs_of(digits, Data(), 7, 3)
    for epoch in epochs:
        assert collections.Counter(epoch) == collections.Counter(everything)
    for one, other in itertools.combinations([*epochs, everything], 2):
        assert one != other


def test_the_order_is_that_of_the_seed_and_of_nothing_else(digits):
    tf.random.set_seed(1)
    seven = epochs_of(digits, Data(), 7, 2)
    tf.random.set_seed(0)
    assert epochs_of(digits, Data(), 7, 2) == seven
    assert epochs_of(digits, Data(), 8, 1)[0] != seven[0]


def test_without_a_shuffle_buffer_the_order_is_that_of_the_files(digits, folder):
    dataset = pipeline.training(digits, Data(shuffle_buffer=0), seed=0)
    assert records(dataset) == files_in_order(folder, "train")


def test_evaluation_is_in_order_every_time(digits, folder):
    dataset = pipeline.evaluation(digits, Data(global_batch_size=7))
    assert records(dataset) == files_in_order(folder, "test")
    assert records(dataset) == files_in_order(folder, "test")


def test_a_part_of_a_split(digits, folder):
    data = Data(data_dir=str(folder), train_split="train[170:390]", shuffle_buffer=0)
    part = source_lib.open_source(data)
    expected = files_in_order(folder, "train")[170:390]
    assert records(pipeline.training(part, data, seed=0)) == expected
    assert [file.first for file in part.train.files] == [170, 0, 0]


# -- files that somebody has downloaded ------------------------------------------------------------


@pytest.fixture
def published(tmp_path, monkeypatch):
    """CIFAR-10 with three images in each of its files, known to TFDS as the published archive."""
    folder = tmp_path / "manual"
    folder.mkdir()
    random = np.random.default_rng(0)
    names = [*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin"]
    contents = {
        name: b"".join(bytes([label]) + random.bytes(3072) for label in range(3)) for name in names
    }
    labels = "\n".join(f"label {number}" for number in range(10)) + "\n\n"
    contents["batches.meta.txt"] = labels.encode()
    archive = folder / "cifar-10-binary.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        for name, content in contents.items():
            facts = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            facts.size = len(content)
            tar.addfile(facts, io.BytesIO(content))
    info = tfds.core.download.checksums.compute_url_info(archive)
    info = dataclasses.replace(info, filename=archive.name)
    kind = tfds.builder_cls("cifar10")
    url = next(iter(kind.url_infos))
    monkeypatch.setattr(kind, "url_infos", {url: info})
    return folder


def test_a_dataset_is_prepared_from_files_that_were_downloaded(published, tmp_path):
    data = Data(tfds_name="cifar10", data_dir=str(tmp_path / "data"), manual_dir=str(published))
    opened = source_lib.open_source(data)
    assert (opened.train.count, opened.test.count) == (15, 3)
    assert (opened.input_shape, opened.classes) == ((32, 32, 3), 10)
    # It is prepared once: afterwards nobody needs the files.
    (published / "cifar-10-binary.tar.gz").unlink()
    assert source_lib.open_source(data).train.count == 15


def test_files_that_are_not_there_or_not_the_published_ones(published, tmp_path):
    data = Data(
        tfds_name="cifar10", data_dir=str(tmp_path / "data"), manual_dir=str(tmp_path / "none")
    )
    with pytest.raises(Error) as raised:
        source_lib.open_source(data)
    assert str(raised.value) == (
        f"config.data.manual_dir='{tmp_path}/none': no cifar-10-binary.tar.gz. Put the files of "
        "'cifar10' there as they are published, unpacked or renamed in no way, or allow "
        "--config.data.download=True."
    )
    (published / "cifar-10-binary.tar.gz").write_bytes(b"something else")
    data.manual_dir = str(published)
    with pytest.raises(Error, match="The files of 'cifar10' are not those that TFDS knows: "):
        source_lib.open_source(data)
    data.tfds_name, data.manual_dir = "imagenet2012:5.1.0", str(published)
    with pytest.raises(
        Error, match=r"no ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar. Put the"
    ):
        source_lib.open_source(data)
