"""Pipelines of every source: what comes, in which order, on any number of workers."""

import collections
import itertools
import json

import numpy as np
import pytest
import tensorflow as tf
from test_data_damage import example, write, write_array_record
from test_data_sharding import batches_of

from tfdp.compat import data_adapters
from tfdp.config import Data
from tfdp.data import function, images, inputs, pipeline, plan_report, reshard, source
from tfdp.error import Error
from tfdp.fit import feed


def context(pipelines, number):
    return tf.distribute.InputContext(pipelines, number)


def labels(dataset):
    """The labels of each batch; every record of these tests has one of its own."""
    return [y.numpy().tolist() for _, y in dataset]


def records(first, count):
    return [example(x=np.arange(2) + 0.5 + n, label=n) for n in range(first, first + count)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """103 records, 0 to 102: in one file, in five uneven ones, and in every format."""
    folder = tmp_path_factory.mktemp("sources")
    write(folder / "one.tfrecord", records(0, 103))
    write_array_record(folder / "one.array_record", records(0, 103))
    first = 0
    for at, count in enumerate((20, 21, 20, 22, 20)):
        write(folder / f"five-{at}.tfrecord", records(first, count))
        write_array_record(folder / f"five-{at}.array_record", records(first, count))
        first += count
    x = np.arange(206, dtype=np.float32).reshape(103, 2) + 0.5
    np.savez(folder / "all.npz", x=x, label=np.arange(103))
    np.save(folder / "x.npy", x)
    np.save(folder / "y.npy", np.arange(103))
    for at, (begin, end) in enumerate(((0, 50), (50, 103))):
        rows = [f"{n}.5,{n},word,{n + 1}.5\n" for n in range(begin, end)]
        (folder / f"{at}.csv").write_text("x0,label,other,x1\n" + "".join(rows) + "\n")
    for number in range(12):
        place = folder / "photos" / ("cat", "dog")[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        pixels = np.full((6 + number, 8, 3), number, np.uint8)
        place.joinpath(f"{number:02}.png").write_bytes(tf.io.encode_png(pixels).numpy())
    return folder


def settings(folder, kind, files="one", **more):
    names = {
        "tfrecord": f"{folder}/{files}*.tfrecord",
        "array_record": f"{folder}/{files}*.array_record",
        "numpy": f"{folder}/all.npz",
        "csv": f"{folder}/*.csv",
        "images": f"{folder}/photos",
    }
    common = {
        "source": kind,
        "train_files": names[kind],
        "test_files": names[kind],
        "classes": 103,
        "global_batch_size": 24,
        "shuffle_buffer": 50,
    }
    if "record" in kind:
        common["features"] = "x: float32[2], label: int64"
    if kind == "csv":
        common["input"] = "x0, x1"
    return Data(**{**common, **more})


# -- each source -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["tfrecord", "array_record", "numpy", "csv"])
def test_each_source_gives_its_records_in_order(folder, kind):
    data = settings(folder, kind, shuffle="none")
    opened = source.open_source(data)
    assert (opened.input_shape, opened.train.count) == ((2,), 103)
    batches = list(pipeline.evaluation(opened, data).as_numpy_iterator())
    assert [len(y) for _, y in batches] == [24, 24, 24, 24, 7]
    x, y = (np.concatenate(parts) for parts in zip(*batches, strict=True))
    assert y.tolist() == list(range(103))
    assert (x.dtype, x.shape) == (np.float32, (103, 2))
    expected = np.arange(103) + 0.5 if kind != "numpy" else np.arange(0, 206, 2) + 0.5
    np.testing.assert_array_equal(x[:, 0], expected)
    np.testing.assert_array_equal(x[:, 1], expected + 1)
    assert labels(pipeline.training(opened, data, 0)) == labels(pipeline.evaluation(opened, data))


def test_a_folder_of_images(folder):
    data = settings(folder, "images", image_size="4x5", global_batch_size=5, shuffle="none")
    opened = source.open_source(data)
    assert (opened.input_shape, opened.classes) == ((4, 5, 3), 2)
    assert opened.label_names == ("cat", "dog")
    batches = list(pipeline.evaluation(opened, data).as_numpy_iterator())
    x, y = (np.concatenate(parts) for parts in zip(*batches, strict=True))
    assert (x.dtype, x.shape) == (np.uint8, (12, 4, 5, 3))
    assert y.tolist() == [0] * 6 + [1] * 6
    assert x[:, 0, 0, 0].tolist() == [0, 2, 4, 6, 8, 10, 1, 3, 5, 7, 9, 11]


def test_images_of_an_array_are_resized_and_changed(folder):
    np.savez(folder / "images.npz", x=np.zeros((20, 6, 6, 1), np.uint8), label=np.arange(20))
    name = f"{folder}/images.npz"
    data = settings(folder, "numpy", train_files=name, test_files=name, image_size="3x4",
                    augment="flip")  # fmt: skip
    opened = source.open_source(data)
    assert opened.input_shape == (3, 4, 1)
    (x, y) = next(iter(pipeline.training(opened, data, 0)))
    assert x.shape == (20, 3, 4, 1)
    assert sorted(y.numpy()) == list(range(20))


@pytest.mark.parametrize(
    "kind",
    [
        {"augment": "crop_flip"},
        pytest.param({"augment": "pad_crop_flip"}, marks=pytest.mark.exhaustive),
        # A part of the whole image, resized.
        pytest.param({"augment": "crop", "image_size": "6x5"}, marks=pytest.mark.exhaustive),
        {"augment": "pad_crop", "image_size": "6x5", "resize": "center"},
    ],
)
def test_augmentation_is_drawn_from_seed_epoch_and_record(folder, kind):
    dice = np.random.default_rng(0)
    pictures = [tf.io.encode_png(dice.integers(0, 255, (9, 9, 3), np.uint8)).numpy()
                for _ in range(16)]  # fmt: skip
    write(folder / "pictures.tfrecord", [example(image=p, label=n)
                                         for n, p in enumerate(pictures)])  # fmt: skip
    data = settings(folder, "tfrecord", "pictures", **kind, global_batch_size=4, order="global",
                    features="image: image[9,9,3], label: int64")  # fmt: skip
    opened = source.open_source(data)

    def pictured(number, pipelines):
        """{label: pixels} of each of two epochs."""
        batches = list(
            pipeline.training(opened, data, 3, context(pipelines, number), epochs=2)
            .unbatch().as_numpy_iterator()
        )  # fmt: skip
        half = len(batches) // 2
        return [{int(y): x.tobytes() for x, y in part} for part in (batches[:half], batches[half:])]

    first, second = pictured(0, 1)
    assert len(first) == len(second) == 16
    assert sum(first[label] != second[label] for label in first) >= 14
    for part in (pictured(0, 2), pictured(1, 2)):
        assert {label: first[label] for label in part[0]} == part[0]
        assert {label: second[label] for label in part[1]} == part[1]
    # A run that goes on within the second epoch, on another number of workers.
    resumed = pipeline.training(opened, data, 3, context(2, 1), epochs=2, start=(1, 2))
    rest = {int(y): x.tobytes() for x, y in resumed.unbatch().as_numpy_iterator()}
    assert len(rest) == 4
    assert {label: second[label] for label in rest} == rest


def test_pad_crop_moves_an_image_by_up_to_four_pixels():
    image = np.arange(1, 1 + 9 * 9, dtype=np.uint8).reshape(9, 9, 1)
    padded = np.pad(image, ((4, 4), (4, 4), (0, 0)))
    moves = set()
    for number in range(300):
        found = images.augment(tf.constant(image), "pad_crop", tf.constant([5, number], tf.int64))
        (at,) = [
            (y, x) for y, x in itertools.product(range(9), range(9))
            if np.array_equal(padded[y : y + 9, x : x + 9], found)
        ]  # fmt: skip
        moves.add(at)
    # Of 81 places each is drawn with a probability of 0.976.
    assert len(moves) > 70
    assert {y for y, _ in moves} == {x for _, x in moves} == set(range(9))


def test_the_middle_of_an_image_keeps_its_proportions():
    """As torchvision's evaluation: a shorter side of 256, of which 224 are taken."""
    tall = np.zeros((512, 256, 3), np.uint8)
    tall[144:368, 16:240] = 200  # the square of 224 in the middle
    found = images.center(tf.constant(tall), (224, 224))
    assert found.shape == (224, 224, 3)
    np.testing.assert_array_equal(found, np.full((224, 224, 3), 200))
    tall[140:372, 12:244] = 0
    assert not np.any(images.center(tf.constant(tall), (112, 112)))
    wide = tf.ones((7, 30, 1), tf.uint8)
    assert images.center(wide, (4, 3)).shape == (4, 3, 1)


# -- as planned ------------------------------------------------------------------------------------

WAYS = [
    ("tfrecord", "one", {}, "HINT"),
    ("tfrecord", "one", {"policy": "data", "ragged": "drop"}, "DATA"),
    ("tfrecord", "one", {"order": "global"}, "HINT"),
    ("tfrecord", "five", {}, "FILE"),
    ("tfrecord", "five", {"ragged": "drop"}, "FILE"),
    ("tfrecord", "five", {"policy": "hint", "ragged": "drop"}, "HINT"),
    ("array_record", "five", {}, "OFF"),
    ("csv", "", {"policy": "hint"}, "HINT"),
    ("numpy", "", {"ragged": "drop"}, "OFF"),
]


@pytest.mark.parametrize(("kind", "files", "more", "policy"), WAYS)
def test_a_pipeline_reads_what_its_plan_says(folder, kind, files, more, policy):
    data = settings(folder, kind, files, shuffle="none", policy=more.get("policy", "auto"),
                    **{k: v for k, v in more.items() if k != "policy"})  # fmt: skip
    opened = source.open_source(data)
    pipelines = 3 if policy != "FILE" else 5
    data.global_batch_size = 4 * pipelines
    if policy == "FILE":
        data.policy = "file"
    plan = pipeline.plan_training(opened, data, pipelines)
    assert plan.policy == policy
    for number, batches in enumerate(batches_of(plan)):
        found = labels(pipeline.training(opened, data, 0, context(pipelines, number)))
        assert found == batches
        assert len(found) == plan.steps


@pytest.mark.parametrize(
    ("kind", "files", "more", "policy"),
    [*WAYS, ("array_record", "five", {"shuffle": "buffer"}, "")],
)
def test_a_shuffled_epoch_holds_each_record_once_and_resumes_anywhere(
    folder, kind, files, more, policy
):
    data = settings(folder, kind, files, **more)
    opened = source.open_source(data)
    plan = pipeline.plan_training(opened, data, 2)
    epochs = []
    for number in range(2):
        batches = labels(pipeline.training(opened, data, 0, context(2, number), epochs=2))
        assert len(batches) == 2 * plan.steps
        # From step 2 of epoch 1 on, as an unbroken run.
        again = pipeline.training(opened, data, 0, context(2, number), epochs=2, start=(1, 2))
        assert labels(again) == batches[plan.steps + 2 :]
        epochs.append((batches[: plan.steps], batches[plan.steps :]))
    for epoch in (0, 1):
        trained = [n for number in (0, 1) for rows in epochs[number][epoch] for n in rows]
        times = collections.Counter(trained)
        assert set(times.values()) == {1}
        assert len(trained) == 103 - plan.dropped
        assert trained != sorted(trained)
    assert epochs[0][0] != epochs[0][1]


@pytest.mark.parametrize(
    ("kind", "shuffle", "ragged"),
    [
        ("tfrecord", "buffer", "exact"),
        ("array_record", "full", "exact"),
        pytest.param("numpy", "full", "drop", marks=pytest.mark.exhaustive),
        pytest.param("tfrecord", "none", "drop", marks=pytest.mark.exhaustive),
        pytest.param("array_record", "buffer", "drop", marks=pytest.mark.exhaustive),
    ],
)
def test_the_global_batches_are_the_same_for_1_2_3_4_and_8_pipelines(folder, kind, shuffle, ragged):
    data = settings(folder, kind, "five", shuffle=shuffle, order="global", ragged=ragged)
    opened = source.open_source(data)
    sequences = {}
    for pipelines in (1, 2, 3, 4, 8):
        parts = [
            labels(pipeline.training(opened, data, 5, context(pipelines, number), epochs=2))
            for number in range(pipelines)
        ]
        sequences[pipelines] = [list(itertools.chain(*rows)) for rows in zip(*parts, strict=True)]
    one = sequences[1]
    assert [len(rows) for rows in one] == ([24] * 4 + [7] * (ragged == "exact")) * 2
    for pipelines in (2, 3, 4, 8):
        assert sequences[pipelines] == one, pipelines


def test_not_counted_files_are_read_to_their_ends(folder):
    data = settings(folder, "tfrecord", "five", count=False, policy="file")
    opened = source.open_source(data)
    plan = pipeline.plan_training(opened, data, 2)
    assert (plan.policy, plan.steps, opened.train.count) == ("FILE", None, None)
    assert "not counted" in plan_report.lines(plan, "train")[0]
    datasets = [pipeline.training(opened, data, 0, context(2, n), epochs=None) for n in (0, 1)]
    for _ in range(2):
        trained = [n for dataset in datasets for rows in labels(dataset) for n in rows]
        assert sorted(trained) == list(range(103))
    assert labels(datasets[0]) != labels(datasets[0])  # another order each time


def test_without_an_end_the_epochs_go_on(folder):
    data = settings(folder, "tfrecord", "five")
    opened = source.open_source(data)
    endless = pipeline.training(opened, data, 0, epochs=None)
    assert int(endless.cardinality()) == tf.data.INFINITE_CARDINALITY
    three = labels(pipeline.training(opened, data, 0, epochs=3))
    assert labels(endless.take(15)) == three
    assert int(pipeline.training(opened, data, 0, epochs=3).cardinality()) == 15
    assert int(pipeline.training(opened, data, 0, epochs=3, start=(1, 2)).cardinality()) == 8


def test_the_batches_of_several_replicas_of_a_worker(folder):
    data = settings(folder, "tfrecord", "one", shuffle="none", order="global")
    opened = source.open_source(data)
    four = tf.distribute.InputContext(2, 1, num_replicas_in_sync=4)
    found = labels(pipeline.training(opened, data, 0, four))
    # Pipeline 1 has rows 12 to 23 of each 24, in two batches of 6; of the last 7 rows 3 to 6.
    assert found[:2] == [[12, 13, 14, 15, 16, 17], [18, 19, 20, 21, 22, 23]]
    assert found[-2:] == [[99, 100], [101, 102]]
    assert len(found) == 10


# -- the ledger ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["tfrecord", "array_record"])
def test_the_ledger_proves_that_each_record_came_once(folder, kind, tmp_path):
    data = settings(folder, kind, "five", ledger=str(tmp_path / "ids"))
    opened = source.open_source(data)
    batches = {}
    for number in (0, 1):
        batches[number] = labels(pipeline.training(opened, data, 0, context(2, number), epochs=2))
    first = dict(zip((f"{folder}/five-{n}.{kind}" for n in range(5)), (0, 20, 41, 61, 83),
                     strict=True))  # fmt: skip
    written = {
        number: [json.loads(line) for line in open(f"{tmp_path}/ids-{number}")] for number in (0, 1)
    }
    for number in (0, 1):
        names = [[name.rpartition(":") for name in one["ids"]] for one in written[number]]
        assert [[first[f] + int(n) for f, _, n in ids] for ids in names] == batches[number]
    for epoch in (0, 1):
        lines = [one for number in (0, 1) for one in written[number] if one["epoch"] == epoch]
        ids = [name for line in lines for name in line["ids"]]
        assert sorted(collections.Counter(ids).values()) == [1] * 103
    assert json.loads((tmp_path / "ids-0").read_text().splitlines()[0])["epoch"] == 0


# -- resharding ------------------------------------------------------------------------------------


@pytest.mark.parametrize("before", ["tfrecord", "array_record"])
@pytest.mark.parametrize("after", ["tfrecord", "array_record"])
def test_resharded_files_hold_the_same_records_in_order(folder, before, after, tmp_path):
    done = reshard.reshard(f"{folder}/five*.{before}", str(tmp_path / "even"), 8, after)
    assert (len(done.files), done.records) == (8, 103)
    assert sorted(path.name for path in (tmp_path / "even").iterdir()) == [
        f"even.{after}-{number:05}-of-00008" for number in range(8)
    ]
    data = settings(folder, after, shuffle="none", train_files=done.pattern,
                    test_files=done.pattern)  # fmt: skip
    opened = source.open_source(data)
    assert [file.records for file in opened.train.files] == [12, 13, 13, 13, 13, 13, 13, 13]
    assert sum(labels(pipeline.evaluation(opened, data)), []) == list(range(103))  # noqa: RUF017
    with pytest.raises(Error, match="even is there already: remove it, or name another"):
        reshard.reshard(f"{folder}/five*.{before}", str(tmp_path / "even"), 8, after)


def test_a_damaged_record_leaves_nothing_behind(folder, tmp_path):
    content = bytearray((folder / "one.tfrecord").read_bytes())
    content[-10] ^= 1
    (tmp_path / "bad.tfrecord").write_bytes(content)
    with pytest.raises(Error, match=r"bad.tfrecord: record 102 at byte [\d,]+: its checksum"):
        reshard.reshard(str(tmp_path / "bad.tfrecord"), str(tmp_path / "even"), 4)
    assert sorted(p.name for p in tmp_path.iterdir()) == [".tfdp-counts.json", "bad.tfrecord"]


# -- functions -------------------------------------------------------------------------------------


def test_a_hint_is_found_wherever_it_stands():
    hint = tf.data.experimental.SHARD_HINT
    plain = tf.data.Dataset.range(10)
    assert not data_adapters.has_shard_hint(plain.shard(2, 1).batch(2))
    assert data_adapters.has_shard_hint(plain.shard(hint, hint).map(lambda x: x + 1).batch(2))
    inside = tf.data.Dataset.range(2).interleave(lambda n: plain.shard(hint, hint))
    assert data_adapters.has_shard_hint(inside)
    with pytest.raises(Error) as raised:
        function.with_hint(plain, "mine:data")
    assert str(raised.value) == (
        "policy 'hint': the dataset of 'mine:data' has no hint, so that every worker would train "
        "on all of it. Put dataset.shard(tf.data.experimental.SHARD_HINT, "
        "tf.data.experimental.SHARD_HINT) behind its reader."
    )
    hinted = function.with_hint(plain.shard(hint, hint), "mine:data")
    assert hinted.options().experimental_distribute.auto_shard_policy.name == "HINT"


def pairs(data, split, context):
    """A function as a user writes it."""
    rows = tf.data.Dataset.range({"train": 100, "test": 10}[split])
    rows = rows.shard(context.num_input_pipelines, context.input_pipeline_id)
    return rows.map(lambda n: (n, n)).batch(data.global_batch_size // context.num_input_pipelines)


def no_dataset(data, split, context):
    return [1, 2]


def test_a_function_of_the_context():
    data = Data(function=f"{__name__}:pairs", global_batch_size=10)
    found = function.call(data, "train", context(2, 1))
    assert labels(found)[0] == [1, 3, 5, 7, 9]


def test_what_fit_gets_of_a_function():
    data = Data(function=f"{__name__}:pairs", global_batch_size=10, classes=3)
    one = inputs.open_inputs(data, 0, 1, 1)
    assert labels(one.training)[0] == list(range(10))
    assert (one.steps, one.classes, one.input_shape) == (None, 3, ())
    two = inputs.open_inputs(data, 0, 1, 2)
    assert labels(two.training(context(2, 0)))[0] == [0, 2, 4, 6, 8]
    assert two.plan_lines == [
        f"Input train: {__name__}:pairs shards for each of 2 pipelines, nothing is checked."
    ]
    data.policy = "hint"
    with pytest.raises(Error, match=r"policy 'hint': the dataset of '.*:pairs' has no hint"):
        inputs.open_inputs(data, 0, 1, 2)


def test_what_fit_gets_of_a_source(folder):
    data = settings(folder, "tfrecord", "five")
    one = inputs.open_inputs(data, 0, 3, 1)
    assert int(one.training.cardinality()) == tf.data.INFINITE_CARDINALITY
    assert (one.steps, one.records) == (5, (103, 103))
    data.ledger = f"{folder}/ids"
    two = inputs.open_inputs(data, 0, 3, 2)
    # Nothing is fetched, and written, beyond the last epoch.
    assert int(two.training(context(2, 1)).cardinality()) == 15
    assert len(labels(two.evaluation(context(2, 1)))) == 5


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "no_such_module:data",
            "config.data.function='no_such_module:data' cannot be imported: No module named "
            "'no_such_module'.",
        ),
        (
            f"{__name__}:labels",
            f"config.data.function='{__name__}:labels' takes (dataset), but it is called with "
            "(config.data, split, context). Name a function or a class that takes that.",
        ),
        (
            f"{__name__}:no_dataset",
            f"config.data.function='{__name__}:no_dataset' returned a list: let it return a "
            "tf.data.Dataset of (x, y) batches.",
        ),
    ],
)
def test_a_function_that_is_none(name, message):
    data = Data(function=name)
    with pytest.raises(Error) as raised:
        function.call(data, "train", context(1, 0))
    assert str(raised.value) == message


