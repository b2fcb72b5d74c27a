"""The foot of a terminal: some lines below all others, which are drawn over in place. Nothing but colours steers the terminal besides."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Protocol

from ice_notebook.runs.terminal import plain_text

_WIDTH, _HEIGHT = 80, 24  # where a terminal does not say
# Behind a blank: tmux takes what is erased from the first cell on for a whole screen, and keeps a copy of it in its history.
_ERASE_BELOW = "\r \x1b[J\r"
# No line of the foot wraps, whatever its characters' widths are to this terminal.
_NO_WRAP, _WRAP = "\x1b[?7l", "\x1b[?7h"
# What steers a terminal but for whole colours, and what turns the order in which a line is read.
_STEERING = re.compile("\x1b(?!\\[[0-9;]*m)|[\x00-\x08\x0b-\x1a\x1c-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
_NARROW_BELOW, _BLOCKS = "\u0300", ("\u2500", "\u259f")  # one column each; progress bars are drawn with the second
_EMOJI_PRESENTATION = "\ufe0f"


class Screen(Protocol):
    """What a foot is drawn on: a stream, or what writes to one."""

    def write(self, text: str, /) -> object:
        """Write text."""

    def flush(self) -> object:
        """See that it is shown."""

    def fileno(self) -> int:
        """Return the descriptor of a terminal."""


class Foot:
    """Writes lines to a terminal and keeps others below them.

    The cursor waits at the beginning of the foot's first line. A window that gets narrower may break the foot's lines, and moves the cursor
    with the line that it is in: what is below it is the foot, however many rows that has become.
    """

    def __init__(self, screen: Screen) -> None:
        self._screen = screen
        self._shown: tuple[str, ...] = ()

    def write(self, lines: Sequence[str], foot: Sequence[str]) -> None:
        """Write lines for good, and the foot anew if it changed or had to make room. An empty foot is erased."""
        columns, rows = self.size()
        # One row stays for the last line above it.
        wanted = tuple(cut(tame(plain_text(line)).replace("\n", " "), columns) for line in foot[: max(1, rows - 2)])
        if not lines and wanted == self._shown:
            return
        text = _ERASE_BELOW if self._shown else ""
        text += "".join(f"{tame(line)}\n" for line in lines)
        if wanted:
            up = f"\x1b[{len(wanted) - 1}A" if len(wanted) > 1 else ""
            text += _NO_WRAP + "\n".join(wanted) + _WRAP + up + "\r"
        self._screen.write(text)
        self._screen.flush()
        self._shown = wanted

    def size(self) -> tuple[int, int]:
        """Return columns and rows of the terminal."""
        try:
            size = os.get_terminal_size(self._screen.fileno())
        except (OSError, ValueError):  # it is no terminal of this machine's
            return _WIDTH, _HEIGHT
        return size.columns or _WIDTH, size.lines or _HEIGHT


def tame(line: str) -> str:
    """Return a line without anything that steers a terminal but colours."""
    return _STEERING.sub("", line)


def cut(line: str, columns: int) -> str:
    """Return as much of a line as fits into a number of columns. Joined characters count one by one, as some terminals draw them."""
    if line.isascii() and len(line) <= columns:
        return line
    room = columns
    before = ""
    for at, character in enumerate(line):
        # A terminal may show a character as an emoji, two columns wide, because of the one behind it.
        room -= 2 - columns_of(before) if character == _EMOJI_PRESENTATION and before else columns_of(character)
        if room < 0:
            return line[:at]
        before = character
    return line


@lru_cache(maxsize=4096)
def columns_of(character: str) -> int:
    """Return how many columns a terminal gives a character."""
    if character < _NARROW_BELOW or _BLOCKS[0] <= character <= _BLOCKS[1]:
        return 1
    from wcwidth import wcwidth  # noqa: PLC0415 - its tables take time to load, and most lines need none

    return max(0, int(wcwidth(character)))
