"""What may not travel to ranks or back."""

from __future__ import annotations

from dataclasses import dataclass

from ice_notebook.errors.base import IceNotebookError
from ice_notebook.errors.words import describe_error, format_size, is_for_want_of_room, reason_of, written


@dataclass(frozen=True)
class Refusal:
    """What cannot travel, where it was found, and the way out: the parts of a sentence."""

    path: str  # the variable, or the way into it: config['log']
    what: str  # with an article: an open file
    advice: str
    result_advice: str
    is_inside: bool = False  # the path names what holds it, not itself
    function: str = ""  # the function of the user that refers to it
    line: int = 0
    source: str = ""  # the text of that line


class PayloadError(IceNotebookError, TypeError):
    """A value cannot be sent to the ranks. `refusal` says which, as it was found."""

    refusal: Refusal | None = None

    @classmethod
    def holds(cls, refusal: Refusal) -> PayloadError:
        verb = "holds" if refusal.is_inside else "is"
        usage = f" `{refusal.function}` uses it in line {refusal.line}: {refusal.source}" if refusal.source else ""
        error = cls(f"`{refusal.path}` cannot be sent to the ranks: it {verb} {refusal.what}. {refusal.advice}{usage}")
        error.refusal = refusal
        return error


class LoadError(IceNotebookError, RuntimeError):
    """What a function needs has come to a rank, and cannot be loaded there."""

    @classmethod
    def of(cls, name: str | None, error: BaseException) -> LoadError:
        what = f"`{name}`" if name else "What the function needs"
        advice = f"Create {f'`{name}`' if name else 'it'} in the function, or send what it is made from."
        return cls(f"{what} could not be loaded in the ranks: {describe_error(error)}. {advice}")


class ResultError(IceNotebookError, RuntimeError):
    """A rank's value cannot be had: it is not there yet, could not be written, or was not kept."""

    @classmethod
    def cannot_send(cls, rank: int, refusal: Refusal) -> ResultError:
        name = "it" if refusal.path == "result" else refusal.path
        verb = "holds" if refusal.is_inside else "is"
        return cls(f"The value returned by rank {rank} cannot be sent back: {name} {verb} {refusal.what}. {refusal.result_advice}")

    @classmethod
    def unwritten(cls, rank: int, size_bytes: int, error: OSError) -> ResultError:
        if is_for_want_of_room(error):
            return cls.no_room(rank, size_bytes)
        return cls(f"The value returned by rank {rank} cannot be written: {reason_of(error)}.")

    @classmethod
    def no_room(cls, rank: int, size_bytes: int) -> ResultError:
        return cls(
            f"The value returned by rank {rank} has {format_size(size_bytes)}, and there is no room for it. Free some, or give {written('log_dir')} "
            "a folder with room."
        )

    @classmethod
    def not_yet(cls, rank: int) -> ResultError:
        return cls(f"Rank {rank} has not returned yet: run.result({rank}) waits for it.")

    @classmethod
    def no_result(cls, rank: int) -> ResultError:
        return cls(f"The script of rank {rank} returned no value: a script returns one with ice_notebook.set_result(value).")

    @classmethod
    def not_kept(cls, rank: int) -> ResultError:
        return cls(
            f"The value of rank {rank} was not kept: it lived as long as its Run object. run.save() brings values into the run folder."
        )

    @classmethod
    def let_go(cls, rank: int) -> ResultError:
        return cls(
            f"The value of rank {rank} was not kept: after several newer launches only the notebook's output history held its run. "
            "Bind a run to a name, as -o does, or call run.save()."
        )

    @classmethod
    def cannot_load(cls, rank: int, error: BaseException) -> ResultError:
        return cls(
            f"The value of rank {rank} cannot be loaded here: {describe_error(error)}. Import or define here what it is made of."
        )

    @classmethod
    def no_run(cls, folder: object) -> ResultError:
        return cls(f"{str(folder)!r} is not the folder of a run: it has no plan.json and events.jsonl of this version.")

    @classmethod
    def foreign(cls, path: object, why: str) -> ResultError:
        return cls(
            f"{path} is not loaded: {why}. It holds a pickle, and loading one runs code of whoever wrote it. If you trust them, copy the "
            "run folder, and open the copy."
        )

    @classmethod
    def damaged(cls, path: object, found: str) -> ResultError:
        return cls(f"{str(path)!r} does not hold a whole value: {found}. Only a file that ice_notebook wrote can be loaded.")
