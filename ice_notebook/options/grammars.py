"""How the values of options are written: one grammar for each kind of value, text and Python value → value, and back to text."""

from __future__ import annotations

import keyword
import math
import operator
import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ice_notebook.errors import join


class RefusalError(ValueError):
    """Why a value that can be read is not taken: one sentence."""


class Grammar:
    """How one kind of value is written. `parse` and `convert` raise `ValueError` or `TypeError` for what is not `allowed`."""

    allowed: str = ""  # in words, for messages: 'allowed is …'
    placeholder: str = "VALUE"
    words: tuple[str, ...] = ()  # offered by completion
    is_free_text = False  # a bare word is never the name of a notebook variable
    is_expression = False  # the text is a Python expression, evaluated by the reader of the line
    is_flag = False  # the name alone means true
    is_explained = False  # help says what is allowed: the placeholder alone does not

    def parse(self, text: str) -> Any:
        """Return the value that a text stands for."""
        raise NotImplementedError

    def convert(self, value: Any) -> Any:
        """Return the value that a Python value stands for; a text is parsed, and a value already converted stays as it is."""
        if isinstance(value, str):
            return self.parse(value)
        raise ValueError

    def format(self, value: Any) -> str:
        """Return the text of a converted value."""
        return str(value)

    def complete(self, text: str) -> list[str]:
        """Return what may stand after the last comma of a text that is being typed."""
        last = text.rpartition(",")[2]
        return [word for word in self.words if word.startswith(last)]


class Integer(Grammar):
    """A whole number within bounds."""

    placeholder = "N"

    def __init__(self, minimum: int, maximum: int | None = None, *, words: Sequence[str] = ()) -> None:
        self.minimum, self.maximum, self.words = minimum, maximum, tuple(words)
        self.is_explained = bool(words)
        bounds = f"from {minimum} to {maximum}" if maximum is not None else f"of {minimum} or more"
        self.allowed = join([f"a whole number {bounds}", *words], "or")

    def parse(self, text: str) -> int | str:
        if text in self.words:
            return text
        if not re.fullmatch(r"[+-]?[0-9]{1,18}", text):
            raise ValueError
        return self._bounded(int(text))

    def convert(self, value: Any) -> int | str:
        if isinstance(value, str):
            return self.parse(value)
        if isinstance(value, bool):
            raise TypeError  # True is the number 1 to Python, and a slip here
        return self._bounded(operator.index(value))

    def _bounded(self, number: int) -> int:
        if number < self.minimum or (self.maximum is not None and number > self.maximum):
            raise ValueError
        return number


class Seconds(Grammar):
    """A time in seconds."""

    placeholder = "SECONDS"

    def __init__(self, *, or_zero: bool) -> None:
        self.or_zero = or_zero
        self.allowed = "a number of seconds, 0 or more" if or_zero else "a number of seconds above 0"

    def parse(self, text: str) -> float:
        if not re.fullmatch(r"[0-9.eE+-]+", text):
            raise ValueError
        return self._bounded(float(text))

    def convert(self, value: Any) -> float:
        if isinstance(value, str):
            return self.parse(value)
        if isinstance(value, bool):
            raise TypeError
        return self._bounded(float(value))

    def format(self, value: float) -> str:
        return f"{value:g}"

    def _bounded(self, seconds: float) -> float:
        if not math.isfinite(seconds) or seconds < 0 or (seconds == 0 and not self.or_zero):
            raise ValueError
        return seconds


class Flag(Grammar):
    """Yes or no; the option's name alone is yes."""

    allowed = "true or false"
    placeholder = ""
    words = ("true", "false")
    is_flag = True
    _meanings: Mapping[str, bool] = {
        "true": True,
        "yes": True,
        "on": True,
        "1": True,
        "false": False,
        "no": False,
        "off": False,
        "0": False,
    }

    def parse(self, text: str) -> bool:
        if (word := text.lower()) not in self._meanings:
            raise ValueError
        return self._meanings[word]

    def convert(self, value: Any) -> bool:
        return self.parse(str(value))

    def format(self, value: bool) -> str:  # noqa: FBT001 - the value of a flag is a truth value
        return "true" if value else "false"