# -- what cannot be opened -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "more", "message"),
    [
        (
            "tfrecord",
            {"features": "x: float[2]"},
            "config.data.features='x: float[2]': 'x: float[2]' is no feature. Write NAME: "
            "KIND[SHAPE] with commas between them, kinds image, int64, float32 and string: 'image: "
            "image[224,224,3], label: int64'; [?,?,3] for images of any size.",
        ),
        (
            "tfrecord",
            {"label": "class"},
            "config.data.features has no 'class': it has x, label. Name what the model takes with "
            "config.data.input, and what it learns with config.data.label.",
        ),
        (
            "tfrecord",
            {"classes": 0},
            "config.data.classes is 0: source 'tfrecord' does not tell how many labels there are. "
            "Set it.",
        ),
        (
            "tfrecord",
            {"image_size": "4x4"},
            "config.data.image_size='4x4': the inputs are no images, but of shape (2,).",
        ),
        (
            "csv",
            {"augment": "flip"},
            "config.data.augment='flip': the inputs are no images, but of shape (2,).",
        ),
        (
            "csv",
            {"input": "x0,x2"},
            "There is no column 'x2': the files have x0, label, other, x1. Name what the model "
            "takes with config.data.input, and what it learns with config.data.label.",
        ),
        (
            "numpy",
            {"input": "z"},
            "{folder}/all.npz has no array 'z': it has x, label.",
        ),
        (
            "images",
            {},
            "The images have no fixed size ((None, None, 3)). Set one: "
            "--config.data.image_size=224x224.",
        ),
        (
            "images",
            {"train_files": "nowhere"},
            "'nowhere' has no folders with images: it needs one for each class, .jpg, .jpeg, "
            ".png, .gif, .bmp.",
        ),
    ],
)
def test_what_cannot_be_opened_is_said_with_what_to_do(folder, kind, more, message):
    with pytest.raises(Error) as raised:
        source.open_source(settings(folder, kind, **more))
    assert str(raised.value) == message.replace("{folder}", str(folder))


def test_a_csv_row_that_is_no_number(folder, tmp_path):
    (tmp_path / "a.csv").write_text("x0,label,other,x1\n1,2,a,3\n\n1,2,a,three\n")
    data = settings(folder, "csv", train_files=f"{tmp_path}/a.csv", test_files=f"{tmp_path}/a.csv")
    opened = source.open_source(data)
    from tfdp.data import damage

    with pytest.raises(tf.errors.OpError) as raised:
        labels(pipeline.training(opened, data, 0))
    assert str(damage.explained(raised.value, opened.train)) == (
        f"{tmp_path}/a.csv: row 1: the column 'x1' has 'three', which is no number."
    )


def test_fit_refuses_the_policy_hint_without_a_hint():
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.HINT
    hint = tf.data.experimental.SHARD_HINT
    plain = tf.data.Dataset.range(8)
    assert (
        feed._policy(plain.shard(hint, hint).with_options(options), several=True) == "policy HINT"
    )
    with pytest.raises(ValueError, match="auto_shard_policy HINT and holds no hint"):
        feed._policy(plain.with_options(options), several=True)
