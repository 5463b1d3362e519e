"""What ./scripts/test --all adds, and what tests and the processes they start find."""

import gc
import os
import pathlib
import shutil
import tempfile

import pytest
import references

# What tests start imports these modules before others. Keras imports matplotlib and pandas where
# it finds them, for a quarter of the time in which TensorFlow is imported. A plain
# `pip install tfdp` has neither, and so it is there.
INSTALLED = pathlib.Path(__file__).with_name("installed")
_PATHS = os.environ.get("PYTHONPATH", "").split(os.pathsep)
if str(INSTALLED) not in _PATHS:
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(INSTALLED), *_PATHS]))


# What the test files import lasts: no garbage is looked for in it, as in a task (run.py).
gc.disable()


def pytest_collection_finish():
    gc.freeze()
    gc.enable()


def pytest_configure(config):
    # One folder for all processes of pytest-xdist and those that tests start.
    if references.VARIABLE not in os.environ:
        folder = os.environ[references.VARIABLE] = tempfile.mkdtemp(prefix="references-")
        config.add_cleanup(lambda: shutil.rmtree(folder))


def pytest_addoption(parser):
    parser.addoption("--all", action="store_true", help="run the tests marked exhaustive, too")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    if config.getoption("dist") == "loadscope":
        from scheduling import Scheduling

        return Scheduling(config, log)
    return None


def pytest_collection_modifyitems(config, items):
    if config.getoption("--all"):
        return
    left_out = [item for item in items if item.get_closest_marker("exhaustive")]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if not item.get_closest_marker("exhaustive")]


def exhaustive_unless(kept: bool) -> list[pytest.MarkDecorator]:
    """Return the marks of a parameter set that only --all runs, unless it is kept."""
    return [] if kept else [pytest.mark.exhaustive]
