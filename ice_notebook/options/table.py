"""How options are read: magic line, Python call, help, completion and docs are derived from one dataclass's fields."""

from __future__ import annotations

import dataclasses
import enum
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ice_notebook.errors import IceNotebookError, OptionError, join, written
from ice_notebook.options.grammars import Grammar, RefusalError


class Surface(enum.Enum):
    """Where an option may be given; the value names the place in sentences."""

    PYTHON = "the launcher in Python"
    CELL = "the magic of a cell"
    LINE = "the magic of a line"
    CLI = "the command line"


EVERYWHERE = frozenset(Surface)


@dataclass(frozen=True)
class Option:
    """One option: a field of the dataclass that lists them."""

    name: str
    default: Any
    sentence: str  # what it does
    grammar: Grammar
    group: str
    surfaces: frozenset[Surface] = EVERYWHERE
    short: str = ""  # -o
    aliases: tuple[str, ...] = ()
    shown: str = ""  # the default in words, when its text would not say it
    example: str = ""  # a value
    note: str = ""  # where torch or ice-learn differ
    is_repeatable: bool = False  # its values are dicts, which are joined
    for_scripts: str = ""  # what it does for a script, which is started on each node by hand, where that is something else
    in_a_terminal: str = ""  # what it does there, where that is something else
    takes_in_a_terminal: str = ""  # the values that it takes there, where these are fewer
    shown_in_a_terminal: str = ""  # its default there
    advice: str = ""  # what to do in a place where it may not be given

    def parse(self, text: str) -> Any:
        """Return the value of a text.

        Raises:
            OptionError: the text is not what the option takes.
        """
        if self.default is None and text in {"None", "none"}:
            return None
        return self._checked(self.grammar.parse, text)

    def convert(self, value: Any) -> Any:
        """Return the value of a Python value, as `parse` does."""
        if self.default is None and value is None:
            return None
        return self._checked(self.grammar.convert, value)

    def _checked(self, read: Callable[[Any], Any], found: Any) -> Any:
        try:
            return read(found)
        except IceNotebookError:
            raise  # it has its own sentence
        except RefusalError as refusal:
            raise OptionError.refused(self.name, found, str(refusal)) from refusal
        except (ValueError, TypeError, AttributeError, OverflowError, RecursionError):  # the last three come from foreign values
            raise OptionError.invalid(self.name, found, self.grammar.allowed) from None

    @property
    def default_text(self) -> str:
        """Return the default as people read it."""
        return self.shown or self.grammar.format(self.default)

    def usage(self, surface: Surface) -> str:
        """Return how it is written in a place: `output=NAME, -o NAME`, in a terminal `-r, --redirects STREAMS`."""
        value = self.grammar.placeholder
        if surface is Surface.CLI:
            value = self.takes_in_a_terminal or value
            short = f"-{self.short}, " if self.short else ""
            return f"{short}{written(self.name)} {value}".rstrip()
        name = self.name if self.grammar.is_flag else f"{self.name}={value}"
        return name + (f", -{self.short} {value}".rstrip() if self.short else "")

    @property
    def of_scripts(self) -> str:
        """Return what it does for a script, as a sentence behind what it does for a function; nothing where that is the same."""
        return f"For a script: {self.for_scripts[0].lower()}{self.for_scripts[1:]}" if self.for_scripts else ""

    def explain(self, surface: Surface) -> str:
        """Return what it does in a place, what it takes where its usage does not say it, and its default."""
        if surface is Surface.CLI:
            sentences = [self.in_a_terminal or self.for_scripts or f"{self.sentence} {self.note}".rstrip()]
            default = self.shown_in_a_terminal or self.default_text
        else:
            sentences = [self.sentence, self.note, self.of_scripts if surface is Surface.LINE else ""]
            default = self.default_text
        takes = f"{self.grammar.placeholder} is {self.grammar.allowed}." if self.grammar.is_explained else ""
        return " ".join(filter(None, [*sentences, takes, f"Default: {default}."]))


