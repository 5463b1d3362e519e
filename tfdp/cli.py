"""tfdp VERB: one verb for each thing to do.

    tfdp train --config=configs/digits.py --workers=2
    tfdp launch --workers=2 -- script.py --its-own-flags

Flags are absl's. A verb imports what it needs when it runs, so that --help and a mistake in the
settings are answered at once.
"""

import re
import sys
from collections.abc import Sequence
from types import ModuleType

from absl import flags

from tfdp.error import Error
from tfdp.verbs import (
    bench,
    config_flag,
    doctor,
    export,
    launch,
    one_line,
    predict,
    reshard,
    shards,
    train,
    tune_batch,
)

VERBS: dict[str, ModuleType] = {
    "train": train,
    "launch": launch,
    "bench": bench,
    "tune-batch": tune_batch,
    "doctor": doctor,
    "shards": shards,
    "reshard": reshard,
    "export": export,
    "predict": predict,
}


def main(argv: Sequence[str] | None = None) -> None:
    """Carry out a command line, and exit with its status: 2 for a mistake in it."""
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        status = _run(argv)
    except (Error, flags.Error) as error:
        sys.stderr.write(f"tfdp: {one_line(error)}\n")
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
        raise Error(f"{name!r} is no verb.{_did_you_mean(name)} Use {', '.join(VERBS)}.")
    values = flags.FlagValues()
    own, script = _split(rest)
    # --dry-run and --dry_run are the same flag.
    own = [re.sub(r"^--?[a-z]+(-[a-z]+)+(?==|$)", _with_underscores, word) for word in own]
    verb.define(values, own)
    config_file = config_flag.check_words(own)
    if any(word in ("--help", "-h", "-?", "--helpshort", "--helpfull") for word in own):
        print(_verb_help(name, verb, values))
        return 0
    try:
        _, *positional = values([name, *own])
    except flags.Error:
        raise
    except Exception as error:  # a config file is code: it may raise anything
        raise Error(config_flag.where(error, config_file) + one_line(error)) from error
    if verb is launch:
        return launch.run(values, positional, script)
    if rest := positional + script:
        hint = getattr(verb, "HINT", "")
        raise Error(f"{rest[0]!r}: tfdp {name} takes flags only. {hint}".rstrip())
    return verb.run(values)


def _with_underscores(flag: re.Match[str]) -> str:
    return "--" + flag[0].lstrip("-").replace("-", "_")


def _split(words: list[str]) -> tuple[list[str], list[str]]:
    """Split "FLAGS -- SCRIPT ARGS"."""
    if "--" not in words:
        return words, []
    at = words.index("--")
    return words[:at], words[at + 1 :]


def _help() -> str:
    lines = ["tfdp: Keras's fit on many devices and machines.", ""]
    for name, verb in VERBS.items():
        lines.append(f"  {name:10} {verb.SYNOPSIS.splitlines()[0]}")
    return "\n".join([*lines, "", "tfdp VERB --help says more."])


def _verb_help(name: str, verb: ModuleType, values: flags.FlagValues) -> str:
    lines = [verb.SYNOPSIS, ""]
    width = max(10, *(len(name) for name in values))
    for flag in sorted((values[name] for name in values), key=lambda flag: flag.name):
        default = "" if flag.default in (None, "", []) else f" (default: {flag.default})"
        # absl adds a line to flags that may be given several times.
        text = flag.help.partition(";\n")[0]
        lines.append(f"  --{flag.name:{width}} {text}{default}")
    if "config" in values:
        from tfdp import config

        lines += ["", "Settings of a config, with their defaults:", "", *config.describe()]
    return "\n".join(lines)


def _did_you_mean(name: str) -> str:
    import difflib

    close = difflib.get_close_matches(name, VERBS, 1)
    return f" Did you mean {close[0]!r}?" if close else ""
