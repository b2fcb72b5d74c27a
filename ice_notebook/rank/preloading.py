"""What a process imports before it is anybody's rank, and what that has taken from its environment. Runs in a rank that stands by."""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import site
import sys
import sysconfig
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ice_notebook.host.forks import has_gpu_open
from ice_notebook.host.installed import OWN_FOLDER
from ice_notebook.wire import protocol as p

MOST_MODULES = 4_000  # that a rank names: transformers with a model comes to some 1,500

_baseline: frozenset[str] = frozenset()  # modules that every rank has


class _Reads(dict[bytes, bytes]):
    """The variables of `os.environ`, which remembers the names that somebody looked for. A copy of all of it counts as no look."""

    def __init__(self, variables: dict[bytes, bytes]) -> None:
        super().__init__(variables)
        self.names: set[bytes] = set()
        self._copied: set[bytes] = set()

    def __iter__(self) -> Iterator[bytes]:
        self._copied = set(super().keys())
        return super().__iter__()

    def __getitem__(self, name: bytes) -> bytes:
        if name in self._copied:
            self._copied.remove(name)
        else:
            self.names.add(name)
        return super().__getitem__(name)


@contextlib.contextmanager
def _reads() -> Iterator[set[bytes]]:
    """Yield the names of the environment that are looked for meanwhile, by `os.environ` or `os.environb`, which share their variables."""
    views: list[Any] = [os.environ, os.environb]
    theirs = getattr(os.environ, "_data", None)
    if not isinstance(theirs, dict):  # another Python than those that are known: nothing is noticed
        yield set()
        return
    reads = _Reads(theirs)
    for view in views:
        view._data = reads
    try:
        yield reads.names
    finally:
        theirs.clear()
        theirs.update(dict.items(reads))
        for view in views:
            view._data = theirs


def get_ready(modules: Sequence[str]) -> p.Readiness:
    """Import what every rank needs."""
    global _baseline  # noqa: PLW0603 - one process is one rank
    began = time.perf_counter()
    with _reads() as names, _without_collections():
        for module in modules:
            importlib.import_module(module)
    _spare_libraries()
    _baseline = frozenset(sys.modules)
    return p.Readiness(import_s=time.perf_counter() - began, environment=_decoded(names))


def load(preload: Sequence[str]) -> p.Readiness:
    """Import modules that did no harm to the ranks before, and say of each whether it does harm here.

    An import that sets variables or opens a GPU would have its effect in a run that did not ask for it. The process is of no use then, and
    the package is not to be tried again; so is one that cannot be imported.
    """
    began, preloaded, refused = time.perf_counter(), dict[str, float](), dict[str, str]()
    with _reads() as names, _without_collections():
        for module in preload:
            package = module.partition(".")[0]
            if module in sys.modules or package in refused:
                continue
            since, before = time.perf_counter(), dict(os.environ)
            try:
                importlib.import_module(module)
            except BaseException as error:  # of any code on this machine, SystemExit too
                refused[package] = f"{type(error).__name__}: {error}"
                continue
            preloaded[package] = preloaded.get(package, 0.0) + time.perf_counter() - since
            if (reason := _harm(before)) is not None:
                refused[package] = reason
    return p.Readiness(import_s=time.perf_counter() - began, environment=_decoded(names), preloaded=preloaded, refused=refused)


def imported() -> list[str]:
    """Return the modules that this rank has imported beyond what every rank has, installed ones only, in the order of their imports.

    A module of a local folder, or one that is installed for editing, may have changed by the next run: it is never in the list.
    """
    is_installed = _is_installed()
    found = []
    for name in [name for name in sys.modules if name not in _baseline]:
        module = sys.modules.get(name)
        file = getattr(module, "__file__", None)
        if isinstance(file, str) and is_installed(file) and getattr(module, "__name__", None) == name:
            found.append(name)
    return found[:MOST_MODULES]


def _is_installed() -> Callable[[str], bool]:
    places = {sysconfig.get_path(kind) for kind in ("purelib", "platlib")}
    with contextlib.suppress(AttributeError):  # an environment made by an old virtualenv has no such function
        places |= {*site.getsitepackages(), site.getusersitepackages()}
    prefixes = tuple(os.path.join(place, "") for place in places if place)
    return lambda file: file.startswith(prefixes) and not file.startswith(OWN_FOLDER)


def _spare_libraries() -> None:
    """Have torch not take its operators back one by one when this process ends, which costs it 15 ms."""
    remove = getattr(sys.modules.get("torch.library"), "_del_library", None)
    for finalizer in list(weakref.finalize._registry):  # type: ignore[attr-defined]
        if remove is not None and (found := finalizer.peek()) is not None and found[1] is remove:
            finalizer.atexit = False


def _harm(environment: dict[str, str]) -> str | None:
    """Return what an import has done that a later run would not expect, None when nothing."""
    now = dict(os.environ)  # a copy: a look at each would count as one that an import has taken
    changed = [name for name in {**now, **environment} if now.get(name) != environment.get(name)]
    if changed:
        return f"its import sets {', '.join(sorted(changed))}"
    return "its import opens a GPU" if has_gpu_open() else None


@contextlib.contextmanager
def _without_collections() -> Iterator[None]:
    """Import without searches for garbage, of which imports make none: a tenth of torch's time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
        gc.freeze()


def _decoded(names: set[bytes]) -> tuple[str, ...]:
    return tuple(sorted(os.fsdecode(name) for name in names))
