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
from collections.abc import Iterator
from typing import Any

from absl import flags

from tfdp.error import Error
from tfdp.launch import platforms
from tfdp.verbs import elsewhere

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

    def add(define: Any, name: str, default: object, text: str) -> None:
        define(name, default, text, flag_values=values)

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
    from tfdp import cluster as cluster_lib
    from tfdp.diagnose import report as report_lib
    from tfdp.launch import local, machine, network, plan
    from tfdp.launch import shape as shape_lib

    if not 0 < values.wait <= 3600:
        raise Error(f"--wait={values.wait}: use a number of seconds from 1 to 3600.")
    if values.platform != "local":
        asked = elsewhere.is_asked_before(values.platform)
        return _on_hosts(values) if asked else _as_a_job(values)
    try:
        found = cluster_lib.from_environment(os.environ)
        if found is None:
            shape = shape_lib.Shape(values.workers, values.chief, values.ps)
            cluster = plan.local_cluster(shape, machine.free_ports(len(shape)))
            mine = list(cluster.tasks)
        else:
            cluster, task = found
            mine = [task]
            if not (values.trust_network or network.is_trusted(os.environ)):
                network.refuse_public(cluster)
        visible = plan.plan(
            cluster, ["-"], seed=0, gpus=machine.gpus(os.environ) if not found else ()
        )
    except OSError as error:
        raise Error(str(error)) from error
    is_new = not os.path.exists(values.dir)
    with tempfile.TemporaryDirectory(prefix="tfdp-doctor-") as folder:
        processes = []
        for whole in visible:
            if whole.task in mine:
                out = os.path.join(folder, f"{whole.task.type}-{whole.task.index}.json")
                words = ("-m", "tfdp.diagnose.probe", out, os.path.abspath(values.dir))
                processes.append(
                    plan.TaskProcess(
                        whole.task,
                        whole.host,
                        (sys.executable, *words, str(values.wait)),
                        whole.environment,
                    )
                )
        with open(os.devnull, "wb") as nothing:
            code = local.run(processes, folder, stdout=nothing, stderr=nothing, grace_seconds=0.1)
        if is_new:
            with contextlib.suppress(OSError):
                os.rmdir(values.dir)
        if code >= 128 and code != 137:
            return code  # Ctrl-C
        results = _results(pathlib.Path(folder), mine)
    return _print(values, report_lib.make(cluster, results))


def _print(values: flags.FlagValues, report: Any) -> int:
    if values.json:
        print(json.dumps(report.json(), indent=2))
    else:
        print("\n".join(report.lines()))
    return report.exit_code


def _as_a_job(values: flags.FlagValues) -> int:
    """Run the probe as each task of a cluster whose hosts the platform chooses."""
    from tfdp import cluster as cluster_lib
    from tfdp.diagnose import report as report_lib
    from tfdp.launch import plan
    from tfdp.launch import shape as shape_lib

    is_new = not os.path.exists(values.dir)
    try:
        shape = shape_lib.Shape(values.workers, values.chief, values.ps)
        os.makedirs(values.dir, exist_ok=True)
        # Beside the runs: what Slurm's tasks write is seen here only in a folder that all share.
        with tempfile.TemporaryDirectory(prefix=".tfdp-doctor-", dir=values.dir) as folder:
            directory = os.path.abspath(values.dir)
            probe = ("-m", "tfdp.diagnose.probe", "-", directory, str(values.wait))
            code = elsewhere.run(values, shape, probe, folder, "tfdp-doctor")
            if code >= 128 and code not in (137, 138):
                return code  # Ctrl-C
            # Of tasks that have told nothing only the kinds are known.
            names = plan.local_cluster(shape, range(1, len(shape) + 1)).tasks
            results = _results(pathlib.Path(folder), names)
    except OSError as error:
        raise Error(str(error)) from error
    finally:
        if is_new:
            with contextlib.suppress(OSError):
                os.rmdir(values.dir)
    told = [one["tf_config"] for one in results.values() if "tf_config" in one]
    if not told:
        raise Error(
            f"--platform={values.platform}: no task has told what it found (exit code {code}): see "
            f"the lines above."
        )
    return _print(values, report_lib.make(cluster_lib.parse(told[0]).cluster, results))


def _on_hosts(values: flags.FlagValues) -> int:
    """Ask the hosts, and run the probe as each task of the cluster there."""
    from tfdp.diagnose import report as report_lib
    from tfdp.launch import local, network, plan
    from tfdp.launch import shape as shape_lib

    try:
        shape = shape_lib.Shape(values.workers, values.chief, values.ps)
        with contextlib.ExitStack() as stack:
            mark = stack.enter_context(_mark(values.dir))
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="tfdp-doctor-"))
            reached = stack.enter_context(
                platforms.module(values.platform).reach(
                    shape, values, os.getcwd(), sys.executable, mark=mark
                )
            )
            looked = report_lib.look(reached.facts, reached.problems, bool(mark), values.sync)
            if reached.problems:
                return _print(values, report_lib.unreached(shape, reached.facts, looked))
            placed = reached.place(shape)
            cluster = reached.cluster(shape, placed)
            if not values.trust_network:
                network.refuse_public(cluster)
            gpus = reached.gpus(cluster, placed, None, 0)
            words = ("-m", "tfdp.diagnose.probe", "-", values.dir, str(values.wait))
            processes = [
                plan.TaskProcess(
                    whole.task, whole.host, (reached.ssh.python, *words), whole.environment
                )
                for whole in plan.plan(cluster, ["-"], seed=0)
            ]
            relays = reached.relays(processes, placed, gpus, divide_cores=False)
            with open(os.devnull, "wb") as nothing:
                code = local.run(relays, folder, stdout=nothing, stderr=nothing)
            if code >= 128 and code not in (137, 138):
                return code  # Ctrl-C
            results = _results(pathlib.Path(folder), cluster.tasks)
            for one in relays:
                facts = results.get(str(one.task), {}).get("facts", {})
                facts["host"] = f"{one.host} ({facts.get('host', '?')})"
            report = report_lib.make(cluster, results)
    except OSError as error:
        raise Error(str(error)) from error
    return _print(values, report_lib.with_checks(report, looked))


@contextlib.contextmanager
def _mark(directory: str) -> Iterator[str]:
    """Write a file into the run's folder, for other hosts to see; yields its path, or ""."""
    path = os.path.join(directory, f".tfdp-doctor-{uuid.uuid4().hex}")
    is_new = not os.path.exists(directory)
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
        if is_new:
            with contextlib.suppress(OSError):
                os.rmdir(directory)


def _results(folder: pathlib.Path, tasks: Any) -> dict[str, dict[str, Any]]:
    """What the probes have written, by task; a probe that broke down says so itself."""
    from tfdp.diagnose import probe

    results: dict[str, dict[str, Any]] = {}
    for task in tasks:
        name = str(task)
        path = folder / f"{task.type}-{task.index}.json"
        if path.exists():
            result = json.loads(path.read_text())
            for other in result.pop("results", []):
                results.setdefault(other["task"], other)
            results[name] = result
        log = path.with_suffix(".log")
        last = log.read_text(errors="replace").strip().splitlines() if log.exists() else []
        result = probe.last_told(last)
        if result is not None:
            for other in result.pop("results", []):
                results.setdefault(other["task"], other)
            results[name] = result
        if last and any("Traceback" in line for line in last):
            results.setdefault(name, {"task": name})["problem"] = last[-1][:300]
    return results