def option(default: Any, sentence: str, *, grammar: Grammar, group: str, **more: Any) -> Any:
    """Return a dataclass field that is a launch option; `more` are further fields of `Option`."""
    metadata = {"option": {"default": default, "sentence": sentence, "grammar": grammar, "group": group, **more}}
    if isinstance(default, dict):
        return dataclasses.field(default_factory=default.copy, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


class Table:
    """The options of a dataclass, found by any of their spellings.

    `later` maps names that are known, but not available in this version, to the reason. `ours` are the names that torchrun does not
    have: a beginning that means one of its options there means the same here, whatever of ours begins so.
    """

    def __init__(self, owner: type, *, later: Mapping[str, str], ours: Collection[str] = ()) -> None:
        fields = dataclasses.fields(owner)
        self.options: Mapping[str, Option] = {field.name: Option(name=field.name, **field.metadata["option"]) for field in fields}
        self.later = later
        self._ours = ours
        self._spellings = {spelling: each for each in self.options.values() for spelling in (each.name, *each.aliases)}
        self._shorts = {each.short: each for each in self.options.values() if each.short}

    def __iter__(self) -> Iterator[Option]:
        """Iterate over the options in the order of the fields."""
        return iter(self.options.values())

    def on(self, surface: Surface) -> list[Option]:
        """Return the options of one surface."""
        return [each for each in self if surface in each.surfaces]

    def find(self, name: str, surface: Surface) -> Option:
        """Return the option that a name means; dashes and underscores are equal.

        Raises:
            OptionError: there is no such option, or not here, or not yet.
        """
        found = self._spellings.get(name.replace("-", "_"))
        return self._available(found, name.replace("-", "_"), surface)

    def find_begun(self, name: str, surface: Surface) -> Option:
        """Return the option that a name or the beginning of one means, as argparse has it. Raises as `find` does, or when it could be several."""
        name = name.replace("-", "_")
        if not self.knows(name):
            here = [spelling for spelling, each in self._spellings.items() if surface in each.surfaces]
            begun = [each for each in (*here, *self.later) if each.startswith(name)]
            theirs = [each for each in begun if self.is_torchruns(each)]
            for names in (begun, theirs):
                if len({getattr(self._spellings.get(each), "name", each) for each in names}) == 1:
                    return self.find(names[0], surface)
            if begun:
                raise OptionError.ambiguous(name, begun)
        return self.find(name, surface)

    def find_short(self, letter: str, surface: Surface) -> Option:
        """Return the option that a letter after one dash means, as `find` does."""
        return self._available(self._shorts.get(letter), f"-{letter}", surface)

    def knows(self, name: str) -> bool:
        """Return whether a word is the name of an option, available or not."""
        return name.replace("-", "_") in {*self._spellings, *self.later}

    def is_torchruns(self, name: str) -> bool:
        """Return whether a name is that of an option of torchrun's."""
        return name in {*self._spellings, *self.later} and name not in self._ours

    def is_flag(self, name: str) -> bool:
        """Return whether a word is the name of an option that is on by its name alone."""
        found = self._spellings.get(name.replace("-", "_"))
        return found is not None and found.grammar.is_flag

    def _available(self, found: Option | None, name: str, surface: Surface) -> Option:
        if found is None and name in self.later:
            raise OptionError.later(name, self._spell(self.later[name]))
        if found is None:
            raise OptionError.unknown(name, [each.name for each in self.on(surface)])
        if surface not in found.surfaces:
            raise OptionError.elsewhere(
                found.name, join(sorted(place.value for place in found.surfaces), "and"), self._spell(found.advice)
            )
        return found

    def convert(self, asked: Mapping[str, Any], surface: Surface) -> dict[str, Any]:
        """Return options given as Python values, by their field names.

        Raises:
            OptionError: a name or a value is not right, or two names mean one option.
        """
        values: dict[str, Any] = {}
        for name, value in asked.items():
            found = self.find(name, surface)
            if found.name in values:
                raise OptionError.twice(found.name)
            values[found.name] = found.convert(value)
        return values

    def groups(self, surface: Surface | None = None) -> dict[str, list[Option]]:
        """Return the options by the heading that they stand under."""
        groups: dict[str, list[Option]] = {}
        for each in self if surface is None else self.on(surface):
            groups.setdefault(each.group, []).append(each)
        return groups

    def help_text(self, surface: Surface, width: int = 100) -> str:
        """Return what every option of a surface means, for a terminal or a pager."""
        import textwrap  # noqa: PLC0415 - only needed when somebody asks for help

        lines: list[str] = []
        for heading, options in self.groups(surface).items():
            lines += [heading, "-" * len(heading)]
            for each in options:
                lines.append(f"  {each.usage(surface)}")
                text = self._spell(each.explain(surface)).replace("`", "")
                lines += textwrap.wrap(text, width, initial_indent=" " * 6, subsequent_indent=" " * 6, break_on_hyphens=False)
            lines.append("")
        return "\n".join(lines)

    def _spell(self, text: str) -> str:
        """Write the options that a text names, in backticks, as they are written where it is read."""

        def spelled(match: re.Match[str]) -> str:
            return written(match[1]) + match[2] if match[1] in self._spellings else match[0]

        return re.sub(r"`([a-z_]+)((?:=[^`]*)?)`", spelled, text)


def streams_of_rank(value: int | Mapping[int, int], local_rank: int) -> int:
    """Return the streams that a `StdStreams` value names for one local rank; a rank that a mapping leaves out has none."""
    return value.get(local_rank, 0) if isinstance(value, Mapping) else value
