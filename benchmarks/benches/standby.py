"""One launch after another: what standby ranks and the fork server save, and what they cost in memory."""

from __future__ import annotations

from pathlib import Path

import psutil

from benchmarks import family
from benchmarks.bench import Bench, Facts, Row
from benchmarks.benches.launch import Launch
from benchmarks.launch_peers import IPYPARALLEL, TORCHRUN
from benchmarks.peers import FORKED, OURS, PEERS, Peer
from benchmarks.session import Cell, Session

THINK_S = (6.0, 1.0, 0.0)  # between the end of a cell and the request for the next
N_LAUNCHES = {6.0: 3, 1.0: 5, 0.0: 10}
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
    return {key: values for key, values in facts.items() if values}


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
        "started once and have imported torch: a launch finds in them what earlier ones have left. Of the others each launch has fresh ranks."
    ),
    rows=(
        Row("cold", "fresh kernel to first line"),
        *(
            Row(f"{key}_{think_s:g}", f"after {think_s:g} s: {text}")
            for think_s in THINK_S
            for key, text in (("line", "first line"), ("idle", "cell idle"))
        ),
        Row("sustained", "ten times in a row, each"),
        Row("processes", "processes that stand by", "count"),
        Row("private", "their private memory", "MiB"),
        Row("proportional", "their proportional memory (PSS)", "MiB"),
    ),
    measure=_measure,
    peers=(OURS, FORKED, *(peer for peer in PEERS if peer is not OURS), TORCHRUN, IPYPARALLEL),
)
