"""What ./scripts/test --all adds: the cases that show once more what others show already."""

import pytest


def pytest_addoption(parser):
    parser.addoption("--all", action="store_true", help="run the tests marked exhaustive, too")


def pytest_collection_modifyitems(config, items):
    if config.getoption("--all"):
        return
    left_out = [item for item in items if item.get_closest_marker("exhaustive")]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if not item.get_closest_marker("exhaustive")]


def exhaustive_unless(kept: bool) -> list[pytest.MarkDecorator]:
    """Return the marks of a parameter set that only --all runs, unless it is kept."""
    return [] if kept else [pytest.mark.exhaustive]