class Text(Grammar):
    """Free text, or text of a given form."""

    is_free_text = True

    def __init__(self, allowed: str, pattern: str = r"[^\0\n]+", *, placeholder: str = "TEXT") -> None:
        self.allowed, self.pattern, self.placeholder = allowed, pattern, placeholder

    def parse(self, text: str) -> str:
        if not re.fullmatch(self.pattern, text):
            raise ValueError
        return text

    def convert(self, value: Any) -> str:
        if isinstance(value, int) and not isinstance(value, bool):
            return self.parse(str(value))
        return self.parse(os.fspath(value))


class Choice(Grammar):
    """One of a few words. `refused` maps words that could be meant to the reason why they are not taken."""

    def __init__(self, *words: str, refused: Mapping[str, str] | None = None, same: Mapping[str, str] | None = None) -> None:
        self.words, self.refused, self.same = words, refused or {}, same or {}
        self.allowed = join(words, "or")
        self.placeholder = "|".join(words)

    def parse(self, text: str) -> str:
        word = self.same.get(text.lower(), text)
        if word in self.refused:
            raise RefusalError(self.refused[word])
        if word not in self.words:
            raise ValueError
        return word

    def convert(self, value: Any) -> str:
        if not isinstance(value, (str, bool)):
            raise TypeError
        return self.parse(str(value))


class Backend(Choice):
    """A backend of torch.distributed, or one for each type of device."""

    def __init__(self) -> None:
        super().__init__("auto", "nccl", "gloo", "mpi")
        self.allowed += ", or one for each type of device such as cpu:gloo,cuda:nccl"

    def parse(self, text: str) -> str:
        return text if re.fullmatch(r"[a-z]+:[a-z]+(,[a-z]+:[a-z]+)*", text) else super().parse(text)


class Nodes(Grammar):
    """The number of nodes, or a range of it."""

    allowed = "a number of nodes N, or a range MIN:MAX, with 1 <= MIN <= MAX"
    placeholder = "N|MIN:MAX"

    def parse(self, text: str) -> tuple[int, int]:
        numbers = re.fullmatch(r"([0-9]{1,9})(?::([0-9]{1,9}))?", text)
        if not numbers:
            raise ValueError
        least, most = int(numbers[1]), int(numbers[2] or numbers[1])
        if not 1 <= least <= most:
            raise ValueError
        return least, most

    def convert(self, value: Any) -> tuple[int, int]:
        if isinstance(value, (tuple, list)):
            return self.parse(":".join(map(str, value)))
        return self.parse(str(value))

    def format(self, value: tuple[int, int]) -> str:
        return str(value[0]) if value[0] == value[1] else f"{value[0]}:{value[1]}"


class StdStreams(Grammar):
    """Which standard streams: torch's `Std` grammar, with ranks of any number of digits."""

    allowed = "0 (none), 1 (stdout), 2 (stderr) or 3 (both), or such a number for each local rank, as in 0:1,10:3"
    placeholder = "STREAMS"
    is_explained = True
    words = ("0", "1", "2", "3")

    def parse(self, text: str) -> int | dict[int, int]:
        if re.fullmatch(r"[0-3]", text):
            return int(text)
        pairs = [re.fullmatch(r"\s*([0-9]{1,9}):([0-3])\s*", part) for part in text.split(",")]
        streams = {int(pair[1]): int(pair[2]) for pair in pairs if pair}
        if len(streams) < len(pairs):
            raise ValueError  # a part that is no pair, or a rank named twice
        return streams

    def convert(self, value: Any) -> int | dict[int, int]:
        if isinstance(value, str):
            return self.parse(value)
        if isinstance(value, Mapping):
            return self.parse(self.format(value)) if value else 0  # type: ignore[arg-type]
        return self.parse(str(int(operator.index(value))))  # an IntFlag such as torch's Std is a number

    def format(self, value: int | dict[int, int]) -> str:
        if isinstance(value, Mapping):
            return ",".join(f"{rank}:{int(streams)}" for rank, streams in value.items())
        return str(int(value))


