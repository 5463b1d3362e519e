"""tfdp launch, and the part of tfdp train that starts tasks.

define_cluster(values, workers=1)               # the flags of a cluster
launch_tasks(values, ["train.py"], "runs/a")    # its exit code
"""

import dataclasses
import os
import pathlib
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from absl import flags

from tfdp.error import Error
from tfdp.launch import data_workers, platforms
from tfdp.verbs import adder, bench_flags

SYNOPSIS = (
    "tfdp launch --workers=N [--chief] [--ps=M] [--evaluator] -- SCRIPT.py ARGS\n"
    "tfdp launch --workers=N -- -m MODULE ARGS\n"
    "tfdp launch --workers=N --bench[=continue] [--apply] -- SCRIPT.py ARGS\n\n"
    "Start a cluster, on this machine or with --platform=ssh, slurm, kubernetes or ray elsewhere:\n"
    "each task runs the script with its own TF_CONFIG. With --bench its first fit is measured\n"
    "before it begins: input, training, synchronisation or one slow worker, and what to do. The\n"
    "run ends with the report; with --bench=continue it trains as it would have without."
)


def define(values: flags.FlagValues, words: list[str]) -> None:
    """Define the flags of a cluster."""
    define_cluster(values, workers=1)
    bench_flags.define(values, words)


def define_cluster(values: flags.FlagValues, workers: int) -> None:
    """Define the flags that say which tasks to start, and how they are looked after."""
    add = adder(values)
    add(flags.DEFINE_integer, "workers", workers, "Workers to start, where --platform says.")
    add(flags.DEFINE_bool, "chief", False, "Start a chief beside the workers.")
    add(flags.DEFINE_integer, "ps", 0, "Parameter servers to start; needs --chief.")
    add(flags.DEFINE_bool, "evaluator", False, "Start an evaluator.")
    flags.DEFINE_enum(
        "platform",
        "local",
        list(platforms.NAMES),
        "Where the tasks run: on this machine, or on hosts that another program hands out.",
        flag_values=values,
    )
    add(flags.DEFINE_multi_string, "env", [], "NAME=VALUE, or NAME as it is here: for each task.")
    add(flags.DEFINE_string, "job_name", "", "What the platform calls the run.")
    add(flags.DEFINE_integer, "gpus_per_task", 0, "GPUs of each task that trains, elsewhere.")
    add(
        flags.DEFINE_integer,
        "data_workers",
        0,
        "Processes of tf.data service that read and decode beside those that train.",
    )
    add(flags.DEFINE_string, "log_dir", "", "Folder of the tasks' logs; default: in runs/.")
    add(flags.DEFINE_integer, "log_megabytes", 100, "A larger log is continued in a new file.")
    add(flags.DEFINE_integer, "logs_kept", 3, "Full logs of a task that are kept.")
    add(
        flags.DEFINE_integer,
        "max_restarts",
        0,
        "Failures without progress that are followed by a new start.",
    )
    add(
        flags.DEFINE_integer,
        "min_workers",
        0,
        "Go on with so many workers where others fail for good; 0: with all or none.",
    )
    add(
        flags.DEFINE_float,
        "preempt_seconds",
        25.0,
        "Seconds that tasks have to save what they have when the launcher gets SIGTERM.",
    )
    add(flags.DEFINE_bool, "dry_run", False, "Print what would be started; start nothing.")
    add(flags.DEFINE_bool, "detach", False, "Slurm, Kubernetes: return at once; the run goes on.")
    add(flags.DEFINE_string, "output", "", "Write that to a file in place of starting it.")
    flags.DEFINE_enum(
        "cores",
        "divide",
        ["divide", "all"],
        "Divide this machine's cores among the tasks that train on CPUs, or let all use all.",
        flag_values=values,
    )
    add(
        flags.DEFINE_bool,
        "isolate",
        False,
        "Run in a network of their own: nobody outside reaches the tasks, nor they anybody.",
    )
    add(
        flags.DEFINE_bool,
        "trust_network",
        False,
        "Allow addresses in the cluster that the whole internet may reach.",
    )
    for name in platforms.NAMES[1:]:
        platforms.module(name).define(add)


