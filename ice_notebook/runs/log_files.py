"""A rank's log file as numbered lines: where they begin, any part of them read back as a terminal shows it, and a search through all.

Whoever reads the output live counts lines and leaves marks here; the file itself holds bytes. Between two marks lines are counted anew. A
program that moves its cursor up, as nested progress bars do, writes more newlines than lines; the next mark sets that right.
"""

from __future__ import annotations

import bisect
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from ice_notebook.runs.terminal import REDRAWN, Terminal, plain_text

MARK_LINES = 500  # marks are no closer than this, so that reading a part interprets little more than is wanted
MOST_MARKS = 8_192  # every second one is dropped beyond this
_READ_BYTES = 256 * 1024
HIT_CHARACTERS = 300
END_BYTES = 64 * 1024  # of output that nobody sent: enough for any last words
NOT_KEPT = "… (not in the log file: no room on its disk)"  # stands for a line that is read back


class Hit(NamedTuple):
    """A line that a search has found."""

    line: int
    text: str


class LogFile:
    """The log file of one rank in one attempt. `first` is the number of its first line."""

    def __init__(self, path: Path, first: int) -> None:
        self.path = path
        self.first = first
        self._lines = [first]
        self._offsets = [0]
        self._after_gaps: set[int] = set()  # lines before which some are not in the file: its disk was full
        self._apart = MARK_LINES

    def mark(self, line: int, offset: int, *, is_needed: bool = False, is_after_gap: bool = False) -> None:
        """Note that a line begins at a byte. One that is not needed is left out when the last is near."""
        if line <= self._lines[-1] or (not is_needed and line - self._lines[-1] < self._apart):
            return
        if is_after_gap:
            if self._offsets[-1] == offset and self._lines[-1] in self._after_gaps:
                self._after_gaps.discard(self._lines.pop())
                self._offsets.pop()
            self._after_gaps.add(line)
        self._lines.append(line)
        self._offsets.append(offset)
        if len(self._lines) > MOST_MARKS:
            gaps = self._after_gaps if len(self._after_gaps) < MOST_MARKS // 4 else set[int]()
            kept = [at for at, marked in enumerate(self._lines) if at % 2 == 0 or marked in gaps]
            self._lines, self._offsets = [self._lines[at] for at in kept], [self._offsets[at] for at in kept]
            self._apart *= 2

    def count_newlines(self, start: int, end: int) -> tuple[int, int]:
        """Return how many newlines are in a range of bytes, and where what follows the last of them begins; 0 where it cannot be read."""
        newlines, after, at = 0, start, start
        for piece in self._pieces(start, end):
            newlines += piece.count(b"\n")
            if (last := piece.rfind(b"\n")) >= 0:
                after = at + last + 1
            at += len(piece)
        return newlines, after

    def copy(self) -> LogFile:
        """Return one with the same marks, for a thread of its own."""
        made = LogFile(self.path, self.first)
        made._lines, made._offsets, made._after_gaps = list(self._lines), list(self._offsets), set(self._after_gaps)
        return made

    def read(self, first: int, n: int) -> list[str]:
        """Return lines from a number on, at most `n`, as a terminal shows them; fewer where the file has no more, or cannot be read."""
        found: list[str] = []
        while len(found) < n:
            start = first + len(found)
            at = bisect.bisect_right(self._lines, start) - 1
            if at < 0:
                break
            lines = self._read_from(at, start - self._lines[at], n - len(found))
            if not lines:
                break
            found += lines
        return found

    def search(self, text: str, *, goes_on: Callable[[], bool] = lambda: True) -> Iterator[Hit]:
        """Yield the lines that hold a text, whatever the case of its letters, each once. Ends early when it shall not go on."""
        pattern = re.compile(re.escape(text).encode(), re.IGNORECASE)
        for at, marked in enumerate(self._lines):
            line = marked
            limit = self._lines[at + 1] if at + 1 < len(self._lines) else None
            rest = b""
            for piece in self._pieces(self._offsets[at], self._end_of(at)):
                if not goes_on():
                    return
                whole, newline, rest = (rest + piece).rpartition(b"\n")
                if newline:
                    yield from _hits(pattern, whole, line, limit)
                    line += whole.count(b"\n") + 1
            yield from _hits(pattern, rest, line, limit)

    # ---- steps

    def _read_from(self, at: int, skip: int, n: int) -> list[str]:
        """Return at most `n` lines from those after a mark, without the first `skip`, up to the next mark."""
        terminal = Terminal()
        lines: list[str] = []
        for piece in self._pieces(self._offsets[at], self._end_of(at)):
            lines += terminal.feed(piece)
            if len(lines) >= skip + n:
                return lines[skip : skip + n]
        lines += terminal.live()
        if at + 1 < len(self._lines):
            there = self._lines[at + 1] - self._lines[at]
            # Lines that were counted and then drawn over by a cursor that went up, or for which there was no room.
            filler = NOT_KEPT if self._lines[at + 1] in self._after_gaps else REDRAWN
            lines = lines[:there] + [filler] * (there - len(lines))
        return lines[skip : skip + n]

    def _end_of(self, at: int) -> int | None:
        return self._offsets[at + 1] if at + 1 < len(self._offsets) else None

    def _pieces(self, start: int, end: int | None) -> Iterator[bytes]:
        try:
            file = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:  # it was pruned, or is on a disk that is gone
            return
        try:
            while end is None or start < end:
                piece = os.pread(file, _READ_BYTES if end is None else min(_READ_BYTES, end - start), start)
                if not piece:
                    return
                start += len(piece)
                yield piece
        finally:
            os.close(file)


def read_end(path: Path, n_bytes: int) -> bytes:
    """Return whole lines from the end of a file, of its last `n_bytes`; nothing where it cannot be read."""
    try:
        with path.open("rb") as file:
            start = max(0, file.seek(0, os.SEEK_END) - min(n_bytes, END_BYTES))
            file.seek(start)
            end = file.read(END_BYTES)
    except OSError:
        return b""
    return end if n_bytes <= END_BYTES else end[end.find(b"\n") + 1 :]


def _hits(pattern: re.Pattern[bytes], data: bytes, line: int, limit: int | None) -> Iterator[Hit]:
    """Yield each line of `data`, whose first line has a number, that a pattern is found in."""
    counted = 0
    match = pattern.search(data)
    while match is not None:
        line += data.count(b"\n", counted, match.start())
        start = data.rfind(b"\n", 0, match.start()) + 1
        end = data.find(b"\n", match.end())
        counted = end if end >= 0 else len(data)
        if limit is not None and line >= limit:
            return
        yield Hit(line, _state_of_hit(data[start:counted], match.start() - start))
        match = pattern.search(data, counted)


def _state_of_hit(data: bytes, at: int) -> str:
    """Return the text around a place in a line; of one that was drawn over, the state in which it held that place."""
    begin = data.rfind(b"\r", 0, at) + 1
    end = data.find(b"\r", at)
    text = data[max(begin, at - HIT_CHARACTERS // 2) : end if end >= 0 else None][: 2 * HIT_CHARACTERS].decode(errors="replace")
    terminal = Terminal()
    terminal.feed(text.encode())
    return plain_text("".join(terminal.live()))[:HIT_CHARACTERS]
