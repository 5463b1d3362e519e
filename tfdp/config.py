"""The settings of one run, as plain dataclasses; `validate` checks them before anything starts.

    config = Config()
    config.data.global_batch_size = 256
    validate(config)

A file in configs/ returns a Config from `get_config()`; the command line changes single values:
`tfdp train --config=configs/digits.py --config.data.global_batch_size=512`.
"""

import dataclasses
import difflib
import importlib
import inspect
import math
import os
import pathlib
import re
import textwrap
import time
from typing import Any

from tfdp import learning_rate
from tfdp.error import Error

STRATEGIES = ("auto", "one_device", "mirrored", "multi_worker", "parameter_server")
OPTIMIZERS = ("adam", "adamw", "sgd", "lars", "lamb")
SCHEDULES = ("constant", "cosine")
PRECISIONS = ("float32", "mixed_float16", "mixed_bfloat16")
IMPLEMENTATIONS = ("auto", "ring", "nccl", "gloo", "shared_memory")
COMPRESSIONS = ("none", "float16", "bfloat16")
OUTERS = ("none", "sgd", "nesterov")
READINGS = ("coordinator", "shard")
SECOND_SIGNATURES = ("none", "examples", "images")
SOURCES = ("tfds", "tfrecord", "array_record", "images", "csv", "numpy")
AUGMENTATIONS = ("none", "flip", "crop", "crop_flip", "pad_crop", "pad_crop_flip")
RESIZES = ("stretch", "center")
SHUFFLES = ("auto", "full", "buffer", "none")
SERVICES = ("off", "parallel_epochs", "distributed_epoch")
POLICIES = ("auto", "file", "data", "hint", "off")
ORDERS = ("shards", "global")
RAGGED = ("exact", "drop")
MODELS = ("convnet",)  # what tfdp.models.build knows
_LARGEST_SEED = 2**31 - 1
_INDENT = " " * 6


class ConfigError(Error):
    """A setting that cannot be: one line for each, with what is allowed."""


@dataclasses.dataclass
class Data:
    """Where the records come from, who reads which, and how many a step takes.

    Attributes:
        source: One of SOURCES.
        tfds_name: "tfdp_digits", shipped with tfdp, or any TFDS dataset that has been prepared.
        data_dir: Folder of prepared datasets; "" is TFDS's own (TFDS_DATA_DIR, else
            ~/tensorflow_datasets).
        download: Whether TFDS may download and prepare the dataset.
        manual_dir: Folder of the files that TFDS prepares the dataset from, downloaded by you, as
            those of ImageNet have to be. Nothing else is downloaded.
        train_split: Records to train on, in TFDS's syntax ("train[:90%]").
        test_split: Records to evaluate on.
        train_files: Files to train on, where the source is not "tfds": patterns with commas
            between them; a folder with one folder for each class ("images"); one .npz, or a .npy of
            inputs and a .npy of labels ("numpy").
        test_files: The same to evaluate on.
        features: What a tf.train.Example of "tfrecord" and "array_record" holds:
            "image: image[224,224,3], label: int64"; kinds are image, int64, float32 and string.
        input: Feature or column that the model takes, several with commas between them; "" takes
            all but the label (columns of "csv" become one vector).
        label: Feature or column to learn.
        classes: Number of labels, where the source does not tell it.
        image_size: "HEIGHTxWIDTH" to which images are resized; "" leaves them.
        resize: One of RESIZES: "stretch" gives an image that size as it is; "center" keeps its
            proportions, and takes the middle of it (7/8 of the shorter side, as 224 of 256).
        augment: One of AUGMENTATIONS, drawn from the seed, the epoch and the record's number:
            "crop" resizes 8% to all of an image's area, "pad_crop" moves it by up to 4 pixels.
        function: "package.module:function" of your own instead of a source: it gets (this Data,
            split, tf.distribute.InputContext) and returns a tf.data.Dataset of (x, y) batches for
            that pipeline. It shards itself, unless `policy` is "hint".
        global_batch_size: Records of one step, over all replicas.
        shuffle: One of SHUFFLES; "auto" is "full" where the source is read by index, else "buffer".
        shuffle_buffer: Records that a shuffle draws from, beside the order of the files; 0 keeps
            the order.
        policy: One of POLICIES: see tfdp/data/sharding.py.
        order: "global" makes the global batches the same for any number of workers; "shards" lets
            each read what is quickest.
        ragged: "exact" trains on each record once; "drop" drops what fills no batch.
        count: Whether files without known counts are counted before a run (by their headers).
        bad_records: Damaged records that may be skipped; files are then checked before a run.
        service: One of SERVICES: whether workers of tf.data service read and decode the training
            records (--data_workers=N starts them), each all of them, or each some of the files.
        ledger: Path of a file that gets the ids of all records trained on; "-0", "-1", ... for the
            pipelines are added.
    """

    source: str = "tfds"
    tfds_name: str = "tfdp_digits"
    data_dir: str = ""
    download: bool = False
    manual_dir: str = ""
    train_split: str = "train"
    test_split: str = "test"
    train_files: str = ""
    test_files: str = ""
    features: str = ""
    input: str = ""
    label: str = "label"
    classes: int = 0
    image_size: str = ""
    resize: str = "stretch"
    augment: str = "none"
    function: str = ""
    global_batch_size: int = 64
    shuffle: str = "auto"
    shuffle_buffer: int = 4096
    policy: str = "auto"
    order: str = "shards"
    ragged: str = "exact"
    count: bool = True
    bad_records: int = 0
    service: str = "off"
    ledger: str = ""