def run(values: flags.FlagValues, positional: list[str], script: list[str]) -> int:
    """Carry out `tfdp launch`; return its exit code."""
    if positional:
        raise Error(
            f"{positional[0]!r} stands before --. Write: tfdp launch FLAGS -- SCRIPT.py ARGS"
        )
    if os.environ.get("TF_CONFIG"):
        raise Error(
            "TF_CONFIG is set: this process is a task of a cluster already. Unset it to launch "
            "tasks here, or run this one task: python -m tfdp.run SCRIPT.py ARGS"
        )
    if not script:
        raise Error("No script. Write: tfdp launch FLAGS -- SCRIPT.py ARGS (or -m MODULE).")
    stamp = time.strftime("%Y%m%d-%H%M%S")
    name = os.path.splitext(os.path.basename(script[0 if script[0] != "-m" else -1]))[0]
    log_dir = values.log_dir or os.path.join("runs", f"{name}-{stamp}-{os.getpid()}")
    settings = bench_flags.settings(values, log_dir)
    variables = {**bench_flags.variables(settings), **bench_flags.profile(values, log_dir)}
    return launch_tasks(values, script, log_dir, variables=variables)


def launch_tasks(
    values: flags.FlagValues,
    script: list[str],
    log_dir: str,
    seed: int | None = None,
    variables: Mapping[str, str] | None = None,
) -> int:
    """Start the tasks that the flags of define_cluster name; return the exit code of the run.

    Args:
        values: The flags.
        script: "SCRIPT.py" or "-m", "MODULE", then its arguments.
        log_dir: Folder of the tasks' logs.
        seed: Of all tasks; None for another one each time.
        variables: What every task finds in its environment besides.

    Raises:
        Error: If the flags make no cluster, or there is no such script.
    """
    from tfdp import run as run_lib
    from tfdp.launch.platforms import job as job_lib
    from tfdp.launch.shape import Shape

    counts = ("max_restarts", "min_workers", "data_workers", "logs_kept", "log_megabytes")
    for name in (*counts, "preempt_seconds"):
        least = int(name == "log_megabytes")
        value = getattr(values, name)
        if value < least:
            raise Error(f"--{name}={value}: use {least} or more.")
    if values.data_workers and values.platform != "local":
        raise Error(
            f"--data_workers starts processes on this machine, and --platform={values.platform} "
            "does not run there. Start a dispatcher and workers of tf.data service by hand "
            f"(see docs/data-service.md), and give --env={data_workers.VARIABLE}=grpc://HOST:PORT."
        )
    if values.min_workers > values.workers > 0:
        raise Error(
            f"--min_workers={values.min_workers} is more than --workers={values.workers}. "
            f"Use at most that many."
        )
    # The script of a pod is in its image.
    problem = "" if values.platform == "kubernetes" else run_lib.check_script(script)
    if problem:
        raise Error(problem)
    if seed is None:
        named = os.environ.get("TFDP_SEED", "")
        if named and not (named.isdecimal() and int(named) < 1 << 31):
            raise Error(f"TFDP_SEED={named!r}: use a number from 0 to 2147483647.")
        seed = int(named) if named else int.from_bytes(os.urandom(4), "little") >> 1
    try:
        given, secrets = job_lib.read_variables(values.env, os.environ)
        job = job_lib.Job(
            name=job_lib.platform_name(values.job_name or os.path.basename(log_dir)),
            shape=Shape(values.workers, values.chief, values.ps, values.evaluator),
            script=tuple(script),
            seed=seed,
            log_dir=os.path.abspath(log_dir),
            directory=os.getcwd(),
            environment={**given, **(variables or {})},
            secrets=secrets,
            run=f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}",
            gpus_per_task=values.gpus_per_task,
            max_restarts=values.max_restarts,
            preempt_seconds=values.preempt_seconds,
            trust_network=values.trust_network,
        )
        if values.platform == "local":
            return _on_this_machine(values, job, log_dir)
        return _on_platform(values, job)
    except OSError as error:
        raise Error(str(error)) from error


