"""Runs one of Keras's test files under a strategy: what main.py starts, once or in each worker.

    task.py STRATEGY FILE RESULTS DONE [--stock]

Writes a line of JSON to RESULTS-0 (or RESULTS-1, ... in the other workers) when a test begins and
when it has ended. Tests named in the file DONE are left out: another process has run them. Where
there are several workers a test begins when the one before has ended in all of them, and all of
them leave after a test that failed: whoever failed may have left the others in a collective.
"""

import collections
import functools
import importlib.util
import json
import os
import pathlib
import re
import socket
import sys
import tempfile
import time
import types
import unittest
import zlib

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
RESTART = 75  # left after a test that failed: start again with those that remain


class Strategy:
    """Makes the strategy of this process, and says which of the workers this is."""

    def __init__(self, name: str, stock: bool):
        self.worker, self.workers = 0, 1
        self.made = None
        self.servers: list = []
        if name == "multi_worker":
            config = json.loads(os.environ["TF_CONFIG"])
            self.worker = config["task"]["index"]
            self.workers = len(config["cluster"]["worker"])
        elif name == "parameter_server":
            self.servers = _serve(workers=2, ps=1)
        if name == "none":
            return
        import tensorflow as tf

        import tfdp

        if name == "mirrored":
            cpu = tf.config.list_physical_devices("CPU")[0]
            tf.config.set_logical_device_configuration(
                cpu, [tf.config.LogicalDeviceConfiguration()] * 2
            )
            # Its collectives need no keys that a failed test may have left half used.
            self.made = tf.distribute.MirroredStrategy(
                ["cpu:0", "cpu:1"], cross_device_ops=tf.distribute.ReductionToOneDevice()
            )
        elif name == "one_device":
            self.made = tf.distribute.OneDeviceStrategy("cpu:0")
        elif name == "parameter_server":
            self.made = tfdp.strategy(name, max_staleness=0)
        else:
            self.made = tfdp.strategy(name)
        if stock:
            tfdp.disable()
            return
        tfdp.enable()
        _teach_the_trainer()


def _teach_the_trainer() -> None:
    """Put the dispatcher where the tests' models have fit from: they mix Trainer into a layer."""
    import keras
    from keras.src.backend.tensorflow.trainer import TensorFlowTrainer

    from tfdp.compat import compiled
    from tfdp.fit import dispatch

    for name in (*dispatch.METHODS, compiled.RESOLVE_AUTO_JIT):
        setattr(TensorFlowTrainer, name, vars(keras.Model)[name])


def _serve(workers: int, ps: int) -> list:
    """Start the servers of a cluster in this process, which is its chief."""
    import tensorflow as tf

    sizes = {"worker": workers, "ps": ps, "chief": 1}
    sockets = [socket.socket() for _ in range(sum(sizes.values()))]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = iter([one.getsockname()[1] for one in sockets])
    for one in sockets:
        one.close()
    cluster = {job: [f"127.0.0.1:{next(ports)}" for _ in range(n)] for job, n in sizes.items()}
    task = {"type": "chief", "index": 0}
    os.environ["TF_CONFIG"] = json.dumps({"cluster": cluster, "task": task})
    os.environ["TFDP_START_TIMEOUT"] = "0"
    # A call that waits for another holds a thread, here of all tasks together.
    config = tf.compat.v1.ConfigProto(inter_op_parallelism_threads=4 * (workers + ps))
    return [
        tf.distribute.Server(
            tf.train.ClusterSpec(cluster), job, index, protocol="grpc", config=config
        )
        for job in ("worker", "ps")
        for index in range(sizes[job])
    ]


def enter_scope_in_tests(strategy: Strategy, folder: pathlib.Path) -> None:
    """Let each of Keras's tests run in the scope, with the same seeds and folders everywhere."""
    import keras
    from keras.src.testing import test_case, test_utils

    set_up = test_case.TestCase.setUp

    def set_up_in_scope(self: unittest.TestCase) -> None:
        set_up(self)  # clears the session, and would clear a scope that is there already
        # Data that a test draws is the same on all workers, as tfdp asks for.
        keras.utils.set_random_seed(zlib.crc32(self.id().encode()))
        if strategy.made is not None:
            scope = strategy.made.scope()
            scope.__enter__()
            self.addCleanup(_leave, scope)

    def get_temp_dir(self: unittest.TestCase) -> str:
        # One folder for all workers, as a script has it: only the chief writes to it.
        number = counts[self.id()]
        counts[self.id()] += 1
        path = folder / f"{zlib.crc32(self.id().encode()):08x}-{number}"
        path.mkdir(exist_ok=True)
        return str(path)

    # Without a seed of the test's own it takes one of the system, another in each worker.
    test_utils.get_test_data = functools.partial(test_utils.get_test_data, random_seed=1337)
    counts: collections.Counter = collections.Counter()
    test_case.TestCase.setUp = set_up_in_scope
    if strategy.workers > 1:
        test_case.TestCase.get_temp_dir = get_temp_dir


