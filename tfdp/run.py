"""Run a script as one task of a cluster: what `tfdp launch` starts in each process.

    python -m tfdp.run SCRIPT.py ARGS
    python -m tfdp.run -m MODULE ARGS
    python -m tfdp.run --trust-network SCRIPT.py ARGS    (see launch/network.py)

A task of type ps, and a worker of a cluster that has ps, serves and runs no script. Every other
task runs the script as `python SCRIPT.py ARGS` would, with Keras's fit taught the strategies of
tf.distribute.
"""

import contextlib
import ctypes
import functools
import gc
import importlib
import importlib.machinery
import importlib.util
import logging
import os
import pathlib
import re
import runpy
import signal
import sys
import tempfile
import traceback
from collections.abc import Iterator

from tfdp import cluster as cluster_lib
from tfdp.bench import profile, settings
from tfdp.compat import on_import
from tfdp.launch import discovery, endings, memory, network, progress, rendezvous, seeds, task_start

# "I0000 00:00:... port.cc:153] oneDNN custom operations are on. ...", what announces it, and
# CUDA's error 303: there is no driver, as on every machine without a GPU.
_NOTE = re.compile(
    rb"I\d{4} |WARNING: All log messages before absl::InitializeLog\(\)|E\d{4} .*cuInit.*\(303\)$"
)

# The exit code of a task that another one has left. Kubeflow's TFJob starts again what ends with
# 138, and takes 1 for the script's own failure.
LOST_PEER = 138

# Teaching Keras imports all of these; a script may begin with any of them.
_BEFORE_TEACHING = ("tensorflow", "keras", "tfdp.fit", "tfdp.strategies")


def main(argv: list[str]) -> None:
    """Serve, or run the script that `argv` names.

    Args:
        argv: "SCRIPT.py" or "-m", "MODULE", then the script's arguments.
    """
    has_launcher = task_start.tie_to_launcher(os.environ)
    task_start.claim_terminal(os.environ)
    memory.keep_freed(os.environ)
    if argv[:1] == ["--trust-network"]:
        os.environ[network.TRUST_VARIABLE] = "1"
        argv = argv[1:]
    try:
        discovery.begin(os.environ)
        found = cluster_lib.from_environment(os.environ)
    except cluster_lib.ClusterError as error:
        _refuse(str(error))
    problem = check_script(argv)
    if problem:
        _refuse(problem)

    # Before TensorFlow, which answers a task that is missing, or has other settings, by waiting.
    try:
        rendezvous.join(os.environ)
    except rendezvous.MissingError as error:
        _refuse(str(error), status=1)  # nothing is wrong with what was asked for
    except cluster_lib.ClusterError as error:
        _refuse(str(error))

    serves = found is not None and found.cluster.only_serves(found.task)
    if found is not None and "SLURM_STEP_ID" in os.environ and (serves or found.is_evaluator):
        # Slurm tells all tasks of a step at once that its time is over. The chief saves what the
        # servers hold as long as they live, and they end after it.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if found is not None and serves:
        # Only here, when the cluster is known to be good: TensorFlow takes seconds to import.
        import_tensorflow()
        from tfdp import server

        # A launcher knows what has become of the chief, which may prepare its data for hours.
        server.serve(*found, start_seconds=0.0 if has_launcher else rendezvous.seconds(os.environ))
        return
    show_log(chief=found is None or found.is_chief)
    cluster_lib.begin(found)
    seeds.begin(os.environ)
    # When the script imports them: one that does something else first need not wait.
    for name in _BEFORE_TEACHING:
        around = _AROUND.get(name, contextlib.nullcontext)
        on_import.call_after(name, functools.partial(_imported, name), around)
    try:
        _run(argv)
    except Exception as error:
        if "must be configured at program startup" in str(error):
            error.add_note(f"tfdp: {strategies_first()}")
        who = endings.describe_lost(str(error), *found) if found is not None else ""
        tells = getattr(error, "tells_who_was_lost", False)
        if not (tells or who):
            raise
        if not tells:
            # In words, at the end of the traceback: TensorFlow's own hide who is to blame.
            error.add_note(f"tfdp: {who}")
        traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        logging.shutdown()
        # At the end of a process TensorFlow says goodbye to the others, and may wait for half a
        # minute where one of them cannot answer.
        os._exit(LOST_PEER)


def strategies_first() -> str:
    """Return what to do where TensorFlow was used before a strategy was made."""
    from tfdp import strategies

    return strategies.MADE_TOO_LATE


def _imported(name: str) -> None:
    """Teach Keras as soon as nothing of what that takes is half imported."""
    if not any(on_import.is_being_imported(n) for n in _BEFORE_TEACHING if n != name):
        _teach_keras()


@functools.cache
def _teach_keras() -> None:
    """Teach Keras's fit the strategies."""
    from tfdp import fit, strategies

    strategies.tune_collectives()
    strategies.begin()
    if os.environ.get(progress.FILE_VARIABLE):
        fit.tell_progress(progress.report_progress)
    begin_measuring()


