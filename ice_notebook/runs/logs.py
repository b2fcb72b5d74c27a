"""What the kernel knows of a run's output: the newest lines of each rank, numbered, for views that read at their own pace.

The files in the run folder keep everything. Lines of a rank are counted from 0 over all attempts, also those that were skipped: a view sees
a gap in the numbers, and thereby how much it is not shown, and may have any part of it read back from the files. Feeding and reading may
happen in different threads.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from ice_notebook.runs.log_files import Hit, LogFile, read_end
from ice_notebook.runs.rank_output import RankOutput
from ice_notebook.runs.terminal import MAX_COLUMNS, REDRAWN, Terminal, plain_text

RING_LINES = 5_000
RING_CHARACTERS = 2_000_000  # of a rank; 5,000 lines of 94 characters need a quarter
# Of what comes between two reads only the end is read, and not more than a view can show: redrawn and coloured output is read at some 5 MB/s,
# plain output at 60 MB/s, and only counted at memory speed.
PENDING_BYTES = 64 * 1024  # of a rank
LEAST_PENDING_BYTES = 16 * 1024  # of one of many
TAIL_BYTES = 256 * 1024  # of a file of a run that is over: what is before it is read when somebody asks
BLOCK_LINES = 250  # output that comes line by line is kept in blocks of about this size
_HEAD_BYTES = 4 * MAX_COLUMNS  # of a line; a character has four at most
NOTE = "\x01"  # begins a line that we wrote; no line of a program can hold it


@dataclass(frozen=True)
class Limits:
    """How much one read gives at most. Each rank with news gives its last line, however long that is."""

    rank_lines: int = 200
    rank_bytes: int = 64 * 1024
    bytes: int = 256 * 1024
    lines: int | None = None  # of all ranks together


# A page draws some fifty lines; what it is given besides is there to be scrolled back to, and what it is not is read back from the files.
TICK = Limits(lines=800)
REPLAY = Limits(rank_lines=2_000, rank_bytes=256 * 1024, bytes=1024 * 1024)


@dataclass(frozen=True)
class Chunk:
    """Consecutive lines of a rank. They replace what was known under their numbers; a gap before them was skipped."""

    rank: int
    first: int
    lines: tuple[str, ...]

    @property
    def end(self) -> int:
        """Return the number after the last line."""
        return self.first + len(self.lines)


@dataclass(frozen=True)
class Delta:
    """What one read gives, in the order in which it came as far as that is known: by look, by rank, by line number."""

    chunks: tuple[Chunk, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.chunks)


class Cursor:
    """How far a view has read: the number of the first line of each rank that it has not, or that changed since."""

    def __init__(self) -> None:
        self.next: dict[int, int] = {}


@dataclass
class _RankLog:
    attempt: int
    file: LogFile  # of the newest attempt
    files: dict[int, LogFile] = field(default_factory=dict)  # by attempt
    notes: dict[int, str] = field(default_factory=dict)  # lines that we wrote, by their number
    offset: int = 0  # how much of the newest file was read or left out
    is_kept: bool = True  # what comes is in the file, whose disk may be full
    terminal: Terminal = field(default_factory=Terminal)
    blocks: deque[tuple[int, list[str]]] = field(default_factory=deque)  # finished lines by their first number
    n_lines: int = 0
    n_characters: int = 0
    pending: bytearray = field(default_factory=bytearray)  # output that is read when somebody asks
    changed: int = 0  # lowest number that changed since the cursors were told
    times: deque[tuple[int, int]] = field(
        default_factory=deque
    )  # when lines came: the first number of each look that found some, and its own
    told: int = 0  # up to which number that is known

    @property
    def end(self) -> int:
        return self.terminal.end

    def feed(self, data: bytes, keep: int, *, is_kept: bool) -> None:
        """Take bytes; they are read when somebody asks, and if they are more than twice as many as `keep`, only the last of them.

        Those that are not kept in the file count as lines, and move nothing in it.
        """
        self.turn(is_kept=is_kept)
        self.pending += data
        if len(self.pending) > 2 * keep:
            self._cut(len(self.pending) - keep)

    def turn(self, *, is_kept: bool) -> None:
        """Take note of whether what comes from now on is in the file."""
        if self.is_kept is not is_kept:
            self.settle()
            self.is_kept = is_kept
            if is_kept:
                self.file.mark(self.terminal.last, self.offset, is_needed=True, is_after_gap=True)

    def settle(self) -> None:
        """Read what is pending."""
        if self.pending:
            data = bytes(self.pending)
            self.pending.clear()
            self._read(data)

    def note_time(self, look: int) -> None:
        """Take note that what is new has come by now."""
        if self.end > self.told:
            self.times.append((self.told, look))
            self.told = self.end
        oldest = self.blocks[0][0] if self.blocks else self.terminal.first
        while len(self.times) > 1 and self.times[1][0] <= oldest:
            self.times.popleft()

    def in_time(self, first: int, lines: list[str]) -> Iterator[tuple[int, int, list[str]]]:
        """Yield consecutive lines in as many parts as they came in, the newest first: when, first number, lines."""
        end = first + len(lines)
        for number, look in reversed(self.times):
            if number < end:
                start = max(first, number)
                yield look, start, lines[start - first : end - first]
                end = start
            if end <= first:
                return
        yield 0, first, lines[: end - first]

    def begin(self, attempt: int, path: Path) -> None:
        """Go on with the output of another attempt."""
        self.settle()
        self.restart(note=f"attempt {attempt + 1}")
        self.attempt = attempt
        self.offset = 0
        self.is_kept = True
        self.file = self.files[attempt] = LogFile(path, self.terminal.first)

    def miss(self, n_bytes: int) -> None:
        """Leave out bytes that are in the file only."""
        self.turn(is_kept=True)
        self.settle()
        newlines, after = self.file.count_newlines(self.offset, self.offset + n_bytes)
        self.offset += n_bytes
        if newlines:
            self.restart(newlines)
            self.file.mark(self.terminal.first, after, is_needed=True)
        else:
            self.restart(note=f"… {_size_text(n_bytes)} not shown; the log file has them")
            self.file.mark(self.terminal.first, self.offset, is_needed=True)

    def restart(self, newlines: int = 0, note: str = "") -> None:
        """Finish all lines, leave out as many as the lost output had newlines, and go on with an empty terminal."""
        self._keep(self.terminal.first, self.terminal.live())
        # The first newline that was lost ended the line that had begun.
        first = self.terminal.end + newlines - (newlines > 0 and not self.terminal.is_waiting)
        if note:
            self._keep(first, [NOTE + note])
            self.notes[first] = NOTE + note
            first += 1
        self.terminal = Terminal(first)

    def read_back(self, first: int, n: int) -> list[str]:
        """Return lines from a number on, at most `n`, from the files."""
        found: list[str] = []
        end = min(first + n, self.end)
        while (at := first + len(found)) < end:
            if at in self.notes:
                found.append(self.notes[at])
                continue
            stop = min([end, *(line for line in self.notes if line > at)])
            file = max((file for file in self.files.values() if file.first <= at), key=lambda file: file.first)
            lines = file.read(at, stop - at)
            if not lines:
                break
            found += lines
        return found

    def read(self, first: int, limits: Limits, rank_bytes: int) -> list[tuple[int, list[str]]]:
        """Return the newest lines from a number on, as runs of consecutive ones, oldest first."""
        runs: list[tuple[int, list[str]]] = []
        room_lines, room_bytes = limits.rank_lines, rank_bytes
        for start, lines in self._runs_backwards():
            if start + len(lines) <= first:
                break
            wanted = lines[max(0, first - start, len(lines) - room_lines) :]
            size = 0
            n = 0
            for line in reversed(wanted):
                size += len(line) if line.isascii() else len(line.encode(errors="replace"))
                if size > room_bytes and (runs or n):
                    break
                n += 1
            if n:
                runs.append((start + len(lines) - n, lines[len(lines) - n :]))
            room_lines -= n
            room_bytes -= size
            if n < len(wanted) or room_lines <= 0 or room_bytes <= 0:
                break
        merged: list[tuple[int, list[str]]] = []
        for start, lines in reversed(runs):
            if merged and merged[-1][0] + len(merged[-1][1]) == start:
                merged[-1] = (merged[-1][0], merged[-1][1] + lines)
            else:
                merged.append((start, lines))
        return merged

    def _runs_backwards(self) -> Iterator[tuple[int, list[str]]]:
        if live := self.terminal.live():
            yield self.terminal.first, live
        yield from reversed(self.blocks)

    def _read(self, data: bytes) -> None:
        first = self.terminal.first
        self._keep(first, self.terminal.feed(data))
        self.changed = min(self.changed, self.terminal.changed)
        if not self.is_kept:
            return
        self.offset += len(data)
        newline = data.rfind(b"\n")
        if newline >= 0 and self.terminal.is_at_end:
            self.file.mark(self.terminal.last, self.offset - (len(data) - newline - 1))

    def _keep(self, first: int, lines: list[str]) -> None:
        if not lines:
            return
        if len(lines) > RING_LINES:
            first += len(lines) - RING_LINES
            lines = lines[-RING_LINES:]
        last, known = self.blocks[-1] if self.blocks else (0, [])
        if known and len(known) < BLOCK_LINES and last + len(known) == first:
            known += lines
        else:
            self.blocks.append((first, lines))
        self.n_lines += len(lines)
        self.n_characters += sum(map(len, lines))
        while len(self.blocks) > 1 and (self.n_lines > RING_LINES or self.n_characters > RING_CHARACTERS):
            _, gone = self.blocks.popleft()
            self.n_lines -= len(gone)
            self.n_characters -= sum(map(len, gone))

    def _cut(self, cut: int) -> None:
        """Drop about so much of what is pending, up to the end of a line, and count its lines."""
        end = self.pending.find(b"\n", cut) + 1 or self.pending.rfind(b"\n", 0, cut) + 1
        if not end and not (end := self.pending.find(b"\r", cut) + 1):
            # One endless line: what is dropped of it is beyond the columns that a line has.
            head = bytes(self.pending[:_HEAD_BYTES])
            del self.pending[: len(head)]
            self._read(head)
            end = max(0, cut - len(head))
        # Without a newline it is a progress bar: all its states are the same line.
        lines = self.pending.count(b"\n", 0, end)
        del self.pending[:end]
        self.offset += end * self.is_kept
        if lines:
            self.restart(lines)
            self.file.mark(self.terminal.first, self.offset, is_needed=True, is_after_gap=not self.is_kept)


def _size_text(n: int) -> str:
    return f"{n} bytes" if n < 1000 else f"{n / 1000:.0f} kB" if n < 1_000_000 else f"{n / 1_000_000:.1f} MB"


class RunLogs:
    """The output of a run's ranks. `path_of` gives the log file of a rank by attempt and rank; by default there are none."""

    def __init__(self, path_of: Callable[[int, int], Path] = lambda _attempt, _rank: Path(os.devnull)) -> None:
        self.path_of = path_of
        self._lock = threading.Lock()
        self._ranks: dict[int, _RankLog] = {}
        self._outputs: dict[tuple[int, int], RankOutput] = {}  # by attempt and rank
        self._cursors: weakref.WeakSet[Cursor] = weakref.WeakSet()
        self._looks = 0  # so often somebody has asked for output

    def feed(self, attempt: int, rank: int, data: bytes, missed: int = 0, *, is_kept: bool = True, is_stderr: bool = False) -> None:
        """Take the next bytes of a rank. `missed` bytes before them were left out by the sender, and are in the log file.

        With `is_kept=False` there was no room in the log file for the bytes themselves.

        A new attempt begins with a note; what still comes of an old one is left to its file.
        """
        with self._lock:
            self._output(attempt, rank).feed(data, missed, is_kept=is_kept, is_stderr=is_stderr)
            keep = min(PENDING_BYTES, max(LEAST_PENDING_BYTES, TICK.bytes // max(1, len(self._ranks))))
            self._feed(attempt, rank, data, missed, keep, is_kept=is_kept)

    def outputs(self) -> dict[tuple[int, int], RankOutput]:
        """Return all that was printed so far, by attempt and rank, for whoever shows all of it."""
        with self._lock:
            return dict(self._outputs)

    def _output(self, attempt: int, rank: int) -> RankOutput:
        if (attempt, rank) not in self._outputs:
            self._outputs[attempt, rank] = RankOutput(self.path_of(attempt, rank))
        return self._outputs[attempt, rank]

    def take_file(self, attempt: int, rank: int) -> None:
        """Take what the file of an attempt that is over holds: its end at once, the rest when somebody asks."""
        path = self.path_of(attempt, rank)
        try:
            with path.open("rb") as file:
                skipped = max(0, path.stat().st_size - TAIL_BYTES)
                if skipped:  # up to the end of a line
                    file.seek(skipped)
                    skipped += len(file.readline(TAIL_BYTES))
                file.seek(skipped)
                tail = file.read()
        except OSError:  # it was never begun, or is gone
            return
        with self._lock:
            self._output(attempt, rank).take_all()
            self._feed(attempt, rank, tail, skipped, keep=TAIL_BYTES)

    def take_rest(self, attempt: int, rank: int) -> None:
        """Take what the log file holds beyond what was fed: whoever fed it is gone, and has left that out."""
        with self._lock:
            self._output(attempt, rank).take_all()
            log = self._log(attempt, rank)
            if attempt < log.attempt:
                return
            log.settle()
            try:
                left = log.file.path.stat().st_size - log.offset
            except OSError:  # it was never begun, or is gone
                return
            if left > 0:
                end = read_end(log.file.path, left)
                self._feed(attempt, rank, end, left - len(end), keep=PENDING_BYTES)

    def _feed(self, attempt: int, rank: int, data: bytes, missed: int, keep: int, *, is_kept: bool = True) -> None:
        log = self._log(attempt, rank)
        if attempt < log.attempt:
            return
        if missed:
            log.miss(missed)
        log.feed(data, keep, is_kept=is_kept)

    def _log(self, attempt: int, rank: int) -> _RankLog:
        """Return the log of a rank, in this attempt if that is a newer one."""
        log = self._ranks.get(rank)
        if log is None:
            file = LogFile(self.path_of(attempt, rank), 0)
            log = self._ranks[rank] = _RankLog(attempt, file, {attempt: file})
            if attempt:
                log.begin(attempt, file.path)
        elif attempt > log.attempt:
            log.begin(attempt, self.path_of(attempt, rank))
        return log

    def attempts(self) -> dict[int, dict[int, int]]:
        """Return the number of the first line of each attempt, by attempt and rank."""
        with self._lock:
            found: dict[int, dict[int, int]] = {}
            for rank, log in self._ranks.items():
                for attempt, file in log.files.items():
                    found.setdefault(attempt, {})[rank] = file.first
            return found

    def read_back(self, rank: int, first: int, n: int) -> list[str]:
        """Return lines of a rank from a number on, at most `n`, read from its files; fewer where these cannot be read."""
        with self._lock:
            self._settle()
            log = self._ranks.get(rank)
            return log.read_back(first, n) if log is not None else []

    def search(self, text: str, ranks: Iterable[int], *, goes_on: Callable[[], bool] = lambda: True) -> Iterator[tuple[int, Hit]]:
        """Yield rank and line of all that the files of these ranks hold of a text, attempt by attempt. May take long: use a thread."""
        with self._lock:
            self._settle()
            files = [(rank, file.copy()) for rank in ranks if rank in self._ranks for file in self._ranks[rank].files.values()]
        for rank, file in files:
            for hit in file.search(text, goes_on=goes_on):
                yield rank, hit

    def cursor(self) -> Cursor:
        """Return a cursor for a view that has read nothing yet."""
        with self._lock:
            cursor = Cursor()
            self._cursors.add(cursor)
            return cursor

    def delta(self, cursor: Cursor, limits: Limits = TICK) -> Delta:
        """Return what is new since the cursor, and move it to the end of every rank. What is beyond the limits is skipped, oldest first."""
        with self._lock:
            self._settle()
            delta = self._read(cursor.next, limits)
            cursor.next = {rank: log.end for rank, log in self._ranks.items()}
            return delta

    def since(self, first: Mapping[int, int], limits: Limits = REPLAY) -> Delta:
        """Return the newest lines from a number on for each rank; a rank that is not named gives all it has."""
        with self._lock:
            self._settle()
            return self._read(first, limits)

    def tail(self, rank: int, n: int) -> list[str]:
        """Return the last lines of a rank's newest attempt as plain text, without lines that were drawn over, such as progress bars."""
        with self._lock:
            self._settle()
            log = self._ranks.get(rank)
            if log is None:
                return []
            found: list[str] = []
            for _, lines in log._runs_backwards():
                for line in reversed(lines):
                    if line.startswith(NOTE) or len(found) == n:
                        return found[::-1]
                    if line.startswith(REDRAWN) or (not found and not line.strip()):
                        continue
                    found.append(plain_text(line))
            return found[::-1]

    def _settle(self) -> None:
        self._looks += 1
        for rank, log in self._ranks.items():
            log.settle()
            log.note_time(self._looks)
            for cursor in self._cursors:
                cursor.next[rank] = min(cursor.next.get(rank, 0), log.changed)
            log.changed = log.end

    def _read(self, first: Mapping[int, int], limits: Limits) -> Delta:
        news = [rank for rank in sorted(self._ranks) if self._ranks[rank].end > first.get(rank, 0)]
        rank_bytes = min(limits.rank_bytes, limits.bytes // max(1, len(news)))
        if limits.lines is not None:
            limits = replace(limits, rank_lines=min(limits.rank_lines, max(1, limits.lines // max(1, len(news)))))
        found = [
            (look, rank, start, part)
            for rank in news
            for first_of_run, lines in self._ranks[rank].read(first.get(rank, 0), limits, rank_bytes)
            for look, start, part in self._ranks[rank].in_time(first_of_run, lines)
        ]
        found.sort(key=lambda each: each[:3])
        return Delta(tuple(_joined(found)))


def _joined(found: Iterable[tuple[int, int, int, list[str]]]) -> Iterator[Chunk]:
    """Yield lines that were found as when, rank, first number and lines, those that follow each other together."""
    rank = first = -1
    lines: list[str] = []
    for _, next_rank, start, part in found:
        if next_rank != rank or start != first + len(lines):
            if lines:
                yield Chunk(rank, first, tuple(lines))
            rank, first, lines = next_rank, start, []
        lines += part
    if lines:
        yield Chunk(rank, first, tuple(lines))
