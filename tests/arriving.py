"""A notebook and a rank in one process: what a cell defines is pickled, loaded as in a fresh process, used there, and what comes of it sent back."""

from __future__ import annotations

import linecache
import sys
import textwrap
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import cloudpickle

from ice_notebook.values.pickles import DeviceTensors, dump, load


class Notebook:
    """Cells that are run here, and a function of theirs that is called in a rank."""

    def __init__(self, folder: Path) -> None:
        self.main = ModuleType("__main__")
        self.variables = vars(self.main)
        self._folder = folder
        self._cells = 0

    def cell(self, text: str) -> None:
        """Run a cell."""
        self._cells += 1
        name = f"/tmp/ipykernel_1/{self._cells}.py"
        source = textwrap.dedent(text).strip("\n") + "\n"
        linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
        with _main(self.main):
            exec(compile(source, name, "exec", dont_inherit=True), self.variables)

    def in_rank(self, expression: str, **options: Any) -> Any:
        """Return what an expression gives in a rank, where a function of the notebook evaluates it."""
        self.cell(f"def probe():\n    return {expression}")
        payload, result = self._folder / "payload", self._folder / "result"
        with _main(self.main):
            dump(
                self.variables["probe"],
                payload,
                devices=DeviceTensors.TO_HOST,
                main_globals=self.variables,
                maps_files=True,
                **options,
            )
        with in_fresh_process():
            dump(load(payload)(), result, devices=DeviceTensors.TO_HOST)
        with _main(self.main):
            return load(result)


@contextmanager
def in_fresh_process() -> Iterator[ModuleType]:
    """Have an empty `__main__`, and no class known that has been pickled before."""
    tracker = cloudpickle.cloudpickle
    names = {
        "_DYNAMIC_CLASS_TRACKER_BY_CLASS": weakref.WeakKeyDictionary,
        "_DYNAMIC_CLASS_TRACKER_BY_ID": weakref.WeakValueDictionary,
    }
    before = {name: getattr(tracker, name) for name in names}
    for name, kind in names.items():
        setattr(tracker, name, kind())
    try:
        with _main(ModuleType("__main__")) as main:
            yield main
    finally:
        for name, known in before.items():
            setattr(tracker, name, known)


@contextmanager
def _main(module: ModuleType) -> Iterator[ModuleType]:
    before = sys.modules["__main__"]
    sys.modules["__main__"] = module
    try:
        yield module
    finally:
        sys.modules["__main__"] = before
