"""What each task of the cluster runs for `tfdp doctor`.

python -m tfdp.diagnose.probe DIRECTORY SECONDS     (with a TF_CONFIG)

Tells what it found out in lines of its standard output, after MARK, step by step: of a task that is
killed there is what it had told.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import sys
import uuid
from typing import Any

from tfdp import cluster as cluster_lib
from tfdp.diagnose import facts as facts_lib
from tfdp.launch import rendezvous, task_start

MARK = "tfdp-probe: "
# Slurm's srun breaks lines of more than 1,023 characters.
_PIECE = 500


def main(argv: list[str]) -> None:
    """Look at this task, at the others, and at what lies between them."""
    task_start.tie_to_launcher(os.environ)
    directory, seconds = argv[0], float(argv[1])
    found = cluster_lib.from_environment(os.environ)
    assert found is not None
    cluster, task = found
    result: dict[str, Any] = {"task": str(task), "tf_config": cluster.tf_config(task)}

    def tell() -> None:
        print(*told(result), sep="\n", flush=True)

    facts = facts_lib.collect(directory)
    result["facts"] = facts
    tell()
    with _marked(directory, result) as mark:
        facts["mark"] = mark
        if len(cluster.tasks) > 1:
            try:
                others = rendezvous.survey(cluster, task, facts, timeout_seconds=seconds)
            except cluster_lib.ClusterError as error:
                result["problem"] = str(error)
                tell()
                return
            result["others"] = {
                str(other): dataclasses.asdict(what) for other, what in others.items()
            }
            tell()
            if not all(what.is_reached and what.reaches_us for what in others.values()):
                return
            _look_for_marks(directory, result)
        _with_tensorflow(cluster, task, result)
        tell()


def told(result: dict[str, Any]) -> list[str]:
    """Return the lines that tell a result: "tfdp-probe: 0 of 2: {...", and so on."""
    text = json.dumps(result)
    pieces = [text[at : at + _PIECE] for at in range(0, len(text), _PIECE)]
    return [f"{MARK}{n} of {len(pieces)}: {piece}" for n, piece in enumerate(pieces)]


def last_told(lines: list[str]) -> dict[str, Any] | None:
    """Return the last result that lines of a log tell whole; None if there is none."""
    pieces: list[str] = []
    found = None
    for line in lines:
        if not line.startswith(MARK):
            continue
        number, _, rest = line.removeprefix(MARK).partition(" of ")
        count, _, piece = rest.partition(": ")
        pieces = [*pieces, piece] if number != "0" else [piece]
        if len(pieces) == int(count):
            found = json.loads("".join(pieces))
    return found


@contextlib.contextmanager
def _marked(directory: str, result: dict[str, Any]) -> Any:
    """Write a file into the run's folder, for the others to see, and yield its name."""
    folder = pathlib.Path(directory)
    path = folder / f".tfdp-doctor-{uuid.uuid4().hex}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * 65536)
        result["writes"] = True
    except OSError as error:
        result["writes"] = error.strerror
    try:
        yield path.name
    finally:
        with contextlib.suppress(OSError):
            path.unlink()


def _look_for_marks(directory: str, result: dict[str, Any]) -> None:
    result["shares_directory_with"] = [
        name
        for name, other in result["others"].items()
        if (pathlib.Path(directory) / other["facts"].get("mark", "?")).exists()
    ]


def _with_tensorflow(
    cluster: cluster_lib.Cluster, task: cluster_lib.Task, result: dict[str, Any]
) -> None:
    """Import TensorFlow, count its GPUs, join the cluster and time all-reduces."""
    from tfdp import run

    os.environ[rendezvous.TIMEOUT_VARIABLE] = "0"  # all have met
    try:
        run.import_tensorflow()
        import tensorflow as tf

        from tfdp import strategies

        result["tensorflow_gpus"] = len(tf.config.list_physical_devices("GPU"))
        trains = task.type in ("chief", "worker") and not cluster.is_parameter_server
        if not trains or cluster.num_workers_in_sync < 2:
            return
        strategy = strategies.strategy("multi_worker")
        from tfdp import fit
        from tfdp.diagnose import all_reduce

        names = [str(one) for one in cluster.tasks if one.type in ("chief", "worker")]
        rows = all_reduce.measure(names, str(task))
        for by, carrier in fit.carriers(strategy).items():
            rows += all_reduce.measure_carrier(names, by, carrier)
        result["all_reduce"] = [dataclasses.asdict(row) for row in rows]
        _gather(names, task, result)
    except Exception as error:  # whatever it is, it is what a run would meet
        lines = str(error).splitlines() or [""]
        result["problem"] = f"{type(error).__name__}: {lines[0][:300]}"


def _gather(names: list[str], task: cluster_lib.Task, result: dict[str, Any]) -> None:
    """Give everybody's result to the chief, and keep the marks until all have looked."""
    from tfdp.compat import coordination

    coordination.share_text(f"doctor/{task}", json.dumps(result))
    if str(task) == names[0]:
        texts = [coordination.shared_text(f"doctor/{name}", 30.0) for name in names[1:]]
        results = [dict(result), *(json.loads(text) for text in texts if text)]
        coordination.share_text("doctor/done", json.dumps(results))
    else:
        results = json.loads(coordination.shared_text("doctor/done", 30.0) or "[]")
    result["results"] = results


if __name__ == "__main__":
    main(sys.argv[1:])
