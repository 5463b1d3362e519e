"""The flag --config of the verbs that read a config, and what may be wrong with it.

define(values, words)            # --config=FILE.py[:VARIANT], --config.a.b=VALUE
if not is_good(values, "train"): return 2
"""

import os
import sys
import traceback
from collections.abc import Mapping
from typing import Any

from absl import flags

from tfdp.error import Error
from tfdp.verbs import one_line


def define(values: flags.FlagValues, words: list[str]) -> None:
    """Define --config. ml_collections reads the file while the command line is parsed."""
    from absl import logging
    from ml_collections import config_flags

    logging.set_verbosity(logging.ERROR)  # what is wrong with the file is said by this module
    config_flags.DEFINE_config_file(
        "config",
        None,
        "Config file, FILE.py or FILE.py:VARIANT; --config.a.b=VALUE changes a value.",
        flag_values=values,
        sys_argv=words,
    )


def check_words(words: list[str]) -> str:
    """Check --config=FILE and --config.a.b=VALUE by name, before ml_collections reads them.

    Returns:
        The config file, "" where none is named.

    Raises:
        Error: If the file or the setting does not exist, with the nearest that does.
    """
    from tfdp import config

    file = ""
    for word, following in zip(words, [*words, ""][1:], strict=True):
        name, equals, value = word.partition("=")
        if not name.startswith("-"):
            continue
        name = name.lstrip("-").removeprefix("no")
        if name == "config":
            file = (value if equals else following).partition(":")[0]
            if file and not file.startswith("-") and not os.path.isfile(file):
                raise Error(f"There is no config file {file!r} in {os.getcwd()}.")
        if name.startswith("config."):
            problem = config.unknown_setting(name)
            if problem:
                raise Error(problem)
    return file


def where(error: Exception, config_file: str) -> str:
    """Return "FILE:LINE: KIND: " for an error that the config file has raised, else ""."""
    if isinstance(error, SyntaxError) and error.filename == config_file:
        return f"{config_file}:{error.lineno}: "
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == config_file]
    return f"{config_file}:{lines[-1]}: {type(error).__name__}: " if lines else ""


def is_good(values: flags.FlagValues, verb: str) -> bool:
    """Check the config; say every wrong setting on a line of its own.

    Raises:
        Error: If there is no config, or its file cannot be read.
    """
    from tfdp import config

    _check_is_read(values["config"], verb)
    try:
        config.validate(values.config)
    except config.ConfigError as error:
        sys.stderr.write("".join(f"tfdp: {line}\n" for line in str(error).splitlines()))
        return False
    return True


def _check_is_read(flag: Any, verb: str) -> None:
    if not flag.present:
        raise Error(f"No config. Write: tfdp {verb} --config=configs/digits.py")
    file = flag.config_filename
    if flag.value is None:
        raise Error(f"{file}: get_config() returns None: let it return a Config.")
    try:
        # ml_collections keeps an OSError of the file for the first use of the config.
        hasattr(flag.value, "name")
    except OSError as error:
        cause = error.__cause__
        assert isinstance(cause, Exception)
        raise Error(where(cause, file.partition(":")[0]) + one_line(cause)) from cause


def script(values: flags.FlagValues, changes: Mapping[str, object]) -> list[str]:
    """Return the script of a task that trains the config, with some settings changed by name."""
    from ml_collections import config_flags

    flag = values["config"]
    settings = {**config_flags.get_override_values(flag), **changes}
    words = ["-m", "tfdp.train", f"--config={config_flags.get_config_filename(flag)}"]
    return words + [f"--config.{name}={value}" for name, value in settings.items()]
