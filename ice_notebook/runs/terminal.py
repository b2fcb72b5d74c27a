"""What a terminal would show of a rank's output: bytes of a pty to lines, with redrawn lines and colours, in bounded memory.

A line is text with colour sequences (`ESC[…m`, each one complete in itself) and nothing else that steers a terminal. A line that was drawn
over, as a progress bar is, starts with `REDRAWN`. Lines are counted from 0; the newest `LIVE_LINES` can still change.
"""

from __future__ import annotations

import codecs
import re
import unicodedata
from collections.abc import Iterator
from functools import lru_cache
from itertools import groupby
from typing import NamedTuple

LIVE_LINES = 50  # as far up as a program can move: more than any stack of progress bars
MAX_COLUMNS = 4000  # what a line has beyond this is dropped, unless all of it is wanted
MAX_ESCAPE = 4096  # characters of an unfinished escape sequence that are kept for the next read
REDRAWN = "\r"
ELLIPSIS = "…"

# What makes a chunk more than plain text: every control character but tab, newline, and the carriage return that a pty puts before it.
_STEERING = bytes([*range(0x09), 0x0B, 0x0C, *range(0x0E, 0x20), 0x7F])

# Titles, hyperlinks and other strings for the terminal itself begin so, and end with BEL or ST; a new line or a new sequence ends one that
# was forgotten, so that it swallows no line.
_STRING = r"\x1b[\]PX^_]"
_IN_STRING = r"[^\x07\x18\x1a\x1b\r\n]*"
_TOKEN = re.compile(
    r"(?P<text>[^\x00-\x08\x0a-\x1f\x7f]+)"
    r"|\x1b\[(?P<parameters>[0-?]*)[ -/]*(?P<command>[@-~])"
    rf"|{_STRING}{_IN_STRING}(?:\x07|\x1b\\)?"
    r"|\x1b[ -/]*[0-~]"
    r"|(?P<control>[\x00-\x1f\x7f])",
)
_REST_OF_STRING = re.compile(rf"{_IN_STRING}(?P<end>\x07|\x1b\\)?")
_UNFINISHED = re.compile(r"\x1b(?:\[[0-?]*[ -/]*|[ -/]*)\Z")
_UNFINISHED_STRING = re.compile(rf"{_STRING}{_IN_STRING}(?P<rest>\x1b?)\Z")
# The controls that have 8 bits are those with 7 and an ESC before them.
_HIGH_CONTROLS = re.compile(r"[\x80-\x9f]")
_LOW_CONTROLS = {number: f"\x1b{chr(number - 0x40)}" for number in range(0x80, 0xA0)}
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


def is_plain(data: bytes) -> bool:
    r"""Return whether bytes are text and newlines alone, which are read at memory speed. A last `\\r` may be half a newline."""
    if len(data.translate(None, _STEERING)) != len(data):
        return False
    return data.count(b"\r") - data.endswith(b"\r") == data.count(b"\r\n")


def plain_text(line: str) -> str:
    """Return a line without colours and marks."""
    return _COLOUR.sub("", line.lstrip(REDRAWN))


class Style(NamedTuple):
    """How characters are drawn, as far as SGR sequences say. Each attribute appears once, so that a line's size is bounded."""

    flags: tuple[int, ...] = ()
    foreground: str = ""
    background: str = ""

    @property
    def codes(self) -> str:
        """Return the parameters that turn plain drawing into this style: `1;38;5;200`."""
        return ";".join([*map(str, self.flags), *filter(None, (self.foreground, self.background))])


_OFF = {21: (1,), 22: (1, 2), 23: (3,), 24: (4,), 25: (5,), 27: (7,), 28: (8,), 29: (9,)}


