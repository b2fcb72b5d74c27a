"""The order of the modules, and what importing the package does: nothing."""

from __future__ import annotations

import ast
import graphlib
import importlib
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import ice_notebook
from ice_notebook.ui.widgets.scripts import lean_module

PACKAGE = Path(ice_notebook.__file__).parent

# The rooms, in their order, are those of the page that explains them.
PAGE = PACKAGE.parent / "docs" / "how_it_works.md"
ROOM = re.compile(r"^\| `(?P<folder>\w+)/` \| (?P<sentence>[^|]+?) \|$", re.MULTILINE)
SENTENCE_OF = {row["folder"]: row["sentence"] for row in ROOM.finditer(PAGE.read_text(encoding="utf-8"))}
ROOMS = list(SENTENCE_OF)
OUTSIDE = {"__init__", "__main__", "_version"}
# Inside of a function, by somebody who is about to use it: the device of a launcher's process.
TORCH_WHEN_ASKED = {"context.current_launcher"}
# What may be printed outside of ranks: help that was asked for, in a cell what stands where a panel would be, to the agent's standard error, which is its log, and in the terminal of a machine that joins.
PRINTS = {"ui.magics", "agent.io", "ui.cli", "ui.in_terminal", "ui.join", "ui.watching"}
# Packages that cost much to import, or that a plain import must leave to those who use them.
HEAVY = ("torch", "numpy", "ipywidgets", "anywidget", "IPython", "cloudpickle", "pynvml", "msgspec", "psutil")


def modules() -> list[str]:
    names = (".".join(path.relative_to(PACKAGE).with_suffix("").parts) for path in PACKAGE.rglob("*.py"))
    return sorted(name.removesuffix(".__init__") for name in names)


def tree_of(module: str) -> ast.Module:
    path = PACKAGE.joinpath(*module.split("."))
    source = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return ast.parse(source.read_text())


def imports(node: ast.AST, *, in_function: bool = False, for_types: bool = True) -> Iterator[tuple[str, list[str], bool]]:
    """Yield each import as module, names taken from it, and whether it stands in a function; if asked to, those for a type checker too."""
    for child in ast.iter_child_nodes(node):
        if not for_types and isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        if isinstance(child, ast.Import):
            yield from ((alias.name, [], in_function) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, "imports are absolute"
            yield child.module or "", [alias.name for alias in child.names], in_function
        is_function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)
        yield from imports(child, in_function=in_function or is_function, for_types=for_types)


def own_imports(module: str) -> set[str]:
    """Return the modules of the package that a module imports, anywhere in it."""
    every = set(modules())
    found = set()
    for imported, names, _ in imports(tree_of(module)):
        base, _, rest = imported.partition(".")
        if base == "ice_notebook":
            inner = [f"{rest}.{name}".strip(".") for name in names]
            found |= {name if name in every else rest or "__init__" for name in inner or [rest]}
    return found


# ---- rooms -------------------------------------------------------------------------------------------------------------------------------


def room_of(module: str) -> str:
    return module.partition(".")[0]


def test_the_page_shows_the_thirteen_rooms_and_every_module_has_one():
    assert len(ROOMS) == 13
    assert {room_of(module) for module in modules()} - OUTSIDE == set(ROOMS)


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_says_of_itself_what_the_page_says(room):
    docstring = importlib.import_module(f"ice_notebook.{room}").__doc__
    assert docstring is not None
    assert docstring.startswith(SENTENCE_OF[room])


@pytest.mark.parametrize("module", modules())
def test_imports_go_to_an_earlier_room(module):
    if module in OUTSIDE:
        return
    mine = ROOMS.index(room_of(module))
    others = {found for found in own_imports(module) - {"_version"} if room_of(found) != room_of(module)}
    later = {found for found in others if found in OUTSIDE or ROOMS.index(room_of(found)) > mine}
    assert later == set(), f"{module} imports {sorted(later)}, which is in a later room"


def test_no_import_goes_around_in_a_room():
    arrows = {module: {found for found in own_imports(module) if found != module} for module in modules()}
    list(graphlib.TopologicalSorter(arrows).static_order())


@pytest.mark.parametrize(("process", "importers"), [("rank", {"agent", "rank"}), ("agent", {"agent"})])
def test_ranks_and_agent_are_imported_by_nobody_else(process, importers):
    """But ranks by an agent, which may fork them."""

    def is_of(module: str) -> bool:
        return module == process or module.startswith(f"{process}.")

    others = [module for module in modules() if module.partition(".")[0] not in importers]
    assert {module for module in others if any(is_of(found) for found in own_imports(module))} == set()


@pytest.mark.parametrize("module", modules())
def test_torch_is_imported_by_agent_and_ranks_only(module):
    found = imports(tree_of(module), for_types=False)
    where = {in_function for imported, _, in_function in found if imported.partition(".")[0] == "torch"}
    if module.partition(".")[0] in {"agent", "rank"}:
        return
    assert where <= ({True} if module in TORCH_WHEN_ASKED else set())