@dataclasses.dataclass
class Model:
    """Which model: one of MODELS, or "package.module:function" of your own.

    Attributes:
        name: The function; it gets (input_shape, classes), and pixel_max= and dropout= where it
            takes them, and returns a Keras model. The default is for images. With
            config.data.function it gets nothing. A model that it has compiled keeps its loss,
            metrics and optimizer.
        dropout: Fraction of the last hidden units that training leaves out.
        width: Factor of the number of channels, of a model that takes width=.
        synchronized: Whether batch normalisation looks at the rows of all replicas, of a model that
            takes synchronized=.
    """

    name: str = "convnet"
    dropout: float = 0.25
    width: float = 1.0
    synchronized: bool = False


@dataclasses.dataclass
class Training:
    """How long and how fast.

    Attributes:
        epochs: Passes over the training records.
        optimizer: One of OPTIMIZERS ("sgd" has momentum 0.9), or "package.module:name" of a class
            or a function that takes learning_rate=, and weight_decay= where that is set.
        learning_rate: Of the optimizer, for steps of `base_batch_size` records.
        base_batch_size: Global batch for which the learning rate was found. For another one it is
            scaled: by the ratio of the two for "sgd" and "lars", by its square root for Adam and
            its kin and "lamb". 0 takes the learning rate as it is.
        warmup_epochs: Epochs, also parts of one, in which the learning rate rises in a straight
            line: from `learning_rate` where `base_batch_size` is set, else from 0.
        schedule: One of SCHEDULES ("cosine" ends at 0), or factors from epochs on as in
            "30:0.1, 60:0.01", or "package.module:function" that takes (learning_rate,
            steps_per_epoch, epochs) and returns a Keras schedule.
        weight_decay: As the optimizer takes it: part of the gradient for "sgd" and "lars" (L2), of
            the update for "adamw" and "lamb". Biases and normalisation get none, but by "adamw".
            0 leaves it to the optimizer.
        loss: A name of Keras, or "package.module:name" of a class or a function.
        label_smoothing: Share of a label's weight that all classes get alike; for
            "sparse_categorical_crossentropy".
        metrics: Names as those of `loss`, with commas between them.
        precision: Keras dtype policy, one of PRECISIONS.
        jit_compile: Whether XLA compiles the steps.
        steps_per_execution: Steps in one call of the graph.
    """

    epochs: int = 20
    optimizer: str = "adam"
    learning_rate: float = 2e-3
    base_batch_size: int = 0
    warmup_epochs: float = 0.0
    schedule: str = "constant"
    weight_decay: float = 0.0
    loss: str = "sparse_categorical_crossentropy"
    label_smoothing: float = 0.0
    metrics: str = "accuracy"
    precision: str = "float32"
    jit_compile: bool = False
    steps_per_execution: int = 1


