"""What every exception here is, and the warning of a library that has changed."""

from __future__ import annotations

from collections.abc import Iterable

from ice_notebook.errors.words import join, printable, suggest


class IceNotebookError(Exception):
    """Something that ice_notebook was asked to do cannot be done.

    A notebook shows it as its type and its message alone: the frames in between are ours and say nothing to the user.
    """

    def __str__(self) -> str:
        """Return the message as a page or a terminal can take it, also when it quotes a path that is no UTF-8."""
        return printable(super().__str__())

    def with_no_variable(self, name: str, known: Iterable[str]) -> IceNotebookError:
        """Return the same error, saying as well that a word is not the name of a notebook variable either."""
        return type(self)(f"{self} No variable of this notebook is called {name!r} either.{suggest(name, known)}")

    def from_environment(self, variables: Iterable[str]) -> IceNotebookError:
        """Return the same error, saying as well which variables of the environment have a part in it."""
        names = sorted(variables)
        return type(self)(f"{self} The environment sets {join(names)}.") if names else self

    def _render_traceback_(self) -> list[str]:
        # IPython draws an exception by this method when it has one; the cell still counts as failed, unlike after a `UsageError`.
        return [f"{type(self).__name__}: {self}"]


class UnknownFormWarning(UserWarning):
    """A library that was installed has another private form than the ones that this version knows."""

    @classmethod
    def of(cls, library: str, version: str, thing: str, effect: str) -> UnknownFormWarning:
        return cls(f"{library} {version} pickles {thing} in a form that this version of ice_notebook does not know. {effect}")
