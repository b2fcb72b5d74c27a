"""`python -m benchmarks [--rounds N] [--only NAMES [--update]] [--no-page]`: measure, print the tables, write `docs/benchmarks.md`.

With the page come the README's table and the picture of launches, when these were measured.
"""

from __future__ import annotations

import argparse
import importlib.util
import signal
import sys
import tempfile
import time
import traceback
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from benchmarks import plot
from benchmarks.bench import Bench, Compared
from benchmarks.benches import BENCHES, standby
from benchmarks.benches.launch import Launch
from benchmarks.figures import Value
from benchmarks.page import Measured, format_page, summaries_of, update_page
from benchmarks.peers import PEERS, Peer
from benchmarks.session import ROOT, fresh
from benchmarks.summary import format_short, replace_marked
from ice_notebook.values import shared_values

_PAGE = ROOT / "docs" / "benchmarks.md"
_README = ROOT / "README.md"
_PICTURE = ROOT / "docs" / "images" / "launches.png"
_INTERRUPTED = 130  # as a shell says: 128 + SIGINT


def main(arguments: Sequence[str]) -> int:
    """Measure and report; return the exit status."""
    parser = _parser()
    asked = parser.parse_args(arguments)
    benches = [bench for bench in BENCHES if not asked.only or bench.name in asked.only]
    missing = sorted({name for bench in benches for name in bench.needs if importlib.util.find_spec(name) is None})
    if missing:
        parser.error(f"{', '.join(missing)} cannot be imported: pip install '.[benchmark]'")
    for number in (signal.SIGINT, signal.SIGTERM):  # every kernel is closed on the way out, also where a shell has SIGINT ignored
        signal.signal(number, _leave)
    writes = not asked.peers and not asked.no_page and (asked.update or not asked.only)
    if writes:  # these raise before anything is measured
        replace_marked(_README.read_text(), "")
        if asked.only:
            update_page(_PAGE.read_text(), BENCHES, [], {}, asked.rounds)
    measured: defaultdict[tuple[str, str, str], list[Value]] = defaultdict(list)
    rounds = status = 0
    try:
        with tempfile.TemporaryDirectory(prefix="ice-benchmark-", ignore_cleanup_errors=True) as scratch:
            try:
                _warm_up(
                    [peer for peer in PEERS if any(peer in _asked_peers(bench, asked.peers) for bench in benches)], Path(scratch)
                )
                for rounds in range(1, asked.rounds + 1):
                    for bench in benches:
                        for peer in _rotated(_asked_peers(bench, asked.peers), rounds):
                            _measure(bench, peer, Path(scratch), measured)
            finally:
                _remove_values()
    except KeyboardInterrupt:
        status = _INTERRUPTED
        print("interrupted; what was measured so far:", file=sys.stderr)
    print(format_page(benches, measured, rounds))
    if status == 0 and writes:
        _write(benches, measured, rounds)
    return status


def _write(benches: Sequence[Bench], measured: Measured, rounds: int) -> None:
    """Write the page, or its sections of these benches, and what else shows launches."""
    is_whole = len(benches) == len(BENCHES)
    _PAGE.write_text(
        format_page(benches, measured, rounds) if is_whole else update_page(_PAGE.read_text(), BENCHES, benches, measured, rounds)
    )
    if standby.BENCH in benches:
        summaries = summaries_of(measured)
        _README.write_text(replace_marked(_README.read_text(), format_short(standby.BENCH, summaries)))
        plot.draw(standby.BENCH, summaries, _PICTURE)


def _asked_peers(bench: Bench, names: Sequence[str] | None) -> list[Compared]:
    return [peer for peer in bench.peers if not names or peer.name in names]


def _measure(bench: Bench, peer: Compared, scratch: Path, measured: defaultdict[tuple[str, str, str], list[Value]]) -> None:
    began = time.monotonic()
    try:
        facts = bench.measure(peer, scratch)
    except RuntimeError as error:  # a peer that fails or hangs, which accelerate does now and then, costs its own sample only
        print(f"{bench.name}: {peer.name}: {error}", file=sys.stderr)
        return
    except Exception:  # a fault of the bench: what others have measured in an hour is kept
        traceback.print_exc()
        return
    for key, values in facts.items():
        measured[bench.name, key, peer.name] += values
    print(f"{bench.name}: {peer.name}: {time.monotonic() - began:.1f} s", file=sys.stderr)


def _warm_up(peers: Sequence[Peer], scratch: Path) -> None:
    """Launch once with everybody, so that nobody pays for cold file caches."""
    for peer in peers:
        with fresh(scratch, peer.setup) as session:
            Launch(session, peer, group=True)


def _remove_values() -> None:
    """Remove what runs of killed kernels have on shared memory; the next kernel would, but there may be none."""
    shared_values.remove_abandoned()


def _rotated(peers: Sequence[Compared], by: int) -> Sequence[Compared]:
    by %= len(peers) or 1
    return [*peers[by:], *peers[:by]]


def _leave(_signal: int, _frame: object) -> NoReturn:
    # Once: a second one, which `timeout` sends with the first, would hit the clean-up and leave processes behind. It ends by itself.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="how often everything is measured (default 3)")
    parser.add_argument(
        "--only", nargs="+", choices=[bench.name for bench in BENCHES], help="measure only these; no page is written"
    )
    parser.add_argument(
        "--update", action="store_true", help="with --only: write their sections anew, in a page of this machine and so many rounds"
    )
    parser.add_argument(
        "--peers",
        nargs="+",
        choices=sorted({peer.name for bench in BENCHES for peer in bench.peers}),
        help="only these; no page is written",
    )
    parser.add_argument("--no-page", action="store_true", help=f"do not write {_PAGE.relative_to(ROOT)}, nor the README's table")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