@dataclasses.dataclass
class Communication:
    """How gradients travel: see tfdp.Communication.

    Attributes:
        implementation: One of IMPLEMENTATIONS.
        bytes_per_pack: Bytes of one pack of gradients.
        compression: One of COMPRESSIONS.
        timeout_seconds: Limit of one collective; 0 for none.
        sync_every: Steps for which replicas train by themselves before they meet; 1: none.
        sync_after: So many first steps sum the gradients all the same.
        outer: One of OUTERS: what moves the weights where replicas meet; "none": to the mean.
        outer_learning_rate: Of "sgd" and "nesterov".
        outer_momentum: Of "sgd" and "nesterov".
    """

    implementation: str = "auto"
    bytes_per_pack: int = 1 << 22
    compression: str = "none"
    timeout_seconds: float = 0.0
    sync_every: int = 1
    sync_after: int = 0
    outer: str = "none"
    outer_learning_rate: float = 0.7
    outer_momentum: float = 0.9


@dataclasses.dataclass
class Servers:
    """How parameter servers train: see tfdp.strategy.

    Attributes:
        min_partition_bytes: Variables are cut into partitions of at least so many bytes; 0 cuts
            none.
        max_staleness: Steps between reading the weights and the update; 0 is synchronous, -1 sets
            no limit.
        lazy_rows: Whether a sparse gradient changes the rows it has and no others.
        reading: One of READINGS. "coordinator": the chief reads, and hands each batch out once an
            epoch. "shard": each worker reads a shard of its own, again and again.
    """

    min_partition_bytes: int = 0
    max_staleness: int = -1
    lazy_rows: bool = False
    reading: str = "coordinator"


@dataclasses.dataclass
class Export:
    """What the exported model takes beside its inputs.

    Attributes:
        second_signature: "examples" adds a signature on serialized tf.train.Example records,
            "images" one on encoded images (PNG, JPEG, ...), which it decodes and resizes.
    """

    second_signature: str = "none"


@dataclasses.dataclass
class Config:
    """One run.

    Attributes:
        name: Names the run's folder and the exported model.
        strategy: One of STRATEGIES; "auto" takes what the cluster and this machine's devices say.
        cpu_replicas: Replicas of "mirrored" on a machine without GPUs.
        seed: Of the weights, the shuffle and the random layers.
        output_dir: Folder of the runs.
        run_dir: This run's folder; "" makes a new one in output_dir, named by the time.
    """

    name: str = "run"
    strategy: str = "auto"
    cpu_replicas: int = 2
    seed: int = 0
    output_dir: str = "runs"
    run_dir: str = ""
    data: Data = dataclasses.field(default_factory=Data)
    model: Model = dataclasses.field(default_factory=Model)
    training: Training = dataclasses.field(default_factory=Training)
    communication: Communication = dataclasses.field(default_factory=Communication)
    servers: Servers = dataclasses.field(default_factory=Servers)
    export: Export = dataclasses.field(default_factory=Export)


def validate(config: Config) -> None:
    """Check every setting.

    Raises:
        ConfigError: Naming every wrong value, with what is allowed, a line for each.
    """
    problems = list(_problems(config))
    if problems:
        raise ConfigError("\n".join(problems))


def unknown_setting(name: str) -> str | None:
    """Return what is wrong with the name of a setting ("config.data.tfds_name"), or None."""
    part: Any = Config()
    path = "config"
    for word in name.split(".")[1:]:
        known = [field.name for field in dataclasses.fields(part)]
        if word not in known:
            close = difflib.get_close_matches(word, known, 1)
            hint = f"Did you mean {path}.{close[0]}?" if close else f"It has {', '.join(known)}."
            return f"{path} has no setting {word!r}. {hint}"
        part, path = getattr(part, word), f"{path}.{word}"
        if not dataclasses.is_dataclass(part):
            break
    if dataclasses.is_dataclass(part):
        return f"{path} is a group of settings, not one: name one of them."
    if path != name:
        return f"{path} is a single value: {name} goes too far."
    return None


