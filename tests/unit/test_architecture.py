"""The order of the modules, and what importing the package does: nothing."""

from __future__ import annotations

import ast
import importlib
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import ice_notebook
from ice_notebook.widgets.scripts import lean_module

PACKAGE = Path(ice_notebook.__file__).parent

# The layers are those of the page that explains them; packages themselves hold nothing.
PAGE = PACKAGE.parent / "docs" / "how_it_works.md"
ROW = re.compile(r"^\| (?P<layer>\d+) \| (?P<modules>[^|]+) \|", re.MULTILINE)
LAYER_OF = {
    module: int(row["layer"])
    for row in ROW.finditer(PAGE.read_text(encoding="utf-8"))
    for module in re.findall(r"`([\w.]+)`", row["modules"])
} | {"agent": -1, "nodes": -1, "rank": -1, "widgets": -1, "__init__": 99}
# Inside of a function, by somebody who is about to use it: the device of a launcher's process.
TORCH_WHEN_ASKED = {"context"}
# What may be printed outside of ranks: help that was asked for, in a cell what stands where a panel would be, to the agent's standard error, which is its log, and in the terminal of a machine that joins.
PRINTS = {"magics", "agent.io", "cli", "in_terminal", "nodes.join", "watching"}
# Packages that cost much to import, or that a plain import must leave to those who use them.
HEAVY = ("torch", "numpy", "ipywidgets", "anywidget", "IPython", "cloudpickle", "pynvml", "msgspec", "psutil")


def modules() -> list[str]:
    names = (".".join(path.relative_to(PACKAGE).with_suffix("").parts) for path in PACKAGE.rglob("*.py"))
    return sorted(name.removesuffix(".__init__") for name in names)


def tree_of(module: str) -> ast.Module:
    path = PACKAGE.joinpath(*module.split("."))
    source = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return ast.parse(source.read_text())


def imports(node: ast.AST, *, in_function: bool = False) -> Iterator[tuple[str, list[str], bool]]:
    """Yield each import as module, names taken from it, and whether it stands in a function; what only a type checker sees is left out."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        if isinstance(child, ast.Import):
            yield from ((alias.name, [], in_function) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, "imports are absolute"
            yield child.module or "", [alias.name for alias in child.names], in_function
        yield from imports(child, in_function=in_function or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef))


def own_imports(module: str) -> set[str]:
    """Return the modules of the package that a module imports, anywhere in it."""
    found = set()
    for imported, names, _ in imports(tree_of(module)):
        base, _, rest = imported.partition(".")
        if base == "ice_notebook" and names != ["__version__"]:  # a constant, and the package's own
            inner = [f"{rest}.{name}".strip(".") for name in names if name != "__version__"]
            found |= {name if name in LAYER_OF else rest or "__init__" for name in inner or [rest]}
    return found


# ---- layers ------------------------------------------------------------------------------------------------------------------------------


def test_every_module_has_its_layer():
    assert sorted(LAYER_OF) == modules()


@pytest.mark.parametrize("module", modules())
def test_imports_go_down_only(module):
    above = {found for found in own_imports(module) if LAYER_OF[found] >= LAYER_OF[module]}
    assert above == set(), f"{module} imports {sorted(above)}, which is not below it"


@pytest.mark.parametrize(("process", "importers"), [("rank", {"agent", "rank"}), ("agent", {"agent"})])
def test_ranks_and_agent_are_imported_by_nobody_else(process, importers):
    """But ranks by an agent, which may fork them."""

    def is_of(module: str) -> bool:
        return module == process or module.startswith(f"{process}.")

    others = [module for module in modules() if module.partition(".")[0] not in importers]
    assert {module for module in others if any(is_of(found) for found in own_imports(module))} == set()


@pytest.mark.parametrize("module", modules())
def test_torch_is_imported_by_agent_and_ranks_only(module):
    where = {in_function for imported, _, in_function in imports(tree_of(module)) if imported.partition(".")[0] == "torch"}
    if module.partition(".")[0] in {"agent", "rank"}:
        return
    assert where <= ({True} if module in TORCH_WHEN_ASKED else set())


@pytest.mark.parametrize("module", modules())
def test_nothing_is_printed_but_by_ranks(module):
    calls = [node for node in ast.walk(tree_of(module)) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
    prints = [call.lineno for call in calls if call.func.id == "print"]
    assert not prints or module in PRINTS or module.startswith("rank.")


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
    assert [name for name in loaded if name.startswith("ice_notebook.")] == []


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
