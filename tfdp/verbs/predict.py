"""`tfdp predict`: its flags, and a job of tfdp.inference made of them."""

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any

from absl import flags

from tfdp.error import Error
from tfdp.launch import platforms
from tfdp.verbs import adder, elsewhere

SYNOPSIS = (
    "tfdp predict --model=MODELS/NAME --input=PATTERN --output=DIR [--workers=N]\n"
    "tfdp predict --platform=ssh --hosts=a:2,b --model=... --input=... --output=...\n"
    "tfdp predict --platform=slurm|ray --workers=N --model=... --input=... --output=...\n\n"
    "Predict every row of the input once, in its order, whatever dies. The same command run\n"
    "again does what is missing. The input is TFRecord, .csv, .npy, images, a folder of one of\n"
    "these, or tfds:NAME/SPLIT. The output is DIR/part-00000-of-00016.jsonl and so on."
)
# New starts of the tasks that a platform runs, after one of them has failed.
_RESTARTS = 3
HINT = "Write: tfdp predict --model=MODELS/NAME --input=PATTERN --output=DIR"


def define(values: flags.FlagValues, words: list[str]) -> None:
    """Define the flags."""
    del words
    add = adder(values)
    text, number = flags.DEFINE_string, flags.DEFINE_integer
    add(text, "model", "", "A SavedModel's version, or a folder of versions: the newest.")
    add(text, "input", "", "File, folder, pattern, or tfds:NAME/SPLIT.")
    add(text, "output", "", "Folder of the parts; made when absent.")
    add(number, "workers", 0, "Worker processes; 0: one for each GPU, or one.")
    add(text, "signature", "serving_default", "Which function of the model.")
    add(text, "format", "", "jsonl, csv, npy, tfrecord; else by the end of DIR's name, or jsonl.")
    add(number, "batch_size", 0, "Rows of a call; 0: as before in DIR, or 64.")
    add(number, "shard_rows", 0, "Rows of a part; 0: as before in DIR, or 256 to 16384.")
    add(number, "max_errors", 100, "Rows that may be unreadable before it stops.")
    add(text, "id", "", "Column or feature that holds the id of a row; else FILE:RECORD.")
    add(flags.DEFINE_multi_string, "map", [], "INPUT=COLUMN[,COLUMN...], where names differ.")
    add(flags.DEFINE_bool, "jit_compile", False, "Compile the model with XLA.")
    add(text, "data_dir", "", "Folder of TFDS datasets.")
    add(flags.DEFINE_float, "timeout_seconds", 60.0, "A worker silent for so long is replaced.")
    add(number, "threads", 0, "Threads of a worker's model; 0: the cores, divided.")
    elsewhere.define(values, "Where the workers run.")


def run(values: flags.FlagValues) -> int:
    """Run the job; return the exit code.

    Raises:
        Error: For a command that cannot be carried out.
    """
    from tfdp.inference import job
    from tfdp.inference.failures import JobFailed
    from tfdp.inference.settings import Settings

    settings: dict[str, Any] = {name: values[name].value for name in Settings.__dataclass_fields__}
    settings["map"] = dict(_mapping(word) for word in values.map)
    with _ended_by_signals() as came:
        try:
            with _hosts(values) as (hosts, problems):
                if problems:
                    sys.stderr.write("".join(f"tfdp: {line}\n" for line in problems))
                    return 2
                summary = job.run(Settings(**settings), sys.stderr, hosts, _start(values))
        except (job.Interrupted, KeyboardInterrupt) as error:
            number = came[0] if came else signal.SIGINT
            name = signal.Signals(number).name + (" (Ctrl-C)" if number == signal.SIGINT else "")
            sys.stderr.write(f"tfdp: Interrupted by {name}. {error}".rstrip() + "\n")
            return 128 + number
        except JobFailed as error:
            sys.stderr.write(f"tfdp: {error}\n")
            return 1
    print(describe(summary, values.output))
    return 0


@contextlib.contextmanager
def _hosts(values: flags.FlagValues) -> Iterator[tuple[Any, list[str]]]:
    """Ask the hosts of the workers; yields them, None for this machine, and what is wrong."""
    if values.platform == "local" or not elsewhere.is_asked_before(values.platform):
        yield None, []
        return
    from tfdp.inference.hosts import Hosts
    from tfdp.launch.shape import Shape

    platform = platforms.module(values.platform)
    shape = Shape(values.workers or platform.slots(values))
    with platform.reach(shape, values, os.getcwd(), sys.executable) as reached:
        yield (None if reached.problems else Hosts(reached, shape)), reached.problems


def _start(values: flags.FlagValues) -> Callable[[Any], int] | None:
    """Return what runs the tasks of a job where a platform chooses the hosts; None elsewhere."""
    if values.platform == "local" or elsewhere.is_asked_before(values.platform):
        return None
    if values.platform == "kubernetes":
        raise Error(
            "--platform=kubernetes: the pods of a run share no folder with this machine. Run "
            "tfdp predict with --workers=N in a pod that has the model, the input and a volume for "
            "the output."
        )
    from tfdp.launch.shape import Shape

    shape = Shape(values.workers or 1)

    def start(order: Any) -> int:
        # All tasks see the output's folder: it is what they share.
        folder = os.path.join(values.output, ".tfdp", "logs")
        script = ("-m", "tfdp.inference.task", order.to_text())
        return elsewhere.run(values, shape, script, folder, "tfdp-predict", max_restarts=_RESTARTS)

    return start


def describe(summary: Any, output: str) -> str:
    """Return the last line of a job."""
    errors = f", {summary.errors:,} in errors.jsonl" if summary.errors else ""
    line = (
        f"{summary.rows:,} rows: {summary.rows - summary.errors:,} predicted{errors}. "
        f"{summary.parts} parts in {output}."
    )
    if not summary.predicted:
        return line + " Nothing was missing."
    rate = summary.predicted / summary.seconds
    return line + f" {summary.predicted:,} rows now, {rate:,.0f} rows/s."


def _mapping(word: str) -> tuple[str, tuple[str, ...]]:
    name, equals, columns = word.partition("=")
    if not (name and equals and columns):
        raise Error(f"--map={word}: write --map=INPUT=COLUMN or --map=INPUT=COLUMN,COLUMN")
    return name, tuple(columns.split(","))


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[list[int]]:
    """Let SIGTERM and SIGHUP end a job as Ctrl-C does: with a line, and no worker left."""
    came: list[int] = []

    def interrupt(number: int, frame: Any) -> None:
        del frame
        came.append(number)
        if len(came) == 1:
            raise KeyboardInterrupt

    wanted = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, interrupt) for number in wanted}
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