def describe() -> list[str]:
    """Return a line or more for each setting: its name, its default, and what it means."""

    def group(part: Any, path: str) -> list[str]:
        texts = _attribute_texts(type(part))
        lines: list[str] = []
        for field in dataclasses.fields(part):
            value = getattr(part, field.name)
            if dataclasses.is_dataclass(value):
                lines += group(value, f"{path}.{field.name}")
            else:
                lines.append(f"  --{path}.{field.name}={value}")
                lines += textwrap.wrap(
                    texts[field.name], 92, initial_indent=_INDENT, subsequent_indent=_INDENT
                )
        return lines

    return group(Config(), "config")


def _attribute_texts(kind: type) -> dict[str, str]:
    """Return what a dataclass says of each attribute, with constants as their values."""
    section = inspect.cleandoc(kind.__doc__ or "").partition("Attributes:\n")[2]
    found = re.findall(r"^    (\w+): (.*(?:\n {6,}.*)*)", section, re.MULTILINE)
    values = {name: value for name, value in globals().items() if name.isupper()}
    texts = {}
    for name, text in found:
        words = " ".join(text.split())
        texts[name] = re.sub(
            r"\b[A-Z][A-Z_]{3,}\b",
            lambda word: (
                ", ".join(values[word[0]]) if isinstance(values.get(word[0]), tuple) else word[0]
            ),
            words,
        )
    return texts


def load(setting: str, name: str) -> Any:
    """Return what "package.module:function" names.

    Args:
        setting: Which names it: "model.name".
        name: Its value.

    Raises:
        Error: If it cannot be imported, or cannot be called.
    """
    module, _, attribute = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except Exception as error:  # a module is code: it may raise anything
        what = str(error)
        if not isinstance(error, ImportError | AttributeError):
            what = f"{type(error).__name__}: {what}"
        raise Error(f"config.{setting}={name!r} cannot be imported: {what}.") from error
    if not callable(found):
        raise Error(f"config.{setting}={name!r} is a {type(found).__name__}, not callable.")
    return found


def takes_option(function: Any, name: str) -> bool:
    """Say whether a function of the user's takes an argument of this name."""
    taken = _signature(function).parameters
    return name in taken or any(p.kind is p.VAR_KEYWORD for p in taken.values())


def check_takes(
    setting: str, name: str, wanted: str, function: Any, *given: Any, **named: Any
) -> None:
    """Check that a function of the user's can be called as it will be.

    Args:
        setting: Which names it: "model.name".
        name: Its value.
        wanted: In words, what it has to take: "(input_shape, classes)".
        function: What the name stands for.
        *given: What it will be called with.
        **named: The same, by name.

    Raises:
        Error: If it takes something else.
    """
    takes = _signature(function)
    try:
        takes.bind(*given, **named)
    except TypeError:
        bare = takes.replace(
            parameters=[p.replace(annotation=p.empty) for p in takes.parameters.values()],
            return_annotation=takes.empty,
        )
        raise Error(
            f"config.{setting}={name!r} takes {bare}, but it is called with {wanted}. Name a "
            "function or a class that takes that."
        ) from None


def _signature(function: Any) -> inspect.Signature:
    """Return the arguments of a function; any, where it does not tell them."""
    try:
        return inspect.signature(function)
    except ValueError:  # of C code
        return inspect.signature(lambda *args, **kwargs: None)


