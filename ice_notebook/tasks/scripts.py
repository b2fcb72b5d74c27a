"""What a line or a command names to launch: words to a `Script`, checked as far as that goes without running anything of it."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import sys
import tokenize
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib.machinery import ModuleSpec, PathFinder
from typing import Any

from ice_notebook.errors import ScriptError, printable
from ice_notebook.host import bytecode
from ice_notebook.options.launch_options import LaunchOptions
from ice_notebook.wire.protocol import LOCAL_RANK, Script, ScriptKind

NAME_CHARACTERS = 200  # of a command, in the name of what runs
_MAIN = "__main__.py"
_MAINS = (_MAIN, "__main__.pyc")
_WHAT = "give a script, -m and a module, or --no-python and a program, behind the options"


@dataclass(frozen=True)
class ScriptTask:
    """A script with its arguments, and with its text where a crash in it can be shown by that: {file name: (label, text)}."""

    script: Script
    sources: dict[str, tuple[str, str]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Return the command as a person writes it, cut where it gets long."""
        script = self.script
        words = [*(["-m"] if script.kind is ScriptKind.MODULE else []), script.target, *script.args]
        text = printable(" ".join(word if word == f"--local-rank={LOCAL_RANK}" else shlex.quote(word) for word in words))
        return text if len(text) <= NAME_CHARACTERS else f"{text[: NAME_CHARACTERS - 1]}…"


def read_script(options: LaunchOptions, words: Sequence[str], *, module_path: Sequence[str] = ()) -> ScriptTask:
    """Return what the words behind the options launch.

    Args:
        options: they say whether it is a script, a module or a program.
        words: its name and its arguments.
        module_path: where its modules are found besides its own folder; empty means where a fresh interpreter finds them.

    Raises:
        ScriptError: there is no such script, module or program, or the script is not Python.
    """
    if not words:
        raise ScriptError.none(_WHAT)
    target, args = words[0], tuple(words[1:])
    if options.no_python:
        _check_program(target, options.env.get("PATH"))
        return ScriptTask(Script(kind=ScriptKind.PROGRAM, target=target, args=args))
    if not options.use_env:
        args = (f"--local-rank={LOCAL_RANK}", *args)
    if options.module:
        _check_module(target, module_path)
        return ScriptTask(Script(kind=ScriptKind.MODULE, target=target, args=args, path=tuple(module_path)))
    if options.run_path and not os.path.isabs(target):
        raise ScriptError.not_absolute(target)
    text = _check_file(target)
    sources = {os.path.abspath(target): (printable(os.path.basename(target)), text)} if text is not None else {}
    script = Script(kind=ScriptKind.FILE, target=target, args=args, path=tuple(module_path), may_stand_by=options.run_path)
    return ScriptTask(script, sources)


# ---- scripts -------------------------------------------------------------------------------------------------------------------------


def _check_file(path: str) -> str | None:
    """Return the text of a script that is Python; None for a folder or an archive with a main module, and for compiled Python."""
    if os.path.isdir(path):
        if not any(os.path.exists(os.path.join(path, main)) for main in _MAINS):
            raise ScriptError.no_main(path)
        return None
    if not os.path.exists(path):
        raise ScriptError.missing(path, os.getcwd(), scripts_here(path))
    if zipfile.is_zipfile(path):
        _check_archive(path)
        return None
    if bytecode.is_bytecode(path):
        _check_bytecode(path)
        return None
    try:
        with tokenize.open(path) as file:  # as Python reads its sources, with the encoding that they name
            text = file.read()
        compile(text, path, "exec", dont_inherit=True)
    except OSError as error:
        raise ScriptError.unreadable(path, error) from error
    except SyntaxError as error:
        if not path.endswith((".py", ".pyw")):
            raise ScriptError.not_python(path, _first_fault(error)) from None
        raise ScriptError.syntax(path, error) from None
    except ValueError as error:  # bytes that are no text, or a null character
        raise ScriptError.not_python(path, "it is not a text" if isinstance(error, UnicodeDecodeError) else str(error)) from None
    return text


