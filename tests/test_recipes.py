"""The recipes of configs/ beside the published schedules, and what config.training becomes."""

import importlib.util
import itertools
import pathlib

import keras
import numpy as np
import pytest

from tfdp import config as config_lib
from tfdp import learning, losses, optimizers
from tfdp.error import Error

ROOT = pathlib.Path(__file__).parent.parent


def config(name, variant=""):
    spec = importlib.util.spec_from_file_location("a_config", ROOT / "configs" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(variant)


def rate_at(schedule, step):
    return float(schedule(np.int64(step))) if callable(schedule) else float(schedule)


# Records to train on, the published batch, and the rate from each step on (of the paper), by epochs
# or by steps as it was printed.
EPOCH = {"cifar": 391, "imagenet": 5005}  # steps: 50,000 / 128, 1,281,167 / 256
PUBLISHED = {
    # github.com/bearpaw/pytorch-classification, TRAINING.md: --schedule 81 122 --gamma 0.1
    "cifar10_vgg19": ("cifar", 5e-4, {0: 0.1, 81 * 391: 0.01, 122 * 391: 0.001}, 164 * 391),
    "cifar100_vgg19": ("cifar", 5e-4, {0: 0.1, 81 * 391: 0.01, 122 * 391: 0.001}, 164 * 391),
    # He et al. 2016: steps
    "cifar10_resnet164": ("cifar", 1e-4, {0: 0.01, 400: 0.1, 32_000: 0.01, 48_000: 0.001}, 64_124),
    "cifar100_resnet164": ("cifar", 1e-4, {0: 0.01, 400: 0.1, 32_000: 0.01, 48_000: 0.001}, 64_124),
    # Goyal et al. 2017: epochs 30, 60, 80 of 90
    "imagenet_resnet50": (
        "imagenet", 1e-4,
        {0: 0.1, 30 * 5005: 0.01, 60 * 5005: 0.001, 80 * 5005: 1e-4}, 90 * 5005,
    ),
    # torchvision's reference scripts: step size 30 of 90
    "imagenet_vgg19": ("imagenet", 1e-4, {0: 0.1, 30 * 5005: 0.01, 60 * 5005: 0.001}, 90 * 5005),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_recipe_is_the_published_one_at_its_batch(name):
    data, decay, changes, steps = PUBLISHED[name]
    run = config(name)
    batch = run.training.base_batch_size
    assert (run.data.global_batch_size, run.training.weight_decay) == (batch, decay)
    learned = learning.make(run.training, batch, EPOCH[data])
    assert type(learned.optimizer) is optimizers.SGD
    assert (learned.optimizer.momentum, learned.optimizer.nesterov) == (0.9, False)
    schedule = learning.schedule(run.training, run.training.learning_rate, EPOCH[data])
    assert run.training.epochs * EPOCH[data] == steps
    starts = [*changes, steps]
    for first, after in itertools.pairwise(starts):
        for step in (first, after - 1):
            assert rate_at(schedule, step) == pytest.approx(changes[first], rel=1e-6), step


def test_more_devices_follow_the_rule():
    """Goyal et al. 2017: 8,192 rows, 3.2 after 5 epochs from 0.1 on, then the same tenths."""
    run = config("imagenet_resnet50")
    steps = 157  # 1,281,167 / 8,192
    learned = learning.make(run.training, 8192, steps)
    assert learned.line == (
        "Optimizer sgd, learning rate 0.1 for 256 -> 3.2 for 8,192 after 5 epochs of warm-up, then "
        "by the schedule 30:0.1, 60:0.01, 80:0.001."
    )
    schedule = learning.schedule(run.training, 3.2, steps)
    expected = {0: 0.1, 2.5: 1.65, 5: 3.2, 29.9: 3.2, 30: 0.32, 60: 0.032, 80: 0.0032}
    found = {epoch: rate_at(schedule, round(epoch * steps)) for epoch in expected}
    assert found == pytest.approx(expected, rel=5e-3)
    # ResNet-164 cannot begin with a rate of 0.1: its warm-up begins where the paper's does.
    run = config("cifar10_resnet164")
    schedule = learning.schedule(run.training, 0.4, 98)
    found = [rate_at(schedule, round(epoch * 98)) for epoch in (0, 5, 81, 82, 123)]
    assert found == pytest.approx([0.01, 0.4, 0.4, 0.04, 0.004], rel=1e-5)


def training(**settings):
    return config_lib.Training(**settings)


def test_what_settings_make():
    plain = learning.make(training(), 64, None)
    assert (type(plain.optimizer), plain.line) == (keras.optimizers.Adam, "")
    assert (plain.loss, plain.metrics) == ("sparse_categorical_crossentropy", ["accuracy"])
    kept = learning.make(training(optimizer="sgd"), 64, None).optimizer
    assert (type(kept), kept.momentum) == (keras.optimizers.SGD, 0.9)
    decayed = learning.make(training(optimizer="adamw", weight_decay=0.3), 64, None)
    assert decayed.optimizer.weight_decay == 0.3
    lamb = learning.make(training(optimizer="lamb", base_batch_size=16, weight_decay=0.1), 64, 5)
    assert float(lamb.optimizer.learning_rate) == pytest.approx(4e-3)
    assert lamb.optimizer.get_config()["weight_decay"] == 0.1
    assert lamb.line == "Optimizer lamb, learning rate 0.002 for 16 -> 0.004 for 64."
    smooth = learning.make(training(label_smoothing=0.1, metrics=""), 64, None)
    assert isinstance(smooth.loss, losses.SmoothedCrossentropy)
    assert smooth.metrics == []


def test_a_cosine_ends_at_0_and_warms_up():
    settings = training(learning_rate=0.2, schedule="cosine", warmup_epochs=1.5, epochs=4)
    schedule = learning.schedule(settings, 0.2, 10)
    found = [rate_at(schedule, step) for step in (0, 15, 27, 40)]
    np.testing.assert_allclose(found, [0.0, 0.2, 0.1063, 0.0], atol=1e-4)


MINE = """
import keras

class Mine(keras.optimizers.SGD):
    pass

def lion(learning_rate):
    return keras.optimizers.Lion(learning_rate)

def any_option(**options):
    return keras.optimizers.AdamW(**options)

def schedule(learning_rate, steps_per_epoch, epochs):
    return keras.optimizers.schedules.PolynomialDecay(learning_rate, steps_per_epoch * epochs, 0.0)

class Loss(keras.losses.Loss):
    def call(self, y_true, y_pred):
        return keras.ops.mean(y_pred, -1)

def error(y_true, y_pred):
    return keras.ops.mean(y_pred, -1)

def five(learning_rate):
    return 5

number = 3
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    (tmp_path / "my_training.py").write_text(MINE)
    (tmp_path / "my_broken.py").write_text("raise ValueError('no')")
    monkeypatch.syspath_prepend(str(tmp_path))


def test_settings_of_ones_own(mine):
    settings = training(
        optimizer="my_training:Mine",
        base_batch_size=32,
        schedule="my_training:schedule",
        loss="my_training:Loss",
        metrics="my_training:error, accuracy, keras.metrics:SparseCategoricalAccuracy",
        weight_decay=0.1,
        epochs=2,
        learning_rate=0.5,
    )
    config_lib.validate(config_lib.Config(training=settings))
    learned = learning.make(settings, 64, 10)
    assert type(learned.optimizer).__name__ == "Mine"
    assert learned.optimizer.weight_decay == 0.1
    assert rate_at(learning.schedule(settings, 1.0, 10), 5) == pytest.approx(0.75)
    assert type(learned.loss).__name__ == "Loss"
    error, accuracy, counted = learned.metrics
    assert callable(error)
    assert accuracy == "accuracy"
    assert isinstance(counted, keras.metrics.SparseCategoricalAccuracy)
    lion = learning.make(training(optimizer="my_training:lion"), 64, None).optimizer
    assert isinstance(lion, keras.optimizers.Lion)
    decaying = training(optimizer="my_training:any_option", weight_decay=0.1)
    assert learning.make(decaying, 64, None).optimizer.weight_decay == 0.1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"schedule": "cosine"},
            "config.training.schedule='cosine': nobody has counted the records, so an epoch has no "
            "number of steps. Use a source that is counted, or schedule='constant' and "
            "warmup_epochs=0.",
        ),
        ({"warmup_epochs": 2.0}, "config.training.warmup_epochs=2.0: nobody has counted"),
        (
            {"optimizer": "my_training:lion", "base_batch_size": 8},
            "config.training.base_batch_size=8: nothing is known of how the learning rate of "
            "'my_training:lion' follows the batch. Set base_batch_size=0, and the learning rate "
            "for this batch.",
        ),
        (
            {"optimizer": "my_training:lion", "weight_decay": 0.1},
            "config.training.weight_decay=0.1: 'my_training:lion' takes no weight_decay.",
        ),
        (
            {"optimizer": "my_training:five"},
            "config.training.optimizer='my_training:five' makes a int.",
        ),
        (
            {"optimizer": "os:getcwd"},
            "config.training.optimizer='os:getcwd' takes (), but it is called with (learning_rate)."
            " Name a function or a class that takes that.",
        ),
        (
            {"schedule": "my_training:lion"},
            "config.training.schedule='my_training:lion' takes (learning_rate), but it is called "
            "with (learning_rate, steps_per_epoch, epochs).",
        ),
        (
            {"loss": "my_training:five"},
            "config.training.loss='my_training:five' takes (learning_rate), but it is called with "
            "(y_true, y_pred).",
        ),
        (
            {"metrics": "keras.metrics:MeanIoU"},
            "config.training.metrics='keras.metrics:MeanIoU' takes (num_classes, ",
        ),
        ({"metrics": "MeanIoU"}, "config.training.metrics='MeanIoU' needs arguments, which a name"),
        (
            {"metrics": "mean"},
            "config.training.metrics='mean' takes (values, sample_weight=None), but it is called "
            "with (y_true, y_pred, sample_weight=...).",
        ),
        ({"metrics": "Metric"}, "config.training.metrics='Metric' is no name of Keras. "),
        (
            {"optimizer": "my_training:number"},
            "config.training.optimizer='my_training:number' is a int, not callable.",
        ),
        (
            {"optimizer": "my_training:none"},
            "config.training.optimizer='my_training:none' cannot be imported: module",
        ),
        (
            {"loss": "my_broken:Loss"},
            "config.training.loss='my_broken:Loss' cannot be imported: ValueError: no.",
        ),
        (
            {"optimizer": ".my:Own"},
            "config.training.optimizer='.my:Own' cannot be imported: TypeError: the 'package' arg",
        ),
        ({"loss": "crossentropia"}, "config.training.loss='crossentropia' is no name of Keras."),
        ({"metrics": "accuracy, f2"}, "config.training.metrics='f2' is no name of Keras."),
        (
            {"metrics": "acuracy"},
            "config.training.metrics='acuracy' is no name of Keras. Did you mean 'accuracy'? Use",
        ),
    ],
)
def test_refused(settings, message, mine):
    with pytest.raises(Error) as raised:
        learning.make(training(**settings), 64, 10 if ":" in settings.get("schedule", "") else None)
    assert str(raised.value).startswith(message)


def test_smoothed_labels_are_those_of_keras(tmp_path):
    random = np.random.default_rng(0)
    p = random.dirichlet(np.ones(5), 7).astype("float32")
    y = random.integers(0, 5, 7)
    ours = losses.SmoothedCrossentropy(0.1)
    theirs = keras.losses.CategoricalCrossentropy(label_smoothing=0.1)
    wanted = float(theirs(np.eye(5, dtype="float32")[y], p))
    assert float(ours(y, p)) == pytest.approx(wanted, rel=1e-6)
    assert float(ours(y[:, None], p)) == pytest.approx(wanted, rel=1e-6)
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(ours))
    assert again.label_smoothing == 0.1
    with pytest.raises(Error, match=r"label_smoothing=1.0: use a number from 0"):
        losses.SmoothedCrossentropy(1.0)


def test_a_variant_that_is_none():
    with pytest.raises(Error) as raised:
        config("imagenet_vgg19", "quick")
    assert str(raised.value) == "configs/imagenet_vgg19.py:quick: the variants are: tiny."