def new_run_dir(config: Config) -> str:
    """Return a folder name for a run that starts now; no run writes over another's."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    return os.path.join(config.output_dir, f"{config.name}-{stamp}-{os.getpid()}")


def make_run_dir(folder: str | os.PathLike[str]) -> pathlib.Path:
    """Make the folder of a run, or of a part of one, if it is not there; return its path.

    Raises:
        Error: If it cannot be made.
    """
    path = pathlib.Path(folder)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Error(
            f"The folder {path} cannot be made: {error.strerror}. Choose one that you may write to "
            "(--config.run_dir=DIR)."
        ) from None
    return path


def _problems(config: Config) -> Any:
    if not isinstance(config, Config):
        yield f"The config is a {type(config).__name__}: let get_config() return a Config."
        return
    yield from _types(config, "config")
    if any(not isinstance(getattr(config, name), kind) for name, kind in _groups(config)):
        return
    data, training, wire = config.data, config.training, config.communication
    yield from _choice("config.strategy", config.strategy, STRATEGIES)
    yield from _training_problems(training)
    yield from _choice("config.training.precision", training.precision, PRECISIONS)
    yield from _choice("config.communication.implementation", wire.implementation, IMPLEMENTATIONS)
    yield from _choice("config.communication.compression", wire.compression, COMPRESSIONS)
    second = config.export.second_signature
    yield from _choice("config.export.second_signature", second, SECOND_SIGNATURES)
    yield from _at_least("config.cpu_replicas", config.cpu_replicas, 1)
    if _is_number(config.seed) and not 0 <= config.seed <= _LARGEST_SEED:
        yield f"config.seed={config.seed!r}: use 0 to {_LARGEST_SEED}."
    yield from _at_least("config.data.global_batch_size", data.global_batch_size, 1)
    yield from _at_least("config.data.shuffle_buffer", data.shuffle_buffer, 0)
    yield from _data_problems(data)
    yield from _at_least("config.training.epochs", training.epochs, 1)
    yield from _at_least("config.training.steps_per_execution", training.steps_per_execution, 1)
    for name in ("base_batch_size", "warmup_epochs", "weight_decay"):
        yield from _at_least(f"config.training.{name}", getattr(training, name), 0)
    if _is_number(training.label_smoothing) and not 0 <= training.label_smoothing < 1:
        smoothing = training.label_smoothing
        yield f"config.training.label_smoothing={smoothing!r}: use a number from 0 up to below 1."
    yield from _at_least("config.communication.bytes_per_pack", wire.bytes_per_pack, 1)
    yield from _at_least("config.communication.timeout_seconds", wire.timeout_seconds, 0)
    yield from _meeting_problems(config.strategy, wire)
    yield from _at_least(
        "config.servers.min_partition_bytes", config.servers.min_partition_bytes, 0
    )
    yield from _at_least("config.servers.max_staleness", config.servers.max_staleness, -1)
    yield from _choice("config.servers.reading", config.servers.reading, READINGS)
    if config.servers.reading != "coordinator" and config.servers.max_staleness == 0:
        yield (
            f"config.servers.reading={config.servers.reading!r}: with max_staleness=0 the chief "
            "reads, and splits each batch over the workers. Leave out one of the two."
        )
    if _is_number(training.learning_rate) and not 0 < training.learning_rate < math.inf:
        yield f"config.training.learning_rate={training.learning_rate!r}: use a number above 0."
    if _is_number(config.model.width) and not 0 < config.model.width < math.inf:
        yield f"config.model.width={config.model.width!r}: use a number above 0."
    if _is_number(config.model.dropout) and not 0 <= config.model.dropout < 1:
        yield f"config.model.dropout={config.model.dropout!r}: use a number from 0 up to below 1."
    for name, value in (("config.data.tfds_name", data.tfds_name), ("config.name", config.name)):
        if isinstance(value, str) and not re.fullmatch(r"[A-Za-z0-9_.:/+-]+", value):
            yield f"{name}={value!r}: use letters, digits and _ . : / + -"
    if isinstance(config.name, str) and re.search(r"[/:]|^\.*$", config.name):
        yield f"config.name={config.name!r}: it names a folder; leave out / and :"
    for name, value in (
        ("config.data.train_split", data.train_split),
        ("config.data.test_split", data.test_split),
        ("config.output_dir", config.output_dir),
    ):
        if value == "":
            yield f"{name} is empty."
    name = config.model.name
    if isinstance(name, str) and name not in MODELS and not re.fullmatch(r"[\w.]+:\w+", name):
        yield (
            f"config.model.name={name!r}: use one of {', '.join(MODELS)}, or "
            f"package.module:function."
        )


def _meeting_problems(strategy: str, wire: Communication) -> Any:
    yield from _at_least("config.communication.sync_every", wire.sync_every, 1)
    yield from _at_least("config.communication.sync_after", wire.sync_after, 0)
    yield from _choice("config.communication.outer", wire.outer, OUTERS)
    rate, momentum = wire.outer_learning_rate, wire.outer_momentum
    if _is_number(rate) and not rate > 0:
        yield f"config.communication.outer_learning_rate={rate!r}: use a number above 0."
    if _is_number(momentum) and not 0 <= momentum < 1:
        problem = "use a number from 0 up to below 1."
        yield f"config.communication.outer_momentum={momentum!r}: {problem}"
    if wire.sync_every == 1 and wire.outer in OUTERS[1:]:
        yield (
            f"config.communication.outer={wire.outer!r} needs sync_every, 2 or more: it moves the "
            "weights where replicas meet that have trained by themselves."
        )
    if strategy == "parameter_server" and _is_number(wire.sync_every) and wire.sync_every > 1:
        yield servers_keep_no_weights(wire.sync_every)


def servers_keep_no_weights(every: int) -> str:
    """Say why parameter servers do not train with config.communication.sync_every."""
    return (
        f"config.communication.sync_every={every}: the workers of parameter servers keep no "
        "weights of their own. Leave it out, or train with --workers=N and neither --chief nor "
        "--ps."
    )


def _training_problems(training: Training) -> Any:
    """Name what is wrong with names and texts."""
    for name, allowed in (("optimizer", OPTIMIZERS), ("loss", ()), ("schedule", SCHEDULES)):
        text = getattr(training, name)
        if not isinstance(text, str):
            continue
        try:
            numbers = name == "schedule" and learning_rate.milestones(text) is not None
        except Error as error:
            yield f"config.training.{name}: {error}"
            continue
        if numbers or re.fullmatch(r"[\w.]+:\w+", text) or (not allowed and text.isidentifier()):
            continue
        own = "package.module:name"
        if name == "schedule":
            own = "factors as in '30:0.1, 60:0.01', package.module:function"
        yield from _choice(f"config.training.{name}", text, allowed or ("a name of Keras",), own)
    if isinstance(training.metrics, str):
        for text in training.metrics.split(",") if training.metrics.strip() else ():
            if not re.fullmatch(r"\s*([\w.]+:)?\w+\s*", text):
                yield (
                    f"config.training.metrics={training.metrics!r}: use names of Keras or "
                    "package.module:name, with commas between them."
                )
                break
    if training.optimizer == "adam" and training.weight_decay:
        yield (
            f"config.training.weight_decay={training.weight_decay!r}: Adam's moments would change "
            "it. Use optimizer='adamw', which keeps it apart."
        )
    if training.label_smoothing and training.loss != "sparse_categorical_crossentropy":
        yield (
            f"config.training.label_smoothing={training.label_smoothing!r}: it is for the loss "
            "'sparse_categorical_crossentropy'. Let a loss of your own smooth its labels."
        )


def _data_problems(data: Data) -> Any:
    for name, allowed in (
        ("source", SOURCES),
        ("augment", AUGMENTATIONS),
        ("resize", RESIZES),
        ("shuffle", SHUFFLES),
        ("policy", POLICIES),
        ("order", ORDERS),
        ("ragged", RAGGED),
        ("service", SERVICES),
    ):
        yield from _choice(f"config.data.{name}", getattr(data, name), allowed)
    yield from _at_least("config.data.classes", data.classes, 0)
    yield from _at_least("config.data.bad_records", data.bad_records, 0)
    size, function = data.image_size, data.function
    if isinstance(size, str) and size and not re.fullmatch(r"[1-9]\d*x[1-9]\d*", size):
        yield f"config.data.image_size={size!r}: use HEIGHTxWIDTH, like '224x224'."
    if isinstance(function, str) and function and not re.fullmatch(r"[\w.]+:\w+", function):
        yield f"config.data.function={function!r}: use package.module:function."
    if function:
        if data.policy not in ("auto", "off", "hint"):
            yield (
                f"config.data.policy={data.policy!r}: a function of your own shards itself (auto, "
                "off), or holds tf.data's hint (hint)."
            )
        return
    if data.resize != "stretch" and data.image_size == "":
        yield f"config.data.resize={data.resize!r}: set config.data.image_size as well."
    if data.manual_dir and data.source != "tfds":
        yield f"config.data.manual_dir={data.manual_dir!r}: source {data.source!r} has none."
    yield from _service_problems(data)
    if data.source in SOURCES and data.source != "tfds":
        for name in ("train_files", "test_files"):
            if getattr(data, name) == "":
                yield f"config.data.{name} is empty: source {data.source!r} needs it."
        if data.source in ("tfrecord", "array_record") and data.features == "":
            yield (
                "config.data.features is empty: say what a record holds, like "
                "'image: image[224,224,3], label: int64'."
            )
    if data.shuffle == "full" and data.source in ("tfrecord", "csv"):
        yield (
            f"config.data.shuffle='full': source {data.source!r} is read from front to back. Use "
            "'buffer', or rewrite the files: tfdp reshard --format=array_record."
        )


def _service_problems(data: Data) -> Any:
    if data.service not in SERVICES[1:]:
        return
    reads = f"config.data.service={data.service!r}: the service gives batches as they are ready"
    off = "or leave config.data.service off"
    if data.order == "global":
        yield f"{reads}, in no order that several workers could share. Use order='shards', {off}."
    if data.ledger:
        yield f"{reads}, and does not tell which records they hold. Leave out the ledger, {off}."
    if data.bad_records:
        yield f"{reads}; damaged records are skipped by a task alone. Use bad_records=0, {off}."
    if data.source in ("array_record", "numpy", "images"):
        yield (
            f"config.data.service={data.service!r}: source {data.source!r} is read by Python code, "
            f"which other processes do not have. Use TFRecord or CSV files, {off}."
        )


def _groups(config: Config) -> Any:
    """Yield the names and classes of the groups of settings."""
    for field in dataclasses.fields(Config):
        if isinstance(field.type, type) and dataclasses.is_dataclass(field.type):
            yield field.name, field.type


def _types(part: Any, path: str) -> Any:
    """Name fields that hold another type than their default, or that do not exist."""
    known = {field.name: field for field in dataclasses.fields(part)}
    for name in vars(part):
        if name not in known:
            close = difflib.get_close_matches(name, known, 1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            yield f"{path}.{name} is no setting.{hint}"
    for name in known:
        value = getattr(part, name)
        wanted = type(getattr(type(part)(), name))
        if dataclasses.is_dataclass(wanted) and isinstance(value, wanted):
            yield from _types(value, f"{path}.{name}")
            continue
        fits = isinstance(value, wanted) and not (wanted is int and isinstance(value, bool))
        if not fits and not (wanted is float and _is_number(value)):
            yield f"{path}.{name}={value!r}: use {_described(wanted)}."


def _choice(name: str, value: Any, allowed: tuple[str, ...], own: str = "") -> Any:
    if isinstance(value, str) and value not in allowed:
        close = difflib.get_close_matches(value, allowed, 1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        own = f", or {own}" if own else ""
        yield f"{name}={value!r}: use one of {', '.join(allowed)}{own}{hint}."


def _at_least(name: str, value: Any, least: int) -> Any:
    if _is_number(value) and not value >= least:
        yield f"{name}={value!r}: use {least} or more."


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _described(kind: type) -> str:
    if dataclasses.is_dataclass(kind):
        return f"a tfdp.config.{kind.__name__}"
    return {int: "a whole number", float: "a number", bool: "True or False"}.get(kind, "a string")
