"""tfdp doctor: looks, before a run, at the cluster that would be used.

Without a TF_CONFIG it starts the tasks on this machine; with one it is that task, and the same
command runs on every other machine at the same time. TensorFlow is imported in its children alone.
"""

import contextlib
import json
import os
import pathlib
import sys
import tempfile
import uuid
from collections.abc import Iterable, Iterator
from typing import Any

from absl import flags

from tfdp.error import Error
from tfdp.launch import platforms
from tfdp.launch.shape import Shape
from tfdp.verbs import adder, elsewhere

SYNOPSIS = (
    "tfdp doctor [--workers=N] [--chief] [--ps=M] [--json]\n"
    "tfdp doctor --platform=ssh --hosts=a:2,b --workers=3\n"
    "tfdp doctor --platform=slurm|kubernetes|ray --workers=3\n\n"
    "Look at the cluster that would be used, before a run: versions, ports, clocks, GPUs,\n"
    "disk, and how fast the tasks exchange. In a process that has a TF_CONFIG it is that\n"
    "task: start it on every machine at the same time."
)


def define(values: flags.FlagValues, words: list[str]) -> None:
    """Define the flags of tfdp doctor."""
    add = adder(values)
    add(flags.DEFINE_integer, "workers", 2, "Workers of a cluster on this machine.")
    add(flags.DEFINE_bool, "chief", False, "With a chief beside the workers.")
    add(flags.DEFINE_integer, "ps", 0, "With parameter servers; needs --chief.")
    add(flags.DEFINE_string, "dir", "runs", "The folder that runs would be written to.")
    add(flags.DEFINE_bool, "json", False, "Print the report as JSON.")
    add(flags.DEFINE_float, "wait", 10.0, "Seconds to wait for the other tasks.")
    add(flags.DEFINE_bool, "trust_network", False, "Allow addresses that the internet may reach.")
    elsewhere.define(values, "Where the tasks would run.")


def run(values: flags.FlagValues) -> int:
    """Carry out `tfdp doctor`; return 0, or 1 when something stands in the way of a run."""
    if not 0 < values.wait <= 3600:
        raise Error(f"--wait={values.wait}: use a number of seconds from 1 to 3600.")
    way = _here
    if values.platform != "local":
        way = _on_hosts if elsewhere.is_asked_before(values.platform) else _as_a_job
    try:
        with _as_it_was(values.dir):
            report = way(values)
    except OSError as error:
        raise Error(str(error)) from error
    if values.json:
        print(json.dumps(report.json(), indent=2))
    else:
        print("\n".join(report.lines()))
    return report.exit_code


def _here(values: flags.FlagValues) -> Any:
    """Run the probe as the task that this process is, or as each task of a cluster here."""
    from tfdp import cluster as cluster_lib
    from tfdp.diagnose import report as report_lib
    from tfdp.launch import machine, network, plan

    found = cluster_lib.from_environment(os.environ)
    if found is None:
        shape = _shape(values)
        cluster = plan.local_cluster(shape, machine.free_ports(len(shape)))
        mine = list(cluster.tasks)
    else:
        cluster, task = found
        mine = [task]
        if not (values.trust_network or network.is_trusted(os.environ)):
            network.refuse_public(cluster)
    planned = plan.plan(cluster, ["-"], seed=0, gpus=machine.gpus(os.environ) if not found else ())
    with tempfile.TemporaryDirectory(prefix="tfdp-doctor-") as folder:
        directory = os.path.abspath(values.dir)
        probes = _probes(planned, sys.executable, directory, values.wait)
        _run([one for one in probes if one.task in mine], folder, grace_seconds=0.1)
        return report_lib.make(cluster, _results(folder, mine))


def _as_a_job(values: flags.FlagValues) -> Any:
    """Run the probe as each task of a cluster whose hosts the platform chooses."""
    from tfdp import cluster as cluster_lib
    from tfdp.diagnose import report as report_lib
    from tfdp.launch import plan

    shape = _shape(values)
    os.makedirs(values.dir, exist_ok=True)
    # Beside the runs: what Slurm's tasks write is seen here only in a folder that all share.
    with tempfile.TemporaryDirectory(prefix=".tfdp-doctor-", dir=values.dir) as folder:
        probe = _words(os.path.abspath(values.dir), values.wait)
        code = elsewhere.run(values, shape, probe, folder, "tfdp-doctor")
        _end_if_interrupted(code)
        # Of tasks that have told nothing only the kinds are known.
        names = plan.local_cluster(shape, range(1, len(shape) + 1)).tasks
        results = _results(folder, names)
    told = [one["tf_config"] for one in results.values() if "tf_config" in one]
    if not told:
        raise Error(
            f"--platform={values.platform}: no task has told what it found (exit code {code}): see "
            f"the lines above."
        )
    return report_lib.make(cluster_lib.parse(told[0]).cluster, results)


