"""`tfdp export`: its flags, and an export or a check made of them."""

import os
import pathlib
import sys

from absl import flags

from tfdp.error import Error

SYNOPSIS = (
    "tfdp export --run=DIR --output=MODELS/NAME\n"
    "tfdp export --check=MODELS/NAME\n\n"
    "Write the model of a run as the next version of a SavedModel, or check a version: every file\n"
    "by its SHA-256, and one row through every signature."
)
HINT = "Write: tfdp export --run=DIR --output=MODELS/NAME"
_SECOND = ("none", "examples", "images")


def define(values: flags.FlagValues, words: list[str]) -> None:
    """Define the flags."""
    del words
    for name, text in (
        ("run", "Folder of a run, or a .keras file."),
        ("output", "Folder of the versions; its name is the model's."),
        ("weights", "A .weights.h5 file to take instead of the run's last weights."),
        ("second_signature", "examples, images or none; else what the run's config says."),
        ("check", "A version, or a folder of versions: check it, export nothing."),
    ):
        flags.DEFINE_string(name, "", text, flag_values=values)


def run(values: flags.FlagValues) -> int:
    """Export or check; return the exit code: 1 if a model is not sound.

    Raises:
        Error: For a command that cannot be carried out.
    """
    _check_flags(values)
    from tfdp.serving import manifest

    if values.check:
        try:
            manifest.verify(manifest.version_folder(values.check))
        except Error as error:
            sys.stderr.write(f"tfdp: {error}\n")
            return 1

    # Only here, when the words are known to be good: TensorFlow takes seconds to import.
    from tfdp import run as run_lib

    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")  # a copy of weights needs no GPU
    run_lib.import_tensorflow()
    from tfdp.serving import export

    try:
        if values.check:
            print("\n".join(export.check(values.check)))
            return 0
        # Layers and models of the user's own, beside which the command is run.
        sys.path.insert(0, os.getcwd())
        folder = export.export_run(
            values.run,
            values.output,
            weights=values.weights,
            second_signature=values.second_signature,
        )
    except Error as error:
        if values.check:
            sys.stderr.write(f"tfdp: {error}\n")
            return 1
        raise
    except OSError as error:
        raise Error(f"--output={values.output} cannot be written: {error.strerror}.") from error
    print(folder)
    return 0


def _check_flags(values: flags.FlagValues) -> None:
    if values.check:
        for name in ("run", "output", "weights", "second_signature"):
            if values[name].value:
                raise Error(f"--check exports nothing: leave out --{name}.")
        return
    for name in ("run", "output"):
        if not values[name].value:
            raise Error(f"No --{name}. {HINT}")
    if values.second_signature and values.second_signature not in _SECOND:
        raise Error(
            f"--second_signature={values.second_signature!r}: use one of {', '.join(_SECOND)}."
        )
    for name, path in (("run", values.run), ("weights", values.weights)):
        if path and not os.path.exists(path):
            raise Error(f"--{name}={path}: there is no such file or folder.")
    if os.path.isdir(values.run) and not os.path.isfile(os.path.join(values.run, "model.keras")):
        raise Error(
            f"--run={values.run} holds no model.keras: it is no run of tfdp train that has ended."
        )
    output = pathlib.Path(values.output)
    if output.name.isdecimal():
        raise Error(
            f"--output={values.output} looks like a version: name the folder of the versions."
        )
    if output.exists() and not output.is_dir():
        raise Error(f"--output={values.output} is a file: name a folder.")