def _check_archive(path: str) -> None:
    with zipfile.ZipFile(path) as archive:
        if not set(_MAINS) & set(archive.namelist()):
            raise ScriptError.no_main(path)


def _check_bytecode(path: str) -> None:
    try:
        fault = bytecode.fault_of(path)
    except OSError as error:
        raise ScriptError.unreadable(path, error) from error
    if fault:
        raise ScriptError.bytecode(path, fault)


def _first_fault(error: SyntaxError) -> str:
    return f"line {error.lineno}: {error.msg}" if error.lineno else str(error.msg)


def scripts_here(path: str) -> list[str]:
    """Return the scripts of the folder that a path is in, each written like the path."""
    folder = os.path.dirname(path)
    try:
        return [os.path.join(folder, name) for name in sorted(os.listdir(folder or ".")) if name.endswith(".py")]
    except OSError:
        return []


# ---- modules -------------------------------------------------------------------------------------------------------------------------


def _check_module(name: str, module_path: Sequence[str]) -> None:
    """Refuse a module that is certainly not there. Nothing is imported for it, so that some are only found missing by the ranks."""
    if "/" in name or (name.endswith(".py") and os.path.exists(name)):
        raise ScriptError.module_is_path(name)
    parts = name.split(".")
    if not all(part.isidentifier() for part in parts):
        raise ScriptError.no_module(name, "a module's name is words with dots between them")
    found = _find(parts[0], None, [os.getcwd(), *(module_path or sys.path)])
    if found is None:
        known = [entry.removesuffix(".py") for entry in os.listdir(".")]
        raise ScriptError.no_module(name, f"no module {parts[0]!r} is found in the working directory or installed", known)
    for n in range(1, len(parts)):
        if found is None or found.submodule_search_locations is None or not found.has_location:
            return  # a namespace package, or one that another finder knows: the ranks will see
        whole, parent = ".".join(parts[: n + 1]), ".".join(parts[:n])
        locations = list(found.submodule_search_locations)
        found = _find(whole, locations, locations)
        if found is None:
            raise ScriptError.no_module(name, f"{parent!r} has no {parts[n]!r}", _modules_of(parent, locations))
    if found is not None and found.submodule_search_locations is not None and found.has_location:
        locations = list(found.submodule_search_locations)
        if _find(f"{name}.__main__", locations, locations) is None:
            raise ScriptError.no_module(name, f"it is a package without {_MAIN}")


def _find(name: str, package_path: Sequence[str] | None, path: Sequence[str]) -> ModuleSpec | None:
    """Return where a module is, without importing it or the package that it is in."""
    PathFinder.invalidate_caches()
    found: ModuleSpec | None
    if (found := PathFinder.find_spec(name, list(path))) is not None:
        return found
    for finder in _other_finders():
        with contextlib.suppress(Exception):  # other people's finders may need the package loaded
            found = finder.find_spec(name, package_path)
            if isinstance(found, ModuleSpec):
                return found
    return None


def _other_finders() -> Iterator[Any]:
    return (finder for finder in sys.meta_path if finder is not PathFinder and hasattr(finder, "find_spec"))


def _modules_of(package: str, locations: Sequence[str]) -> list[str]:
    found = []
    for location in locations:
        if os.path.isdir(location):
            found += [f"{package}.{name.removesuffix('.py')}" for name in os.listdir(location) if not name.startswith("_")]
    return found


# ---- programs ------------------------------------------------------------------------------------------------------------------------


def _check_program(name: str, path: str | None) -> None:
    if shutil.which(name, path=path) is not None:
        return
    if os.sep not in name:
        raise ScriptError.no_program(
            name, f"PATH names no folder with it{' (write ./ before a file of this folder)' * os.path.exists(name)}"
        )
    if not os.path.exists(name):
        raise ScriptError.no_program(name, "there is no such file")
    raise ScriptError.no_program(
        name, "it is a folder" if os.path.isdir(name) else "the file may not be executed; chmod +x allows it"
    )
