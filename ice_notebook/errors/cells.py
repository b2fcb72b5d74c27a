"""What a cell may not hold."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ice_notebook.errors.base import IceNotebookError
from ice_notebook.errors.words import describe_kind, excerpt_of_syntax_error, join, suggest

SUPPORTED_LINE_MAGICS = frozenset({"time", "cd", "pwd", "env"})  # of IPython's line magics, those that a rank has too


class CellError(IceNotebookError, ValueError):
    """A cell holds nothing that can be launched."""

    @classmethod
    def empty(cls) -> CellError:
        return cls("The cell is empty below the magic line: write the function or the statements that every rank should run.")

    @classmethod
    def cell_magic(cls, name: str) -> CellError:
        return cls(f"%%{name} cannot stand inside a launched cell: a rank runs Python, and `!` and `%` lines.")

    @classmethod
    def line_magic(cls, name: str) -> CellError:
        known = join(f"%{each}" for each in sorted(SUPPORTED_LINE_MAGICS))
        return cls(f"%{name} needs IPython, which a rank does not have. Ranks know {known}, and `!command`.")

    @classmethod
    def awaits(cls, function: str) -> CellError:
        return cls(
            f"`await` beside `{function}` would run in the notebook's own event loop: put it into a cell above, or into the function."
        )

    @classmethod
    def parameters(cls, function: str, required: Sequence[str]) -> CellError:
        return cls(
            f"`{function}` requires {join(required)}: a launched function gets the launcher when it has one required positional parameter. "
            f"Give the others as args=(…) or kwargs={{…}}, or as default values."
        )

    @classmethod
    def no_launcher(cls, function: str, required: Sequence[str], attributes: Sequence[str]) -> CellError:
        verb = "is" if len(required) == 1 else "are"
        uses = join(f"launcher.{attribute}" for attribute in dict.fromkeys(attributes))
        return cls(
            f"`{function}` requires {join(required)}, which {verb} not passed: a launched function gets a launcher. "
            f"Write `def {function}(launcher)`, and use {uses}."
        )

    @classmethod
    def annotated(cls, function: str, name: str, kind: str) -> CellError:
        return cls(
            f"`{function}` requires `{name}: {kind}`, and a launched function gets a launcher. Give the value as args=(…) or "
            f"kwargs={{…}}, or as a default value."
        )

    @classmethod
    def arguments(cls, function: str, error: TypeError) -> CellError:
        return cls(f"`{function}` does not take these arguments: {error}.")

    @classmethod
    def not_callable(cls, found: object) -> CellError:
        return cls(
            f"Expected a function to launch, got {describe_kind(found)}: pass the function first and its arguments after it."
        )

    @classmethod
    def no_function(cls, name: str, found: object) -> CellError:
        return cls(f"function={name}: {name!r} is {describe_kind(found)}, but only a function can be launched.")

    @classmethod
    def not_defined(cls, name: str, known: Iterable[str]) -> CellError:
        return cls(f"function={name}: neither this cell nor the notebook defines {name!r}.{suggest(name, known)}")

    @classmethod
    def body_arguments(cls) -> CellError:
        return cls("args= and kwargs= are for a function: this cell's last statement defines none, and function= names none.")


class CellSyntaxError(CellError):
    """A cell is not Python.

    It is no `SyntaxError`: IPython draws one of those, when it comes out of a magic, behind a page of frames that say nothing.
    """

    excerpt: Sequence[str] = ()

    @classmethod
    def of(cls, error: SyntaxError, label: str) -> CellSyntaxError:
        made = cls(f"{error.msg} ({label}, line {error.lineno})" if error.lineno else f"{error.msg} ({label})")
        made.excerpt = excerpt_of_syntax_error(error)
        return made

    def _render_traceback_(self) -> list[str]:
        return [*self.excerpt, *super()._render_traceback_()]
