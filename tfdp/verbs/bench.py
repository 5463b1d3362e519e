"""tfdp bench: where the time of a training goes, and what to do."""

import contextlib
import os
import sys
from collections.abc import Iterator

from absl import flags

from tfdp.verbs import UsageError, bench_flags, config_flag, launch, train

SYNOPSIS = (
    "tfdp bench --config=FILE.py [--config.a.b=VALUE ...] [--workers=N] [--apply] [--json]\n\n"
    "Measure the training that a config names, and say where its time goes: input, training,\n"
    "synchronisation or one slow worker; what to do, and what it gains. Nothing is trained. In\n"
    "this process, or with --workers in N processes. bench.json and bandwidth.svg go to the run's\n"
    "folder. For a script: tfdp launch --bench -- SCRIPT.py"
)


def define(values: flags.FlagValues, words: list[str]) -> None:
    """Define --config, the flags of a cluster, --apply and --json."""
    config_flag.define(values, words)
    launch.define_cluster(values, workers=0)
    bench_flags.define_apply(values)
    flags.DEFINE_bool(
        "json", False, "Print bench.json; everything else goes to stderr.", flag_values=values
    )


def run(values: flags.FlagValues, positional: list[str], script: list[str]) -> int:
    """Carry out `tfdp bench`; return its exit code."""
    if positional or script:
        hint = " For a script: tfdp launch --bench -- SCRIPT.py" if script else ""
        raise UsageError(f"{(positional + script)[0]!r}: tfdp bench takes flags only.{hint}")
    if not config_flag.is_good(values, "bench"):
        return 2
    bench_flags.refuse_servers(values)
    if values.config.data.ledger:
        raise UsageError(
            "config.data.ledger: a bench reads records that nobody trains on. Leave it out."
        )
    from tfdp import config as config_lib
    from tfdp.bench import record
    from tfdp.bench.settings import VARIABLE, Settings

    run_dir = values.config.run_dir or config_lib.new_run_dir(values.config)
    values.config.run_dir = run_dir
    settings = Settings(os.path.abspath(run_dir), apply=values.apply)
    with _stdout_to_stderr() if values.json else contextlib.nullcontext():
        if values.workers or values.chief:
            train.check_cluster(values)
            variables = bench_flags.variables(settings)
            code = train.launch_config(values, variables)
        else:
            os.environ[VARIABLE] = settings.to_text()
            try:
                code = train.run_here(values)
            except SystemExit as end:  # the run ends with the report
                code = int(end.code or 0)
    if code == 0 and values.json and not values.dry_run:
        sys.stdout.write(record.Record.read(os.path.join(run_dir, record.FILE)).to_json())
    return code


@contextlib.contextmanager
def _stdout_to_stderr() -> Iterator[None]:
    """Let what is printed in here, by this process and its tasks, go to stderr."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)
