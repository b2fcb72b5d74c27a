"""Modules that a fresh process does not find by their names."""

from __future__ import annotations

import importlib.util
import sys
import types
from pathlib import Path

import pytest

from ice_notebook.values import local_modules


@pytest.fixture(autouse=True)
def as_before():
    modules, path, finders = dict(sys.modules), list(sys.path), list(sys.meta_path)
    yield
    sys.path[:], sys.meta_path[:] = path, finders
    for name in set(sys.modules) - set(modules):
        del sys.modules[name]


def from_path(name: str, path: Path) -> types.ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def forget(*names: str) -> None:
    """Do as if these modules had never been imported."""
    for name in names:
        sys.modules.pop(name)


def test_a_module_from_a_path_is_loaded_from_there(notebook, tmp_path):
    (tmp_path / "settings_of_mine.py").write_text("rate = 3\nclass C: pass\ndef get(): return rate")
    notebook.variables["settings"] = from_path("settings_of_mine", tmp_path / "settings_of_mine.py")
    notebook.cell("C, get, sent = settings.C, settings.get, settings.C()")
    assert notebook.in_rank("(settings.rate, get(), type(sent) is C)") == (3, 3, True)


def test_a_fresh_process_finds_the_file_and_those_of_a_package(tmp_path):
    package = tmp_path / "far" / "away_package"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "part.py").write_text("value = 1")
    (package / "later.py").write_text("value = 2")
    sys.path.insert(0, str(tmp_path / "far"))
    import away_package.part  # noqa: F401

    assert local_modules.lost_among(["away_package.part"]).places == {}
    sys.path.pop(0)
    places = local_modules.lost_among(["away_package.part", "json", "builtins", "__main__", "no_such_module"]).places
    assert set(places) == {"away_package", "away_package.part"}
    forget("away_package", "away_package.part")
    local_modules.bring(places)
    assert importlib.import_module("away_package.part").value == 1
    assert importlib.import_module("away_package.later").value == 2
    assert local_modules.brought() == places


def test_another_module_of_that_name_on_the_path_is_not_taken_for_it(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "twice_there.py").write_text(f"folder = {folder!r}")
    from_path("twice_there", tmp_path / "a" / "twice_there.py")
    places = local_modules.lost_among(["twice_there"]).places
    forget("twice_there")
    sys.path.insert(0, str(tmp_path / "b"))
    local_modules.bring(places)
    assert importlib.import_module("twice_there").folder == "a"
    forget("twice_there")
    (tmp_path / "a" / "twice_there.py").unlink()
    assert importlib.import_module("twice_there").folder == "b", "as on a machine that does not have the file"


def test_a_module_made_by_hand_travels_by_value(notebook):
    made = sys.modules["made_by_hand"] = types.ModuleType("made_by_hand")
    exec("rate = 4\ndef get(): return rate\nclass C:\n    def get(self): return get()", vars(made))
    notebook.variables["made"] = made
    notebook.cell("C, get = made.C, made.get")
    expression = "(made.rate, get(), C().get())"
    assert local_modules.lost_among(["made_by_hand"]).made_by_hand == ["made_by_hand"]
    assert notebook.in_rank(expression) == (4, 4, 4)


def test_what_an_extension_puts_among_the_modules_is_left_alone():
    sys.modules["_extensions_types_1_2"] = fake = types.ModuleType("_extensions_types_1_2")
    fake.kind = type("kind", (), {"__module__": "_extensions_types_1_2"})
    assert local_modules.lost_among(["_extensions_types_1_2"]) == local_modules.Lost({}, [])
