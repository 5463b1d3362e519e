"""Opening what a config names: files, counts, and how a record becomes (x, y).

source = open_source(config.data)
source.train.count, source.input_shape, source.classes
source.train.files                  # for sharding.make
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from tfdp import config as config_lib
from tfdp.data import (
    array_files,
    array_records,
    arrays,
    counts,
    csv_rows,
    features,
    images,
    listing,
    prepared,
    sharding,
    tfrecord,
    tfrecords,
)
from tfdp.data import records as records_lib
from tfdp.error import Error


@dataclasses.dataclass(frozen=True)
class Source:
    """What a config names.

    Attributes:
        train: The records to train on.
        test: Those to evaluate on.
        input_shape: Shape of one input; a dict of shapes where the model takes several.
        classes: Number of labels.
        label_names: Their names, in order.
        pixel_max: The largest value of a pixel.
    """

    train: records_lib.Records
    test: records_lib.Records
    input_shape: Any
    classes: int
    label_names: tuple[str, ...] = ()
    pixel_max: float = 255.0


def open_source(data: config_lib.Data) -> Source:
    """Open the records that a config names; prepare the built-in dataset when it is absent.

    Raises:
        Error: If they are not there, damaged, or not what the pipeline reads.
    """
    opened = _OPENERS[data.source](data)
    shape = opened.input_shape
    if data.image_size or data.augment != "none":
        is_image = isinstance(shape, tuple) and len(shape) == 3
        if data.source == "numpy" and is_image:
            # Rows of an array come in batches; images are resized and changed one by one.
            train, test = (
                dataclasses.replace(one, decodes_batches=False)
                for one in (opened.train, opened.test)
            )
            opened = dataclasses.replace(opened, train=train, test=test)
        if not is_image or opened.train.decodes_batches:
            setting = "image_size" if data.image_size else "augment"
            raise Error(
                f"config.data.{setting}={getattr(data, setting)!r}: the inputs are no images, but "
                f"of shape {shape}."
            )
    size = images.size_of(data.image_size)
    if size:
        # What crops at random takes its part of the whole image, and resizes that.
        crops = images.crops_at_random(data.augment)
        return dataclasses.replace(
            opened,
            input_shape=(*size, shape[2]),
            train=opened.train if crops else _resized(opened.train, size, data.resize),
            test=_resized(opened.test, size, data.resize),
        )
    if isinstance(shape, tuple) and None in shape:
        raise Error(
            f"The images have no fixed size ({shape}). Set one: --config.data.image_size=224x224."
        )
    return opened


def _open_tfds(data: config_lib.Data) -> Source:
    builder = prepared.open_builder(data)
    opened = []
    parts = [prepared.files_of(builder, split) for split in (data.train_split, data.test_split)]
    decode, facts = prepared.describe(builder, data)
    for split, (files, totals, kind) in zip(
        (data.train_split, data.test_split), parts, strict=True
    ):
        name = f"{data.tfds_name}/{split}"
        if kind == "array_record":
            opened.append(_by_index(name, files, decode))
        else:
            opened.append(_tfrecords(name, files, totals, data, decode))
    return Source(opened[0], opened[1], **facts)


def _open_tfrecord(data: config_lib.Data) -> Source:
    parts, decode, batches, why, facts = _examples(data)
    opened = []
    for split, names in parts:
        totals: Sequence[int | None] = [None] * len(names)
        if data.bad_records:
            checked = counts.check(names, data.bad_records)
            totals = [checked[name].records for name in names]
        elif data.count:
            totals = counts.count(names, tfrecord.count)
        files = counts.files(names, totals)
        opened.append(_tfrecords(split, files, totals, data, decode, batches, why))
    return Source(opened[0], opened[1], **facts)


def _open_array_record(data: config_lib.Data) -> Source:
    parts, decode, batches, why, facts = _examples(data)
    opened = []
    for split, names in parts:
        totals = counts.count(names, array_files.count)
        files = counts.files(names, totals)
        opened.append(_by_index(split, files, decode, batches, why))
    return Source(opened[0], opened[1], **facts)


def _examples(data: config_lib.Data) -> Any:
    """Return the files of both splits, and what is known of the Examples in them."""
    spec = features.parse(data.features)
    inputs = _names(data.input) or [name for name in spec if name != data.label]
    decode, batches = features.decoder(spec, inputs, data.label)
    why = features.reason(spec, [*inputs, data.label])
    shapes = {name: spec[name].shape for name in inputs}
    facts = {
        "input_shape": shapes if len(inputs) > 1 else shapes[inputs[0]],
        "classes": _classes(data),
    }
    splits = (("train", listing.find(data.train_files)), ("test", listing.find(data.test_files)))
    return splits, decode, batches, why, facts


def _open_csv(data: config_lib.Data) -> Source:
    splits = (("train", listing.find(data.train_files)), ("test", listing.find(data.test_files)))
    columns = csv_rows.header([name for _, names in splits for name in names])
    inputs = _names(data.input)
    decode, width = csv_rows.decoder(columns, inputs, data.label)
    opened = []
    for split, names in splits:
        rows: Sequence[int | None] = [None] * len(names)
        if data.count:
            rows = counts.count(names, csv_rows.count)
        files = counts.files(names, rows)
        opened.append(
            records_lib.Records(
                split,
                tuple(files),
                csv_rows.Reader(names, rows),
                by_index=False,
                decode=decode,
                decodes_batches=True,
                reason=csv_rows.reason(columns, inputs, data.label),
            )
        )
    return Source(opened[0], opened[1], input_shape=(width,), classes=_classes(data))


def _open_numpy(data: config_lib.Data) -> Source:
    opened = []
    for split, text in (("train", data.train_files), ("test", data.test_files)):
        reader, name, rows = arrays.open_arrays(text, _names(data.input), data.label)
        files = tuple(counts.files([name], [rows]))
        opened.append(
            records_lib.Records(split, files, reader, True, lambda pair: pair, decodes_batches=True)
        )
    x = opened[0].reader.spec[0]
    shape = {k: tuple(v.shape) for k, v in x.items()} if isinstance(x, dict) else tuple(x.shape)
    return Source(opened[0], opened[1], input_shape=shape, classes=_classes(data))


def _open_images(data: config_lib.Data) -> Source:
    opened, known = [], []
    for split, folder in (("train", data.train_files), ("test", data.test_files)):
        names, labels, classes = arrays.open_images(folder)
        known.append(classes)
        files = tuple(counts.files(names, [1] * len(names)))

        def decode(pair: Any) -> tuple[Any, Any]:
            return images.decode(pair[0]), pair[1]

        def why(pair: Any) -> str:
            problem = features.image_problem(pair[0], (None, None, 3))
            return f"the file {problem}" if problem else ""

        made = records_lib.Records(split, files, None, True, decode, reason=why)
        reader = arrays.Images(names, labels, made.check_unchanged)
        opened.append(dataclasses.replace(made, reader=reader))
    if known[0] != known[1]:
        raise Error(
            f"{data.train_files} has the classes {', '.join(known[0])}, but {data.test_files} has "
            f"{', '.join(known[1])}."
        )
    return Source(opened[0], opened[1], (None, None, 3), len(known[0]), known[0])


_OPENERS: dict[str, Callable[[config_lib.Data], Source]] = {
    "tfds": _open_tfds,
    "tfrecord": _open_tfrecord,
    "array_record": _open_array_record,
    "csv": _open_csv,
    "numpy": _open_numpy,
    "images": _open_images,
}


def _tfrecords(
    split: str,
    files: Sequence[sharding.File],
    totals: Sequence[int | None],
    data: config_lib.Data,
    decode: Any,
    batches: bool = False,
    why: Any = None,
) -> records_lib.Records:
    names = [file.name for file in files]
    checked = counts.check(names, data.bad_records) if data.bad_records else {}
    extents = []
    for file, total in zip(files, totals, strict=True):
        stop = None if file.records is None else file.first + file.records
        damaged = (checked[file.name].damaged or ()) if checked else ()
        if damaged and stop is not None:
            # What a damaged header hides cannot be found any more.
            stop = min(stop, checked[file.name].records)
        extents.append(tfrecords.Extent(file.first, stop, total, damaged))
    kept = tuple(
        dataclasses.replace(file, records=extent.records)
        for file, extent in zip(files, extents, strict=True)
    )
    reader = tfrecords.Reader(names, extents)
    return records_lib.Records(split, kept, reader, False, decode, batches, why)


def _by_index(
    split: str,
    files: Sequence[sharding.File],
    decode: Any,
    batches: bool = False,
    why: Any = None,
) -> records_lib.Records:
    made = records_lib.Records(split, tuple(files), None, True, decode, batches, why)
    reader = array_records.Reader(
        [file.name for file in files],
        [file.records or 0 for file in files],
        [file.first for file in files],
        made.check_unchanged,
    )
    return dataclasses.replace(made, reader=reader)


def _resized(records: records_lib.Records, size: Any, how: str) -> records_lib.Records:
    resize = images.center if how == "center" else images.resize

    def decode(raw: Any) -> tuple[Any, Any]:
        x, y = records.decode(raw)
        return resize(x, size), y

    return dataclasses.replace(records, decode=decode)


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _classes(data: config_lib.Data) -> int:
    if not data.classes:
        raise Error(
            f"config.data.classes is 0: source {data.source!r} does not tell how many labels there "
            "are. Set it."
        )
    return data.classes
