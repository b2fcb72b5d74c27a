"""A script, a module or a program in the place of a function. Runs in a rank; torch is not imported before the script does it."""

from __future__ import annotations

import builtins
import importlib.util
import os
import signal
import sys
import types
import zipfile
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader, SourcelessFileLoader
from typing import Any, NoReturn

from ice_notebook.errors import ScriptError
from ice_notebook.host.bytecode import is_bytecode
from ice_notebook.wire.protocol import Script, ScriptKind


def run(script: Script, own_path: list[str]) -> None:
    """Run a script or a module as `python script.py` and `python -m module` do. `own_path` is the module path of a fresh interpreter.

    Raises whatever it raises, SystemExit included.
    """
    sys.path[:] = [*_first_entry(script), *(script.path or own_path)]
    sys.argv = [script.target, *script.args]
    if script.kind is ScriptKind.FILE and not _is_container(script.target):
        code, main = _load_file(os.path.abspath(script.target))
    else:
        spec = _find_module(script)
        assert spec.loader is not None
        code = spec.loader.get_code(spec.name)  # type: ignore[attr-defined]
        if code is None:
            raise ScriptError.no_module(script.target, "it is built into Python and has no code to run")
        if script.kind is ScriptKind.MODULE:
            sys.argv[0] = str(spec.origin)
        main = _make_main(spec.origin, spec, spec.loader)
    exec(code, main)  # noqa: S102 - the user's script


def _load_file(path: str) -> tuple[types.CodeType, dict[str, Any]]:
    """Return the code of a script, and the globals of a fresh main module for it."""
    if is_bytecode(path):
        loader = SourcelessFileLoader("__main__", path)
        code = loader.get_code("__main__")
        assert code is not None
        return code, _make_main(path, None, loader)
    with open(path, "rb") as file:
        return compile(file.read(), path, "exec", dont_inherit=True), _make_main(path, None, SourceFileLoader("__main__", path))


def command_of(script: Script) -> list[str]:
    """Return the command line by which Python runs a script or a module as a rank does."""
    words = [script.target, *script.args]
    if script.kind is ScriptKind.PROGRAM:
        return words
    return [sys.executable, "-u", *(["-m"] if script.kind is ScriptKind.MODULE else []), *words]


def become(script: Script) -> NoReturn:
    """Make this process the program. What it inherits is what this process was given: terminal, folder, environment.

    Raises:
        OSError: it cannot be started.
    """
    # Python ignores it, and a program's own default is to end by it.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    os.execvp(script.target, [script.target, *script.args])


def _first_entry(script: Script) -> list[str]:
    if getattr(sys.flags, "safe_path", False):  # PYTHONSAFEPATH, from Python 3.11 on
        return [os.path.abspath(script.target)] if script.kind is ScriptKind.FILE and _is_container(script.target) else []
    if script.kind is ScriptKind.MODULE:
        return [os.getcwd()]
    # A link's own folder is of no interest to Python, the script's is.
    target = script.target
    return [os.path.abspath(target) if _is_container(target) else os.path.dirname(os.path.realpath(target))]


def _is_container(path: str) -> bool:
    return os.path.isdir(path) or zipfile.is_zipfile(path)


def _make_main(file: str | None, spec: ModuleSpec | None, loader: Any) -> dict[str, Any]:
    """Put a fresh module in place of `__main__`, with what the interpreter gives a script, and return its globals."""
    main = types.ModuleType("__main__")
    names = main.__dict__
    if "__annotations__" in vars(sys.modules["__main__"]):  # until Python 3.13
        names["__annotations__"] = {}
    names |= {"__builtins__": builtins, "__file__": file, "__spec__": spec, "__loader__": loader, "__cached__": None}
    names["__package__"] = None if spec is None else spec.parent
    if spec is not None:
        names["__cached__"] = spec.cached
    sys.modules["__main__"] = main
    # multiprocessing's other name for it, taken when that was imported: objects come back by it from children that were spawned.
    if "__mp_main__" in sys.modules:
        sys.modules["__mp_main__"] = main
    return names


def _find_module(script: Script) -> ModuleSpec:
    """Return the module that is to be run: that of the name, or the `__main__` of a package, a folder or an archive.

    Raises:
        ScriptError: there is none. An exception of a package that is imported on the way is that package's.
    """
    if script.kind is ScriptKind.FILE:
        found = PathFinder.find_spec("__main__", [os.path.abspath(script.target)])
        if found is None:
            raise ScriptError.no_main(script.target)
        return found
    name = script.target
    try:
        found = importlib.util.find_spec(name)
        if found is not None and found.submodule_search_locations is not None:
            name = f"{name}.__main__"
            found = importlib.util.find_spec(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise  # something that the package itself imports
        found = None
    if found is None or found.loader is None:
        raise ScriptError.no_module(script.target, f"no module {name!r} is found")
    return found
