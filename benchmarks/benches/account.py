"""Where every millisecond of a warm launch goes: the stages of ours, one after the other."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import work
from benchmarks.bench import Bench, Facts, Row
from benchmarks.benches.launch import Launch
from benchmarks.figures import Value
from benchmarks.peers import FORKED, OURS, Peer
from benchmarks.session import Cell, Session

N_LAUNCHES = 5
THINK_S = 6.0
READY_S = 15.0  # after the first launch, for ranks to stand by
_SETUP = "from benchmarks import stages\nstages.watch()\nloaded_at = stages.Moment()"

# Each ends at a moment that client, kernel, agent or the slower rank has noted; where none has, stages are one.
STAGES = (
    ("begun", "request → the kernel begins the cell"),
    ("planned", "→ function pickled, run folder made, plan written"),
    ("run_begun", "→ the agent has the plan"),
    ("attempt_begun", "→ agent and store are set up, ranks have their places"),
    ("rank_running", "→ the ranks have accepted"),
    ("loaded", "→ they begin, the function is loaded"),
    ("entered", "→ gloo group made, function entered"),
    ("met", "→ barrier passed"),
    ("returned", "→ line printed, function returned"),
    ("rank_returned", "→ value written, the agent knows"),
    ("rank_exited", "→ group left, ranks gone"),
    ("run_ended", "→ the agent says that the run has ended"),
    ("known", "→ the agent is gone, the kernel knows"),
    ("idle", "→ cell idle at the client"),
)


class _Name(str):
    """A name of the notebook's as an argument."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def _measure(peer: Peer, scratch: Path) -> Facts:
    facts: dict[str, list[Value]] = {row.key: [] for row in BENCH.rows}
    with Session(scratch) as session:
        session.check(peer.setup)
        session.check(_SETUP)
        _launch(session, peer)
        session.settle(Cell(0), READY_S)
        for _ in range(N_LAUNCHES):
            session.settle(Cell(0), THINK_S)
            launch = _launch(session, peer)
            events = _events(session)
            starts = [event["start"] for event in events if event["event"] == "attempt_begun"]
            facts["start"] += starts
            if "cold" in starts:
                continue
            moments = {**launch.moments(), **session.value("stages.noted"), **_noted_by_ranks(session), **last_moments(events)}
            moments["begun"] = launch.cell.begun_at
            for key, stage_ms in stages(launch.cell.sent_at, moments):
                facts[key].append(stage_ms)
            facts["line"].append(1000 * launch.slowest_line_s)
            facts["first"].append(1000 * launch.first_line_s)
            facts["whole"].append(1000 * launch.idle_s)
    return facts


def stages(sent_at: float, moments: Mapping[str, float]) -> list[tuple[str, float]]:
    """Return how many milliseconds each stage took."""
    ends = [moments[key] for key, _ in STAGES]
    return [(key, 1000 * (end - begin)) for (key, _), begin, end in zip(STAGES, [sent_at, *ends], ends, strict=False)]


def last_moments(events: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return when the last event of each kind came: of two ranks, the slower one's."""
    return {event["event"]: event["at"] for event in events}


def _launch(session: Session, peer: Peer) -> Launch:
    return Launch(session, peer, group=True, function=work.time_stages, args=(_Name("loaded_at"),))


def _events(session: Session) -> list[dict[str, Any]]:
    journal = Path(session.value("str(run.folder)")) / "events.jsonl"
    return [json.loads(line) for line in journal.read_text().splitlines()]


def _noted_by_ranks(session: Session) -> dict[str, float]:
    noted: dict[str, dict[str, float]] = session.value("dict(run.results)")
    return {key: max(times[key] for times in noted.values()) for key in ("loaded", "entered", "met", "returned")}


BENCH = Bench(
    name="account",
    title="Where a warm launch's time goes",
    about=(
        f"The same launch with ranks that stand by, {N_LAUNCHES} in a kernel, {THINK_S:g} s after the one before; one that finds none ready is counted in the "
        "last row only. In each launch the stages follow each other and add up to the whole; of two ranks the slower one counts. Their ends are noted by the client, by the run's journal, by the "
        "function itself, and in the kernel by two functions that the measurement has wrapped. A line is on its way to the page while its rank "
        "already returns."
    ),
    rows=(
        *(Row(key, text, "ms") for key, text in STAGES),
        Row("whole", "the whole: request → cell idle", "ms"),
        Row("first", "of it: request → first line at the client", "ms"),
        Row("line", "a line: printed → at the client", "ms"),
        Row("start", "its ranks", ""),
    ),
    measure=_measure,
    peers=(OURS, FORKED),
)
