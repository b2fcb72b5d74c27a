"""A run as lines of text, for terminals, scripts and `ui=text`: what the ranks print, each line with its rank, and what becomes of the run.

In a terminal that somebody waits at, a foot below the lines says how the run stands and how far its ranks are, drawn over in place; progress
bars stand there until they are done.

In a notebook page lines that come too fast for it are left out and counted. Elsewhere all are printed: those that went by are read back from
the log files, whenever whoever reads what is printed has come that far.

Collecting and printing are apart. The run's thread collects; in a notebook only the thread that runs the cell may print, because what
another one prints lands below whatever cell runs by then.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TextIO

from ice_notebook.foot import Foot
from ice_notebook.logs import NOTE, REPLAY, Chunk, Limits, RunLogs
from ice_notebook.protocol import Failure, Plan
from ice_notebook.report import cause_of, failure_sentence, headline, join_command, reach_sentence
from ice_notebook.state import Phase, RunState
from ice_notebook.terminal import LIVE_LINES, REDRAWN, plain_text

LINES_PER_S = 2_000  # in all; a browser shows some thousands before it begins to stutter
BYTES_PER_S = 500_000  # a notebook server drops everything above 1 MB/s, other output of the kernel included
READ_INTERVAL_S = 0.1
SETTLE_S = 0.2  # a last line that stands this long is taken for whole: most are
REDRAW_S = 1.0  # between two states of a progress bar
EARLY_S = 0.001  # by which a wait may end too soon
WAITING_LINES = 10_000  # that nobody has come to print
BACK_LINES = 2_000  # that are read back at once
FOOT_RANKS = 8


class ViewedRun(Protocol):
    """What a view needs of a run. `state` is replaced as a whole, so that any thread may read it."""

    @property
    def plan(self) -> Plan:
        """Return what is being done."""

    @property
    def state(self) -> RunState:
        """Return where the run stands."""

    @property
    def logs(self) -> RunLogs:
        """Return the ranks' output."""

    @property
    def progress(self) -> Mapping[int, list[Any]]:
        """Return the bars of the ranks' loops."""


@dataclass
class _Line:
    text: str
    seen_at: float
    changed_at: float
    printed: str | None = None
    printed_at: float = 0.0


@dataclass(frozen=True)
class _Gap:
    """Lines of a rank that went by."""

    rank: int
    first: int
    n: int


@dataclass
class _Rank:
    end: int = 0
    lines: dict[int, _Line] = field(default_factory=dict)  # those that can still change, or are still to be printed
    skipped: dict[int, _Gap] = field(default_factory=dict)  # by the number of the line that follows


