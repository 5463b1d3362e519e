import glob
import importlib.util
import math
import os
import pathlib

import pytest

from tfdp import config as config_lib
from tfdp.config import Communication, Config, ConfigError, Data, Export, Model, Training

ROOT = pathlib.Path(__file__).parent.parent

# Each file of configs/ with the variants that its docstring names.
FILES = {
    "cifar100_resnet164.py": ("", "tiny"),
    "cifar100_vgg19.py": ("", "tiny"),
    "cifar10_resnet164.py": ("", "tiny"),
    "cifar10_vgg19.py": ("", "tiny"),
    "digits.py": ("", "quick"),
    "fashion_mnist.py": ("", "quick"),
    "imagenet_resnet50.py": ("", "tiny"),
    "imagenet_vgg19.py": ("", "tiny"),
    "recommender.py": ("", "quick"),
}


def with_settings(**settings):
    """A Config with {"data__global_batch_size": 3, ...}."""
    config = Config()
    for name, value in settings.items():
        group, _, setting = name.rpartition("__")
        setattr(getattr(config, group) if group else config, setting, value)
    return config


def problems(config):
    with pytest.raises(ConfigError) as raised:
        config_lib.validate(config)
    return str(raised.value).splitlines()


def test_the_default_is_valid():
    config_lib.validate(Config())