def _leave(scope) -> None:
    try:
        scope.__exit__(None, None, None)
    except (RuntimeError, IndexError) as error:
        # A test that clears the session by itself has left the scope with it.
        if "scope" not in str(error) and "pop from empty" not in str(error):
            raise


class Other:
    """What another worker has written down."""

    def __init__(self, path: str):
        self.path = pathlib.Path(path)
        self.read = 0
        self.outcomes: dict[str, str] = {}

    def wait_for(self, name: str) -> str:
        """Return the outcome of a test there. main.py ends a wait that is too long."""
        while True:
            if self.path.exists():
                with open(self.path) as file:
                    file.seek(self.read)
                    for line in iter(file.readline, ""):
                        if not line.endswith("\n"):
                            break
                        self.read = file.tell()
                        end = json.loads(line)
                        if "ends" in end:
                            self.outcomes[end["ends"]] = end["outcome"]
            if name in self.outcomes:
                return self.outcomes[name]
            time.sleep(0.02)


class Recorder:
    """Writes down what becomes of each test, and keeps workers at the same one."""

    def __init__(self, results: str, done: set[str], strategy: Strategy):
        self.path = pathlib.Path(f"{results}-{strategy.worker}")
        self.file = open(self.path, "w")
        self.done = done
        self.others = [
            Other(f"{results}-{n}") for n in range(strategy.workers) if n != strategy.worker
        ]
        self.outcomes: dict[str, tuple[str, str]] = {}
        self.write(pid=os.getpid())

    def write(self, **line: object) -> None:
        self.file.write(json.dumps(line) + "\n")
        self.file.flush()

    def pytest_collection_modifyitems(self, items: list) -> None:
        items[:] = [item for item in items if identity(item.nodeid) not in self.done]

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item):
        name = identity(item.nodeid)
        self.write(begins=name)
        result = yield
        outcome, message = self.outcomes[name]
        self.write(ends=name, outcome=outcome, message=message)
        theirs = [other.wait_for(name) for other in self.others]
        if theirs and {outcome, *theirs} & {"failed"}:
            os._exit(RESTART)
        return result

    def pytest_runtest_logreport(self, report) -> None:
        name = identity(report.nodeid)
        if self.outcomes.get(name, ("passed", ""))[0] == "failed":
            return
        crash = getattr(report.longrepr, "reprcrash", None)
        message = str(report.longrepr)[-4000:] if report.longrepr else ""
        if crash is not None:
            message = f"{crash.message[:600]}\n...{message[-3000:]}"
        if report.when == "call" or report.outcome != "passed":
            self.outcomes[name] = (report.outcome, message)

    def pytest_collectreport(self, report) -> None:
        if report.failed:
            name = identity(report.nodeid)
            self.write(begins=name)
            self.write(ends=name, outcome="failed", message=str(report.longrepr)[-4000:])


def identity(node: str) -> str:
    """Return "trainers/trainer_test.py::TestTrainer::test_x" for what pytest calls a test."""
    return re.sub(r"^.*keras/src/", "", node)


class Absent(types.ModuleType):
    """Stands for jax or torch, which are large and serve other backends: who uses it is skipped."""

    def __getattr__(self, name: str) -> object:
        frame = sys._getframe(1)
        while "importlib" in frame.f_code.co_filename:
            frame = frame.f_back
        if frame.f_code.co_filename.endswith("_test.py"):
            raise unittest.SkipTest(f"needs {self.__name__}")
        raise AttributeError(name)


def stand_in(path: pathlib.Path) -> None:
    """Let a file be imported that imports jax or torch, of which the other tests have no need."""
    for name in set(re.findall(r"^\s*import (jax|torch)\b", path.read_text(), re.MULTILINE)):
        if importlib.util.find_spec(name) is None:
            sys.modules[name] = Absent(name)


def stand_for_conftest() -> None:
    """Give what tests import from the conftest.py of Keras's repository, which no wheel holds."""
    conftest = types.ModuleType("conftest")
    conftest.skip_if_backend = lambda backend, reason: pytest.mark.skipif(
        backend == "tensorflow", reason=reason
    )
    sys.modules["conftest"] = conftest


def main(name: str, file: str, results: str, done: str, *options: str) -> None:
    sys.path.insert(0, str(ROOT))
    strategy = Strategy(name, stock="--stock" in options)
    folder = pathlib.Path(f"{results}-folders")
    folder.mkdir(exist_ok=True)
    tempfile.tempdir = str(folder)
    enter_scope_in_tests(strategy, folder)
    import keras

    path = pathlib.Path(keras.__file__).parent / "src" / file
    stand_in(path)
    stand_for_conftest()
    recorder = Recorder(results, set(pathlib.Path(done).read_text().splitlines()), strategy)
    arguments = ["-q", "-c", os.devnull, "--rootdir=/", str(path)]
    arguments += [f"-pno:{plugin}" for plugin in ("cacheprovider", "xdist", "warnings")]
    pytest.main(arguments, plugins=[recorder])
    recorder.write(finished=True)
    sys.stdout.flush()
    os._exit(0)  # a server, and a worker that waits for another, would not end


if __name__ == "__main__":
    main(*sys.argv[1:])
