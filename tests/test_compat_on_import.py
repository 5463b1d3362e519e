"""on_import: who only looks whether a module is there must not use the finder up."""

import importlib
import importlib.util
import sys

import pytest

from tfdp.compat import on_import


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "watched_module.py").write_text("VALUE = 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    yield "watched_module"
    sys.modules.pop("watched_module", None)


def test_a_probe_changes_nothing(module):
    called = []
    on_import.call_after(module, lambda: called.append(sys.modules[module].VALUE))
    for _ in range(3):
        assert importlib.util.find_spec(module) is not None
    assert called == []
    importlib.import_module(module)
    assert called == [1]
    importlib.reload(sys.modules[module])
    assert called == [1]


def test_a_spec_that_was_found_before_serves_as_well(module):
    called = []
    on_import.call_after(module, lambda: called.append(True))
    spec = importlib.util.find_spec(module)
    made = importlib.util.module_from_spec(spec)
    sys.modules[module] = made
    spec.loader.exec_module(made)
    assert called == [True]


def test_an_import_that_fails_can_be_tried_again(module, tmp_path):
    called = []
    on_import.call_after(module, lambda: called.append(True))
    source = tmp_path / "watched_module.py"
    source.write_text("raise RuntimeError('not yet')\n")
    with pytest.raises(RuntimeError, match="not yet"):
        importlib.import_module(module)
    assert called == []
    source.write_text("VALUE = 22\n")
    importlib.invalidate_caches()
    importlib.import_module(module)
    assert called == [True]


def test_a_module_that_is_not_there(module):
    on_import.call_after("no_such_module_at_all", lambda: None)
    assert importlib.util.find_spec("no_such_module_at_all") is None
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("no_such_module_at_all")


def test_at_once_where_it_is_there_already(module):
    importlib.import_module(module)
    called = []
    on_import.call_after(module, lambda: called.append(True))
    assert called == [True]
