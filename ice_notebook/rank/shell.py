"""What `!command`, `!!command` and the few `%` lines of a cell's body call in a rank, where there is no IPython."""

from __future__ import annotations

import builtins
import os
import re
import subprocess
import sys
import time
from typing import Any

_EXPANDED = re.compile(r"\{\{|\}\}|\{([^{}]+)\}|\$\$|\$(\w+)")


class Shell:
    """Stands in for IPython's shell, with just the methods that the transformation of a cell calls."""

    def system(self, command: str) -> None:
        """Run a command with the rank's own output."""
        sys.stdout.flush()
        subprocess.run(_expand(command), shell=True, check=False)  # noqa: S602 - the user's own shell line

    system_piped = system_raw = system

    def getoutput(self, command: str, *_: object, **__: object) -> list[str]:
        """Run a command and return the lines that it printed."""
        done = subprocess.run(  # noqa: S602
            _expand(command), shell=True, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
        )
        return done.stdout.splitlines()

    def run_line_magic(self, name: str, line: str, *_: object) -> Any:
        """Do one of the line magics that make sense in a rank."""
        return getattr(self, f"_{name}")(_expand(line) if name != "time" else line)

    def _time(self, line: str) -> Any:
        main = vars(sys.modules["__main__"])
        began, cpu_began = time.perf_counter(), time.process_time()
        value = None
        try:
            code = compile(line, "<%time>", "eval")
        except SyntaxError:
            exec(line, main)  # noqa: S102 - the user's own statement
        else:
            value = eval(code, main)  # noqa: S307 - the user's own expression
        print(f"CPU time: {time.process_time() - cpu_began:.3g} s, wall time: {time.perf_counter() - began:.3g} s")
        return value

    def _cd(self, line: str) -> None:
        os.chdir(os.path.expanduser(line.strip() or "~"))

    def _pwd(self, _: str) -> str:
        return os.getcwd()

    def _env(self, line: str) -> Any:
        name, equals, value = (part.strip() for part in line.partition("="))
        if equals:
            os.environ[name] = value
            return None
        return os.environ.get(name) if name else dict(os.environ)


def install() -> None:
    """Make `get_ipython()` findable by a cell's transformed lines."""
    shell = Shell()
    builtins.get_ipython = lambda: shell  # type: ignore[attr-defined]


def _expand(text: str) -> str:
    """Put values for `{expression}` and `$name`; what cannot be evaluated stays as it is, as in IPython."""
    main = vars(sys.modules["__main__"])

    def value(match: re.Match[str]) -> str:
        whole, expression, name = match[0], match[1], match[2]
        if expression is None and name is None:
            return whole[0]  # doubled
        try:
            return str(eval(expression or name, main))  # noqa: S307
        except Exception:
            return whole

    return _EXPANDED.sub(value, text)
