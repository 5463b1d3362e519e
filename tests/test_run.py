import json
import os
import subprocess
import sys

import numpy as np
import pytest

from tfdp import run

BAD_TASK = '{"cluster": {"workers": ["a:1"]}, "task": {"type": "worker", "index": 0}}'

# Tells what a script sees. The last line says whether Keras's fit is tfdp's.
TELL = """
import json, os, sys
import keras
print(json.dumps({
    "argv": sys.argv,
    "path": sys.path[0],
    "name": __name__,
    "file": os.path.basename(__file__),
    "neighbour": __import__("neighbour").NAME,
    "main": sys.modules["__main__"].__dict__ is globals(),
    "enabled": hasattr(keras.Model.fit, "tfdp"),
}))
"""


def environment(**variables):
    kept = {name: value for name, value in os.environ.items() if name != "TF_CONFIG"}
    return {**kept, **variables}


def start(*words, cwd, **variables):
    return subprocess.run(
        [sys.executable, "-m", "tfdp.run", *words],
        cwd=cwd,
        env=environment(**variables),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "script.py").write_text("print('this script ran')\n")
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__init__.py").write_text("raise AssertionError('was imported')\n")
    (tmp_path / "package" / "task.py").write_text("")
    return tmp_path


@pytest.mark.parametrize(
    ("words", "variables", "line"),
    [
        ([], {}, "No script to run. Write: python -m tfdp.run SCRIPT.py ARGS (or -m MODULE ARGS)."),
        (["-m"], {}, "No module after -m. Write: -m MODULE ARGS."),
        (
            ["missing.py", "--a"],
            {},
            "There is no script 'missing.py' in {folder}. Name a file, or -m MODULE.",
        ),
        (["package"], {}, "There is no script 'package' in {folder}. Name a file, or -m MODULE."),
        (["-m", "script.py"], {}, "'script.py' is a file: leave out -m."),
        (
            ["-m", "no_such_module"],
            {},
            "There is no module 'no_such_module' in {folder} or among what is installed. "
            "Name one as in -m package.module, or a file: SCRIPT.py.",
        ),
        (
            ["-m", ".script"],
            {},
            "There is no module '.script' in {folder} or among what is installed. "
            "Name one as in -m package.module, or a file: SCRIPT.py.",
        ),
        (
            ["script.py"],
            {"TF_CONFIG": BAD_TASK},
            "TF_CONFIG: The job 'workers' is unknown. Did you mean \"worker\"? "
            "Use one of chief, worker, ps, evaluator.",
        ),
        (
            ["script.py"],
            {"TF_CONFIG": ""},
            "TF_CONFIG is empty. Unset it to train on a single machine.",
        ),
    ],
)
def test_a_mistake_is_answered_in_a_line_before_tensorflow(words, variables, line, folder):
    program = (
        "import atexit, sys\n"
        "from tfdp import run\n"
        "atexit.register(lambda: print('tensorflow' in sys.modules))\n"
        "run.main(sys.argv[1:])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *words],
        cwd=folder,
        env=environment(**variables),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stderr == line.replace("{folder}", str(folder)) + "\n"
    assert (done.returncode, done.stdout) == (2, "False\n")


@pytest.mark.parametrize("name", ["package", "package.task", "script", "json", "tfdp.train", "os"])
def test_modules_are_found_without_importing_them(name, folder, monkeypatch):
    monkeypatch.chdir(folder)
    assert run.check_script(["-m", name]) is None
    assert "package" not in sys.modules


def test_a_script_runs_as_python_would_run_it(tmp_path):
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "tell.py").write_text(TELL)
    (tmp_path / "scripts" / "neighbour.py").write_text("NAME = 'beside the script'\n")
    (tmp_path / "neighbour.py").write_text("NAME = 'in the working folder'\n")
    done = start("scripts/tell.py", "-m", "--lr=0.1", "a b", "--", "", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout) == {
        "argv": ["scripts/tell.py", "-m", "--lr=0.1", "a b", "--", ""],
        "path": str(tmp_path / "scripts"),
        "name": "__main__",
        "file": "tell.py",
        "neighbour": "beside the script",
        "main": True,
        "enabled": True,
    }


