"""A rank fails while the other one waits for it: what is shown, when, and of whom."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from benchmarks import work
from benchmarks.bench import Bench, Facts, Row, words
from benchmarks.benches.launch import Launch
from benchmarks.blame import blamed_rank, plain
from benchmarks.figures import Beyond, Value
from benchmarks.peers import Peer
from benchmarks.session import Session, fresh, read_notes

LIMIT_S = 60.0
_RAISED = re.compile("bad-loss")
_KILLED = re.compile(r"SIGKILL|signal 9\b|exitcode\s*: ?-9", re.IGNORECASE)
_FAILING_LINE = "raise ValueError("


def _measure(how: str, cause: re.Pattern[str]) -> Callable[[Peer, Path], Facts]:
    def measure(peer: Peer, scratch: Path) -> Facts:
        with fresh(scratch, peer.setup) as session:
            folder = session.new_folder()
            cell = session.settle(session.run(peer.launch(work.fail, (str(folder), how)), limit_s=LIMIT_S))
            if 1 not in (notes := read_notes(folder)):
                raise RuntimeError(f"{peer.title}: rank 1 did not come to its failure. {cell.error}")
            failed_at = notes[1]["at"]
            shown_at = cell.first(cause.search)
            facts: dict[str, list[Value]] = {
                "idle": [Beyond(LIMIT_S) if cell.idle_at is None else cell.idle_at - failed_at],
                "status": ["fails" if cell.has_error else "passes"],
                "blamed": [blamed_rank(cell.error)],
                "cause": [words(shown_at is not None)],
                "next": [next_works(session, peer) if cell.idle_at is not None else "no"],
            }
            if shown_at is not None:
                facts["shown"] = [shown_at - failed_at]
            if how == "raised":
                facts["line"] = [words(_FAILING_LINE in plain(cell.error))]
        return facts

    return measure


def next_works(session: Session, peer: Peer) -> str:
    """Return whether one more launch succeeds."""
    try:
        Launch(session, peer, group=False)
    except RuntimeError:
        return "no"
    return "yes"


def _bench(how: str, title: str, about: str, cause: re.Pattern[str]) -> Bench:
    rows = [
        Row("cause", "the cause is shown", ""),
        Row("shown", "failure → cause at the client"),
        Row("idle", "failure → cell idle"),
        Row("blamed", "the error names", ""),
        Row("status", "the cell", ""),
        Row("next", "the next launch works", ""),
    ]
    if how == "raised":
        rows.insert(4, Row("line", "the error shows the failing line", ""))
    return Bench(name=how, title=title, about=about, rows=tuple(rows), measure=_measure(how, cause))


BENCHES = (
    _bench(
        "raised",
        "A rank raises",
        "Rank 1 raises a `ValueError` while rank 0 waits in `all_reduce`. The cause is shown when a message carries the exception's text.",
        _RAISED,
    ),
    _bench(
        "killed",
        "A rank is killed",
        "Rank 1 kills itself with SIGKILL while rank 0 waits in `all_reduce`. The cause is shown when a message speaks of that signal.",
        _KILLED,
    ),
)
