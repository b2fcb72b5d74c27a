"""A run as lines of text, for terminals, scripts and `ui=text`: what the ranks print, each line with its rank, and what becomes of the run.

In a terminal that somebody waits at, a foot below the lines says how the run stands and how far its ranks are, drawn over in place; progress
bars stand there until they are done.

All that is shown is read from the log files, whenever whoever reads what is printed has come that far. In a notebook page lines that come too
fast for it are left out and counted. Elsewhere all are printed, and each whole.

The run's thread only says that there is something new; in a notebook only the thread that runs the cell may print, because what another one
prints lands below whatever cell runs by then.
"""

from __future__ import annotations

import os
import re
import string
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any, Protocol, TextIO

from ice_notebook.errors import format_size
from ice_notebook.runs.logs import RunLogs
from ice_notebook.runs.rank_output import Piece, RankOutput
from ice_notebook.runs.report import (
    cause_of,
    failure_sentence,
    headline,
    join_command,
    loss_sentences,
    reach_sentence,
    waiting_sentence,
)
from ice_notebook.runs.state import Phase, RunState
from ice_notebook.runs.terminal import plain_text
from ice_notebook.ui.foot import Foot, columns_of, tame
from ice_notebook.ui.outlet import Outlet
from ice_notebook.ui.printed_lines import LongLine, PrintedLines
from ice_notebook.wire.protocol import Failure, Plan

LINES_PER_S = 2_000  # in all; a browser shows some thousands before it begins to stutter
BYTES_PER_S = 500_000  # a notebook server drops everything above 1 MB/s, other output of the kernel included
LOOK_S = 0.1  # between two looks at what could not be read or written the last time
FOOT_RANKS = 8
LEAST_COLUMNS = 20  # of a rank's terminal, however narrow the window is
PREFIX_TEMPLATE = "TORCHELASTIC_LOG_LINE_PREFIX_TEMPLATE"  # torchrun's variable for what stands before a line
# What a line from the file may hold besides text, when it is too long to be drawn as a terminal would.
_STEERING = re.compile(rb"\x1b\[[0-?]*[ -/]*[@-~]|\x1b[ -/]*[0-~]|\xc2[\x80-\x9f]|[\x00-\x08\x0b-\x1f\x7f]")


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


class _RankStreams:
    """What a rank prints in one attempt: one stream, or its stdout and its stderr apart."""

    def __init__(self, output: RankOutput, lines: dict[bool, PrintedLines]) -> None:
        self.output = output
        self.reader = output.reader()
        self.lines = lines  # by whether they are stderr's

    def of(self, piece: Piece) -> PrintedLines:
        """Return the lines that a piece belongs to."""
        return self.lines.get(piece.is_stderr) or self.lines[False]


