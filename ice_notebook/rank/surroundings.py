"""What the user's code finds around it in a rank: its environment, a clean `__main__`, its launcher, cell sources, no prompt that waits, bars and displays as text."""

from __future__ import annotations

import builtins
import importlib.abc
import importlib.machinery
import json
import os
import sys
import time
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ice_notebook.context import current_launcher as context
from ice_notebook.host.processes import MARKER
from ice_notebook.values.known_sources import know_sources


def take_environment(environment: Mapping[str, str]) -> None:
    """Make this the environment, as if the process had been started with it.

    Variables that torch has read already are told to it by its own functions. Those for which it has none are the kernel's affair: it does
    not use a process that stood by with another value.
    """
    before = dict(os.environ)
    changed = {name for name in {**before, **environment} if before.get(name) != environment.get(name)}
    for name in changed:
        if name in environment:
            os.environ[name] = environment[name]
        elif name != MARKER:
            del os.environ[name]
    if "TZ" in changed:
        time.tzset()
    if (torch := sys.modules.get("torch")) is None:
        return
    if "OMP_NUM_THREADS" in changed and environment.get("OMP_NUM_THREADS", "").isdigit():
        torch.set_num_threads(int(environment["OMP_NUM_THREADS"]))
    if "TORCH_LOGS" in changed:
        torch._logging._init_logs()
    if "TORCH_DISTRIBUTED_DEBUG" in changed:
        torch.distributed.set_debug_level_from_env()


def make_main_module() -> dict[str, Any]:
    """Put a fresh module in place of `__main__` and return its globals.

    It has no `__file__` at all: None as a file breaks `inspect.getmodule`, and torch.compile with it.
    """
    main = types.ModuleType("__main__")
    main.__dict__["__builtins__"] = builtins
    sys.modules["__main__"] = main
    return main.__dict__


def take_sources(path: str) -> dict[str, str]:
    """Make the cells' texts known in this process, and return what each file name is called in the notebook."""
    sources = json.loads(Path(path).read_bytes())
    know_sources({file_name: text for file_name, (_, text, *_) in sources.items()})
    return {file_name: label for file_name, (label, *_) in sources.items()}


def quiet_prompts() -> None:
    """Have `breakpoint()` and `pdb.set_trace()` say a line and go on: there is nobody at the keyboard. `input()` meets an empty standard input by itself."""
    sys.breakpointhook = lambda *_, **__: _ignore_stop("breakpoint()", sys._getframe(1))
    if "bdb" in sys.modules:
        _quiet_debuggers(sys.modules["bdb"])
    else:
        sys.meta_path.insert(0, _QuietDebuggers())


def _ignore_stop(call: str, where: types.FrameType) -> None:
    print(f"{call} at {where.f_code.co_name}, line {where.f_lineno}: ignored, a rank has no keyboard", file=sys.stderr)


def _quiet_debuggers(bdb: Any) -> None:
    """Let no debugger stop where the user's code asks for one: all that are written in Python are built on `bdb`."""

    def set_trace(_: object, frame: types.FrameType | None = None, *__: object, **___: object) -> None:
        _ignore_stop("set_trace()", frame or sys._getframe(1))

    bdb.Bdb.set_trace = set_trace


class _QuietDebuggers(importlib.abc.MetaPathFinder):
    """Finds `bdb` where it is, and quiets it when it is imported."""

    def find_spec(self, name: str, *_: object) -> importlib.machinery.ModuleSpec | None:
        if name != "bdb":
            return None
        spec = importlib.machinery.PathFinder.find_spec(name)
        if spec is not None and spec.loader is not None:
            load = spec.loader.exec_module

            def exec_module(module: types.ModuleType) -> None:
                load(module)
                _quiet_debuggers(module)

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def show_as_text() -> None:
    """Give ranks the `display` of a notebook as text, and tqdm's notebook bar as an ordinary one."""
    hinted = False

    def display(*objects: object, **_: object) -> None:
        nonlocal hinted
        for shown in objects:
            print(repr(shown))
        if not hinted:
            hinted = True
            print("(a rank displays text only; return the object to see it in the notebook)")

    builtins.display = display  # type: ignore[attr-defined]
    # Found by the import system, not put among the loaded modules: `import tqdm.notebook` then binds it in tqdm as well.
    sys.meta_path.insert(0, _OrdinaryBars())


def lend_launcher() -> None:
    """Let code that mentions `launcher` and has none find the rank's own: a function without a parameter for it, as the body of a cell."""
    builtins.launcher = context.RankContext()  # type: ignore[attr-defined]


class _OrdinaryBars(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds `tqdm.notebook`, whose bars are widgets, as a module with tqdm's ordinary ones."""

    def find_spec(self, name: str, *_: object) -> importlib.machinery.ModuleSpec | None:
        return importlib.machinery.ModuleSpec(name, self) if name == "tqdm.notebook" else None

    def exec_module(self, module: Any) -> None:
        from tqdm import std  # noqa: PLC0415 - somebody asks for a part of it, so it is there

        module.tqdm = module.tqdm_notebook = std.tqdm
        module.trange = module.tnrange = std.trange