@lru_cache(maxsize=1024)
def style_after(style: Style, parameters: str) -> Style:
    """Return a style changed by the parameters of one SGR sequence; what is unknown changes nothing."""
    numbers = iter([int(number) if number.isdecimal() else 0 for number in parameters[:256].replace(":", ";").split(";")])
    flags, foreground, background = set(style.flags), style.foreground, style.background
    for number in numbers:
        if number == 0:
            flags, foreground, background = set(), "", ""
        elif number <= 9:
            flags.add(number)
        elif number in _OFF:
            flags.difference_update(_OFF[number])
        elif 30 <= number <= 37 or 90 <= number <= 97:
            foreground = str(number)
        elif 40 <= number <= 47 or 100 <= number <= 107:
            background = str(number)
        elif number == 38:
            foreground = _long_colour(number, numbers)
        elif number == 48:
            background = _long_colour(number, numbers)
        elif number == 39:
            foreground = ""
        elif number == 49:
            background = ""
    return Style(tuple(sorted(flags)), foreground, background)


def _long_colour(number: int, numbers: Iterator[int]) -> str:
    length = {5: 1, 2: 3}.get(next(numbers, 0), 0)
    parts = [part for _, part in zip(range(length), numbers, strict=False)]
    if not length or len(parts) < length or max(parts) > 255:
        return ""
    return ";".join(map(str, (number, 5 if length == 1 else 2, *parts)))


class _Row:
    """A line that is being drawn, one entry per column. A wide character takes two, the second one empty."""

    __slots__ = ("_limit", "cells", "is_redrawn", "styles")

    def __init__(self, text: str = "", limit: int = MAX_COLUMNS) -> None:
        self._limit = limit
        self.cells = _cells(text)
        self.styles = [""] * len(self.cells)
        self.is_redrawn = False

    def write(self, column: int, cells: list[str], style: str) -> None:
        if column < len(self.cells):
            # tqdm wipes its bar with spaces before it lets a line be printed in its place: that line is no bar.
            if not _is_blank(self.cells[column : column + len(cells)]):
                self.is_redrawn = True
            elif _is_blank(self.cells):
                self.is_redrawn = False
        else:
            self._pad(column)
        if len(cells) > self._limit - column:
            column = min(column, self._limit - 1)
            cells = [*cells[: self._limit - 1 - column], ELLIPSIS]
        end = column + len(cells)
        if column < len(self.cells) and not self.cells[column]:
            self.cells[column - 1] = " "  # half of a wide character is none
        if end < len(self.cells) and not self.cells[end]:
            self.cells[end] = " "
        self.cells[column:end] = cells
        self.styles[column:end] = [style] * len(cells)

    def erase(self, start: int, end: int | None) -> None:
        if start < len(self.cells):
            self.is_redrawn = True
        if end is None:
            del self.cells[start:], self.styles[start:]
        else:
            self._pad(end)
            self.cells[start:end] = [" "] * (end - start)
            self.styles[start:end] = [""] * (end - start)

    def text(self) -> str:
        mark = REDRAWN if self.is_redrawn else ""
        if not any(self.styles):
            return mark + "".join(self.cells)
        parts = [mark]
        at = 0
        for style, group in groupby(self.styles):
            length = sum(1 for _ in group)
            if style or at:
                parts.append(f"\x1b[0;{style}m" if style else "\x1b[m")
            parts += self.cells[at : at + length]
            at += length
        return "".join(parts)

    def _pad(self, column: int) -> None:
        missing = min(column, MAX_COLUMNS) - len(self.cells)
        if missing > 0:
            self.cells += [" "] * missing
            self.styles += [""] * missing


def _is_blank(cells: list[str]) -> bool:
    return not "".join(cells).strip()


def _cells(text: str) -> list[str]:
    if text.isascii():
        return list(text)
    cells: list[str] = []
    for character in text:
        if unicodedata.combining(character) or unicodedata.category(character) in {"Mn", "Me", "Cf"}:
            if cells:
                # Sixteen marks on one character are more than any script has; without a bound one cell could grow for ever.
                cells[-1] = (cells[-1] + character)[:16]
        elif unicodedata.east_asian_width(character) in "WF":
            cells += [character, ""]
        else:
            cells.append(character)
    return cells


