"""The short account of launches for the README: a table between two marker comments, written from measured values."""

from __future__ import annotations

from benchmarks.aims import Summaries
from benchmarks.bench import Bench, Row
from benchmarks.figures import Summary

BEGIN = "<!-- benchmarks: begin -->"
END = "<!-- benchmarks: end -->"
BENCH = "standby"
REFERENCE = "accelerate"  # the ratio is to this one
# Rows of the bench by their keys, as this table calls them.
ROWS = (
    Row("cold", "fresh kernel: first line"),
    Row("line_6", "6 s after the last launch: first line"),
    Row("idle_6", "6 s after: cell idle"),
    Row("line_1", "1 s after: first line"),
    Row("idle_1", "1 s after: cell idle"),
    Row("line_0", "at once: first line"),
    Row("restart_10", "a rank fails: first line of the next attempt"),
    Row("private", "private memory of what stands by", "MiB"),
)


def format_short(bench: Bench, summaries: Summaries) -> str:
    """Return the table: a column for each of those who are compared, a row for each row that was measured."""
    lines = [["", *(peer.title for peer in bench.peers)], ["---"] * (1 + len(bench.peers))]
    for row in ROWS:
        found = {peer.name: summaries.get((BENCH, row.key, peer.name)) for peer in bench.peers}
        if any(found.values()):
            reference = None if row.unit == "MiB" else found.get(REFERENCE)
            lines.append([row.text, *(_cell(row, found[peer.name], reference) for peer in bench.peers)])
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines) + "\n"


def replace_marked(text: str, new: str) -> str:
    """Return a text with what stands between the markers replaced.

    Raises:
        ValueError: there is not one pair of markers in order.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end) or BEGIN in rest or END in before + after:
        raise ValueError(f"The text must have {BEGIN} once, and then {END} once.")
    return f"{before}{BEGIN}\n{new.rstrip()}\n{END}{after}"


def format_time(seconds: float) -> str:
    """Return a time in milliseconds or seconds, as a person would say it."""
    if seconds < 0.9995:
        return f"{1000 * seconds:.0f} ms"
    return f"{seconds:.1f} s" if seconds < 99.95 else f"{seconds:.0f} s"


def _cell(row: Row, summary: Summary | None, reference: Summary | None) -> str:
    """Return a median, with its ratio to the reference's where that is another one."""
    if summary is None:
        return "-"
    text = f"{summary.median:,.0f} MiB" if row.unit == "MiB" else format_time(summary.median)
    if summary.is_beyond:
        return f"> {text}"
    if reference is None or reference is summary or reference.is_beyond:
        return text
    ratio = summary.median / reference.median
    return f"{text} ({ratio:.2f} x)" if ratio < 9.95 else f"{text} ({ratio:.0f} x)"
