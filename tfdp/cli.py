"""tfdp VERB: one verb for each thing to do.

    tfdp train --config=configs/digits.py --workers=2
    tfdp launch --workers=2 -- script.py --its-own-flags

Flags are absl's. A verb imports what it needs when it runs, so that --help and a mistake in the
settings are answered at once.
"""

import os
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from absl import flags

from tfdp.verbs import UsageError
from tfdp.verbs import doctor as doctor_verb
from tfdp.verbs import export as export_verb
from tfdp.verbs import launch as launch_verb
from tfdp.verbs import predict as predict_verb
from tfdp.verbs import reshard as reshard_verb
from tfdp.verbs import shards as shards_verb


class _Verb(NamedTuple):
    synopsis: str
    define: Callable[[flags.FlagValues, list[str]], None]  # gets the command line as well
    run: Callable[[flags.FlagValues, list[str], list[str]], int]


def main(argv: Sequence[str] | None = None) -> None:
    """Carry out a command line, and exit with its status: 2 for a mistake in it."""
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        status = _run(argv)
    except (UsageError, flags.Error) as error:
        sys.stderr.write(f"tfdp: {_one_line(error)}\n")
        status = 2
    except KeyboardInterrupt:
        sys.stderr.write("tfdp: Interrupted by SIGINT (Ctrl-C).\n")
        status = 130
    sys.exit(status)


def _run(argv: list[str]) -> int:
    if not argv:
        sys.stderr.write(_help() + "\n")
        return 2
    if argv[0] in ("help", "--help", "-h", "-?") and len(argv) == 1:
        print(_help())
        return 0
    if argv[0] == "--version":
        from tfdp.version import VERSION

        print(f"tfdp {VERSION}")
        return 0
    if argv[0] == "help":
        argv = [argv[1], "--help"]
    name, *rest = argv
    verb = VERBS.get(name)
    if verb is None:
        raise UsageError(f"{name!r} is no verb.{_did_you_mean(name)} Use {', '.join(VERBS)}.")
    values = flags.FlagValues()
    own, script = _split(rest)
    # --dry-run and --dry_run are the same flag.
    own = [re.sub(r"^--?[a-z]+(-[a-z]+)+(?==|$)", _with_underscores, word) for word in own]
    verb.define(values, own)
    config_file = _check_config_words(own)
    if any(word in ("--help", "-h", "-?", "--helpshort", "--helpfull") for word in own):
        print(_verb_help(name, verb, values))
        return 0
    try:
        _, *positional = values([name, *own])
    except flags.Error:
        raise
    except Exception as error:  # a config file is code: it may raise anything
        raise UsageError(_where(error, config_file) + _one_line(error)) from error
    return verb.run(values, positional, script)


