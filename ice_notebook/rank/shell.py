"""What `!command`, `!!command` and the few `%` lines of a cell call in a rank, where there is no IPython."""

from __future__ import annotations

import dis
import os
import re
import subprocess
import sys
import time
from collections import ChainMap
from collections.abc import Mapping
from types import FrameType
from typing import Any

from ice_notebook.errors import SUPPORTED_LINE_MAGICS, CellError
from ice_notebook.values.librarys_objects import found_there

_EXPANDED = re.compile(r"\{\{|\}\}|\{([^{}]+)\}|\$\$|\$(\w+)")


class Shell:
    """Stands in for IPython's shell, with just the methods that the transformation of a cell calls."""

    def system(self, command: str) -> None:
        """Run a command with the rank's own output; its exit code is `_exit_code`, as in a notebook."""
        sys.stdout.flush()
        done = subprocess.run(_expand(command, sys._getframe(1)), shell=True, check=False)  # noqa: S602 - the user's own shell line
        vars(sys.modules["__main__"])["_exit_code"] = done.returncode

    system_piped = system_raw = system

    def getoutput(self, command: str, *_: object, **__: object) -> list[str]:
        """Run a command and return the lines that it printed."""
        done = subprocess.run(  # noqa: S602
            _expand(command, sys._getframe(1)),
            shell=True,
            check=False,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        return done.stdout.splitlines()

    def run_line_magic(self, name: str, line: str, *_: object, **__: object) -> Any:
        """Do one of the line magics that make sense in a rank.

        Raises:
            CellError: ranks do not have it.
        """
        caller = sys._getframe(1)
        if name not in SUPPORTED_LINE_MAGICS:
            raise CellError.line_magic(name)
        if name == "time":
            return _time(line, caller)
        return _LINE_MAGICS[name](_expand(line, caller))

    def run_cell_magic(self, name: str, *_: object, **__: object) -> Any:
        """Refuse a cell magic.

        Raises:
            CellError: ranks have none.
        """
        raise CellError.cell_magic(name)


def _time(line: str, caller: FrameType) -> Any:
    began, cpu_began = time.perf_counter(), time.process_time()
    value = None
    try:
        code = compile(line, "<%time>", "eval")
    except SyntaxError:
        exec(line, caller.f_globals, caller.f_locals)  # noqa: S102 - the user's own statement
    else:
        value = eval(code, caller.f_globals, caller.f_locals)  # noqa: S307 - the user's own expression
    print(f"CPU time: {time.process_time() - cpu_began:.3g} s, wall time: {time.perf_counter() - began:.3g} s")
    return value


def _cd(line: str) -> None:
    words = [word for word in line.split(" ") if word != "-q"]
    os.chdir(os.path.expanduser(" ".join(words).strip() or "~"))


def _pwd(_: str) -> str:
    return os.getcwd()


def _env(line: str) -> Any:
    name, equals, value = (part.strip() for part in line.partition("="))
    if equals:
        os.environ[name] = value
        return None
    return os.environ.get(name) if name else dict(os.environ)


_LINE_MAGICS = {"cd": _cd, "pwd": _pwd, "env": _env}


class GetIPython:
    """What a cell's code finds as `get_ipython`: the shell where a `!` or a `%` line asks for it, and nothing where anybody else does.

    So code that asks whether it runs in a notebook hears what any other program hears: there is no such name.
    """

    def __init__(self) -> None:
        self._shell = Shell()

    def __call__(self) -> Shell:
        caller = sys._getframe(1)
        if _what_is_asked_of_it(caller) not in _TRANSFORMED:
            raise NameError("name 'get_ipython' is not defined")
        return self._shell

    def __reduce__(self) -> tuple[Any, ...]:
        return found_there, ("get_ipython",)


# What IPython makes of `!` and `%` lines.
_TRANSFORMED = frozenset({"system", "system_piped", "system_raw", "getoutput", "run_line_magic", "run_cell_magic"})


def install(main: dict[str, Any]) -> None:
    """Make `get_ipython()` findable by a cell's transformed lines, in these variables of `__main__`."""
    main["get_ipython"] = GetIPython()


def _what_is_asked_of_it(caller: FrameType) -> object:
    """Return the name of the attribute that code takes from what it is just calling, None when it does something else with it."""
    operations = iter(dis.get_instructions(caller.f_code))
    for operation in operations:
        if operation.offset == caller.f_lasti:
            following = next(operations, None)
            return following.argval if following is not None and following.opname in {"LOAD_ATTR", "LOAD_METHOD"} else None
    return None


def _expand(text: str, caller: FrameType) -> str:
    """Put values for `{expression}` and `$name`; what cannot be evaluated stays as it is, as in IPython."""
    variables: Mapping[str, Any] = ChainMap(caller.f_locals, caller.f_globals)

    def value(match: re.Match[str]) -> str:
        whole, expression, name = match[0], match[1], match[2]
        if expression is None and name is None:
            return whole[0]  # doubled
        try:
            return str(eval(expression or name, caller.f_globals, variables))  # noqa: S307
        except Exception:
            return whole

    return _EXPANDED.sub(value, text)
