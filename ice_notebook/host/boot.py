"""How a fresh interpreter comes to run one of our modules: by which command line, and on which module path.

A notebook may have put folders first on its path whose modules have the names of others, `src/logging.py` say. It has loaded the others before,
and works. So for an agent, and for ranks that get ready, the standard library comes first, and what the notebook has loaded is found where the
notebook has it. A rank takes the notebook's path as it is before it runs anything of the user's.
"""

from __future__ import annotations

import json
import os
import sys
import sysconfig
from collections.abc import Iterable, Mapping
from functools import lru_cache
from importlib.machinery import PathFinder
from types import ModuleType

_CODE = """\
import json, sys
own_path = [entry for entry in sys.path if entry]
path, pinned = json.loads(sys.argv.pop(1))
class _Pinned:
    finder = next((finder for finder in sys.meta_path if getattr(finder, "__name__", "") == "PathFinder"), None)
    @classmethod
    def find_spec(cls, name, *_):
        return cls.finder.find_spec(name, [pinned[name]]) if name in pinned else None
if pinned and _Pinned.finder is not None:
    sys.meta_path.insert(0, _Pinned)
sys.path[:] = path
from ice_notebook.{} import main
main(sys.argv[1:], own_path)
"""
_PINNED = "_Pinned"


def command(interpreter: str, module: str, path: Iterable[str], pins: Mapping[str, str], words: Iterable[str]) -> list[str]:
    """Return the command line that calls `main` of a module of ours with words, and with the module path of a fresh interpreter.

    `path` and `pins` are what `boot_path` and `pinned` have given in the notebook.
    """
    return [interpreter, "-c", _CODE.format(module), json.dumps([list(path), dict(pins)]), *words]


def boot_path(sys_path: Iterable[str], cwd: str) -> tuple[str, ...]:
    """Return the module path for processes that get ready: the standard library first, the working directory last."""
    entries = [os.path.join(cwd, entry) for entry in sys_path if entry not in {"", cwd}]
    own = [entry for entry in entries if entry in _standard_library()]
    return (*own, *(entry for entry in entries if entry not in own), cwd)


def pinned(path: Iterable[str]) -> dict[str, str]:
    """Return the modules that this process has loaded and would not find on a path, as another of that name comes first: each with its folder."""
    loaded = {name: _home_of(name, module) for name, module in list(sys.modules.items())}
    homes = {name: home for name, home in loaded.items() if home is not None}
    found: dict[str, str] = {}
    for entry in path:
        here = os.path.normpath(entry)
        for name in _names_in(here).intersection(homes):
            if (homes[name] == here or _is_module(here, name)) and (home := homes.pop(name)) != here:
                found[name] = home
        if not homes:
            break
    return found


def forget_pins() -> None:
    """Have this process find modules on its path alone from now on."""
    sys.meta_path[:] = [finder for finder in sys.meta_path if getattr(finder, "__name__", "") != _PINNED]


@lru_cache(maxsize=1)
def _standard_library() -> frozenset[str]:
    folders = {sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib"), os.path.dirname(os.__file__)}
    archive = f"python{sys.version_info.major}{sys.version_info.minor}.zip"
    more = {os.path.join(folder, "lib-dynload") for folder in folders} | {
        os.path.join(os.path.dirname(f), archive) for f in folders
    }
    return frozenset(folders | more)


def _home_of(name: str, module: object) -> str | None:
    """Return the folder in which a top-level module was found; None for what was not found in one."""
    file = module.__dict__.get("__file__") if isinstance(module, ModuleType) and "." not in name else None
    if not isinstance(file, str) or not os.path.isabs(file):
        return None
    folder, base = os.path.split(os.path.normpath(file))
    return os.path.dirname(folder) if base.startswith("__init__.") else folder


def _names_in(folder: str) -> frozenset[str]:
    try:
        return _names_at(folder, os.stat(folder).st_mtime_ns)
    except OSError:  # an archive, or nothing
        return frozenset()


@lru_cache(maxsize=64)
def _names_at(folder: str, _changed_at: int) -> frozenset[str]:
    return frozenset(name.partition(".")[0] for name in os.listdir(folder))


def _is_module(folder: str, name: str) -> bool:
    """Return whether a folder has a module of a name. A folder without an __init__.py gives way to a module that is found later."""
    spec = PathFinder.find_spec(name, [folder])
    return spec is not None and spec.loader is not None