def test_every_wrong_value_is_named_at_once():
    wrong = Config(
        name="a/b",
        strategy="mirored",
        cpu_replicas=0,
        seed=-1,
        data=Data(tfds_name="mnist!", train_split="", global_batch_size=0, shuffle_buffer=-1),
        model=Model(name="resnet", dropout=1.0),
        training=Training(
            epochs=0, optimizer="lion", learning_rate=0.0, precision="half", steps_per_execution=0
        ),
        communication=Communication(
            implementation="mpi",
            bytes_per_pack=0,
            compression="zip",
            timeout_seconds=-1.0,
            sync_every=0,
            sync_after=-1,
            outer="adam",
            outer_learning_rate=0.0,
            outer_momentum=1.0,
        ),
        export=Export(second_signature="image"),
    )
    assert problems(wrong) == [
        "config.strategy='mirored': use one of auto, one_device, mirrored, multi_worker, "
        "parameter_server (did you mean 'mirrored'?).",
        "config.training.optimizer='lion': use one of adam, adamw, sgd, lars, lamb, or "
        "package.module:name.",
        "config.training.precision='half': use one of float32, mixed_float16, mixed_bfloat16.",
        "config.communication.implementation='mpi': use one of auto, ring, nccl, gloo, "
        "shared_memory.",
        "config.communication.compression='zip': use one of none, float16, bfloat16.",
        "config.export.second_signature='image': use one of none, examples, images "
        "(did you mean 'images'?).",
        "config.cpu_replicas=0: use 1 or more.",
        "config.seed=-1: use 0 to 2147483647.",
        "config.data.global_batch_size=0: use 1 or more.",
        "config.data.shuffle_buffer=-1: use 0 or more.",
        "config.training.epochs=0: use 1 or more.",
        "config.training.steps_per_execution=0: use 1 or more.",
        "config.communication.bytes_per_pack=0: use 1 or more.",
        "config.communication.timeout_seconds=-1.0: use 0 or more.",
        "config.communication.sync_every=0: use 1 or more.",
        "config.communication.sync_after=-1: use 0 or more.",
        "config.communication.outer='adam': use one of none, sgd, nesterov.",
        "config.communication.outer_learning_rate=0.0: use a number above 0.",
        "config.communication.outer_momentum=1.0: use a number from 0 up to below 1.",
        "config.training.learning_rate=0.0: use a number above 0.",
        "config.model.dropout=1.0: use a number from 0 up to below 1.",
        "config.data.tfds_name='mnist!': use letters, digits and _ . : / + -",
        "config.name='a/b': it names a folder; leave out / and :",
        "config.data.train_split is empty.",
        "config.model.name='resnet': use one of convnet, or package.module:function.",
    ]


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"name": ".."}, "config.name='..': it names a folder; leave out / and :"),
        ({"name": 3}, "config.name=3: use a string."),
        (
            {"communication__outer": "nesterov"},
            "config.communication.outer='nesterov' needs sync_every, 2 or more: it moves the "
            "weights where replicas meet that have trained by themselves.",
        ),
        (
            {"communication__sync_every": 8, "strategy": "parameter_server"},
            "config.communication.sync_every=8: the workers of parameter servers keep no weights "
            "of their own. Leave it out, or train with --workers=N and neither --chief nor --ps.",
        ),
        ({"seed": 2**31}, "config.seed=2147483648: use 0 to 2147483647."),
        ({"seed": True}, "config.seed=True: use a whole number."),
        ({"cpu_replicas": 2.0}, "config.cpu_replicas=2.0: use a whole number."),
        ({"output_dir": ""}, "config.output_dir is empty."),
        ({"data": None}, "config.data=None: use a tfdp.config.Data."),
        ({"data": Model()}, f"config.data={Model()!r}: use a tfdp.config.Data."),
        ({"data__download": "yes"}, "config.data.download='yes': use True or False."),
        ({"data__download": 1}, "config.data.download=1: use True or False."),
        (
            {"data__policy": "files"},
            "config.data.policy='files': use one of auto, file, data, hint, off (did you mean "
            "'file'?).",
        ),
        (
            {"data__image_size": "224"},
            "config.data.image_size='224': use HEIGHTxWIDTH, like '224x224'.",
        ),
        (
            {"data__function": "mine"},
            "config.data.function='mine': use package.module:function.",
        ),
        (
            {"data__function": "my.data:train", "data__policy": "file"},
            "config.data.policy='file': a function of your own shards itself (auto, off), or holds "
            "tf.data's hint (hint).",
        ),
        (
            {"data__source": "csv", "data__train_files": "a.csv"},
            "config.data.test_files is empty: source 'csv' needs it.",
        ),
        (
            {"data__source": "tfrecord", "data__train_files": "a", "data__test_files": "b"},
            "config.data.features is empty: say what a record holds, like "
            "'image: image[224,224,3], label: int64'.",
        ),
        (
            {
                "data__source": "csv",
                "data__train_files": "a.csv",
                "data__test_files": "b.csv",
                "data__shuffle": "full",
            },
            "config.data.shuffle='full': source 'csv' is read from front to back. Use 'buffer', or "
            "rewrite the files: tfdp reshard --format=array_record.",
        ),
        ({"data__bad_records": -1}, "config.data.bad_records=-1: use 0 or more."),
        ({"data__batch": 3}, "config.data.batch is no setting."),
        (
            {"data__global_batchsize": 3},
            "config.data.global_batchsize is no setting. Did you mean 'global_batch_size'?",
        ),
        ({"strategey": "auto"}, "config.strategey is no setting. Did you mean 'strategy'?"),
        ({"model__dropout": "0.1"}, "config.model.dropout='0.1': use a number."),
        (
            {"model__dropout": math.nan},
            "config.model.dropout=nan: use a number from 0 up to below 1.",
        ),
        (
            {"training__learning_rate": math.nan},
            "config.training.learning_rate=nan: use a number above 0.",
        ),
        ({"training__base_batch_size": -1}, "config.training.base_batch_size=-1: use 0 or more."),
        ({"training__warmup_epochs": -0.5}, "config.training.warmup_epochs=-0.5: use 0 or more."),
        (
            {"training__schedule": "cosin"},
            "config.training.schedule='cosin': use one of constant, cosine, or factors as in "
            "'30:0.1, 60:0.01', package.module:function (did you mean 'cosine'?).",
        ),
        (
            {"training__schedule": "60:0.1, 30:0.01"},
            "config.training.schedule: the epochs of '60:0.1, 30:0.01' do not rise. Write them in "
            "their order, each once.",
        ),
        (
            {"training__weight_decay": 0.1},
            "config.training.weight_decay=0.1: Adam's moments would change it. Use "
            "optimizer='adamw', which keeps it apart.",
        ),
        (
            {"training__loss": "my loss"},
            "config.training.loss='my loss': use one of a name of Keras, or package.module:name.",
        ),
        (
            {"training__loss": "mse", "training__label_smoothing": 0.1},
            "config.training.label_smoothing=0.1: it is for the loss "
            "'sparse_categorical_crossentropy'. Let a loss of your own smooth its labels.",
        ),
        (
            {"training__label_smoothing": 1.0},
            "config.training.label_smoothing=1.0: use a number from 0 up to below 1.",
        ),
        (
            {"training__metrics": "accuracy, "},
            "config.training.metrics='accuracy, ': use names of Keras or package.module:name, with "
            "commas between them.",
        ),
        ({"model__width": 0.0}, "config.model.width=0.0: use a number above 0."),
        (
            {"data__resize": "center"},
            "config.data.resize='center': set config.data.image_size as well.",
        ),
        (
            {
                "data__source": "numpy",
                "data__manual_dir": "tars",
                "data__train_files": "a.npz",
                "data__test_files": "b.npz",
            },
            "config.data.manual_dir='tars': source 'numpy' has none.",
        ),
        (
            {"training__learning_rate": math.inf},
            "config.training.learning_rate=inf: use a number above 0.",
        ),
    ],
)
def test_one_wrong_value(settings, line):
    assert problems(with_settings(**settings)) == [line]


