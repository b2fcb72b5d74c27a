"""What cannot be launched as a script."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ice_notebook.errors.base import IceNotebookError
from ice_notebook.errors.words import excerpt_of_syntax_error, suggest, written


class ScriptError(IceNotebookError, ValueError):
    """What a line or a command names cannot be launched: there is no such script, module or program, or it is not Python."""

    excerpt: Sequence[str] = ()

    @classmethod
    def none(cls, what: str) -> ScriptError:
        return cls(f"There is nothing to launch: {what}.")

    @classmethod
    def missing(cls, path: str, folder: str, known: Iterable[str]) -> ScriptError:
        return cls(f"There is no script {path!r} in {folder!r}.{suggest(path, known)}")

    @classmethod
    def missing_name(cls, name: str, folder: str, known: Iterable[str]) -> ScriptError:
        return cls(
            f"{name!r} is neither a function of this notebook nor a script in {folder!r}.{suggest(name, known)} "
            "Options are written name=value or --name value, and stand before what is launched."
        )

    @classmethod
    def unreadable(cls, path: str, error: OSError) -> ScriptError:
        return cls(f"The script {path!r} cannot be read: {error.strerror or error}.")

    @classmethod
    def no_main(cls, path: str) -> ScriptError:
        return cls(f"{path!r} has no __main__.py, by which a folder or an archive is launched. Name a script in it.")

    @classmethod
    def not_absolute(cls, path: str) -> ScriptError:
        return cls(f"{written('run_path')} requires an absolute path, got {path!r}; leave it out to use a relative one.")

    @classmethod
    def not_python(cls, path: str, why: str) -> ScriptError:
        return cls(f"{path!r} is not Python: {why}. With {written('no_python')} it is started as a program of its own.")

    @classmethod
    def bytecode(cls, path: str, why: str) -> ScriptError:
        return cls(f"{path!r} cannot be run by this Python: {why}. Launch its source, or compile it again.")

    @classmethod
    def syntax(cls, path: str, error: SyntaxError) -> ScriptError:
        where = f" in line {error.lineno}" if error.lineno else ""
        made = cls(f"The script {path!r} has a syntax error{where}: {error.msg}.")
        made.excerpt = excerpt_of_syntax_error(error)
        return made

    @classmethod
    def no_module(cls, name: str, why: str, known: Iterable[str] = ()) -> ScriptError:
        return cls(f"There is no module {name!r} to launch: {why}.{suggest(name, known)}")

    @classmethod
    def module_is_path(cls, name: str) -> ScriptError:
        return cls(f"-m expects the name of a module, but {name!r} is a path: leave -m out, or write it with dots and without .py.")

    @classmethod
    def no_program(cls, name: str, why: str) -> ScriptError:
        return cls(f"There is no program {name!r} to start: {why}.")

    @classmethod
    def function_arguments(cls, name: str, found: str) -> ScriptError:
        return cls(
            f"{name!r} is a function of this notebook, but {found!r} follows it: give its arguments as args=(…) or kwargs={{…}}."
        )

    @classmethod
    def function_and_script(cls, name: str, found: str) -> ScriptError:
        return cls(f"function={name} and {found!r} both say what is launched: give one of them.")

    def _render_traceback_(self) -> list[str]:
        return [*self.excerpt, *super()._render_traceback_()]
