"""Which private names of libraries the code uses, and that they are there. The page lists them; `tests/versions` runs this with other versions."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import sys
from pathlib import Path
from typing import Any

import pytest

import ice_notebook
from ice_notebook.errors import LibraryError
from ice_notebook.host import libraries

PACKAGE = Path(ice_notebook.__file__).parent
PAGE = PACKAGE.parent / "docs" / "how_it_works.md"
ROW = re.compile(r"^\| (?P<library>\w+) \| (?P<names>`[^|]+) \| `(?P<where>[\w/]+\.py)` \|", re.MULTILINE)
# Private by their look alone: the language's documentation describes them.
DOCUMENTED = {"_exit", "_getframe", "_current_frames", "_fields"}


def listed() -> list[tuple[str, str, str, bool]]:
    """Return library, name, file and whether it may be missing, of each name on the page."""
    found = []
    for row in ROW.finditer(PAGE.read_text(encoding="utf-8")):
        may_miss = " only)" in row["names"]
        found += [(row["library"], name, row["where"], may_miss) for name in re.findall(r"`([\w.]+)`", row["names"])]
    return found


def has(name: str) -> bool:
    """Return whether a module, a class or an object has a name, also one that its instances get when they are made."""
    parts = name.split(".")
    owner: Any = None
    for n in range(len(parts) - 1, 0, -1):
        try:
            owner = importlib.import_module(".".join(parts[:n]))
        except ModuleNotFoundError:
            continue
        for part in parts[n:-1]:
            owner = getattr(owner, part, None)
        break
    if hasattr(owner, parts[-1]):
        return True
    return inspect.isclass(owner) and f"self.{parts[-1]}" in inspect.getsource(owner)


@pytest.mark.parametrize(("library", "name", "where", "may_miss"), listed(), ids=[name for _, name, *_ in listed()])
def test_a_name_that_the_code_builds_on_is_there(library, name, where, may_miss):
    version = sys.version.split()[0] if library == "Python" else libraries.version(library)
    if not has(name) and not may_miss:
        raise LibraryError.changed(library, version, f"{name}, which ice_notebook/{where} uses,")
    assert (PACKAGE / where).is_file()


def private_names(trees: dict[str, ast.Module]) -> set[tuple[str, str]]:
    """Return file and name of each private name in the code that is not defined in it."""
    own: set[str] = set()
    for node in (node for tree in trees.values() for node in ast.walk(tree)):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            own.add(node.name)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and isinstance(node.value, ast.Name):
            own |= {node.attr} if node.value.id in {"self", "made"} else set()
        elif isinstance(node, ast.AnnAssign | ast.Assign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            own |= {found.id for target in targets for found in ast.walk(target) if isinstance(found, ast.Name)}
    used: set[tuple[str, str]] = set()
    for file, tree in trees.items():
        for node in ast.walk(tree):
            names = []
            if isinstance(node, ast.Attribute):
                names = [node.attr]
            elif (
                isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in {"getattr", "hasattr", "setattr"}
            ):
                names = [str(argument.value) for argument in node.args[1:2] if isinstance(argument, ast.Constant)]
            elif isinstance(node, ast.ImportFrom) and not (node.module or "").startswith(("ice_notebook", "__future__")):
                names = [alias.name for alias in node.names]
            used |= {(file, name) for name in names if re.match(r"_[^_]", name) and name not in own}
    return used


def test_every_private_name_of_a_library_is_on_the_page():
    trees = {str(path.relative_to(PACKAGE)): ast.parse(path.read_text()) for path in PACKAGE.rglob("*.py")}
    there = {(where, part) for _, name, where, _ in listed() for part in name.split(".")}
    assert {use for use in private_names(trees) if use[1] not in DOCUMENTED} - there == set()


def test_a_library_that_has_changed_is_named_with_its_version():
    libraries.require("pytest", pytest, "raises", "fixture")
    with pytest.raises(LibraryError) as error:
        libraries.require("pytest", pytest, "raises", "_gone")
    assert str(error.value) == (
        f"pytest {pytest.__version__} is not as this version of ice_notebook knows it: pytest._gone is new, gone, or not used any more. "
        "Install an older pytest, or a newer ice_notebook."
    )
    assert libraries.version("no-such-package") == "(of unknown version)"
