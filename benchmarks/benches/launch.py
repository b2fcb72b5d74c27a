"""From the request for a cell to the first line at the client, and to the cell's end."""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks import work
from benchmarks.bench import Bench, Facts, Row
from benchmarks.peers import N_RANKS, Peer
from benchmarks.session import Cell, Session

PAUSE_S = 3.0  # a person looks at the result before the next launch
N_WARM = 3
_LATE_S = 1.0  # output that is still to come after the end of the cell


class LaunchFailed(RuntimeError):
    """A launch has failed, or did not end in time."""

    def __init__(self, message: str, cell: Cell) -> None:
        super().__init__(message)
        self.cell = cell


class Launch:
    """One launch of work that prints a line on each rank: `say_line`, or another function that gets the line's word and these arguments."""

    def __init__(
        self,
        session: Session,
        peer: Peer,
        *,
        group: bool,
        function: work.Work | None = None,
        args: tuple[Any, ...] = (),
        max_restarts: int = 0,
    ) -> None:
        word = f"line-{secrets.token_hex(6)}"
        function = function or (work.say_line if group else work.say_line_alone)
        self.cell = session.run(peer.launch(function, (word, *args), group=group, max_restarts=max_restarts))
        self._line = re.compile(rf"{word} (\d+) ([\d.]+) ([\d.]+);")
        until = time.time() + _LATE_S
        while len(self._lines()) < N_RANKS and time.time() < until:
            session.settle(self.cell, 0.05)
        if self.cell.idle_at is None or self.cell.has_error or len(self._lines()) < N_RANKS:
            raise LaunchFailed(f"{peer.title}: the launch failed: {len(self._lines())} lines came. {self.cell.error}", self.cell)

    def _lines(self) -> dict[int, tuple[float, float, float]]:
        """Return when each rank's function was entered, its line printed, and the line first seen here."""
        lines: dict[int, tuple[float, float, float]] = {}
        for message in self.cell.messages:
            for rank, entered, printed in self._line.findall(message.text):
                lines.setdefault(int(rank), (float(entered), float(printed), message.at))
        return lines

    @property
    def first_line_at(self) -> float:
        return min(seen for _, _, seen in self._lines().values())

    @property
    def first_line_s(self) -> float:
        return self.first_line_at - self.cell.sent_at

    @property
    def idle_s(self) -> float:
        assert self.cell.idle_at is not None
        return self.cell.idle_at - self.cell.sent_at

    @property
    def slowest_line_s(self) -> float:
        """Return how long after it was printed a line was first seen here, of that which took longest."""
        return max(seen - printed for _, printed, seen in self._lines().values())

    def moments(self) -> dict[str, float]:
        """Return the moments that every launcher's launch has; of two ranks, the slower one's."""
        lines = self._lines().values()
        assert self.cell.idle_at is not None
        return {
            "entered": max(entered for entered, _, _ in lines),
            "printed": max(printed for _, printed, _ in lines),
            "seen": max(seen for _, _, seen in lines),
            "idle": self.cell.idle_at,
        }


def _measure(peer: Peer, scratch: Path) -> Facts:
    facts: dict[str, list[float | str]] = {row.key: [] for row in BENCH.rows}
    with Session(scratch) as session:
        asked_at = session.check(peer.setup).sent_at
        cold = Launch(session, peer, group=True)
        facts["cold"] = [cold.first_line_at - asked_at]
        facts["cold_idle"] = [cold.cell.idle_at - asked_at if cold.cell.idle_at else 0.0]
        for _ in range(N_WARM):
            session.settle(Cell(0), PAUSE_S)
            warm = Launch(session, peer, group=True)
            facts["warm"].append(warm.first_line_s)
            facts["warm_idle"].append(warm.idle_s)
            for key, step_ms in _steps(warm):
                facts[key].append(step_ms)
        again = Launch(session, peer, group=True)
        facts["again"] = [again.first_line_s]
        for _ in range(N_WARM):
            session.settle(Cell(0), PAUSE_S)
            bare = Launch(session, peer, group=False)
            facts["bare"].append(bare.first_line_s)
            facts["bare_idle"].append(bare.idle_s)
    return {key: values for key, values in facts.items() if values}


def _steps(launch: Launch) -> Iterator[tuple[str, float]]:
    """Yield where the time of a launch went, in milliseconds."""
    moments = launch.moments()
    previous = launch.cell.sent_at
    for key in ("entered", "printed", "seen", "idle"):
        yield f"to_{key}", 1000 * (moments[key] - previous)
        previous = moments[key]


BENCH = Bench(
    name="launch",
    title="Launching",
    about=(
        "Two CPU ranks make a gloo group, meet at a barrier, print one line and return. The first launch is counted from the request for "
        "the kernel's first cell, the launcher's imports included; the others from the request for their cell, "
        f"{N_WARM} in each kernel with {PAUSE_S:g} s of pause before each. A line counts as seen when the client has received the first "
        "message that carries it: a `stream` message, or with ice_notebook the widget's message with the panel's new output."
    ),
    rows=(
        Row("cold", "fresh kernel to first line"),
        Row("cold_idle", "fresh kernel to cell idle"),
        Row("warm", "next launch: first line"),
        Row("warm_idle", "next launch: cell idle"),
        Row("again", "launched again at once: first line"),
        Row("bare", "without a process group: first line"),
        Row("bare_idle", "without a process group: cell idle"),
        Row("to_entered", "next launch: request → function entered on both", "ms"),
        Row("to_printed", "→ both lines printed (import, group, barrier)", "ms"),
        Row("to_seen", "→ both lines at the client", "ms"),
        Row("to_idle", "→ cell idle", "ms"),
    ),
    measure=_measure,
)