@pytest.mark.parametrize("module", modules())
def test_nothing_is_printed_but_by_ranks(module):
    calls = [node for node in ast.walk(tree_of(module)) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
    prints = [call.lineno for call in calls if call.func.id == "print"]
    assert not prints or module in PRINTS or module.startswith("rank.")


@pytest.mark.parametrize("module", [module for module in modules() if module.startswith("agent.") and module != "agent.state"])
def test_the_state_of_an_agent_changes_by_its_own_methods_alone(module):
    targets = [
        target
        for node in ast.walk(tree_of(module))
        if isinstance(node, ast.Assign | ast.AugAssign | ast.AnnAssign)
        for each in (node.targets if isinstance(node, ast.Assign) else [node.target])
        for target in (each.elts if isinstance(each, ast.Tuple) else [each])
    ]
    owners = [ast.unparse(target.value) for target in targets if isinstance(target, ast.Attribute)]
    assert [owner for owner in owners if owner.rpartition(".")[2].strip("_") == "state"] == []


# ---- what importing does -----------------------------------------------------------------------------------------------------------------

LOOK = """
import json, os, signal, sys, threading

def look():
    return {
        "threads": sorted(thread.name for thread in threading.enumerate()),
        "handlers": [str(signal.getsignal(number)) for number in signal.valid_signals()],
        "environment": dict(os.environ),
        "folder": os.getcwd(),
        "path": sys.path,
        "descriptors": sorted(os.listdir("/proc/self/fd")),
        "children": open(f"/proc/self/task/{os.getpid()}/children").read(),
        "hooks": [str(hook) for hook in (sys.excepthook, sys.displayhook, sys.breakpointhook, threading.excepthook, sys.unraisablehook)],
    }
"""
IMPORT = LOOK + "before = look()\nimport ice_notebook\nprint(json.dumps([before, look(), list(sys.modules)]))"
EXTENSION = (
    LOOK
    + """
os.environ["IPYTHONDIR"] = sys.argv[1]
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell.instance()
before = look()
shell.run_line_magic("load_ext", "ice_notebook")
after = look()
assert "elastic_launch" in shell.magics_manager.magics["cell"]
print(json.dumps([before, after, list(sys.modules)]))
os._exit(0)
"""
)


def looked(program: str, *args: str) -> tuple[dict[str, object], dict[str, object], list[str]]:
    done = subprocess.run([sys.executable, "-c", program, *args], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    before, after, loaded = json.loads(done.stdout.splitlines()[-1])
    return before, after, loaded


def test_importing_the_package_changes_nothing_and_loads_nothing():
    before, after, loaded = looked(IMPORT)
    assert after == before
    assert [name for name in loaded if name.partition(".")[0] in HEAVY] == []
    assert [name for name in loaded if name.startswith("ice_notebook.")] == ["ice_notebook._version"]


def test_loading_the_extension_changes_nothing_but_ipython_and_does_not_import_torch(tmp_path):
    before, after, loaded = looked(EXTENSION, str(tmp_path))
    # IPython's own history thread writes to a file of its own, whenever it likes.
    for seen in (before, after):
        seen.pop("descriptors")
    assert after == before
    assert [name for name in loaded if name.partition(".")[0] in {"torch", "numpy", "anywidget", "ipywidgets", "pynvml"}] == []


# ---- what is public ----------------------------------------------------------------------------------------------------------------------


def test_what_all_lists_is_what_can_be_imported():
    assert ice_notebook.__all__ == sorted(ice_notebook.__all__)
    assert set(ice_notebook.__all__) == set(ice_notebook._HOMES)
    assert len(ice_notebook.__all__) <= 12
    for name in ice_notebook.__all__:
        assert getattr(ice_notebook, name) is getattr(importlib.import_module(ice_notebook._HOMES[name]), name)
        assert name in dir(ice_notebook)
    with pytest.raises(AttributeError, match="module 'ice_notebook' has no attribute 'elastic'"):
        ice_notebook.elastic


def test_a_star_import_gives_the_public_names_and_nothing_else():
    namespace: dict[str, object] = {}
    exec("from ice_notebook import *", namespace)
    assert sorted(set(namespace) - {"__builtins__"}) == ice_notebook.__all__


def test_public_names_have_a_docstring():
    for name in ice_notebook.__all__:
        public = getattr(ice_notebook, name)
        assert public.__doc__
        members = {key: value for key, value in vars(public).items() if not key.startswith("_")} if isinstance(public, type) else {}
        undocumented = [
            key for key, value in members.items() if (callable(value) or isinstance(value, property)) and not value.__doc__
        ]
        assert undocumented == [], f"{name}: {undocumented}"


def test_what_a_page_gets_of_our_scripts_stays_small():
    scripts = list(PACKAGE.rglob("*.js"))
    assert scripts
    assert all(len(lean_module(script).encode()) <= 40_000 for script in scripts)


def test_a_page_gets_our_scripts_without_comments():
    for script in PACKAGE.rglob("*.js"):
        text = lean_module(script)
        assert "/**" not in text
        assert not [line for line in text.splitlines() if line.startswith(("//", " "))]