def _check_config_words(words: list[str]) -> str:
    """Check --config=FILE and --config.a.b=VALUE by name, before ml_collections reads them.

    Returns:
        The config file, "" where none is named.

    Raises:
        UsageError: If the file or the setting does not exist, with the nearest that does.
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
                raise UsageError(f"There is no config file {file!r} in {os.getcwd()}.")
        if name.startswith("config."):
            problem = config.unknown_setting(name)
            if problem:
                raise UsageError(problem)
    return file


def _where(error: Exception, config_file: str) -> str:
    """Return "FILE:LINE: KIND: " for an error that the config file has raised, else ""."""
    if isinstance(error, SyntaxError) and error.filename == config_file:
        return f"{config_file}:{error.lineno}: "
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == config_file]
    return f"{config_file}:{lines[-1]}: {type(error).__name__}: " if lines else ""


def _with_underscores(flag: re.Match[str]) -> str:
    return "--" + flag[0].lstrip("-").replace("-", "_")


def _split(words: list[str]) -> tuple[list[str], list[str]]:
    """Split "FLAGS -- SCRIPT ARGS"."""
    if "--" not in words:
        return words, []
    at = words.index("--")
    return words[:at], words[at + 1 :]


# -- train ----------------------------------------------------------------------------------------


def _define_train(values: flags.FlagValues, words: list[str]) -> None:
    _define_config(values, words)
    launch_verb.define_cluster(values, workers=0)


def _define_shards(values: flags.FlagValues, words: list[str]) -> None:
    _define_config(values, words)
    shards_verb.define(values)


def _define_config(values: flags.FlagValues, words: list[str]) -> None:
    from absl import logging
    from ml_collections import config_flags

    logging.set_verbosity(logging.ERROR)  # what is wrong with the file is said below
    config_flags.DEFINE_config_file(
        "config",
        None,
        "Config file, FILE.py or FILE.py:VARIANT; --config.a.b=VALUE changes a value.",
        flag_values=values,
        sys_argv=words,
    )


def _train(values: flags.FlagValues, positional: list[str], script: list[str]) -> int:
    from tfdp import batching

    if positional or script:
        raise UsageError(f"{(positional + script)[0]!r}: tfdp train takes flags only.")
    if not _config_is_good(values, "train"):
        return 2
    if values.workers or values.chief or values.ps or values.evaluator:
        if os.environ.get("TF_CONFIG"):
            raise UsageError(
                "TF_CONFIG is set: this process is a task of a cluster already. Leave out "
                "--workers, --chief, --ps and --evaluator to train as it, or unset TF_CONFIG."
            )
        if values.evaluator and not values.workers:
            raise UsageError(
                "--evaluator evaluates the checkpoints of other tasks, and there are no workers: "
                "add --workers=1 or more, or leave it out."
            )
        fitting = "parameter_server" if values.ps else "multi_worker"
        if values.config.strategy not in ("auto", fitting):
            raise UsageError(
                f"config.strategy={values.config.strategy!r} does not train on such a cluster: use "
                f"--config.strategy={fitting}, or change --workers, --chief and --ps."
            )
        replicas = 1 if values.ps else max(1, values.workers) + values.chief
        try:
            batching.Batch(values.config.data.global_batch_size, replicas)
        except batching.BatchError as error:
            raise UsageError(str(error)) from error
        return _launch_training(values)
    from tfdp import train
    from tfdp.launch import network

    if values.trust_network:
        os.environ[network.TRUST_VARIABLE] = "1"
    # As in the tasks of a cluster (python -m): modules beside the config can be imported.
    sys.path.insert(0, os.getcwd())
    try:
        train.train(values.config)
    except ValueError as error:
        if not train.is_mistake(error):
            raise
        raise UsageError(str(error)) from error
    return 0


def _shards(values: flags.FlagValues, positional: list[str], script: list[str]) -> int:
    return shards_verb.run(values, positional, script) if _config_is_good(values, "shards") else 2


def _config_is_good(values: flags.FlagValues, verb: str) -> bool:
    """Check the config, and tell every wrong setting in a line of its own."""
    from tfdp import config

    _check_config_is_read(values["config"], verb)
    try:
        config.validate(values.config)
    except config.ConfigError as error:
        sys.stderr.write("".join(f"tfdp: {line}\n" for line in str(error).splitlines()))
        return False
    return True


def _check_config_is_read(flag: Any, verb: str) -> None:
    if not flag.present:
        raise UsageError(f"No config. Write: tfdp {verb} --config=configs/digits.py")
    file = flag.config_filename
    if flag.value is None:
        raise UsageError(f"{file}: get_config() returns None: let it return a Config.")
    try:
        # ml_collections keeps an OSError of the file for the first use of the config.
        hasattr(flag.value, "name")
    except OSError as error:
        cause = error.__cause__
        assert isinstance(cause, Exception)
        raise UsageError(_where(cause, file.partition(":")[0]) + _one_line(cause)) from cause


def _launch_training(values: flags.FlagValues) -> int:
    from ml_collections import config_flags

    from tfdp import config as config_lib

    run_dir = values.config.run_dir or config_lib.new_run_dir(values.config)
    flag = values["config"]
    settings = {**config_flags.get_override_values(flag), "run_dir": run_dir}
    script = ["-m", "tfdp.train", f"--config={config_flags.get_config_filename(flag)}"]
    script += [f"--config.{name}={value}" for name, value in settings.items()]
    log_dir = values.log_dir or os.path.join(run_dir, "logs")
    if values.evaluator:
        _check_no_checkpoints(run_dir)
    return launch_verb.launch_tasks(values, script, log_dir, seed=values.config.seed)


def _check_no_checkpoints(run_dir: str) -> None:
    from tfdp import train

    folder = os.path.join(run_dir, train.CHECKPOINTS)
    if os.path.isdir(folder) and os.listdir(folder):
        raise UsageError(
            f"{folder} holds checkpoints of an earlier run, which the evaluator would take for "
            "those of this one: remove them, or choose another --config.run_dir."
        )


# -- help -----------------------------------------------------------------------------------------

VERBS = {
    "train": _Verb(
        "tfdp train --config=FILE.py [--config.a.b=VALUE ...] [--workers=N] [--chief --ps=M]\n"
        "           [--evaluator]\n\n"
        "Train, evaluate and export what a config names: in this process, or with --workers in\n"
        "N processes of this machine. In a process that has a TF_CONFIG it is that task. With\n"
        "--evaluator one more process evaluates a checkpoint of each epoch while training goes on.",
        _define_train,
        _train,
    ),
    "launch": _Verb(
        "tfdp launch --workers=N [--chief] [--ps=M] [--evaluator] -- SCRIPT.py ARGS\n"
        "tfdp launch --workers=N -- -m MODULE ARGS\n\n"
        "Start a cluster on this machine: each task runs the script with its own TF_CONFIG.",
        lambda values, words: launch_verb.define_cluster(values, workers=1),
        launch_verb.launch,
    ),
    "doctor": _Verb(
        "tfdp doctor [--workers=N] [--chief] [--ps=M] [--json]\n\n"
        "Look at the cluster that would be used, before a run: versions, ports, clocks, GPUs,\n"
        "disk, and how fast the tasks exchange. In a process that has a TF_CONFIG it is that\n"
        "task: start it on every machine at the same time.",
        lambda values, words: doctor_verb.define(values),
        doctor_verb.doctor,
    ),
    "shards": _Verb(shards_verb.SYNOPSIS, _define_shards, _shards),
    "reshard": _Verb(
        reshard_verb.SYNOPSIS, lambda values, words: reshard_verb.define(values), reshard_verb.run
    ),
    "export": _Verb(export_verb.SYNOPSIS, export_verb.define, export_verb.run),
    "predict": _Verb(predict_verb.SYNOPSIS, predict_verb.define, predict_verb.run),
}


def _help() -> str:
    lines = ["tfdp: Keras's fit on many devices and machines.", ""]
    for name, verb in VERBS.items():
        lines.append(f"  {name:8} {verb.synopsis.splitlines()[0]}")
    return "\n".join([*lines, "", "tfdp VERB --help says more."])


def _verb_help(name: str, verb: _Verb, values: flags.FlagValues) -> str:
    lines = [verb.synopsis, ""]
    width = max(10, *(len(name) for name in values))
    for flag in sorted((values[name] for name in values), key=lambda flag: flag.name):
        default = "" if flag.default in (None, "", []) else f" (default: {flag.default})"
        # absl adds a line to flags that may be given several times.
        text = flag.help.partition(";\n")[0]
        lines.append(f"  --{flag.name:{width}} {text}{default}")
    return "\n".join(lines)


def _did_you_mean(name: str) -> str:
    import difflib

    close = difflib.get_close_matches(name, VERBS, 1)
    return f" Did you mean {close[0]!r}?" if close else ""


def _one_line(error: Exception) -> str:
    text = str(error)
    if "Traceback (most recent call last)" in text:  # of a config file: its last line says it
        text = text.partition("Error whilst")[0] + text.strip().splitlines()[-1]
    text = " ".join(text.split())
    return text if len(text) < 500 else text[:500] + " ..."