class Terminal:
    """One rank's terminal.

    `first` is the number of the first live line; what came before it is finished and was returned by `feed`. `changed` is the number of
    the lowest line that the last call changed. A line number, once given, keeps its line. `limit` is the most that a line holds.
    """

    def __init__(self, first: int = 0, *, limit: int = MAX_COLUMNS, encoding: str = "utf-8", errors: str = "replace") -> None:
        self.first = first
        self.limit = limit
        self.encoding, self.errors = encoding, errors
        self.changed = first
        # Rows stay plain strings until something is drawn over them or in colour: most never are.
        self._rows: list[str | _Row] = [""]
        self._y = 0
        self._x: int | None = None  # None: at the end of the row, wherever that is
        self._style = Style()
        self._returned = False  # a carriage return came, and no newline yet
        self._half = b""  # a carriage return that may belong to a newline
        self._rest = ""  # an unfinished escape sequence
        self._is_in_string = False  # what comes is for the terminal itself, up to the end of the string
        self._decoder = codecs.getincrementaldecoder(encoding)(errors)

    @property
    def end(self) -> int:
        """Return the number after the last line. The line that the cursor waits on, still empty, is not counted."""
        return self.first + len(self._rows) - self.is_waiting

    @property
    def is_waiting(self) -> bool:
        """Return whether the last line has not begun."""
        return self._rows[-1] == ""

    @property
    def last(self) -> int:
        """Return the number of the last line, also when it has not begun."""
        return self.first + len(self._rows) - 1

    @property
    def plain_length(self) -> int:
        """Return how long the last line is so far, 0 for one that is not plain text."""
        row = self._rows[-1]
        return len(row) if isinstance(row, str) and self.is_at_end else 0

    @property
    def is_at_end(self) -> bool:
        """Return whether another terminal could go on from the beginning of the last line: nothing above it can change what is drawn."""
        return self._y == len(self._rows) - 1 and self._style == Style() and not self._rest and not self._is_in_string

    def live(self) -> list[str]:
        """Return the lines from `first` to `end`."""
        return [row if isinstance(row, str) else row.text() for row in self._rows[: self.end - self.first]]

    def feed(self, data: bytes) -> list[str]:
        """Draw the next bytes and return the lines that thereby became final, oldest first.

        Bytes may be split anywhere, inside a character or an escape sequence; the lines do not depend on it.
        """
        is_appending = (
            not self._rest
            and not self._is_in_string
            and self._y == len(self._rows) - 1
            and self._x is None
            and self._style == Style()
        )
        data, self._half = self._half + data, b""
        if data.endswith(b"\r"):
            data, self._half = data[:-1], b"\r"
        text = self._decoder.decode(data)
        if not text.isascii() and _HIGH_CONTROLS.search(text):
            self._draw(text.translate(_LOW_CONTROLS))
        elif is_appending and is_plain(data):
            self._append(text)
        else:
            self._draw(text)
        return self._trim()

    def _append(self, text: str) -> None:
        """Add plain text to the end of the last row."""
        self.changed = self.first + len(self._rows) - 1
        lines = text.replace("\r\n", "\n").split("\n")
        if len(text) > self.limit:
            lines = [self._bounded(line) for line in lines]
        last = self._rows[-1]
        if isinstance(last, _Row):
            if lines[0]:
                last.write(len(last.cells), _cells(lines[0]), "")
        elif lines[0]:
            self._rows[-1] = self._bounded(last + lines[0])
        self._rows += lines[1:]
        self._y = len(self._rows) - 1

    def _draw(self, text: str) -> None:
        text = self._leave_string(self._rest + text)
        end = self._find_unfinished(text)
        self._settle()
        self.changed = self.first + self._y
        for token in _TOKEN.finditer(text, 0, end):
            kind = token.lastgroup
            if kind == "text":
                self._write(token.group())
            elif kind == "command":
                self._command(token["command"], token["parameters"])
            elif kind == "control":
                self._control(token.group())
            self.changed = min(self.changed, self.first + self._y)
        if self._y == len(self._rows) - 1 and not self._returned and self._x == _width(self._rows[-1]):
            self._x = None

    def _leave_string(self, text: str) -> str:
        """Return what follows the string for the terminal that goes on; nothing as long as it does."""
        self._rest = ""
        if not self._is_in_string:
            return text
        string = _REST_OF_STRING.match(text)
        assert string is not None
        rest = text[string.end() :]
        if rest == "\x1b":  # perhaps half of its end
            self._rest = rest
            return ""
        self._is_in_string = not rest and string["end"] is None
        return rest

    def _find_unfinished(self, text: str) -> int:
        """Return where the escape sequence begins that a text ends in, and keep it for the next; the text's end when it ends in none."""
        if self._is_in_string:
            return len(text)
        if (string := _UNFINISHED_STRING.match(text, max(0, text.rfind("\x1b", 0, len(text) - text.endswith("\x1b"))))) is not None:
            self._is_in_string, self._rest = True, string["rest"]
            return string.start()
        unfinished = _UNFINISHED.search(text, max(0, len(text) - MAX_ESCAPE))
        self._rest = unfinished.group() if unfinished else ""
        return unfinished.start() if unfinished else len(text)

    def _settle(self) -> None:
        """Turn the cursor's place into a column."""
        if self._x is None:
            self._x = min(_width(self._rows[self._y]), self.limit)

    def _bounded(self, line: str) -> str:
        return line if len(line) <= self.limit else line[: self.limit - 1] + ELLIPSIS

    def _reach(self) -> int:
        """Return how far to the right the cursor may be moved, other than by writing: a line must not get long by that alone."""
        return min(self.limit, max(MAX_COLUMNS, _width(self._rows[self._y])))

    def _row(self) -> _Row:
        row = self._rows[self._y]
        if isinstance(row, str):
            row = self._rows[self._y] = _Row(row, self.limit)
        return row

    def _write(self, text: str) -> None:
        column = self._x or 0
        if not self._returned and not self._style.codes and self._rows[self._y] == "" and column == 0 and text.isascii():
            self._rows[self._y] = self._bounded(text)
            self._x = min(len(text), self.limit)
            return
        cells = _cells(text)
        row = self._row()
        if self._returned and not row.cells:
            row.is_redrawn = True  # a bar's first state: lines of other kinds do not begin with a carriage return
        row.write(column, cells, self._style.codes)
        self._x = min(column + len(cells), self.limit)

    def _control(self, control: str) -> None:
        if control == "\n":
            self._y += 1
            self._x = 0
            self._returned = False
            if self._y == len(self._rows):
                self._rows.append("")
        elif control == "\r":
            self._x = 0
            self._returned = True
        elif control == "\b":
            self._x = max(0, (self._x or 0) - 1)

    def _command(self, command: str, parameters: str) -> None:
        if command == "m":
            if not parameters.startswith(("?", ">", "<", "=")):
                self._style = style_after(self._style, parameters)
            return
        first = parameters.split(";", 1)[0][:6]
        number = int(first) if first.isdecimal() else 0
        column = self._x or 0
        if command in "AF":
            self._y = max(0, self._y - max(1, number))
        elif command in "BE":
            self._y = min(len(self._rows) - 1, self._y + max(1, number))
        elif command == "C":
            self._x = min(self._reach(), column + max(1, number))
        elif command == "D":
            self._x = max(0, column - max(1, number))
        elif command == "G":
            self._x = min(self._reach(), max(1, number) - 1)
        elif command == "K":
            self._erase(number)
        elif command == "J" and number == 0:
            self._erase(0)
            for y in range(self._y + 1, len(self._rows)):
                if self._rows[y]:
                    self._rows[y] = _Row(limit=self.limit)
        if command in "EF":
            self._x = 0

    def _erase(self, which: int) -> None:
        if not self._rows[self._y]:
            return
        column = self._x or 0
        if which == 0:
            self._row().erase(column, None)
        elif which == 1:
            self._row().erase(0, min(column + 1, self._reach()))
        elif which == 2:
            self._row().erase(0, None)

    def _trim(self) -> list[str]:
        surplus = len(self._rows) - LIVE_LINES
        if surplus <= 0:
            return []
        # A cursor that was moved far up cannot follow its line out of reach; it stays on the topmost line that is left.
        finished = [row if isinstance(row, str) else row.text() for row in self._rows[:surplus]]
        del self._rows[:surplus]
        self.first += surplus
        self._y = max(0, self._y - surplus)
        return finished


def _width(row: str | _Row) -> int:
    if isinstance(row, _Row):
        return len(row.cells)
    return len(row) if row.isascii() else len(_cells(row))
