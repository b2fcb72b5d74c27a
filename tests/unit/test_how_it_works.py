"""The table of layers in `docs/how_it_works.md` is that of the code."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "ice_notebook"
ROW = re.compile(r"^\| (?P<layer>\d+) \| (?P<modules>[^|]+) \|", re.MULTILINE)


def layers() -> dict[str, int]:
    page = (ROOT / "docs" / "how_it_works.md").read_text(encoding="utf-8")
    rows = [(int(row["layer"]), re.findall(r"`([\w.]+)`", row["modules"])) for row in ROW.finditer(page)]
    named = [name for _, names in rows for name in names]
    assert len(named) == len(set(named)), "a module stands in one layer"
    return {name: layer for layer, names in rows for name in names}


def modules() -> dict[str, Path]:
    """Return the modules outside the two programs, and without packages' own files."""
    found = {".".join(path.relative_to(PACKAGE).with_suffix("").parts): path for path in PACKAGE.rglob("*.py")}
    return {name: path for name, path in found.items() if path.name != "__init__.py" and not name.startswith(("agent.", "rank."))}


def imports(path: Path, known: set[str]) -> set[str]:
    """Return the modules of ours that a module imports, in functions too, but not for its annotations alone."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typing_only = {
        id(part)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        for part in ast.walk(node)
    }
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and id(node) not in typing_only and (node.module or "").startswith("ice_notebook"):
            home = (node.module or "").removeprefix("ice_notebook").removeprefix(".")
            for alias in node.names:
                full = f"{home}.{alias.name}".removeprefix(".")
                found.add(full if full in known or full in {"agent", "rank"} else home)
    return found - {""}


def test_every_module_has_its_layer() -> None:
    assert set(layers()) == set(modules())


def test_imports_go_down_the_layers() -> None:
    table, known = layers(), set(modules())
    wrong = [
        f"{name} (layer {table[name]}) imports {other} (layer {table.get(other, 'of a program of its own')})"
        for name, path in modules().items()
        for other in imports(path, known)
        if table.get(other, 99) >= table[name]
    ]
    assert not wrong


def test_what_the_page_says_of_imports_is_found_by_this_test() -> None:
    assert imports(PACKAGE / "magics.py", set(modules())) >= {"launcher", "cell", "errors"}
    assert imports(PACKAGE / "watching.py", set(modules())) >= {"text_view", "widgets.run_panel"}  # imported in a function
