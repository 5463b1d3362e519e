"""Signatures of a served model, and which of the input goes where.

    signature = choose(signatures, "serving_default")
    columns = bind(signature, "csv", {"columns": [...]}, {})    # {"x": ["x_0", "x_1"]}

Plain facts and pure functions: what a model has is read from its manifest, or by model.
"""

import dataclasses
import difflib
import math
from collections.abc import Mapping, Sequence
from typing import Any

from tfdp.inference.failures import InferenceError

# In place of a feature's name: the whole record, as it is.
RECORD = "@record"


@dataclasses.dataclass(frozen=True)
class Spec:
    """A tensor: the type's name, and its shape with None for what is free."""

    dtype: str
    shape: tuple[int | None, ...]

    def __str__(self) -> str:
        sizes = ", ".join("?" if size is None else str(size) for size in self.shape)
        return f"{self.dtype} ({sizes}{',' if len(self.shape) == 1 else ''})"

    @property
    def row(self) -> tuple[int | None, ...]:
        """The shape of one row."""
        return self.shape[1:]

    @property
    def size(self) -> int | None:
        """How many values a row has, None if that is free."""
        return None if None in self.row else math.prod(self.row)  # type: ignore[arg-type]

    @property
    def is_text(self) -> bool:
        """Whether a row is one string."""
        return self.dtype == "string" and self.row in ((), (1,))


@dataclasses.dataclass(frozen=True)
class Signature:
    """A function of a served model: its inputs and outputs by name."""

    name: str
    inputs: Mapping[str, Spec]
    outputs: Mapping[str, Spec]

    def __str__(self) -> str:
        inputs, outputs = (
            ", ".join(f"{name}: {spec}" for name, spec in specs.items())
            for specs in (self.inputs, self.outputs)
        )
        return f"{self.name}({inputs}) -> {outputs}"


def from_json(content: Mapping[str, Any]) -> dict[str, Signature]:
    """Return the signatures of a manifest."""

    def specs(part: Mapping[str, Any]) -> dict[str, Spec]:
        return {key: Spec(spec["dtype"], tuple(spec["shape"])) for key, spec in part.items()}

    return {
        name: Signature(name, specs(content[name]["inputs"]), specs(content[name]["outputs"]))
        for name in content
    }


def choose(signatures: Mapping[str, Signature], name: str) -> Signature:
    """Return a signature whose rows can be cut into batches.

    Raises:
        InferenceError: If there is none of the name, or its batch dimension is fixed.
    """
    if name not in signatures:
        raise InferenceError(f"--signature={name!r} is none of this model's. {_all(signatures)}")
    signature = signatures[name]
    for key, spec in signature.inputs.items():
        if not spec.shape or spec.shape[0] is not None:
            raise InferenceError(
                f"The signature {name!r} takes {key}: {spec}, which is no batch of rows: the first "
                f"dimension has to be free. {_all(signatures)}"
            )
    if not signature.inputs:
        raise InferenceError(f"The signature {name!r} takes no input. {_all(signatures)}")
    return signature


