"""How a run ended that did not succeed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ice_notebook.errors.base import IceNotebookError


class ControlError(IceNotebookError, RuntimeError):
    """A run cannot be stopped from here."""

    @classmethod
    def elsewhere(cls, folder: object) -> ControlError:
        return cls(
            f"The run in {str(folder)!r} is done by a process that cannot be reached from here. Stop it where it was launched."
        )


class RunStopped(IceNotebookError, RuntimeError):
    """A rank was stopped before it returned."""

    @classmethod
    def before_return(cls, rank: int) -> RunStopped:
        return cls(f"Rank {rank} was stopped before it returned.")


class RunFailed(IceNotebookError, RuntimeError):
    """A run failed: a rank raised or died, or the run's time was over.

    The message names the rank that failed first, its exception with the cell's own lines, and what became of the other ranks. It holds
    no pid, time, id or path: those are on `run`. `__cause__` is the exception of that rank where it could be sent.
    """

    run: Any = None
    lines: Sequence[str] = ()
    __notes__: list[str]

    @classmethod
    def of(cls, run: Any, headline: str, lines: Sequence[str]) -> RunFailed:
        error = cls(headline)
        error.run = run
        error.lines = tuple(lines)
        error.__notes__ = ["\n".join(lines)] if lines else []  # what plain Python, from 3.11 on, prints below the message
        return error

    def _render_traceback_(self) -> list[str]:
        return [f"{type(self).__name__}: {self}", *self.lines]

    def __reduce__(self) -> tuple[Any, ...]:
        # A Run is a handle on processes and stays where it is.
        return type(self).of, (None, str(self), self.lines)