class Numbers(Grammar):
    """Whole numbers, each once."""

    placeholder = "N,…"

    def __init__(self, allowed: str) -> None:
        self.allowed = allowed

    def parse(self, text: str) -> tuple[int, ...]:
        parts = [part.strip() for part in text.split(",")]
        if not all(re.fullmatch(r"[0-9]{1,9}", part) for part in parts):
            raise ValueError
        return tuple(dict.fromkeys(map(int, parts)))

    def convert(self, value: Any) -> tuple[int, ...]:
        if isinstance(value, str):
            return self.parse(value)
        items = value if isinstance(value, (list, tuple, set, frozenset)) else [value]
        return self.parse(",".join(str(operator.index(item)) for item in items))

    def format(self, value: Sequence[int]) -> str:
        return ",".join(map(str, value))


class KeyValues(Grammar):
    """Names with values. With `commas_in_values` a part without `=` belongs to the value before it."""

    placeholder = "NAME=VALUE,…"

    def __init__(self, *, commas_in_values: bool = False) -> None:
        self.commas_in_values = commas_in_values
        self.allowed = "NAME=VALUE, or several joined by commas, or a dict"

    def parse(self, text: str) -> dict[str, str]:
        pairs: dict[str, str] = {}
        name = ""
        for part in text.split(",") if text.strip() else ():
            key, equals, value = part.partition("=")
            if equals:
                name = key.strip()
                self._add(pairs, name, value)
            elif self.commas_in_values and name:
                pairs[name] += f",{part}"
            else:
                raise ValueError
        return pairs

    def convert(self, value: Any) -> dict[str, str]:
        if isinstance(value, str):
            return self.parse(value)
        if not isinstance(value, Mapping):
            raise TypeError
        pairs: dict[str, str] = {}
        for key, item in value.items():
            if not isinstance(item, (str, int, float, os.PathLike)):
                raise TypeError
            self._add(pairs, key, os.fspath(item) if isinstance(item, os.PathLike) else str(item))
        return pairs

    def format(self, value: Mapping[str, str]) -> str:
        return ",".join(f"{name}={item}" for name, item in value.items())

    def _add(self, pairs: dict[str, str], name: str, value: str) -> None:
        if not re.fullmatch(r"[A-Za-z_][\w.-]*", name) or "\0" in value or name in pairs:
            raise ValueError
        pairs[name] = value


class Names(Grammar):
    """Names of modules, or the modules themselves."""

    allowed = "names of packages or modules, joined by commas, or a list of them"
    placeholder = "NAME,…"

    def parse(self, text: str) -> tuple[str, ...]:
        names = tuple(name.strip() for name in text.split(","))
        if not all(part.isidentifier() for name in names for part in name.split(".")):
            raise ValueError
        return names

    def convert(self, value: Any) -> tuple[str, ...]:
        if isinstance(value, str):
            return self.parse(value)
        items = value if isinstance(value, (list, tuple, set, frozenset)) else [value]
        return tuple(name for item in items for name in self.parse(item if isinstance(item, str) else str(item.__name__)))

    def format(self, value: Sequence[str]) -> str:
        return ",".join(value)


class Preload(Names):
    """Names of modules, or a word for them."""

    words = ("auto", "no")
    allowed = "auto, no, or names of packages or modules, joined by commas"
    placeholder = "auto|no|NAME,…"

    def parse(self, text: str) -> tuple[str, ...] | str:  # type: ignore[override] # a word instead of names
        return text if text in self.words else super().parse(text)

    def format(self, value: Sequence[str] | str) -> str:
        return value if isinstance(value, str) else super().format(value)


class Name(Grammar):
    """A variable's name."""

    allowed = "the name of a Python variable"
    placeholder = "NAME"
    is_free_text = True

    def parse(self, text: str) -> str:
        if not text.isidentifier() or keyword.iskeyword(text):
            raise ValueError
        return text


class Expression(Grammar):
    """A Python expression over the notebook, whose value `check` accepts or turns into the right type."""

    placeholder = "EXPRESSION"
    is_expression = True

    def __init__(self, allowed: str, check: Callable[[Any], Any]) -> None:
        self.allowed, self.check = allowed, check

    def convert(self, value: Any) -> Any:
        return self.check(value)

    def format(self, value: Any) -> str:
        return repr(value)
