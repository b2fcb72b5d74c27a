"""A flood of output: does it arrive, how fast, and what does the kernel spend on it?"""

from __future__ import annotations

import re
import secrets
import time
from pathlib import Path

from benchmarks import work
from benchmarks.bench import Bench, Facts, Row
from benchmarks.benches.launch import Launch
from benchmarks.figures import Beyond, Value
from benchmarks.peers import N_RANKS, OURS, Peer
from benchmarks.session import Cell, Session, fresh, read_notes

N_LINES = 200_000  # of each rank
LIMIT_S = 60.0


def _measure(peer: Peer, scratch: Path) -> Facts:
    word = f"flood-{secrets.token_hex(4)}"
    line = re.compile(rf"{word} (\d) (\d{{6}});\.+")
    with fresh(scratch, peer.setup) as session:
        Launch(session, peer, group=False)  # what only a first launch imports is not the flood's
        folder = session.new_folder()
        cpu_before = session.kernel_cpu_s()
        cell = session.run(peer.launch(work.flood, (str(folder), word, N_LINES), group=False), limit_s=LIMIT_S)
        ended_at = time.time()
        cpu_s = session.kernel_cpu_s() - cpu_before
        session.settle(cell)
        notes = read_notes(folder)
        seen = {found for message in cell.messages for found in line.findall(message.text)}
        seen_at = max((message.at for message in cell.messages if line.search(message.text)), default=ended_at)
        begun = min((note["begun"] for note in notes.values()), default=cell.sent_at)
        is_complete = len(notes) == N_RANKS  # all was printed: a line that the client is not shown has been handled as well
        facts: dict[str, list[Value]] = {
            "idle": [Beyond(LIMIT_S) if cell.idle_at is None else cell.idle_at - begun],
            "seen": [100 * len(seen) / (N_RANKS * N_LINES)],
            "last": [seen_at - begun],
            "cpu": [cpu_s],
            "cpu_per_line": [100_000 * cpu_s / max(1, N_RANKS * N_LINES if is_complete else len(seen))],
            "messages": [float(len(cell.messages))],
            "wire": [sum(message.size_bytes for message in cell.messages) / 2**20],
        }
        if is_complete:
            printing_s = max(note["ended"] for note in notes.values()) - begun
            facts["printing"] = [printing_s]
            facts["rate"] = [N_RANKS * N_LINES / printing_s]
        if peer is OURS:
            facts["complete"] = [_complete(session, cell, line)]
    return facts


def _complete(session: Session, cell: Cell, line: re.Pattern[str]) -> float:
    """Return the percentage of all lines that the log files hold whole and in order."""
    assert cell.idle_at is not None
    folder = Path(session.value("str(run.folder)"))
    held = 0
    for rank in range(N_RANKS):
        log = (folder / "attempt_0" / str(rank) / "output.log").read_text()
        expected = 0
        for found in log.splitlines():
            match = line.fullmatch(found)
            if match and len(found) == 79 and int(match[2]) == expected:
                expected += 1
        held += expected
    return 100 * held / (N_RANKS * N_LINES)


BENCH = Bench(
    name="flood",
    title="A flood of output",
    about=(
        f"Two ranks print {N_LINES:,} lines of 80 characters each with plain `print()`; times run from the first `print`. The panel of "
        "ice_notebook gets the newest lines and the number of those it skipped, and pages back through the log files, which must hold "
        f"every line; the others send everything to the cell. At {LIMIT_S:g} s the cell is given up."
    ),
    rows=(
        Row("printing", "ranks print for"),
        Row("rate", "lines per second", "per s"),
        Row("complete", "lines whole and in order in the log files", "%"),
        Row("seen", "lines that reached the client whole", "%"),
        Row("last", "last line at the client"),
        Row("idle", "cell idle"),
        Row("cpu", "kernel: CPU time from request to end"),
        Row("cpu_per_line", "kernel: CPU time for 100,000 lines"),
        Row("messages", "messages to the client", "count"),
        Row("wire", "text to the client", "MiB"),
    ),
    measure=_measure,
)