def begin_measuring() -> None:
    """Let the fit that comes be measured, or traced, as the environment asks."""
    if os.environ.get(settings.VARIABLE):
        from tfdp.bench import session

        session.begin(os.environ)
    if os.environ.get(profile.VARIABLE):
        from tfdp.bench import tracing

        tracing.begin(os.environ)


def check_script(argv: list[str]) -> str | None:
    """Return what is wrong with "SCRIPT.py ARGS" or "-m MODULE ARGS", or None."""
    if not argv:
        return "No script to run. Write: python -m tfdp.run SCRIPT.py ARGS (or -m MODULE ARGS)."
    if argv == ["-m"]:
        return "No module after -m. Write: -m MODULE ARGS."
    if argv[argv[0] == "-m"].endswith(".ipynb"):
        notebook = argv[argv[0] == "-m"]
        return (
            f"{notebook!r} is a notebook, not a script. Call tfdp.notebook_launcher(FUNCTION, "
            f"workers=2) in it, or write a script: jupyter nbconvert --to script {notebook}"
        )
    if argv[0] != "-m" and not os.path.isfile(argv[0]):
        return f"There is no script {argv[0]!r} in {os.getcwd()}. Name a file, or -m MODULE."
    if argv[0] == "-m" and os.path.isfile(argv[1]):
        return f"{argv[1]!r} is a file: leave out -m."
    if argv[0] == "-m" and not _is_module(argv[1]):
        return (
            f"There is no module {argv[1]!r} in {os.getcwd()} or among what is installed. "
            "Name one as in -m package.module, or a file: SCRIPT.py."
        )
    return None


def _is_module(name: str) -> bool:
    """Say whether a module may exist. Only its first part is looked up: nothing is imported."""
    first = name.partition(".")[0]
    if not all(name.split(".")):
        return False
    if importlib.machinery.PathFinder.find_spec(first, [os.getcwd()]) is not None:
        return True
    try:
        return importlib.util.find_spec(first) is not None
    except ValueError:  # imported already, but without a spec
        return True


def show_log(chief: bool) -> None:
    """Print what tfdp has to say: who reads what, which batch goes where; the chief says it."""
    log = logging.getLogger("tfdp")
    if not log.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("tfdp: %(message)s"))
        log.addHandler(handler)
        log.setLevel(logging.INFO if chief else logging.WARNING)
        log.propagate = False


def import_tensorflow() -> None:
    """Import TensorFlow without the notes it prints whatever the log level, and faster."""
    if not on_import.is_awaited("tensorflow"):  # else a launched task sees to it
        on_import.call_after("tensorflow", lambda: None, _quiet_and_uncollected)
    importlib.import_module("tensorflow")


@contextlib.contextmanager
def _quiet_and_uncollected() -> Iterator[None]:
    """Import TensorFlow in here."""
    with _uncollected(), _quiet():
        yield


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """Import in here what lasts as long as the process: no garbage is looked for in it.

    The modules, classes and functions of TensorFlow and Keras are 300,000 objects and more. To
    look through them again and again takes a fifth of the import's time, and as much again at
    the end of the process.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
        gc.freeze()
    finally:
        if collects:
            gc.enable()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Import TensorFlow in here: what it always prints is left out."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    sys.stderr.flush()
    stderr = os.dup(2)
    with tempfile.TemporaryFile() as printed:
        os.dup2(printed.fileno(), 2)
        try:
            yield
            if not _has_gpu_driver():
                # Now, as it prints a note. With a driver the script may still hide GPUs.
                sys.modules["tensorflow"].config.list_physical_devices()
        finally:
            sys.stderr.flush()
            os.dup2(stderr, 2)
            os.close(stderr)
            printed.seek(0)
            for line in printed:
                if not _NOTE.match(line):
                    os.write(2, line)


def _has_gpu_driver() -> bool:
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


# Keras is most of what TensorFlow imports, and a script may import it first.
_AROUND = {"tensorflow": _quiet_and_uncollected, "keras": _uncollected}


def _run(argv: list[str]) -> None:
    if argv[0] == "-m":
        sys.argv = argv[1:]
        _set_first_path(os.getcwd())
        runpy.run_module(argv[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = list(argv)
        _set_first_path(str(pathlib.Path(argv[0]).resolve().parent))
        runpy.run_path(argv[0], run_name="__main__")


def _set_first_path(folder: str) -> None:
    """Put the script's folder where `python SCRIPT.py` has it; with -P there is none."""
    if not sys.flags.safe_path:
        sys.path[0] = folder


def _refuse(problem: str, status: int = 2) -> None:
    sys.stderr.write(problem + "\n")
    sys.exit(status)


if __name__ == "__main__":
    main(sys.argv[1:])
