"""tfdp bench --workers=1,2,4: one bench for each number of workers, then the scaling report.

status = run(values, (1, 2, 4))
"""

import contextlib
import os
from collections.abc import Iterator
from typing import Any

from absl import flags

from tfdp import batching
from tfdp.error import Error
from tfdp.verbs import bench_flags, train


class WorkersParser(flags.ArgumentParser):
    """Reads --workers=2 as a number, and --workers=1,2,4 as several."""

    syntactic_help = "a number, or several: 1,2,4"

    def parse(self, argument: Any) -> Any:
        """Return a number or several, in their order."""
        if not isinstance(argument, str):
            return argument
        parts = [part.strip() for part in argument.split(",")]
        if len(parts) == 1:
            try:
                return int(argument)
            except ValueError:
                raise ValueError("use a number of workers, or several: 1,2,4") from None
        if not all(part.isdecimal() and int(part) for part in parts):
            raise ValueError("use numbers of 1 or more, as in 1,2,4")
        counts = tuple(sorted({int(part) for part in parts}))
        if len(counts) < 2:
            raise ValueError("scaling compares different numbers, as in 1,2,4")
        return counts

    def flag_type(self) -> str:
        """Return what absl calls the type."""
        return "workers"


def run(values: flags.FlagValues, counts: tuple[int, ...], run_dir: str) -> int:
    """Measure with each number of workers, and print and write the scaling; return the exit code.

    Args:
        values: The flags.
        counts: Numbers of workers, the smallest first.
        run_dir: Where all goes; each bench into a folder of its own.

    Raises:
        Error: If a batch does not divide.
    """
    from tfdp.bench import record, what_if
    from tfdp.bench.settings import Settings

    if values.chief:
        raise Error("--chief: a scaling report counts workers. Leave it out.")
    batches = _batches(values, counts)
    kept = _cores_of_a_worker(values, counts)
    for count, batch in zip(counts, batches, strict=True):
        folder = os.path.join(run_dir, f"workers-{count}")
        values["workers"].value = count
        values.config.data.global_batch_size = batch
        train.check_cluster(values)
        settings = Settings(os.path.abspath(folder), apply=values.apply)
        changes = {"run_dir": folder, "data.global_batch_size": batch}
        values["log_dir"].value = os.path.join(folder, "logs")
        print(f"\n{count} worker{'s'[: count > 1]}, global batch {batch:,}", flush=True)
        with _only(count * kept):
            code = train.launch_config(values, bench_flags.variables(settings), changes)
        if code:
            return code
    if values.dry_run:
        return 0
    files = [os.path.join(run_dir, f"workers-{count}", record.FILE) for count in counts]
    report(what_if.read(files), run_dir)
    return 0


def report(sources: list, folder: str) -> None:
    """Print the scaling of benches, and write it and its figure to a folder; "" for nowhere."""
    from tfdp.bench import scaling, scaling_figure

    found = scaling.of(sources)
    print(scaling.text(found), end="", flush=True)
    if not folder:
        return
    written = [found.write(os.path.join(folder, scaling.FILE))]
    try:
        written += scaling_figure.write(found, folder)
    except Error as error:
        print(f"  {error}")
    print(f"\n  {', '.join(map(str, written))}", flush=True)


def _batches(values: flags.FlagValues, counts: tuple[int, ...]) -> list[int]:
    """Return the global batch of each number; weak scaling keeps that of the first one's workers.

    Raises:
        Error: If it does not divide.
    """
    batch = values.config.data.global_batch_size
    batches = [batch if values.strong else batch * count // counts[0] for count in counts]
    for count, rows in zip(counts, [batch, *batches[1:]], strict=True):
        batching.Batch(rows, count)
    return batches


def _cores_of_a_worker(values: flags.FlagValues, counts: tuple[int, ...]) -> int:
    """Return the cores that each worker has in all runs; 0 where they are not held equal."""
    if values.platform != "local" or values.cores != "divide":
        return 0
    return len(os.sched_getaffinity(0)) // max(counts)


@contextlib.contextmanager
def _only(cores: int) -> Iterator[None]:
    """Let what is started in here run on so many of the cores; 0: on all.

    One worker would take all cores, of two each half: not the scaling of more machines.
    """
    before = os.sched_getaffinity(0)
    if cores:
        os.sched_setaffinity(0, sorted(before)[:cores])
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
