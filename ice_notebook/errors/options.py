"""What an option may not be."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ice_notebook.errors.base import IceNotebookError
from ice_notebook.errors.words import _has_dashes, cut, join, quote, suggest, written


class OptionError(IceNotebookError, ValueError):
    """A launch option is unknown, or its value is not one that the option takes."""

    @classmethod
    def unknown(cls, name: str, known: Iterable[str]) -> OptionError:
        names, name = sorted(map(written, known)), name if name.startswith("-") else written(name)
        others = f" The options are {join(names)}." if not _has_dashes.get() else " --help lists the options."
        return cls(f"{name!r} is not an option.{suggest(name, names) or others}")

    @classmethod
    def ambiguous(cls, name: str, meant: Iterable[str]) -> OptionError:
        options = join(sorted(set(map(written, meant))), "or")
        return cls(f"{written(name)!r} could be {options}; write more of it.")

    @classmethod
    def no_command(cls, name: str, known: Sequence[str]) -> OptionError:
        commands = "the command is" if len(known) == 1 else "the commands are"
        return cls(f"{name!r} is not a command; {commands} {join(known)}. --help says more.")

    @classmethod
    def not_a_module(cls, option: str, name: str, error: BaseException) -> OptionError:
        return cls(
            f"{option}={name!r}: importing it raised {type(error).__name__}: {error}. Name packages or modules, as in an import."
        )

    @classmethod
    def later(cls, name: str, why: str) -> OptionError:
        return cls(f"{written(name)!r} is not available in this version: {why}")

    @classmethod
    def invalid(cls, name: str, found: object, allowed: str) -> OptionError:
        return cls(f"{written(name, quote(found))} is not valid: expected {allowed}.")

    @classmethod
    def refused(cls, name: str, found: object, why: str) -> OptionError:
        return cls(f"{written(name, quote(found))} is refused: {why}")

    @classmethod
    def elsewhere(cls, name: str, where: str, advice: str = "") -> OptionError:
        return cls(f"{written(name)!r} is not an option here: it belongs to {where}.{f' {advice}' if advice else ''}")

    @classmethod
    def expression(cls, option: str, text: str, error: BaseException) -> OptionError:
        return cls(f"{option}={cut(text)}: the expression raised {type(error).__name__}: {cut(str(error))}.")

    @classmethod
    def unbalanced(cls, text: str) -> OptionError:
        return cls(f"The magic's line ends inside {quote(text)}: close the quote or the bracket.")

    @classmethod
    def twice(cls, name: str) -> OptionError:
        return cls(f"{written(name)!r} is given twice; give it once.")

    @classmethod
    def missing_value(cls, name: str, allowed: str) -> OptionError:
        return cls(f"{written(name)!r} needs a value: {written(name, 'VALUE')}, where VALUE is {allowed}.")

    @classmethod
    def not_an_option(cls, text: str, example: str) -> OptionError:
        return cls(
            f"{quote(text)} is not an option: options are written as name=value or --name value, for example {cut(example)}."
        )

    @classmethod
    def conflict(cls, first: str, second: str, advice: str) -> OptionError:
        return cls(f"{first} and {second} exclude each other: {advice}")