def test_a_module_runs_as_python_would_run_it(tmp_path):
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__init__.py").write_text("")
    (tmp_path / "package" / "tell.py").write_text(TELL)
    (tmp_path / "neighbour.py").write_text("NAME = 'in the working folder'\n")
    done = start("-m", "package.tell", "--lr=0.1", "-m", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout) == {
        "argv": [str(tmp_path / "package" / "tell.py"), "--lr=0.1", "-m"],
        "path": str(tmp_path),
        "name": "__main__",
        "file": "tell.py",
        "neighbour": "in the working folder",
        "main": True,
        "enabled": True,
    }


def test_an_exception_of_the_script_is_shown(tmp_path):
    (tmp_path / "script.py").write_text("def fail():\n    1 / 0\n\nprint('before')\nfail()\n")
    done = start("script.py", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "before\n")
    lines = done.stderr.splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert any(line.endswith('script.py", line 5, in <module>') for line in lines)
    assert any(line.endswith('script.py", line 2, in fail') for line in lines)
    assert lines[-1] == "ZeroDivisionError: division by zero"


STARTS = """
import importlib.util, os, random, sys
drawn = random.random()
assert "tensorflow" not in sys.modules
# As libraries look what is there.
assert importlib.util.find_spec("tensorflow") and importlib.util.find_spec("keras")
import {first}
import gc, keras, tensorflow as tf
# What the imports have made is not looked through for garbage; what the script makes is.
assert gc.isenabled() and gc.get_freeze_count() > 100_000
from tfdp.compat import distribute
from tfdp.fit import dispatch
assert all(hasattr(vars(keras.Model)[name], "tfdp") for name in dispatch.METHODS)
assert distribute.global_seed() == 5
import inspect
assert inspect.getsource(keras) and keras.__spec__.loader is keras.__loader__
import numpy as np
print("taught", drawn == random.Random(5).random(), np.random.random())
"""


@pytest.mark.parametrize(
    "first",
    [
        *("keras", "json"),
        *(
            pytest.param(name, marks=pytest.mark.exhaustive)
            for name in ("tensorflow", "tfdp.fit", "tfdp.strategies")
        ),
    ],
)
def test_a_script_starts_at_once_and_teaches_keras_by_whatever_it_imports(first, tmp_path):
    """The script itself pays for TensorFlow; what it imports first makes no difference."""
    (tmp_path / "script.py").write_text(STARTS.format(first=first))
    done = subprocess.run(
        [sys.executable, "-m", "tfdp.run", "script.py"],
        env={**os.environ, "TFDP_SEED": "5"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["taught", "True", str(np.random.RandomState(5).random())]


REMOVES = """
import os
{before}
import tensorflow as tf
{after}
import keras
{strategy}
"""


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ({"before": 'os.environ.pop("TF_CONFIG")', "after": "", "strategy": ""}, True),
        (
            {
                "before": "",
                "after": 'os.environ.pop("TF_CONFIG")',
                "strategy": "import tfdp; tfdp.strategy('one_device')",
            },
            True,
        ),
        ({"before": "", "after": "", "strategy": ""}, False),
    ],
)
def test_a_script_that_removes_its_cluster_is_told(lines, said, tmp_path):
    (tmp_path / "script.py").write_text(REMOVES.format(**lines))
    spec = {"cluster": {"worker": ["127.0.0.1:1", "127.0.0.1:2"]}}
    config = json.dumps({**spec, "task": {"type": "worker", "index": 1}})
    done = start("script.py", cwd=tmp_path, TF_CONFIG=config, TFDP_START_TIMEOUT="0")
    line = "This script has removed TF_CONFIG: worker:1 knows nothing of the other 1"
    assert (line in done.stderr) is said, done.stderr


def test_a_strategy_that_is_made_too_late_is_explained(tmp_path):
    (tmp_path / "script.py").write_text(
        "import tensorflow as tf\nprint(tf.constant(1) + 1)\n"
        "tf.distribute.MultiWorkerMirroredStrategy()\n"
    )
    spec = {"cluster": {"worker": ["127.0.0.1:1", "127.0.0.1:2"]}}
    config = json.dumps({**spec, "task": {"type": "worker", "index": 0}})
    done = start("script.py", cwd=tmp_path, TF_CONFIG=config, TFDP_START_TIMEOUT="0")
    assert done.returncode == 1
    assert "tfdp: TensorFlow was used before the strategy was made" in done.stderr