def _on_platform(values: flags.FlagValues, job: Any) -> int:
    from tfdp.launch.meeting import TIMEOUT_VARIABLE

    platform = platforms.module(values.platform)
    if values.isolate:
        where = f"--platform={values.platform}"
        raise Error(f"--isolate keeps tasks on this machine. Leave it out with {where}.")
    # On this machine tasks inherit what may be set for them.
    kept = {name: os.environ[name] for name in (TIMEOUT_VARIABLE,) if name in os.environ}
    job = dataclasses.replace(job, environment={**kept, **job.environment})
    if values.dry_run or values.output:
        return _shown(platform.render(job, values), values.output)
    return platform.launch(job, values)


def _on_this_machine(values: flags.FlagValues, job: Any, log_dir: str) -> int:
    from tfdp import cluster as cluster_lib
    from tfdp.launch import isolation, local, machine, network, output, plan

    if values.trust_network:
        os.environ[network.TRUST_VARIABLE] = "1"  # for the tasks, which look at the addresses
    gpus = machine.gpus(os.environ)
    service: list[plan.TaskProcess] = []
    told = dict(job.environment)
    if values.data_workers:
        free = machine.free_ports(values.data_workers + 1)
        service = data_workers.plan_service(values.data_workers, free, log_dir, job.directory)
        told[data_workers.VARIABLE] = data_workers.address(free[0])
    cores = machine.cores() if values.cores == "divide" else []
    if values.isolate and not values.dry_run:
        _isolate()

    def make_cluster(left_out: int = 0) -> cluster_lib.Cluster:
        fewer = job.shape.without(left_out)
        return plan.local_cluster(fewer, machine.free_ports(len(fewer)))

    def make_plan(
        cluster: cluster_lib.Cluster, left_out: Sequence[plan.TaskProcess] = ()
    ) -> list[plan.TaskProcess]:
        # A GPU that fails its worker again and again is given to no other.
        unused = {gpu for process in left_out for gpu in plan.gpus_of(process)}
        processes = plan.plan(
            cluster,
            job.script,
            seed=job.seed,
            gpus=tuple(gpu for gpu in gpus if gpu not in unused),
            log_dir=log_dir,
            directory=job.directory,
            environ=told,
            run=job.run,
            cores=cores,
        )
        return [*processes, *service]

    cluster = make_cluster()
    processes = make_plan(cluster)
    where = f"{cluster} on this machine, seed {job.seed}. Logs: {log_dir}"
    if values.dry_run or values.output:
        from tfdp.launch import dry_run, redaction

        text = output.printable(f"# {where} (dry run: nothing is started)").decode()
        text += dry_run.render(processes, redaction.Redactor(os.environ)) + "\n"
        return _shown(text, values.output)
    print(output.printable(where).decode(), end="", flush=True)
    shares = [len(process.cpus) for process in processes if process.cpus]
    if shares:
        each = " or ".join(str(share) for share in sorted(set(shares)))
        sys.stderr.write(
            f"tfdp: Each task that trains has {each} of {sum(shares)} CPUs to itself. "
            f"With --cores=all they share all.\n"
        )
    if not values.isolate and isolation.is_exposed():
        ports = ", ".join(str(cluster.port(task)) for task in cluster.tasks[:20])
        sys.stderr.write(
            f"tfdp: TensorFlow's servers ask for no password and listen on every interface, here "
            f"on port{'s'[: len(cluster.tasks) > 1]} {ports}: --isolate, or a firewall (see "
            f"docs/launch.md), keeps others out.\n"
        )
    return local.look_after(
        processes,
        log_dir,
        values,
        lambda left_out: make_plan(make_cluster(len(left_out)), left_out),
    )


def _shown(text: str, file: str) -> int:
    """Print what would be started, or write it to a file that --output names; return 0."""
    if file:
        pathlib.Path(file).write_text(text)
    else:
        sys.stdout.write(text)
    return 0


def _isolate() -> None:
    from tfdp.launch import isolation

    try:
        isolation.enter()
    except OSError as error:
        raise Error(
            f"--isolate: a network namespace is not permitted here ({error.strerror or error}). "
            f"Leave it out, and close the ports to others with a firewall (see docs/launch.md)."
        ) from error
