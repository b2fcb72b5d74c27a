"""Measured values to what a table says of them: median, least and most, ratios, and how often a word came."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass


class Beyond(float):
    """A time that was not measured to its end: at least this long."""

    __slots__ = ()


Value = float | str


@dataclass(frozen=True)
class Summary:
    """Several measurements of one thing."""

    median: float
    least: float
    most: float
    n: int
    is_beyond: bool = False  # the median is a limit that was not reached


def summarise(values: Sequence[float]) -> Summary:
    """Return the summary of at least one value."""
    ordered = sorted(values)
    middle = ordered[(len(ordered) - 1) // 2 : len(ordered) // 2 + 1]
    return Summary(
        statistics.median(ordered),
        ordered[0],
        ordered[-1],
        len(ordered),
        is_beyond=any(isinstance(value, Beyond) for value in middle),
    )


def format_number(value: float, unit: str) -> str:
    """Return a number as precisely as its unit deserves."""
    if unit == "ms":
        return f"{value:.1f}" if abs(value) < 10 else f"{value:.0f}"
    if unit in {"%", "MiB"}:
        return f"{value:.2f}".rstrip("0").rstrip(".") if abs(value) < 100 else f"{value:.0f}"
    if unit == "s":
        return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"
    return f"{value:,.0f}"


def format_summary(summary: Summary, unit: str) -> str:
    """Return `median [least-most]`; `> limit` when the median is one that was not reached."""
    if summary.is_beyond:
        return f"> {summary.median:g}"
    median = format_number(summary.median, unit)
    if summary.n == 1:
        return median
    return f"{median} [{format_number(summary.least, unit)}-{format_number(summary.most, unit)}]"


def format_ratio(ours: Summary, theirs: Summary) -> str:
    """Return how often theirs ours is; a peer that did not end within a limit makes it an upper bound."""
    if ours.is_beyond or theirs.median <= 0:
        return ""
    ratio = ours.median / theirs.median
    text = f"{ratio:.2f}" if ratio >= 0.1 else f"{ratio:.2g}"
    return f"< {text}" if theirs.is_beyond else text


def format_words(words: Sequence[str]) -> str:
    """Return words with their counts, the most frequent first; a word that always came stands alone."""
    counts = Counter(words)
    if len(counts) == 1:
        return words[0]
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{word} ({count} of {len(words)})" for word, count in ordered)