def bind(
    signature: Signature,
    kind: str,
    header: Mapping[str, Any] | None,
    mapping: Mapping[str, Sequence[str]],
    signatures: Mapping[str, Signature] | None = None,
    id_column: str = "",
) -> dict[str, list[str]]:
    """Return the columns (or features) of the input for each input of the signature.

    Args:
        signature: What is to be called.
        kind: Of the input, see input_files.Found.
        header: See input_files.header; for TFDS {"features": {name: [dtype, shape]}}.
        mapping: The user's own choice: names of the input by input of the signature.
        signatures: All that the model has, for the error.
        id_column: Holds the ids of the rows, "" if nothing does.

    Raises:
        InferenceError: If the input does not fit, with the signatures of the model.
    """
    model = _all(signatures or {signature.name: signature})
    for name in mapping:
        if name not in signature.inputs:
            close = difflib.get_close_matches(name, signature.inputs, 1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise InferenceError(
                f"--map={name}=...: the signature {signature.name!r} has no input {name!r}.{hint} "
                f"{model}"
            )
    if kind == "images" or (kind == "npy" and not (header or {})["fields"]):
        bind_kind = _bind_one
    else:
        bind_kind = _bind_names
    try:
        bound = bind_kind(signature, kind, header or {}, mapping)
    except InferenceError as error:
        raise InferenceError(f"{error} {model}") from None
    if id_column:
        _check_id(kind, header or {}, id_column)
    return bound


def _all(signatures: Mapping[str, Signature]) -> str:
    return "The model has: " + "; ".join(str(signature) for signature in signatures.values()) + "."


def _bind_one(
    signature: Signature, kind: str, header: Mapping[str, Any], mapping: Mapping[str, Sequence[str]]
) -> dict[str, list[str]]:
    """Bind rows without names to the only input."""
    del mapping
    if len(signature.inputs) != 1:
        what = "Images are" if kind == "images" else "A plain array has"
        how = "" if kind == "images" else ": name them as fields of a structured array"
        raise InferenceError(
            f"{what} one input, but the signature {signature.name!r} takes "
            f"{len(signature.inputs)}{how}."
        )
    ((name, spec),) = signature.inputs.items()
    if kind == "npy":
        _check_array(name, spec, header["dtype"], header["shape"])
    else:
        pixels = len(spec.row) == 3 and None not in spec.row and castable("uint8", spec.dtype)
        if not spec.is_text and not (pixels and spec.row[-1] in (1, 3, 4)):
            raise InferenceError(
                "Images are pixels (height, width, channels) or encoded strings, but "
                f"{name} is {spec}."
            )
    return {name: []}


def _bind_names(
    signature: Signature, kind: str, header: Mapping[str, Any], mapping: Mapping[str, Sequence[str]]
) -> dict[str, list[str]]:
    word = {"csv": "column", "npy": "field"}.get(kind, "feature")
    # Of TFRecord files nothing is known yet; of CSV the names.
    have: Any = header.get(f"{word}s")
    bound = {}
    for name, spec in signature.inputs.items():
        wanted = bound[name] = list(mapping.get(name, ())) or _names(signature, name, kind)
        if wanted == [RECORD] and word == "feature":
            if not spec.is_text:
                raise InferenceError(f"A record is a string, but {name} is {spec}.")
            continue
        if spec.size is None and kind != "npy":
            raise InferenceError(f"A {word} cannot be of free size, but {name} is {spec}.")
        if len(wanted) != (spec.size if kind == "csv" else 1):
            raise InferenceError(
                f"--map={name}=... names {len(wanted)} {word}s, but {name} is {spec}."
            )
        for column in wanted if have is not None else ():
            if column not in have:
                hint = f"another with --map={name}={word.upper()}."
                if kind == "csv":
                    hint = f"others with --map={name}=COLUMN,..."
                raise InferenceError(
                    f"The input has no {word} {column!r} for {name}: {spec}. It has "
                    f"{_some(have)}. Name {hint}"
                )
            if kind != "csv" and have[column] is not None:
                _check_array(name, spec, *have[column])
    return bound


def _names(signature: Signature, name: str, kind: str) -> list[str]:
    """Return what the input is expected to call the values of an input of the signature."""
    spec = signature.inputs[name]
    if kind == "csv" and spec.size != 1:
        return [f"{name}_{number}" for number in range(spec.size or 0)]
    # The name that TensorFlow's own exporters and tfdp give to serialized Examples.
    is_whole = name == "examples" and spec.dtype == "string" and len(signature.inputs) == 1
    return [RECORD if is_whole and kind in ("tfrecord", "tfds") else name]


def _check_id(kind: str, header: Mapping[str, Any], column: str) -> None:
    if kind == "images" or (kind == "npy" and not header["fields"]):
        raise InferenceError(f"--id={column}: {kind} have no columns; leave it out.")
    have = header.get({"csv": "columns", "npy": "fields"}.get(kind, ""))
    if have is not None and column not in have:
        raise InferenceError(
            f"--id={column}: the input has no such column. It has {', '.join(have)}."
        )


def _check_array(name: str, spec: Spec, dtype: str, shape: Sequence[int]) -> None:
    given = f"The input holds rows of {dtype} {tuple(shape)}, but {name} is {spec}"
    if not fits(shape, spec.row):
        raise InferenceError(f"{given}.")
    if spec.dtype == "string":
        if not dtype.startswith(("bytes", "str")):
            raise InferenceError(f"{given}.")
    elif not castable(dtype, spec.dtype):
        raise InferenceError(f"{given}: it would lose what it holds. Convert it first.")


def fits(shape: Sequence[int | None], wanted: Sequence[int | None]) -> bool:
    """Say whether rows of a shape are what is wanted; None is free."""
    return len(shape) == len(wanted) and all(
        want is None or have == want for have, want in zip(shape, wanted, strict=True)
    )


def castable(dtype: str, wanted: str) -> bool:
    """Say whether values of a type become those of another without losing their kind."""
    ranks = {"bool": 0, "uint": 1, "int": 2, "float": 3, "bfloat": 3, "complex": 4}
    have, want = (ranks.get(name.rstrip("0123456789")) for name in (dtype, wanted))
    if have is None or want is None:
        return dtype == wanted
    if have in (1, 2) and want in (1, 2):
        # Whole numbers: the wanted one holds all that there can be. (bits, of them for the value)
        bits = {name: int(name.lstrip("uint")) - (name[0] == "i") for name in (dtype, wanted)}
        return bits[dtype] <= bits[wanted] and not (have == 2 and want == 1)
    return have <= want


def _some(names: Any) -> str:
    names = list(names)
    return ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