def _on_hosts(values: flags.FlagValues) -> Any:
    """Ask the hosts, and run the probe as each task of the cluster there."""
    from tfdp.diagnose import report as report_lib
    from tfdp.launch import network, plan

    shape, reach = _shape(values), platforms.module(values.platform).reach
    with (
        _mark(values.dir) as mark,
        tempfile.TemporaryDirectory(prefix="tfdp-doctor-") as folder,
        reach(shape, values, os.getcwd(), sys.executable, mark=mark) as reached,
    ):
        looked = report_lib.look(reached.facts, reached.problems, bool(mark), values.sync)
        if reached.problems:
            return report_lib.unreached(shape, reached.facts, looked)
        placed = reached.place(shape)
        cluster = reached.cluster(shape, placed)
        if not values.trust_network:
            network.refuse_public(cluster)
        gpus = reached.gpus(cluster, placed, None, 0)
        planned = plan.plan(cluster, ["-"], seed=0)
        probes = _probes(planned, reached.ssh.python, values.dir, values.wait)
        relays = reached.relays(probes, placed, gpus, divide_cores=False)
        _run(relays, folder)
        results = _results(folder, cluster.tasks)
        for one in relays:
            facts = results.get(str(one.task), {}).get("facts", {})
            facts["host"] = f"{one.host} ({facts.get('host', '?')})"
        return report_lib.with_checks(report_lib.make(cluster, results), looked)


def _shape(values: flags.FlagValues) -> Shape:
    return Shape(values.workers, values.chief, values.ps)


def _words(directory: str, wait: float) -> tuple[str, ...]:
    return ("-m", "tfdp.diagnose.probe", directory, str(wait))


def _probes(planned: Iterable[Any], python: str, directory: str, wait: float) -> list[Any]:
    """Return the processes of a plan, with the probe in the place of a script."""
    from tfdp.launch.plan import TaskProcess

    command = (python, *_words(directory, wait))
    return [TaskProcess(one.task, one.host, command, one.environment) for one in planned]


def _run(processes: list[Any], folder: str, grace_seconds: float = 3.0) -> None:
    """Run probes, whose logs are read afterwards."""
    from tfdp.launch import local

    with open(os.devnull, "wb") as nothing:
        _end_if_interrupted(
            local.run(
                processes, folder, stdout=nothing, stderr=nothing, grace_seconds=grace_seconds
            )
        )


def _end_if_interrupted(code: int) -> None:
    """End this process where the probes were ended by Ctrl-C, and none by another signal."""
    if code >= 128 and code not in (137, 138):
        sys.exit(code)


@contextlib.contextmanager
def _as_it_was(folder: str) -> Iterator[None]:
    """Remove a folder at the end that was not there before, unless it holds something."""
    is_new = not os.path.exists(folder)
    try:
        yield
    finally:
        if is_new:
            with contextlib.suppress(OSError):
                os.rmdir(folder)


@contextlib.contextmanager
def _mark(directory: str) -> Iterator[str]:
    """Write a file into the run's folder, for other hosts to see; yields its path, or ""."""
    path = os.path.join(directory, f".tfdp-doctor-{uuid.uuid4().hex}")
    try:
        os.makedirs(directory, exist_ok=True)
        pathlib.Path(path).touch()
    except OSError:
        path = ""  # the tasks say whether they can write there
    try:
        yield path
    finally:
        with contextlib.suppress(OSError):
            os.unlink(path)


def _results(folder: str, tasks: Iterable[Any]) -> dict[str, dict[str, Any]]:
    """What the probes have told, by task; a probe that broke down says so itself."""
    from tfdp.diagnose import probe
    from tfdp.launch.plan import log_name

    results: dict[str, dict[str, Any]] = {}
    for task in tasks:
        name, log = str(task), pathlib.Path(folder, log_name(task))
        lines = log.read_text(errors="replace").strip().splitlines() if log.exists() else []
        result = probe.last_told(lines)
        if result is not None:
            for other in result.pop("results", []):
                results.setdefault(other["task"], other)
            results[name] = result
        if any("Traceback" in line for line in lines):
            results.setdefault(name, {"task": name})["problem"] = lines[-1][:300]
    return results
