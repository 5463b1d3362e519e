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
from typing import Any

from absl import flags

from tfdp.verbs import UsageError

SYNOPSIS = (
    "tfdp doctor [--workers=N] [--chief] [--ps=M] [--json]\n\n"
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


def run(values: flags.FlagValues, positional: list[str], script: list[str]) -> int:
    """Carry out `tfdp doctor`; return 0, or 1 when something stands in the way of a run."""
    from tfdp import cluster as cluster_lib
    from tfdp.diagnose import report as report_lib
    from tfdp.launch import local, machine, network, plan
    from tfdp.launch import shape as shape_lib

    if positional or script:
        raise UsageError(f"{(positional + script)[0]!r}: tfdp doctor takes flags only.")
    if not 0 < values.wait <= 3600:
        raise UsageError(f"--wait={values.wait}: use a number of seconds from 1 to 3600.")
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
    except (cluster_lib.ClusterError, OSError) as error:
        raise UsageError(str(error)) from error
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
        results = _results(pathlib.Path(folder), processes)
    report = report_lib.make(cluster, results)
    if values.json:
        print(json.dumps(report.json(), indent=2))
    else:
        print("\n".join(report.lines()))
    return report.exit_code


def _results(folder: pathlib.Path, processes: Any) -> dict[str, dict[str, Any]]:
    """What the probes have written, by task; a probe that broke down says so itself."""
    results: dict[str, dict[str, Any]] = {}
    for process in processes:
        name = str(process.task)
        path = folder / f"{process.task.type}-{process.task.index}.json"
        if path.exists():
            result = json.loads(path.read_text())
            for other in result.pop("results", []):
                results.setdefault(other["task"], other)
            results[name] = result
        log = path.with_suffix(".log")
        last = log.read_text(errors="replace").strip().splitlines() if log.exists() else []
        if last and any("Traceback" in line for line in last):
            results.setdefault(name, {"task": name})["problem"] = last[-1][:300]
    return results
