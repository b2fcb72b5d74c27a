"""Modules of the notebook that a fresh process does not find by their name: it gets the files that they come from."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from types import FunctionType, ModuleType
from typing import Any

Places = dict[str, tuple[str, "list[str] | None"]]  # a module's file, and where its own modules are if it is a package


# What has loaded the payload is there; so is Python.
_ALWAYS_FOUND = frozenset({"__main__", "ice_notebook", "cloudpickle", *sys.builtin_module_names, *sys.stdlib_module_names})


@dataclass(frozen=True)
class Lost:
    """Modules that a fresh process with this module path does not find: those that have a file, and those that were made by hand."""

    places: Places
    made_by_hand: list[str]


def lost_among(names: Iterable[str]) -> Lost:
    """Return those modules, and all in their packages, that the module path does not lead to."""
    packages = {name.partition(".")[0] for name in names} - _ALWAYS_FOUND
    entries = {os.path.abspath(entry) for entry in sys.path} if packages else set()
    lost = {name for name in packages if not _is_found(name, entries)}
    if not lost:
        return Lost({}, [])
    modules = [(name, module) for name, module in list(sys.modules.items()) if name.partition(".")[0] in lost]
    places = {name: place for name, module in modules if (place := _place_of(module)) is not None}
    return Lost(places, sorted(name for name in lost - set(places) if _is_made_by_hand(sys.modules[name])))


def _is_found(name: str, entries: set[str]) -> bool:
    """Return whether a module path with these entries leads to a module, as far as can be told without looking for it."""
    module = sys.modules.get(name)
    if module is None:
        return True
    file = getattr(module, "__file__", None)
    if file is None:
        # A package of folders alone, one that is frozen, or one for which something other than a file is looked up.
        return getattr(module, "__spec__", None) is not None
    folder = os.path.dirname(os.path.abspath(file))
    return (os.path.dirname(folder) if hasattr(module, "__path__") else folder) in entries


def _is_made_by_hand(module: Any) -> bool:
    """Return whether it is no extension's: those put modules among the others, too, for their own types."""
    if not isinstance(module, ModuleType):
        return False
    own = [part for part in vars(module).values() if getattr(part, "__module__", None) == module.__name__]
    return not own or any(isinstance(part, FunctionType) or _has_functions(part) for part in own)


def _has_functions(part: Any) -> bool:
    return isinstance(part, type) and any(isinstance(each, FunctionType) for each in vars(part).values())


def _place_of(module: Any) -> tuple[str, list[str] | None] | None:
    file = getattr(module, "__file__", None)
    if not isinstance(module, ModuleType) or not isinstance(file, str) or not os.path.isfile(file):
        return None
    path = getattr(module, "__path__", None)
    return os.path.abspath(file), [os.path.abspath(each) for each in path] if path is not None else None


# ---- in a process that loads ---------------------------------------------------------------------------------------------------------


class _Finder:
    """Finds modules by the files that they came from elsewhere, before those of that name which the module path leads to."""

    def __init__(self, places: Places) -> None:
        self.places = dict(places)

    def find_spec(self, name: str, *_: object) -> importlib.machinery.ModuleSpec | None:
        if name not in self.places or not os.path.isfile(self.places[name][0]):  # another machine may not have it there
            return None
        file, path = self.places[name]
        return importlib.util.spec_from_file_location(name, file, submodule_search_locations=path)


def bring(places: Places) -> None:
    """Have these modules found in this process."""
    if not places:
        return
    known = next((finder for finder in sys.meta_path if isinstance(finder, _Finder)), None)
    if known is None:
        sys.meta_path.insert(0, _Finder(places))
    else:
        known.places.update(places)


def brought() -> Places:
    """Return the modules that this process was brought, for one that it starts."""
    return next((dict(finder.places) for finder in sys.meta_path if isinstance(finder, _Finder)), {})
