"""tfdp tune-batch: the largest batch that fits, and the global batch to train with."""

import contextlib
import functools
import os
import pathlib
import sys
from typing import Any

from absl import flags

from tfdp.error import Error
from tfdp.verbs import adder, config_flag, stdout_to

SYNOPSIS = (
    "tfdp tune-batch --config=FILE.py [--config.a.b=VALUE ...] [--workers=N] [--max-batch=ROWS]\n"
    "           [--noise-seconds=60] [--json]\n\n"
    "Find the largest batch of a replica that fits, what examples/s it gains, and the gradient\n"
    "noise scale; recommend a global batch with a range, and say why. At most six trials of a few\n"
    "steps, each in processes of its own: one that gets no memory ends alone. Then a training of\n"
    "--noise-seconds with the batch of the config. tune_batch.json and tune-batch.svg go to the\n"
    "run's folder. For functions of your own: tfdp.tune_batch."
)

HINT = "For functions of your own: tfdp.tune_batch."


def define(values: flags.FlagValues, words: list[str]) -> None:
    """Define --config, and the flags of the trials."""
    config_flag.define(values, words)
    add = adder(values)
    text = "Processes of this machine that train together; 0: one, with all its GPUs."
    add(flags.DEFINE_integer, "workers", 0, text)
    add(flags.DEFINE_integer, "max_batch", 0, "Rows of a replica to try at most; default: any.")
    text = "Seconds of the training for the noise scale, at most; 0 leaves it out."
    add(flags.DEFINE_float, "noise_seconds", 60.0, text)
    add(flags.DEFINE_bool, "json", False, "Print tune_batch.json; the report goes to stderr.")


def run(values: flags.FlagValues) -> int:
    """Carry out `tfdp tune-batch`; return its exit code."""
    if not config_flag.is_good(values, "tune-batch"):
        return 2
    _check(values)
    return _run(values)


def _check(values: flags.FlagValues) -> None:
    from tfdp.tuning import call

    config = values.config
    call.check_alone()
    if values.workers < 0:
        raise Error(f"--workers={values.workers}: use a number of processes, 0 or more.")
    if values["max_batch"].present and values.max_batch < 1:
        raise Error(f"--max-batch={values.max_batch}: use 1 row or more, or leave it out.")
    call.check_seconds(values.noise_seconds)
    fitting = ("auto", "multi_worker") if values.workers else ("auto", "one_device", "mirrored")
    if config.strategy not in fitting:
        raise Error(
            f"config.strategy={config.strategy!r} is not tuned with --workers={values.workers}: "
            f"use --config.strategy={fitting[0]}, or change --workers. Workers of parameter "
            "servers take batches of their own; tune one worker alone (one_device)."
        )
    call.check_divides(config.data.global_batch_size, values.workers)
    if config.data.ledger:
        raise Error("config.data.ledger: trials read records that nobody trains on. Leave it out.")
    if config.data.service != "off":
        raise Error(
            f"config.data.service={config.data.service!r} needs processes that trials do not "
            "start. Tune with --config.data.service=off: the batch is the same."
        )


def _run(values: flags.FlagValues) -> int:
    from tfdp import config as config_lib
    from tfdp.tuning import call, record, trials

    folder = pathlib.Path(values.config.run_dir or config_lib.new_run_dir(values.config))
    tell = functools.partial(print, flush=True)
    with stdout_to(2) if values.json else contextlib.nullcontext():
        tuner = trials.Tuner(
            functools.partial(_start, values),
            os.path.abspath(folder),
            values.workers,
            values.config.data.global_batch_size,
            values.max_batch,
            values.noise_seconds,
            tell,
        )
        call.finish(tuner.tune(), folder, tell)
    if values.json:
        sys.stdout.write((folder / record.FILE).read_text())
    return 0


def _start(values: flags.FlagValues, settings: Any) -> int:
    """Start a trial of the config."""
    from tfdp.tuning import settings as settings_lib
    from tfdp.tuning import trials

    changes = {"run_dir": settings.folder, "data.global_batch_size": settings.global_batch}
    if settings.kind == settings_lib.ROOM:
        changes["data.ragged"] = "drop"  # all steps alike
    return trials.launch(config_flag.script(values, changes), values.workers, settings)
