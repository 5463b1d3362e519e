"""tfdp bench: where the time of a training goes, and what to do."""

import contextlib
import os
import sys
from typing import Any

from absl import flags

from tfdp.error import Error
from tfdp.verbs import adder, bench_flags, bench_scaling, config_flag, launch, stdout_to, train

SYNOPSIS = (
    "tfdp bench --config=FILE.py [--config.a.b=VALUE ...] [--workers=N] [--apply] [--json]\n"
    "tfdp bench --config=FILE.py --workers=1,2,4 [--strong]\n"
    "tfdp bench --what-if=hosts=16,gpus=8,link=25gbit,latency=20us [--from=bench.json]\n"
    "tfdp bench --from=bench.json[@1gbit][,...]\n\n"
    "Measure the training that a config names, and say where its time goes: input, training,\n"
    "synchronisation or one slow worker; what to do, and what it gains. Nothing is trained. In\n"
    "this process, or with --workers in N processes. bench.json and bandwidth.svg go to the run's\n"
    "folder. For a script: tfdp launch --bench -- SCRIPT.py\n\n"
    "Several numbers of workers give the scaling report. --what-if predicts other clusters, from\n"
    "what is measured, or from the bench.json of --from: hosts, gpus (replicas of a host), link,\n"
    "latency, inside (link of a host), batch, compression, algorithm, overlap, gradients,\n"
    "examples, epochs. --from alone tells a bench.json again, or the scaling of several; @RATE\n"
    "names the link between the hosts that one was measured on."
)

HINT = "For a script: tfdp launch --bench -- SCRIPT.py"


def define(values: flags.FlagValues, words: list[str]) -> None:
    """Define --config, the flags of a cluster, and those of the bench."""
    config_flag.define(values, words)
    launch.define_cluster(values, workers=0)
    text = values["workers"].help
    delattr(values, "workers")
    flags.DEFINE(
        bench_scaling.WorkersParser(), "workers", 0, f"{text[:-1]}; 1,2,4: compare.", values
    )
    bench_flags.define_apply(values)
    bench_flags.define_profile(values)
    add = adder(values)
    add(flags.DEFINE_bool, "json", False, "Print bench.json; everything else goes to stderr.")
    text = "With --workers=1,2,4: keep the global batch, in place of the rows of each replica."
    add(flags.DEFINE_bool, "strong", False, text)
    add(flags.DEFINE_string, "what_if", "", "Predict another cluster: hosts=16,gpus=8,link=25gbit")
    add(flags.DEFINE_list, "from", [], "bench.json of earlier runs, in place of measuring.")


def run(values: flags.FlagValues) -> int:
    """Carry out `tfdp bench`; return its exit code."""
    from tfdp.bench import what_if

    files = values["from"].value
    several = values.workers if isinstance(values.workers, tuple) else ()
    wish = what_if.parse(values.what_if) if values["what_if"].present else None
    if values["profile"].present and (several or files):
        raise Error("--profile traces one bench: leave it out, or give one --workers=N.")
    if values.strong and not several:
        raise Error("--strong compares numbers of workers: add --workers=1,2,4.")
    if files:
        return _saved(files, wish, values.json)
    if not config_flag.is_good(values, "bench"):
        return 2
    bench_flags.refuse_servers(values)
    if values.config.data.ledger:
        raise Error(
            "config.data.ledger: a bench reads records that nobody trains on. Leave it out."
        )
    from tfdp import config as config_lib
    from tfdp.bench import record, scaling

    run_dir = values.config.run_dir or config_lib.new_run_dir(values.config)
    values.config.run_dir = run_dir
    with stdout_to(2) if values.json else contextlib.nullcontext():
        if several:
            code = bench_scaling.run(values, several, run_dir)
            made = [os.path.join(run_dir, f"workers-{count}", record.FILE) for count in several]
        else:
            code = _measure(values, run_dir)
            made = [os.path.join(run_dir, record.FILE)]
    if code or values.dry_run:
        return code
    if wish is not None:
        return _predicted(made, wish, values.json)
    if values.json:
        name = scaling.FILE if several else record.FILE
        with open(os.path.join(run_dir, name)) as file:
            sys.stdout.write(file.read())
    return 0


def _measure(values: flags.FlagValues, run_dir: str) -> int:
    from tfdp.bench.settings import Settings

    settings = Settings(os.path.abspath(run_dir), apply=values.apply)
    variables = {**bench_flags.variables(settings), **bench_flags.profile(values, run_dir)}
    if values.workers or values.chief:
        train.check_cluster(values)
        return train.launch_config(values, variables)
    os.environ.update(variables)
    try:
        return train.run_here(values)
    except SystemExit as end:  # the run ends with the report
        return int(end.code or 0)


def _predicted(files: list[str], wish: Any, as_json: bool) -> int:
    from tfdp.bench import predict, what_if

    found = predict.predict(what_if.read(files), wish)
    sys.stdout.write(found.to_json() if as_json else what_if.text(found))
    return 0


def _saved(files: list[str], wish: Any, as_json: bool) -> int:
    """Tell what saved benches say, and no more: nothing is measured, nothing is written."""
    from tfdp.bench import report, scaling, what_if

    if wish is not None:
        return _predicted(files, wish, as_json)
    sources = what_if.read(files)
    if len(sources) == 1:
        record = sources[0].record
        sys.stdout.write(record.to_json() if as_json else report.text(record))
        return 0
    found = scaling.of(sources)
    sys.stdout.write(found.to_json() if as_json else scaling.text(found))
    return 0