@pytest.mark.parametrize(
    "settings",
    [
        {"model__dropout": 0},
        {"training__learning_rate": 1},
        {"model__name": "my_package.models:build"},
        {"data__shuffle_buffer": 0},
        {"training__schedule": "0:0.1, 1.02:1"},
        {"training__schedule": "mine.schedules:poly", "training__optimizer": "mine:Optimizer"},
        {"training__optimizer": "lamb", "training__weight_decay": 0.01},
        {"training__metrics": ""},
        {"data__function": "my.data:train", "data__policy": "hint"},
        {"data__tfds_name": "glue/mrpc:2.0.0"},
        {"data__data_dir": "/some where/else"},
    ],
)
def test_allowed(settings):
    config_lib.validate(with_settings(**settings))


def test_another_kind_of_config():
    assert problems({"epochs": 3}) == ["The config is a dict: let get_config() return a Config."]


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("config.seed", None),
        ("config.data.global_batch_size", None),
        (
            "config.data.batch_size",
            "config.data has no setting 'batch_size'. Did you mean config.data.global_batch_size?",
        ),
        ("config.dat.tfds_name", "config has no setting 'dat'. Did you mean config.data?"),
        (
            "config.model.xyz",
            "config.model has no setting 'xyz'. It has name, dropout, width, synchronized.",
        ),
        ("config.data", "config.data is a group of settings, not one: name one of them."),
        ("config.seed.x", "config.seed is a single value: config.seed.x goes too far."),
    ],
)
def test_unknown_settings(name, problem):
    assert config_lib.unknown_setting(name) == problem


def test_every_config_file_is_listed_here():
    assert sorted(map(os.path.basename, glob.glob(f"{ROOT}/configs/*.py"))) == sorted(FILES)


@pytest.mark.parametrize(
    ("file", "variant"), [(file, variant) for file, names in FILES.items() for variant in names]
)
def test_config_files_are_valid(file, variant):
    spec = importlib.util.spec_from_file_location("a_config", ROOT / "configs" / file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config_lib.validate(module.get_config(variant) if variant else module.get_config())
    assert variant in module.__doc__


def test_a_run_has_a_folder_of_its_own():
    folder = config_lib.new_run_dir(Config(name="digits", output_dir="out"))
    assert folder.startswith("out/digits-2")
    assert folder.endswith(f"-{os.getpid()}")
