"""A notebook's interrupt and the kernel's death: when are the ranks gone, and what is left?"""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from benchmarks import family, work
from benchmarks.bench import Bench, Facts, Row
from benchmarks.benches.failure import next_works
from benchmarks.figures import Beyond, Value
from benchmarks.peers import N_RANKS, Peer
from benchmarks.session import Cell, Session, fresh, read_notes

LIMIT_S = 45.0
LEFT_AFTER_S = 10.0
_BLOCKED_S = 1.0  # from the last rank's note to the act: both are in their wait by then


class _Act:
    """Does something once, when all ranks wait, and watches them go."""

    def __init__(self, folder: Path, act: Callable[[], None]) -> None:
        self._folder = folder
        self._act = act
        self._ready_at: float | None = None
        self.at: float | None = None
        self.pids: list[int] = []
        self.watch: family.Watch | None = None

    def __call__(self, _cell: Cell) -> None:
        if self.at is not None:
            return
        notes = read_notes(self._folder)
        if len(notes) < N_RANKS:
            return
        self._ready_at = self._ready_at or time.time()
        if time.time() - self._ready_at < _BLOCKED_S:
            return
        self.pids = [int(note["pid"]) for note in notes.values()]
        self.watch = family.Watch(self.pids)
        self.at = time.time()
        self._act()

    def check(self, peer: Peer) -> None:
        """Raise if there was nothing to act on."""
        if self.at is None:
            raise RuntimeError(f"{peer.title}: the ranks did not start")


def _interrupted(how: str) -> Callable[[Peer, Path], Facts]:
    def measure(peer: Peer, scratch: Path) -> Facts:
        with fresh(scratch, peer.setup) as session:
            folder = session.new_folder()
            act = _Act(folder, session.interrupt)
            cell = session.run(peer.launch(work.block, (str(folder), how)), limit_s=LIMIT_S, while_waiting=act)
            act.check(peer)
            facts = _what_is_left(session, act)
            facts["idle"] = [_since(act.at or 0.0, cell.idle_at)]
            if cell.idle_at is not None:
                facts["next"] = [next_works(session, peer)]
        return facts

    return measure


def _kernel_killed(peer: Peer, scratch: Path) -> Facts:
    with fresh(scratch, peer.setup) as session:
        folder = session.new_folder()
        act = _Act(folder, lambda: os.kill(session.pid, signal.SIGKILL))

        def until_acted(cell: Cell) -> None:
            act(cell)
            if act.at is not None:
                cell.idle_at = act.at  # no more will come

        session.run(peer.launch(work.block, (str(folder), "blocked")), limit_s=LIMIT_S, while_waiting=until_acted)
        act.check(peer)
        return _what_is_left(session, act)


def _what_is_left(session: Session, act: _Act) -> dict[str, list[Value]]:
    """Wait until everything had its time, and say when the ranks were gone and which processes there still are."""
    assert act.watch is not None
    assert act.at is not None
    gone_at = act.watch.wait(LEFT_AFTER_S)
    time.sleep(max(0.0, act.at + LEFT_AFTER_S - time.time()))
    kinds = Counter("blocked rank" if pid in act.pids else family.kind(pid) for pid in session.others())
    left = " + ".join(f"{count} {kind}{'s' if count > 1 else ''}" for kind, count in sorted(kinds.items()))
    return {"gone": [_since(act.at, gone_at)], "left": [left or "nothing"]}


def _since(began: float, ended: float | None) -> float:
    return Beyond(round(time.time() - began)) if ended is None else ended - began


_GONE = Row("gone", "→ both ranks gone")
_LEFT = Row("left", f"left {LEFT_AFTER_S:g} s later", "")
_ROWS = (_GONE, Row("idle", "→ cell idle"), _LEFT, Row("next", "the next launch works", ""))

BENCHES = (
    Bench(
        name="stop_blocked",
        title="Interrupt, ranks blocked in C++",
        about=(
            "SIGINT to the kernel's process group, as a notebook's stop button sends it, while rank 0 is in `all_reduce` and rank 1 in "
            f"`recv`. What is left is counted {LEFT_AFTER_S:g} s after the signal, or after the cell's end when that is later."
        ),
        rows=_ROWS,
        measure=_interrupted("blocked"),
    ),
    Bench(
        name="stop_asleep",
        title="Interrupt, one rank asleep in Python",
        about="The same with rank 1 in `time.sleep`.",
        rows=_ROWS,
        measure=_interrupted("asleep"),
    ),
    Bench(
        name="kernel_killed",
        title="The kernel is killed",
        about="SIGKILL to the kernel process alone, both ranks blocked in C++.",
        rows=(_GONE, _LEFT),
        measure=_kernel_killed,
    ),
)
