"""tfdp train: train, evaluate and export what a config names, here or in several processes."""

import json
import os
import pathlib
import sys
from collections.abc import Mapping

from absl import flags

from tfdp import batching
from tfdp.error import Error
from tfdp.verbs import adder, bench_flags, config_flag, launch

SYNOPSIS = (
    "tfdp train --config=FILE.py [--config.a.b=VALUE ...] [--workers=N] [--chief --ps=M]\n"
    "           [--evaluator]\n"
    "tfdp train --resume=runs/NAME [--workers=N]\n\n"
    "Train, evaluate and export what a config names: in this process, or with --workers in\n"
    "N processes of this machine. In a process that has a TF_CONFIG it is that task. With\n"
    "--evaluator one more process evaluates a checkpoint of each epoch while training goes on.\n"
    "--resume goes on with a run that was killed, at its step and with as many tasks, or with\n"
    "another number of --workers (0: in one process) and --ps."
)


def define(values: flags.FlagValues, words: list[str]) -> None:
    """Define --config, --resume and the flags of a cluster."""
    text = "The folder of a run that goes on with the config that it was started with."
    adder(values)(flags.DEFINE_string, "resume", "", text)
    _add_command(words)
    config_flag.define(values, words)
    launch.define_cluster(values, workers=0)
    bench_flags.define_profile(values)


def _add_command(words: list[str]) -> None:
    """Put what a run was started with before the words of a command that resumes it."""
    for word, following in zip(words, [*words, ""][1:], strict=True):
        name, equals, value = word.lstrip("-").partition("=")
        if name == "resume" and word.startswith("-"):
            folder = value if equals else following
            break
    else:
        return
    from tfdp import train

    path = pathlib.Path(folder, train.COMMAND)
    try:
        facts = json.loads(path.read_text())
        config, settings = facts["config"], {**facts["settings"], "run_dir": folder}
        cluster = dict(facts.get("cluster", {}))
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        raise Error(
            f"--resume={folder}: there is no run of tfdp train ({path} cannot be read)."
        ) from None
    own = [f"--config.{name}={value}" for name, value in settings.items()]
    tasks = []
    if not os.environ.get("TF_CONFIG"):  # else each task is started by hand
        tasks = [f"--{name}={value}" for name, value in cluster.items()]
    words[:0] = [f"--config={config}", *own, *tasks]


def run(values: flags.FlagValues) -> int:
    """Carry out `tfdp train`; return its exit code."""
    if not config_flag.is_good(values, "train"):
        return 2
    from tfdp import config as config_lib
    from tfdp import train
    from tfdp.launch import discovery

    discovery.begin(os.environ)
    service = values.config.data.service
    if service != "off" and (values.resume or values.max_restarts):
        flag = "--resume" if values.resume else "--max_restarts"
        raise Error(
            f"{flag}: with config.data.service={service!r} batches come in no fixed order, so that "
            "a run has no place at which it could go on. Leave the service off."
        )
    run_dir = values.config.run_dir
    if run_dir and os.path.exists(os.path.join(run_dir, train.COMPLETE)):
        print(
            f"{run_dir} has come to its end: nothing is left to train. To train anew choose "
            "another --config.run_dir."
        )
        return 0
    variables: Mapping[str, str] = {}
    if values["profile"].present:
        values.config.run_dir = run_dir or config_lib.new_run_dir(values.config)
        variables = bench_flags.profile(values, values.config.run_dir)
    if values.workers or values.chief or values.ps or values.evaluator:
        check_cluster(values)
        return launch_config(values, variables)
    os.environ.update(variables)
    return run_here(values)


def check_cluster(values: flags.FlagValues) -> None:
    """Check that a config trains on the cluster that the flags name.

    Raises:
        Error: If it does not.
    """
    if os.environ.get("TF_CONFIG"):
        raise Error(
            "TF_CONFIG is set: this process is a task of a cluster already. Leave out "
            "--workers, --chief, --ps and --evaluator to train as it, or unset TF_CONFIG."
        )
    if values.evaluator and not values.workers:
        raise Error(
            "--evaluator evaluates the checkpoints of other tasks, and there are no workers: "
            "add --workers=1 or more, or leave it out."
        )
    fitting = "parameter_server" if values.ps else "multi_worker"
    if values.config.strategy not in ("auto", fitting):
        raise Error(
            f"config.strategy={values.config.strategy!r} does not train on such a cluster: use "
            f"--config.strategy={fitting}, or change --workers, --chief and --ps."
        )
    every = values.config.communication.sync_every
    if values.ps and every > 1:
        from tfdp import config as config_lib

        raise Error(config_lib.servers_keep_no_weights(every))
    replicas = 1 if values.ps else max(1, values.workers) + values.chief
    batching.Batch(values.config.data.global_batch_size, replicas)


def run_here(values: flags.FlagValues) -> int:
    """Train what a config names in this process; return the exit code."""
    from tfdp import train
    from tfdp.launch import memory, network

    memory.keep_freed(os.environ)
    if values.trust_network:
        os.environ[network.TRUST_VARIABLE] = "1"
    # As in the tasks of a cluster (python -m): modules beside the config can be imported.
    sys.path.insert(0, os.getcwd())
    train.train(values.config, train.command(values["config"]))
    return 0


def launch_config(
    values: flags.FlagValues,
    variables: Mapping[str, str] | None = None,
    changes: Mapping[str, object] | None = None,
) -> int:
    """Start the tasks of a cluster that train what a config names; return the exit code.

    Args:
        values: The flags.
        variables: What every task finds in its environment besides.
        changes: Settings of the config that are others than the flags say: by name, "data.seed".
    """
    from tfdp import config as config_lib

    run_dir = values.config.run_dir or config_lib.new_run_dir(values.config)
    script = config_flag.script(values, {"run_dir": run_dir, **(changes or {})})
    log_dir = values.log_dir or os.path.join(run_dir, "logs")
    if values.evaluator:
        _check_no_checkpoints(run_dir)
    return launch.launch_tasks(values, script, log_dir, values.config.seed, variables)


def _check_no_checkpoints(run_dir: str) -> None:
    from tfdp import train

    folder = os.path.join(run_dir, train.CHECKPOINTS)
    if os.path.isdir(folder) and os.listdir(folder):
        raise Error(
            f"{folder} holds checkpoints of an earlier run, which the evaluator would take for "
            "those of this one: remove them, or choose another --config.run_dir."
        )
