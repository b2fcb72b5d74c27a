"""A stream of a rank as lines that are printed for good: each once, as soon as it is whole, and none before.

A progress bar is a line that is drawn over. Where there is a foot it stands there until it is done; elsewhere each of its states that stands for
a second is printed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from ice_notebook.runs.rank_output import Piece
from ice_notebook.runs.terminal import MAX_COLUMNS, REDRAWN, Terminal

REDRAW_S = 1.0  # between two states of a progress bar
UNFINISHED_S = 10.0  # a line that is not whole after so long is shown as far as it has come, and again when it is whole
UNFINISHED_CHARACTERS = MAX_COLUMNS  # one that has so many is no prompt
EARLY_S = 0.001  # by which a wait may end too soon
LONG_CHARACTERS = 1 << 20  # a line of more is not held in memory, but copied from the file when it is whole
MOST_COLUMNS = 1 << 24  # of a line that is drawn with colours, or over: such a one is held in memory


@dataclass(frozen=True)
class LongLine:
    """A line that is as long as it likes: what the file has from a byte on, up to another."""

    start: int
    end: int | None  # None: all that there is
    is_stderr: bool


@dataclass
class _Line:
    text: str
    seen_at: float
    printed: str | None = None
    printed_at: float = 0.0


class PrintedLines:
    """See the module. With `has_foot`, what still moves is left to the foot: `moving`."""

    def __init__(
        self,
        *,
        has_foot: bool = False,
        is_bounded: bool = False,
        is_stderr: bool = False,
        encoding: str = "utf-8",
        errors: str = "surrogateescape",
    ) -> None:
        self._has_foot = has_foot
        self._is_bounded = is_bounded
        self.is_stderr = is_stderr
        self._terminal = Terminal(limit=MAX_COLUMNS if is_bounded else MOST_COLUMNS, encoding=encoding, errors=errors)
        self._ready: list[tuple[int, str] | LongLine | str] = []  # what will not change any more, lines with their numbers
        self._lines: dict[int, _Line] = {}  # that still can
        self._line_at: int | None = 0  # where in the file the last line begins
        self._long_at: int | None = None  # the same of one that is too long for memory, as long as it has not ended

    def feed(self, piece: Piece) -> None:
        """Take more output."""
        data = piece.data
        if self._long_at is not None:
            newline = data.find(b"\n")
            if newline < 0:
                return
            self._end_long(piece.at + newline if piece.is_in_file else piece.at)
            piece = piece._replace(data=data[newline + 1 :], at=piece.at + newline + 1) if piece.is_in_file else piece
            data, self._line_at = piece.data, piece.at
        if (newline := data.rfind(b"\n")) >= 0 or not piece.is_in_file:
            self._line_at = piece.at + newline + 1 if piece.is_in_file else None
        first = self._terminal.first
        self._ready += enumerate(self._terminal.feed(data), first)
        if not self._is_bounded and self._line_at is not None and self._terminal.plain_length > LONG_CHARACTERS:
            self._settle()
            self._long_at = self._line_at

    def lose(self, note: str = "") -> None:
        """Take note that output is left out: what comes begins a new line, behind a note if there is one."""
        if self._long_at is not None:
            self._end_long(None)
        self._settle()
        self._line_at = None
        self._ready += [note] * bool(note)

    def due(self, now: float, *, is_over: bool = False) -> Iterator[str | LongLine]:
        """Yield what is to be printed now; of a stream that is over, all that is left."""
        if is_over and self._long_at is not None:
            self._end_long(None)
        for ready in self._ready:
            yield from self._take(*ready, now) if isinstance(ready, tuple) else [ready]
        self._ready.clear()
        first = self._terminal.first
        for number in [number for number in self._lines if number < first]:
            del self._lines[number]
        live = self._terminal.live()
        for number, text in enumerate(live, first):
            line = self._lines.setdefault(number, _Line(text, now))
            line.text = text
        due = [
            n for n in range(first, first + len(live)) if is_over or ((at := self._due_at(n)) is not None and at <= now + EARLY_S)
        ]
        # What stands above a line that is printed comes before it: a bar that is full, and is followed by the next epoch's words.
        last = max((n for n in due if not self._lines[n].text.startswith(REDRAWN)), default=-1)
        for number in range(first, first + len(live)):
            if number in due or number < last:
                yield from self._take(number, self._lines[number].text, now)

    @property
    def wanted_at(self) -> float | None:
        """Return when something is to be printed although nothing changes, None when nothing is."""
        first, end = self._terminal.first, self._terminal.end
        return min((at for n in range(first, end) if n in self._lines and (at := self._due_at(n)) is not None), default=None)

    def moving(self) -> list[str]:
        """Return the bars, and the line that is not whole, at the end of what was printed."""
        lines: list[str] = []
        for number, text in reversed([*enumerate(self._terminal.live(), self._terminal.first)]):
            line = self._lines.get(number)
            is_bar = text.startswith(REDRAWN)
            is_whole = number < self._terminal.last
            if (is_whole and not is_bar) or (line is not None and line.printed == text):
                break
            lines.insert(0, text.removeprefix(REDRAWN))
        return [line for line in lines if line.strip()]

    def _due_at(self, number: int) -> float | None:
        line = self._lines[number]
        if line.printed == line.text:
            return None
        is_whole = number < self._terminal.last
        if self._has_foot and (line.text.startswith(REDRAWN) or not is_whole):
            return None
        if is_whole and not line.text.startswith(REDRAWN):
            return line.seen_at
        if len(line.text) > UNFINISHED_CHARACTERS:
            return None
        wait_s = REDRAW_S if line.text.startswith(REDRAWN) else UNFINISHED_S
        return (line.seen_at if line.printed is None else line.printed_at) + wait_s

    def _take(self, number: int, text: str, now: float) -> Iterable[str]:
        line = self._lines.get(number)
        if line is not None:
            if line.printed == text:
                return
            line.printed, line.printed_at = text, now
        shown = text.removeprefix(REDRAWN)
        # A bar that wiped itself away leaves a blank line, which says nothing.
        if shown.strip() or not text.startswith(REDRAWN):
            yield shown

    def _settle(self) -> None:
        """Finish all lines but the last, which is left out, and go on with an empty terminal."""
        terminal = self._terminal
        self._ready += enumerate(terminal.live()[: terminal.last - terminal.first], terminal.first)
        self._terminal = Terminal(terminal.last + 1, limit=terminal.limit, encoding=terminal.encoding, errors=terminal.errors)

    def _end_long(self, end: int | None) -> None:
        assert self._long_at is not None
        self._ready.append(LongLine(self._long_at, end, self.is_stderr))
        self._long_at = None