class TextView:
    """Shows one run on one stream, or with `errors` what comes by the ranks' stderr on another one.

    `update` is for the run's thread, `flush` for the thread that may print. With `prints=True`, for a terminal, `update` prints as well.
    With `is_bounded=True`, for a notebook page, so much is printed as it can show. `shown` are the local ranks whose output is. `on_resize` is called
    when the terminal with the foot has another size, with the columns and rows that it leaves to the ranks.
    """

    def __init__(
        self,
        run: ViewedRun,
        stream: TextIO,
        *,
        errors: TextIO | None = None,
        prints: bool = False,
        is_bounded: bool = False,
        shown: Collection[int] | None = None,
        on_resize: Callable[[int, int], None] = lambda _columns, _rows: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._run = run
        self._out = Outlet(stream)
        self._err = self._out if errors is None else Outlet(errors)
        self._prints = prints
        self._shown = shown
        self._on_resize = on_resize
        self._clock = clock
        # Somebody who goes on typing would write into the foot.
        self._foot_outlet = None if prints else next((each for each in (self._out, self._err) if each.is_terminal), None)
        self._foot = None if self._foot_outlet is None else Foot(self._foot_outlet)
        self._size = None if self._foot is None else self._foot.size()
        self._template = os.environ.get(PREFIX_TEMPLATE, "")
        self._printing = threading.Lock()
        self._pass: Iterator[None] | None = None  # what is being printed, as far as that has come
        self._above_foot: list[str] = []  # lines on their way to the foot's terminal
        self._ranks: dict[tuple[int, int], _RankStreams] = {}  # by attempt and rank
        self._attempt = 0
        self._allowance = _Allowance(clock()) if is_bounded else None
        self._width = 1  # of a rank's number
        self._said: set[object] = set()
        self._is_over = False

    @property
    def has_lost_reader(self) -> bool:
        """Return whether nobody reads any more what somebody has read, as with `| head`."""
        return self._out.has_lost_reader or self._err.has_lost_reader

    @property
    def fault(self) -> str:
        """Return why what was to be printed cannot be, a disk that is full say; nothing when it can."""
        return self._out.fault or self._err.fault

    @property
    def waits(self) -> bool:
        """Return whether something waits until it can be written."""
        return not self._send()

    def update(self) -> float | None:
        """Take note that something is new. Return after how many seconds to call again although nothing changes, or None."""
        if not self._prints:
            return None
        if self.flush(LOOK_S):
            return LOOK_S if self.waits else 0.0
        return None if self._is_over else self._wanted()

    def flush(self, limit_s: float | None = None) -> bool:
        """Print what is new, for about so long at most; return whether there is more than could be read or written by then.

        After the end of the run this prints all that is left.
        """
        until = None if limit_s is None else time.monotonic() + limit_s
        self._look_at_size()
        with self._printing:
            while not self._is_over:
                if self._pass is None:
                    self._pass = self._print_news()
                for _ in self._pass:
                    if not self._send() or (until is not None and time.monotonic() > until):
                        return True
                self._pass = None
                is_final = self._run.state.phase.is_final
                self._draw_foot()
                if not self._send():
                    return True
                if not is_final:
                    return False
            return not self._send()

    def wait(self, timeout_s: float) -> None:
        """Wait until more can be written, for so long at most."""
        for outlet in (self._out, self._err):
            if not outlet.send():
                outlet.wait(timeout_s)
                return

    # ---- what is printed

    def _print_news(self) -> Iterator[None]:
        """Print what is new at this moment, in pieces: after each the outlets may have to be waited for."""
        # First the state: what ranks printed before they ended is in the logs when the state says that they did.
        plan, state, now = self._run.plan, self._run.state, self._clock()
        outputs = self._run.logs.outputs()
        self._width = len(str(_world_size(plan, state) - 1))
        self._say([*_opening(plan, state), *_node_lines(plan, state)])
        if self._allowance is not None:
            self._allowance.refill(now)
        numbers = sorted({number for number, _ in outputs} | {attempt.number for attempt in state.attempts})
        for number in numbers:
            if number < self._attempt:
                continue
            self._attempt = number
            ranks = [rank for of, rank in sorted(outputs) if of == number]
            for rank in ranks:
                yield from self._print_rank(
                    number, rank, outputs[number, rank], now, is_over=number < numbers[-1], n_ranks=len(ranks)
                )
            self._say((("restart", of), line) for of, line in _restart_lines(plan, state) if of <= number)
            if number < numbers[-1] or state.phase.is_final:
                self._close(number)
        self._say(_end_lines(plan, state))
        self._is_over = state.phase.is_final

    def _print_rank(
        self, attempt: int, rank: int, output: RankOutput, now: float, *, is_over: bool, n_ranks: int
    ) -> Iterator[None]:
        state = self._run.state
        known = next((each.ranks.get(rank) for each in state.attempts if each.number == attempt), None)
        if known is not None and self._shown is not None and known.local_rank not in self._shown:
            return
        streams = self._ranks.get((attempt, rank)) or self._begin(attempt, rank, output)
        label = self._label(rank, None if known is None else known.local_rank)
        n_hidden = 0
        if self._allowance is not None:
            left_out = streams.reader.available - self._allowance.bytes_for(n_ranks)
            if left_out > 0:
                n_hidden = streams.reader.skip(left_out)
                streams.lines[False].lose()
        left = streams.reader.available
        while left > 0 and (pieces := streams.reader.read()):
            for piece in pieces:
                left -= len(piece.data) + piece.lost
                lines = streams.of(piece)
                if piece.lost:
                    lines.lose(f"… {format_size(piece.lost)} not shown")
                lines.feed(piece)
                if self._allowance is None:
                    yield from self._print_lines(label, streams.output, lines, now)
        is_over = is_over or state.phase.is_final or (known is not None and known.exit_code is not None)
        for lines in streams.lines.values():
            if self._allowance is None:
                yield from self._print_lines(label, streams.output, lines, now, is_over=is_over)
            else:
                self._print_bounded(label, lines, now, n_hidden, n_ranks, is_over=is_over)

    def _close(self, attempt: int) -> None:
        """Let go of the files of an attempt that is over and shown."""
        for of, rank in [key for key in self._ranks if key[0] == attempt]:
            self._ranks.pop((of, rank)).output.release()

    def _begin(self, attempt: int, rank: int, output: RankOutput) -> _RankStreams:
        def lines(outlet: Outlet, *, is_stderr: bool) -> PrintedLines:
            # A pipe and a file get the bytes that are no text as they are.
            encoding, errors = (outlet.encoding, "replace") if outlet.is_terminal else ("utf-8", "surrogateescape")
            return PrintedLines(
                has_foot=self._foot_outlet is outlet,
                is_bounded=self._allowance is not None,
                is_stderr=is_stderr,
                encoding=encoding,
                errors=errors,
            )

        made = {False: lines(self._out, is_stderr=False)}
        if self._err is not self._out:
            made[True] = lines(self._err, is_stderr=True)
        self._ranks[attempt, rank] = _RankStreams(output, made)
        return self._ranks[attempt, rank]

    def _print_lines(
        self, label: str, output: RankOutput, lines: PrintedLines, now: float, *, is_over: bool = False
    ) -> Iterator[None]:
        outlet = self._err if lines.is_stderr else self._out
        ready: list[str] = []
        for line in lines.due(now, is_over=is_over):
            if isinstance(line, LongLine):
                self._put(outlet, ready)
                ready = []
                yield from self._copy(outlet, label, output, line)
            else:
                ready.append(self._labelled(label, self._coloured(outlet, line)))
        if ready:
            self._put(outlet, ready)
            yield

    def _print_bounded(self, label: str, lines: PrintedLines, now: float, n_hidden: int, n_ranks: int, *, is_over: bool) -> None:
        assert self._allowance is not None
        shown = [line for line in lines.due(now, is_over=is_over) if isinstance(line, str)]
        room = self._allowance.lines_for(n_ranks)
        if len(shown) > room:
            n_hidden += len(shown) - room
            shown = shown[-room:]
        self._allowance.spend(shown)
        if n_hidden:
            shown.insert(0, _not_shown(n_hidden))
        self._put(self._out, [self._labelled(label, self._coloured(self._out, line)) for line in shown])

    def _copy(self, outlet: Outlet, label: str, output: RankOutput, line: LongLine) -> Iterator[None]:
        """Print a line that is too long for memory, from its file."""
        self._write(outlet, label.encode(outlet.encoding, errors="backslashreplace"))
        reader, at = output.reader(line.start), line.start
        while (line.end is None or at < line.end) and (pieces := reader.read()):
            for piece in pieces:
                data = piece.data if line.end is None or not piece.is_in_file else piece.data[: max(0, line.end - piece.at)]
                at = piece.at + len(data) * piece.is_in_file
                if piece.is_stderr is line.is_stderr or self._err is self._out:
                    self._write(outlet, _STEERING.sub(b"", data))
            yield
        self._write(outlet, b"\n")

    def _put(self, outlet: Outlet, lines: list[str]) -> None:
        """Print whole lines."""
        if not lines:
            return
        if outlet is self._foot_outlet:
            self._above_foot += lines
        elif outlet.is_terminal:
            outlet.write("".join(f"{tame(line)}\n" for line in lines))
        else:
            outlet.write_bytes("".join(f"{line}\n" for line in lines).encode(errors="surrogateescape"))

    def _write(self, outlet: Outlet, data: bytes) -> None:
        """Print a part of a line."""
        if outlet is self._foot_outlet and self._foot is not None:
            self._foot.write(self._above_foot, [])
            self._above_foot = []
        if outlet.is_terminal:
            outlet.write(tame(data.decode(outlet.encoding, errors="replace")))
        else:
            outlet.write_bytes(data)

    def _say(self, lines: Iterable[tuple[object, str]]) -> None:
        """Print the lines whose keys were not said yet."""
        for key, line in lines:
            if key not in self._said:
                self._said.add(key)
                if self._out is self._foot_outlet:
                    self._above_foot.append(line)
                else:
                    self._out.write(f"{tame(line) if self._out.is_terminal else line}\n")

    def _send(self) -> bool:
        if self._above_foot and self._foot is not None:
            self._foot.write(self._above_foot, [] if self._is_over else self._foot_lines())
            self._above_foot = []
        return self._out.send() & self._err.send()

    def _draw_foot(self) -> None:
        if self._foot is not None:
            self._foot.write(self._above_foot, [] if self._is_over else self._foot_lines())
            self._above_foot = []

    def _wanted(self) -> float | None:
        now = self._clock()
        wanted = [at for streams in self._ranks.values() for lines in streams.lines.values() if (at := lines.wanted_at) is not None]
        return max(0.0, min(wanted) - now) if wanted else None

    def _look_at_size(self) -> None:
        if self._foot is not None and self._size != (size := self._foot.size()):
            self._size = size
            n_ranks = _world_size(self._run.plan, self._run.state)
            self._on_resize(*_beside_labels(size, n_ranks, self._run.plan.role, self._template))

    # ---- how it is written

    def _label(self, rank: int, local_rank: int | None) -> str:
        return _label(rank, local_rank, self._width, self._run.plan.role, self._template)

    def _labelled(self, label: str, text: str) -> str:
        return label + text if text or self._template else label.rstrip()

    def _coloured(self, outlet: Outlet, text: str) -> str:
        if "\x1b" not in text:
            return text
        if not outlet.is_terminal:
            return plain_text(text)
        return text if text.endswith("\x1b[0m") else f"{text}\x1b[0m"

    def _foot_lines(self) -> list[str]:
        """Return how the run stands, and how far the first ranks are that say so."""
        plan, state = self._run.plan, self._run.state
        size = _world_size(plan, state)
        facts = [
            waiting_sentence(plan, state) or state.phase.value,
            f"{size} rank{'s' * (size != 1)} on {plan.devices}",
            _clock(time.time() - (state.began_at or time.time())),
        ]
        facts += [f"restarts {state.restarts}/{plan.max_restarts}"] * bool(plan.max_restarts)
        return [" · ".join(facts), *self._bars()[:FOOT_RANKS]]

    def _bars(self) -> list[str]:
        progress = self._run.progress
        attempt = self._run.state.attempt
        bars: list[str] = []
        for rank in sorted({*progress, *(rank for number, rank in self._ranks if number == self._attempt)}):
            known = attempt.ranks.get(rank) if attempt is not None else None
            label = self._label(rank, None if known is None else known.local_rank)
            if rank in progress:
                bars.append(label + _bars_text(progress[rank]))
            elif (streams := self._ranks.get((self._attempt, rank))) is not None:
                bars += [
                    label + bar
                    for is_stderr, lines in streams.lines.items()
                    if (self._err if is_stderr else self._out) is self._foot_outlet
                    for bar in lines.moving()
                ]
        return bars


class _Allowance:
    """How much may be printed in a page now: a second's worth at most, refilled as time goes by."""

    def __init__(self, now: float) -> None:
        self._at = now
        self._lines = float(LINES_PER_S)
        self._bytes = float(BYTES_PER_S)

    def refill(self, now: float) -> None:
        """Add what the time gave."""
        passed, self._at = max(0.0, now - self._at), now
        self._lines = min(LINES_PER_S, self._lines + passed * LINES_PER_S)
        self._bytes = min(BYTES_PER_S, self._bytes + passed * BYTES_PER_S)

    def lines_for(self, n_ranks: int) -> int:
        """Return how many lines one of so many ranks may have printed: a tick's worth at least."""
        return max(1, int(max(self._lines, LINES_PER_S * LOOK_S) / n_ranks))

    def bytes_for(self, n_ranks: int) -> int:
        """Return how many bytes of one of so many ranks may be read."""
        return max(1, int(max(self._bytes, BYTES_PER_S * LOOK_S) / n_ranks))

    def spend(self, lines: Collection[str]) -> None:
        """Take what was printed off it."""
        self._lines -= len(lines)
        self._bytes -= sum(map(len, lines))


def size_beside_labels(terminal: TextIO, n_ranks: int, role: str) -> tuple[int, int]:
    """Return how many columns and rows a terminal leaves to each of so many ranks, whose lines have labels before them."""
    return _beside_labels(Foot(terminal).size(), n_ranks, role, os.environ.get(PREFIX_TEMPLATE, ""))


def _beside_labels(size: tuple[int, int], n_ranks: int, role: str, template: str) -> tuple[int, int]:
    last = n_ranks - 1
    label = tame(plain_text(_label(last, last, len(str(last)), role, template)))
    return max(LEAST_COLUMNS, size[0] - sum(map(columns_of, label))), size[1]


def _label(rank: int, local_rank: int | None, width: int, role: str, template: str) -> str:
    if not template:
        return f"[{rank:>{width}}] "
    values = {"role_name": role, "rank": rank, "local_rank": rank if local_rank is None else local_rank}
    return string.Template(template).safe_substitute(values)


def _world_size(plan: Plan, state: RunState) -> int:
    return state.attempt.world_size if state.attempt else plan.world_size


def _opening(plan: Plan, state: RunState) -> Iterator[tuple[object, str]]:
    if plan.group is not None and not state.attempts:
        if waiting := waiting_sentence(plan, state):
            yield ("waiting", waiting), f"run: {waiting}"
        return
    size = _world_size(plan, state)
    yield "opening", f"run: running · {'1 rank' if size == 1 else f'{size} ranks'} on {plan.devices}"


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


def _restart_lines(plan: Plan, state: RunState) -> Iterator[tuple[int, str]]:
    """Yield the attempts that gave way to another one, and what is said of that."""
    restarted = state.attempts if state.phase is Phase.RESTARTING else state.attempts[:-1]
    for attempt in restarted:
        cause = cause_of(attempt)
        if attempt.ended_by:
            yield attempt.number, f"attempt {attempt.number + 2}: {attempt.ended_by}"
        elif cause is not None:
            yield attempt.number, f"restart {attempt.restart_count + 1}/{plan.max_restarts}: {_failed(*cause)}"


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
    if state.phase.is_final:
        yield from ((("loss", line), line) for line in loss_sentences(state))
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
