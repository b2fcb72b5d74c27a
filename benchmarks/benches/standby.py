"""One launch after another, and a restart: what standby ranks and the fork server save, and what they cost in memory."""

from __future__ import annotations

from pathlib import Path

import psutil

from benchmarks import family, work
from benchmarks.bench import Bench, Facts, Row, words
from benchmarks.benches.launch import Launch, LaunchFailed
from benchmarks.figures import Beyond
from benchmarks.launch_peers import IPYPARALLEL, TORCHRUN
from benchmarks.peers import FORKED, OURS, PEERS, Peer
from benchmarks.session import CELL_LIMIT_S, Cell, Session, read_notes

THINK_S = (6.0, 1.0, 0.0)  # between the end of a cell and the request for the next
N_LAUNCHES = {6.0: 3, 1.0: 5, 0.0: 10}
# How long a run has run when one of its ranks fails, and how often that is measured. Ours keep spare ranks by then, or not yet.
RUN_S = {10.0: 2, 0.0: 1}
READY_S = 60.0  # for ranks to stand by after the first launch, where somebody has such
_WAITING = {"agent", "rank", "server", "engine", "controller"}
_MIB = 1 << 20


def _measure(peer: Peer, scratch: Path) -> Facts:
    facts: dict[str, list[float | str]] = {row.key: [] for row in BENCH.rows}
    with Session(scratch) as session:
        asked_at = session.check(peer.setup).sent_at
        facts["cold"] = [Launch(session, peer, group=True).first_line_at - asked_at]
        session.settle(Cell(0), READY_S / 4)
        if peer in {OURS, FORKED, IPYPARALLEL}:
            _add_memory(facts, session)
        for think_s in THINK_S:
            began, n_launches = None, N_LAUNCHES[think_s]
            for _ in range(n_launches):
                session.settle(Cell(0), think_s)
                launch = Launch(session, peer, group=True)
                began = began or launch.cell.sent_at
                facts[f"line_{think_s:g}"].append(launch.first_line_s)
                facts[f"idle_{think_s:g}"].append(launch.idle_s)
            if think_s == 0.0 and began is not None and launch.cell.idle_at is not None:
                facts["sustained"] = [(launch.cell.idle_at - began) / n_launches]
        if peer.can_restart:
            _add_restarts(facts, session, peer)
    return {key: values for key, values in facts.items() if values}


def _add_restarts(facts: dict[str, list[float | str]], session: Session, peer: Peer) -> None:
    """Note how restarts go. One that hangs is the last: the kernel still waits for it."""
    for run_s in (run_s for run_s, count in RUN_S.items() for _ in range(count)):
        session.settle(Cell(0), max(THINK_S))
        restart_s = _restart(session, peer, run_s)
        is_hanging = isinstance(restart_s, Beyond)
        facts["restarts"].append(words(restart_s is not None and not is_hanging))
        if is_hanging:
            return
        facts[f"restart_{run_s:g}"] += [] if restart_s is None else [restart_s]


def _restart(session: Session, peer: Peer, run_s: float) -> float | None:
    """Return the seconds from a rank's failure to the first line of the next attempt at the client; None when the restart fails."""
    folder = session.new_folder()
    try:
        launch = Launch(session, peer, group=True, function=work.fail_once, args=(str(folder), run_s), max_restarts=1)
    except LaunchFailed as error:
        if 1 not in read_notes(folder):  # it did not come as far as that
            raise
        return Beyond(CELL_LIMIT_S) if error.cell.idle_at is None else None
    return launch.first_line_at - read_notes(folder)[1]["at"]


def _add_memory(facts: dict[str, list[float | str]], session: Session) -> None:
    """Note what the processes that stand by have for themselves, and their share of what they have in common."""
    waiting = [psutil.Process(pid) for pid in session.others() if family.kind(pid) in _WAITING]  # forked ones too
    sizes = [process.memory_full_info() for process in waiting]
    facts["processes"] = [float(len(sizes))]
    facts["private"] = [sum(size.uss for size in sizes) / _MIB]
    facts["proportional"] = [sum(size.pss for size in sizes) / _MIB]


BENCH = Bench(
    name="standby",
    title="Launch after launch",
    about=(
        "The same work as for `Launching`, a group and a barrier included, again and again in one kernel: with some seconds to think between the end of a cell "
        "and the next request, and with none, ten times in a row. torchrun gets a script that the cell writes. The engines of ipyparallel are "
        "started once and have imported torch: a launch finds in them what earlier ones have left, and a rank that fails is not started "
        "again. Of the others each launch has fresh ranks. For a restart rank 1 raises a `ValueError` while rank 0 waits for it in `all_reduce`, "
        "at once, or when the run has lasted for ten seconds in which the cores were idle; the time runs until the next attempt's first line. "
        "torch's agent keeps its store, in which new ranks may find the addresses of dead ones: such restarts fail or stall, and the times are "
        "those of restarts that came up."
    ),
    rows=(
        Row("cold", "fresh kernel to first line"),
        *(
            Row(f"{key}_{think_s:g}", f"after {think_s:g} s: {text}")
            for think_s in THINK_S
            for key, text in (("line", "first line"), ("idle", "cell idle"))
        ),
        Row("sustained", "ten times in a row, each"),
        *(Row(f"restart_{run_s:g}", f"restart: failure after {run_s:g} s → first line of the next attempt") for run_s in RUN_S),
        Row("restarts", "the restart comes up", ""),
        Row("processes", "processes that stand by", "count"),
        Row("private", "their private memory", "MiB"),
        Row("proportional", "their proportional memory (PSS)", "MiB"),
    ),
    measure=_measure,
    peers=(OURS, FORKED, *(peer for peer in PEERS if peer is not OURS), TORCHRUN, IPYPARALLEL),
    needs=("accelerate", "ipyparallel", "matplotlib"),
)
