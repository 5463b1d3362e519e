"""tfdp shards: who would read what, before a run. It reads files and counts; it trains nothing."""

import json
import os
import sys

from absl import flags

from tfdp.error import Error
from tfdp.verbs import adder, config_flag

SYNOPSIS = (
    "tfdp shards --config=FILE.py [--config.data.a=VALUE ...] --workers=N [--ps=M] [--json]\n\n"
    "Show which worker would read which files and records, and why. Exits with 2, and says what\n"
    "to do, where a worker would starve."
)


def define(values: flags.FlagValues, words: list[str]) -> None:
    """Define --config and the flags beside it."""
    config_flag.define(values, words)
    add = adder(values)
    add(flags.DEFINE_integer, "workers", 1, "Workers: each has an input pipeline.")
    add(flags.DEFINE_bool, "chief", False, "With a chief beside the workers.")
    text = "Parameter servers: the chief reads, or config.servers.reading."
    add(flags.DEFINE_integer, "ps", 0, text)
    add(flags.DEFINE_bool, "json", False, "Print the plans as JSON.")


def run(values: flags.FlagValues) -> int:
    """Carry out `tfdp shards`; return its exit code."""
    if not config_flag.is_good(values, "shards"):
        return 2
    if values.workers < 1 or values.ps < 0:
        raise Error("Use --workers=1 or more, and --ps=0 or more.")
    data = values.config.data
    if data.function:
        raise Error(
            f"config.data.function={data.function!r} shards itself: there is no plan to show."
        )
    # The chief trains as well. With parameter servers it reads for all, unless the workers read
    # what they train on.
    readers = testers = values.workers + values.chief
    apart = 0
    if values.ps:
        apart = values.workers if values.config.servers.reading == "shard" else 0
        readers, testers = apart or 1, 1
    sys.path.insert(0, os.getcwd())
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    # Reading features takes no GPU, and leaves those that there are to others.
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
    from tfdp import run as run_lib
    from tfdp.data import plan_report

    run_lib.import_tensorflow()
    from tfdp.data import inputs, pipeline, source

    opened = source.open_source(data)
    plans = {
        "train": pipeline.plan_training(opened, inputs.batches_apart(data, apart), readers),
        "test": pipeline.plan_evaluation(opened, data, testers),
    }
    if values.json:
        print(json.dumps({name: plan.json() for name, plan in plans.items()}, indent=2))
        return 0
    for number, (name, plan) in enumerate(plans.items()):
        print("\n\n" * bool(number) + "\n".join(plan_report.lines(plan, name)) + "\n")
        print("\n".join(plan_report.table(plan)))
    return 0
