"""The measurements, one a module, in the order of the page."""

from __future__ import annotations

from benchmarks.bench import Bench
from benchmarks.benches import account, failure, flood, launch, load, nodes, panel, scripts, standby, stop, values

BENCHES: tuple[Bench, ...] = (
    load.BENCH,
    launch.BENCH,
    standby.BENCH,
    account.BENCH,
    scripts.BENCH,
    nodes.BENCH,
    values.BENCH,
    flood.BENCH,
    *failure.BENCHES,
    *stop.BENCHES,
    *panel.BENCHES,
)