class TextView:
    """Shows one run on one stream.

    `update` is for the run's thread, `flush` for the thread that may print. With `prints=True`, for a terminal, `update` prints as well.
    With `is_bounded=True`, for a notebook page, so much is printed as it can show.
    """

    def __init__(
        self,
        run: ViewedRun,
        stream: TextIO,
        *,
        prints: bool = False,
        is_bounded: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._run = run
        self._stream: TextIO | None = stream
        self._prints = prints
        self._clock = clock
        self._has_colours = stream.isatty()
        # Somebody who goes on typing would write into the foot.
        self._foot = Foot(stream) if stream.isatty() and not prints else None
        self._collecting = threading.Lock()
        self._printing = threading.Lock()
        self._waiting: deque[str | _Gap] = deque()
        self._unprinted = 0  # lines that waited too long
        self._cursor = run.logs.cursor()
        self._ranks: dict[int, _Rank] = {}
        self._is_bounded = is_bounded
        self._allowance = _Allowance(clock()) if is_bounded else _NoLimit(clock())
        self._n_talking = run.plan.world_size  # ranks that had something new at the last read
        self._width = 1  # of a rank's number
        self._said: set[object] = set()
        self._is_over = False

    def update(self) -> float | None:
        """Collect what is new. Return after how many seconds to call again although nothing changes, or None."""
        wanted = self._collect()
        if self._prints:
            try:
                self.flush()
            except (OSError, ValueError):  # the terminal is gone, or somebody closed the stream; the run goes on
                self._stream = None
        return wanted

    def flush(self) -> None:
        """Print what was collected. After the end of the run this prints all that is left."""
        if self._run.state.phase.is_final:
            self._collect()
        # Two locks, because a stream may block as long as it likes, and the run's thread must not wait for it.
        with self._printing:
            with self._collecting:
                lines, hidden = list(self._waiting), self._unprinted
                self._waiting.clear()
                self._unprinted = 0
                foot = self._foot_lines() if self._foot is not None else []
            if hidden:
                lines.insert(0, _not_shown(hidden))
            pieces = iter(self._pieces(lines))
            last = next(pieces, [])
            for piece in pieces:
                self._print(last, foot)
                last = piece
            self._print(last, foot)

    def _print(self, lines: list[str], foot: list[str]) -> None:
        if self._foot is not None:
            self._foot.write(lines, foot)
        elif lines and self._stream is not None:
            self._stream.write("\n".join(lines) + "\n")
            self._stream.flush()

    def _pieces(self, lines: Iterable[str | _Gap]) -> Iterator[list[str]]:
        """Yield lines with what went by in its place, in pieces that fit into memory."""
        piece: list[str] = []
        for line in lines:
            if isinstance(line, str):
                piece.append(line)
                continue
            for back in self._read_back(line):
                yield [*piece, *back]
                piece = []
        if piece:
            yield piece

    def _read_back(self, gap: _Gap) -> Iterator[list[str]]:
        """Yield what went by, or say how much of it cannot be had."""
        label = self._label(gap.rank)
        first, end = gap.first, gap.first + gap.n
        while first < end and not self._is_bounded:
            found = self._run.logs.read_back(gap.rank, first, min(BACK_LINES, end - first))
            if not found:
                break
            first += len(found)
            yield [f"{label} {self._coloured(text)}".rstrip() for line in found if (text := _shown(line)) is not None]
        if first < end:
            yield [f"{label} {_not_shown(end - first)}"]

    def _collect(self) -> float | None:
        with self._collecting:
            if self._is_over:
                return None
            now = self._clock()
            # First the state: what ranks printed before they ended is in the logs when the state says that they did.
            state = self._run.state
            is_final = state.phase.is_final
            opening = self._news([("opening", _opening(self._run.plan, state)), *_node_lines(self._run.plan, state)])
            restarts = self._news(_restart_lines(self._run.plan, state))
            ends = self._news(_end_lines(self._run.plan, state))
            # What a rank printed comes before what became of it.
            may_read = self._allowance.refill(now) and (self._is_bounded or len(self._waiting) < WAITING_LINES)
            notes = self._read(now) if may_read or restarts or ends else {}
            size = _world_size(self._run.plan, state)
            old, new = self._printable(now, notes, size, all_old=bool(restarts or ends), all_new=bool(ends))
            self._put([*opening, *old, *restarts, *new, *ends])
            self._is_over = is_final
            return None if is_final else self._wanted(now)

    def _read(self, now: float) -> dict[int, int]:
        """Take over what is new in the logs. Return the number of the first line of the newest attempt for ranks that begin one."""
        notes: dict[int, int] = {}
        chunks = self._run.logs.delta(self._cursor, self._allowance.limits(self._n_talking)).chunks
        self._n_talking = max(1, len({chunk.rank for chunk in chunks}))
        for chunk in chunks:
            rank = self._ranks.setdefault(chunk.rank, _Rank())
            if chunk.first > rank.end:
                rank.skipped[chunk.first] = _Gap(chunk.rank, rank.end, chunk.first - rank.end)
            for number, text in enumerate(chunk.lines, chunk.first):
                if text.startswith(NOTE + "attempt "):  # said once for all ranks, with what failed
                    notes[chunk.rank] = number
                    continue
                text = text.removeprefix(NOTE)  # noqa: PLW2901
                line = rank.lines.setdefault(number, _Line(text, now, now))
                if line.text != text:
                    line.text, line.changed_at = text, now
            rank.end = max(rank.end, chunk.end)
            self._allowance.spend(chunk)
        return notes

    def _printable(
        self, now: float, notes: dict[int, int], world_size: int, *, all_old: bool, all_new: bool
    ) -> tuple[list[str | _Gap], list[str | _Gap]]:
        """Return what is to be printed: from before a restart, and from after it. Of either, all, or only what is due."""
        old: list[str | _Gap] = []
        new: list[str | _Gap] = []
        self._width = len(str(world_size - 1))
        for number, rank in sorted(self._ranks.items()):
            begins = notes.get(number)
            label = self._label(number)
            due = [
                n
                for n in sorted(rank.lines)
                if self._is_due(rank, n, now) or all_new or (n < begins if begins is not None else all_old)
            ]
            # What stands above a line that is printed comes before it: a bar that is full, and is followed by the next epoch's words.
            last = max((n for n in due if not rank.lines[n].text.startswith(REDRAWN)), default=-1)
            due = sorted({*due, *(n for n in rank.lines if n < last)})
            for n in due:
                into = new if begins is not None and n >= begins else old
                into += [text if isinstance(text, _Gap) else f"{label} {text}".rstrip() for text in self._take(rank, n, now)]
            if all_new:
                new += rank.skipped.values()
                rank.skipped.clear()
            for n in [n for n, line in rank.lines.items() if n < rank.end - LIVE_LINES and line.printed == line.text]:
                del rank.lines[n]
        return old, new

    def _is_due(self, rank: _Rank, number: int, now: float) -> bool:
        return (wanted := self._due_at(rank, number)) is not None and wanted <= now + EARLY_S

    def _due_at(self, rank: _Rank, number: int) -> float | None:
        """Return when a line is to be printed, None when it was, as it is."""
        line = rank.lines[number]
        if line.printed == line.text:
            return None
        if number < rank.end - LIVE_LINES:
            return line.changed_at
        if line.text.startswith(REDRAWN) and self._foot is not None:
            return None  # it is in the foot
        if line.text.startswith(REDRAWN):
            return (line.seen_at if line.printed is None else line.printed_at) + REDRAW_S
        if number < rank.end - 1:
            return line.changed_at
        # It may still grow. A row of dots is not printed with each of them.
        return line.changed_at + SETTLE_S if line.printed is None else line.printed_at + REDRAW_S

    def _label(self, rank: int) -> str:
        return f"[{rank:>{self._width}}]"

    def _take(self, rank: _Rank, number: int, now: float) -> Iterator[str | _Gap]:
        line = rank.lines[number]
        if rank.skipped:
            for after in sorted(n for n in rank.skipped if n <= number):
                yield rank.skipped.pop(after)
        if line.printed != line.text:
            text = line.text.removeprefix(REDRAWN)
            # A bar that wiped itself away leaves a blank line, which says nothing.
            if text.strip() or not line.text.startswith(REDRAWN):
                yield self._coloured(text)
            line.printed, line.printed_at = line.text, now

    def _foot_lines(self) -> list[str]:
        """Return how the run stands, and how far the first ranks are that say so."""
        plan, state = self._run.plan, self._run.state
        if self._is_over:
            return []
        size = _world_size(plan, state)
        facts = [
            state.phase.value,
            f"{size} rank{'s' * (size != 1)} on {plan.devices}",
            _clock(time.time() - (state.began_at or time.time())),
        ]
        facts += [f"restarts {state.restarts}/{plan.max_restarts}"] * bool(plan.max_restarts)
        width = len(str(size - 1))
        progress = self._run.progress
        bars = [
            f"[{rank:>{width}}] {bar}"
            for rank in range(size)
            for bar in ([_bars_text(progress[rank])] if rank in progress else self._drawn_bars(rank))
        ]
        return [" · ".join(facts), *bars[:FOOT_RANKS]]

    def _drawn_bars(self, number: int) -> list[str]:
        """Return the bars at the end of what a rank has printed."""
        rank = self._ranks.get(number)
        bars: list[str] = []
        for n in sorted(rank.lines, reverse=True) if rank is not None else ():
            assert rank is not None
            line = rank.lines[n]
            if not line.text.startswith(REDRAWN) or line.printed is not None:
                break
            bars.insert(0, line.text.removeprefix(REDRAWN))
        return [bar for bar in bars if bar.strip()]

    def _coloured(self, text: str) -> str:
        if not self._has_colours:
            return plain_text(text)
        return f"{text}\x1b[0m" if "\x1b" in text and not text.endswith("\x1b[0m") else text

    def _news(self, lines: Iterable[tuple[object, str]]) -> list[str]:
        """Return the lines whose keys were not said yet."""
        fresh = [(key, line) for key, line in lines if key not in self._said]
        self._said.update(key for key, _ in fresh)
        return [line for _, line in fresh]

    def _put(self, lines: Iterable[str | _Gap]) -> None:
        self._waiting += lines
        while self._is_bounded and len(self._waiting) > WAITING_LINES:
            gone = self._waiting.popleft()
            self._unprinted += gone.n if isinstance(gone, _Gap) else 1

    def _wanted(self, now: float) -> float | None:
        if self._allowance.is_spent:
            return READ_INTERVAL_S
        due = [at for rank in self._ranks.values() for n in rank.lines if (at := self._due_at(rank, n)) is not None]
        return max(0.0, min(due) - now) if due else None


class _Allowance:
    """How much may be read and printed now: a second's worth at most, refilled as time goes by."""

    def __init__(self, now: float) -> None:
        self._at = now
        self._lines = float(LINES_PER_S)
        self._bytes = float(BYTES_PER_S)

    @property
    def is_spent(self) -> bool:
        # A tick's worth at least: with less, every read would give some single lines and a gap.
        return self._lines < LINES_PER_S * READ_INTERVAL_S or self._bytes < BYTES_PER_S * READ_INTERVAL_S

    def refill(self, now: float) -> bool:
        """Add what the time gave. Return whether that is enough for a read."""
        passed, self._at = max(0.0, now - self._at), now
        self._lines = min(LINES_PER_S, self._lines + passed * LINES_PER_S)
        self._bytes = min(BYTES_PER_S, self._bytes + passed * BYTES_PER_S)
        return not self.is_spent

    def limits(self, n_ranks: int) -> Limits:
        """Return how much a read may give. The end of a run is read whatever is left of the allowance."""
        lines = max(self._lines, LINES_PER_S * READ_INTERVAL_S)
        size = int(max(self._bytes, BYTES_PER_S * READ_INTERVAL_S))
        return Limits(rank_lines=max(1, int(lines / n_ranks)), rank_bytes=size, bytes=size)

    def spend(self, chunk: Chunk) -> None:
        self._lines -= len(chunk.lines)
        self._bytes -= sum(map(len, chunk.lines))


class _NoLimit(_Allowance):
    """What a terminal, a pipe or a file is given: all there is. What one read leaves out is read back."""

    def refill(self, now: float) -> bool:  # noqa: ARG002
        return True

    def limits(self, n_ranks: int) -> Limits:  # noqa: ARG002
        return REPLAY

    def spend(self, chunk: Chunk) -> None:
        pass


def _shown(line: str) -> str | None:
    """Return a line that was read back as it is printed, None for one that is not."""
    text = line.removeprefix(NOTE).removeprefix(REDRAWN)
    is_nothing = line.startswith(NOTE + "attempt ") or (line.startswith(REDRAWN) and not text.strip())
    return None if is_nothing else text


def _world_size(plan: Plan, state: RunState) -> int:
    return state.attempt.world_size if state.attempt else plan.world_size


def _opening(plan: Plan, state: RunState) -> str:
    size = _world_size(plan, state)
    return f"run: running · {'1 rank' if size == 1 else f'{size} ranks'} on {plan.devices}"


def _node_lines(plan: Plan, state: RunState) -> Iterator[tuple[object, str]]:
    """Say how other machines join a run, which have, and who was refused."""
    if command := join_command(plan, state):
        advice = reach_sentence(state)
        yield "join", f"run: other nodes join with: {command}" + (f" ({advice})" if advice else "")
    for node in list(state.nodes.values())[1:]:
        yield (
            ("joined", node.node),
            f"node {node.node} ({node.name}) joined: {node.n_ranks} rank{'s' * (node.n_ranks != 1)} on {node.devices}",
        )
        if node.left:
            yield ("left", node.node), f"node {node.node} ({node.name}) {node.left}"
    for refused in state.refused:
        yield ("refused", refused), f"a node was refused: {refused}"


def _restart_lines(plan: Plan, state: RunState) -> Iterator[tuple[object, str]]:
    restarted = state.attempts if state.phase is Phase.RESTARTING else state.attempts[:-1]
    for attempt in restarted:
        cause = cause_of(attempt)
        if attempt.ended_by:
            yield ("restart", attempt.number), f"attempt {attempt.number + 2}: {attempt.ended_by}"
        elif cause is not None:
            yield ("restart", attempt.number), f"restart {attempt.restart_count + 1}/{plan.max_restarts}: {_failed(*cause)}"


def _end_lines(plan: Plan, state: RunState) -> Iterator[tuple[object, str]]:
    attempt = state.attempt
    failed_at = attempt.failed_at if attempt is not None else None
    if attempt is not None and failed_at is not None and state.phase is not Phase.RESTARTING:
        cause = cause_of(attempt)
        if cause is not None and not state.stop_reason and not attempt.ended_by:
            # At once, and not with the end of the run, which comes when the other ranks are gone.
            yield ("failure", attempt.number), _failed(*cause)
    if state.stop_reason:
        yield "stopping", "run: stopping"
    if state.phase is Phase.SUCCEEDED:
        yield "end", "run: succeeded"
    elif state.phase is Phase.FAILED:
        is_told = failed_at is not None and not state.stop_reason and not (attempt is not None and attempt.ended_by)
        yield "end", "run: failed" if is_told else f"run: failed · {headline(plan, state)}"
    elif state.phase is Phase.STOPPED:
        yield "end", f"run: {headline(plan, state)}"


def _failed(rank: int, failure: Failure) -> str:
    return f"rank {rank} failed: {failure_sentence(rank, failure).partition(': ')[2]}"


def _bars_text(bars: Iterable[tuple[str, int, int | None]]) -> str:
    """Return how far the loops of a rank are: `epoch: 1/3 · step: 120/500`."""
    return " · ".join(f"{f'{what}: ' if what else ''}{n:,}{f'/{total:,}' if total else ''}" for what, n, total in bars)


def _clock(seconds: float) -> str:
    minutes, second = divmod(max(0, int(seconds)), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def _not_shown(n: int) -> str:
    return f"… {n:,} line{'s' * (n != 1)} not shown (in the log files)"
