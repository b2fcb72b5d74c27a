"""What we want to keep, checked against the measured medians."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from benchmarks.figures import Summary, format_number

# By bench, row and peer.
Summaries = Mapping[tuple[str, str, str], Summary]


@dataclass(frozen=True)
class Aim:
    """An upper bound on a row of ours, in the row's unit or as a multiple of a peer's; `at_least` turns it round."""

    text: str
    bench: str
    row: str
    limit: float
    of: str = ""  # a peer: the limit is a multiple of its figure
    unit: str = "s"
    at_least: bool = False

    def check(self, summaries: Summaries) -> tuple[str, str, bool] | None:
        """Return what was measured, what was wanted and whether it is kept; None when it was not measured."""
        ours = summaries.get((self.bench, self.row, "ours"))
        theirs = summaries.get((self.bench, self.row, self.of)) if self.of else None
        if ours is None or (self.of and theirs is None):
            return None
        sign = "≥" if self.at_least else "≤"
        if theirs is None:
            value, measured, wanted = ours.median, format_number(ours.median, self.unit), format_number(self.limit, self.unit)
        else:
            value = ours.median / theirs.median
            measured, wanted = f"{value:.3f} x {self.of}", f"{self.limit:g} x {self.of}"
        is_kept = value >= self.limit if self.at_least else value <= self.limit
        suffix = f" {self.unit}" if theirs is None else ""
        return f"{measured}{suffix}", f"{sign} {wanted}{suffix}", is_kept and not ours.is_beyond


AIMS = (
    Aim("load the extension, over ipywidgets' import", "load", "load", 0.15),
    Aim("fresh kernel to first line", "launch", "cold", 1.0, of="spawn"),
    Aim("next launch without a group, first line", "launch", "bare", 0.05),
    Aim("next launch without a group, cell idle", "launch", "bare_idle", 0.12),
    Aim("next launch, first line", "launch", "warm", 0.5, of="accelerate"),
    Aim("next launch, cell idle", "launch", "warm_idle", 0.8, of="accelerate"),
    Aim("next launch, first line, beside spawn", "launch", "warm", 1 / 40, of="spawn"),
    Aim("6 s after a launch: first line", "standby", "line_6", 0.5, of="accelerate"),
    Aim("6 s after a launch: cell idle", "standby", "idle_6", 0.8, of="accelerate"),
    Aim("1 s after a launch: first line", "standby", "line_1", 0.5, of="accelerate"),
    Aim("1 s after a launch: cell idle", "standby", "idle_1", 0.8, of="accelerate"),
    Aim("ten launches in a row, each", "standby", "sustained", 0.8, of="spawn"),
    Aim("a rank fails after 10 s: first line of the next attempt", "standby", "restart_10", 1.0),
    Aim("2 x 256 MiB usable after the last return", "values", "pair_usable", 0.5, of="spawn"),
    Aim("1 GiB opened", "values", "single_opening", 10.0, unit="ms"),
    Aim("kernel's memory before 1 GiB is read", "values", "single_peak", 16.0, unit="MiB"),
    Aim("lines to files", "flood", "rate", 100_000, unit="per s", at_least=True),
    Aim("lines whole and in order in the log files", "flood", "complete", 100.0, unit="%", at_least=True),
    Aim("kernel's CPU time for 100,000 lines", "flood", "cpu_per_line", 0.15),
    Aim("a rank raises: cause shown", "raised", "shown", 0.8),
    Aim("a rank raises: cell ended", "raised", "idle", 0.8),
    Aim("a rank is killed: cause shown", "killed", "shown", 0.8),
    Aim("a rank is killed: cell ended", "killed", "idle", 0.8),
    Aim("interrupt, blocked in C++: ranks gone", "stop_blocked", "gone", 0.5),
    Aim("interrupt, one asleep: ranks gone", "stop_asleep", "gone", 0.5),
    Aim("kernel killed: ranks gone", "kernel_killed", "gone", 2.0),
    Aim("panel, 100,000 lines a second: frames", "panel_100k", "frames", 50, unit="per s", at_least=True),
    Aim("panel, 100,000 lines a second: longest time between two", "panel_100k", "gap", 300, unit="ms"),
    Aim("panel, 100,000 lines a second: 99 of 100 lines drawn", "panel_100k", "delay_99", 250, unit="ms"),
    Aim("panel, 100,000 lines a second: kernel", "panel_100k", "cpu_kernel", 15, unit="%"),
    Aim(
        "panel, 100,000 lines a second: whole and in order in the log files", "panel_100k", "complete", 100, unit="%", at_least=True
    ),
)
