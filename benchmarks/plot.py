"""The picture of launches: a bar for each of those who are compared, from measured values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.aims import Summaries
from benchmarks.bench import Bench
from benchmarks.figures import Summary
from benchmarks.summary import BENCH, format_time

# Rows of the bench by their keys, and what the picture calls them.
GROUPS = (
    ("cold", "fresh kernel"),
    ("line_6", "6 s after\nthe last launch"),
    ("line_1", "1 s after"),
    ("line_0", "at once"),
    ("restart_10", "restart after\na failure"),
)
# Of Okabe and Ito: to be told apart by everybody, on light grey.
COLOURS = ("#0072b2", "#56b4e9", "#d55e00", "#e69f00", "#cc79a7", "#009e73")
BACKGROUND = "#eeeeee"  # of its own, so that a dark page shows the picture as a light one does
INK = "#222222"
_WIDTH = 0.9  # of a group, of the distance between two
_SIZE_INCHES = (11.0, 4.6)
_DPI = 110


@dataclass(frozen=True)
class Bar:
    """A bar with its whisker, at its place on the axis."""

    at: float  # groups are at 0, 1, …
    summary: Summary

    @property
    def label(self) -> str:
        return f"{'> ' if self.summary.is_beyond else ''}{format_time(self.summary.median)}"

    @property
    def whisker(self) -> tuple[float, float]:
        """Return how far least and most are from the median."""
        return self.summary.median - self.summary.least, self.summary.most - self.summary.median


def measured_groups(summaries: Summaries) -> list[tuple[str, str]]:
    """Return the groups of which anything was measured."""
    keys = {key for bench, key, _ in summaries if bench == BENCH}
    return [(key, text) for key, text in GROUPS if key in keys]


def bars(bench: Bench, summaries: Summaries) -> dict[str, list[Bar]]:
    """Return the bars of each of those who are compared, by title; one that has none is left out."""
    width = _WIDTH / len(bench.peers)
    groups = measured_groups(summaries)
    found = {
        peer.title: [
            Bar(group + (i + 0.5) * width - _WIDTH / 2, summaries[BENCH, key, peer.name])
            for group, (key, _) in enumerate(groups)
            if (BENCH, key, peer.name) in summaries
        ]
        for i, peer in enumerate(bench.peers)
    }
    return {title: its for title, its in found.items() if its}


def draw(bench: Bench, summaries: Summaries, path: Path) -> None:
    """Write the picture, in PNG."""
    from matplotlib.figure import Figure  # the extra `benchmark`

    figure = Figure(figsize=_SIZE_INCHES, dpi=_DPI, facecolor=BACKGROUND, layout="constrained")
    axes = figure.add_subplot(facecolor=BACKGROUND)
    colours = dict(zip((peer.title for peer in bench.peers), COLOURS, strict=False))
    for title, its in bars(bench, summaries).items():
        _draw_bars(axes, its, title, colours[title], 0.94 * _WIDTH / len(bench.peers))
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(lambda seconds, _: f"{1000 * seconds:g} ms" if seconds < 1 else f"{seconds:g} s")
    axes.yaxis.minorticks_off()
    axes.margins(y=0.12)
    groups = measured_groups(summaries)
    axes.set_xticks(range(len(groups)), [text for _, text in groups], color=INK)
    axes.set_xlim(-0.55, len(groups) - 0.45)
    axes.set_title("Until the first line of two ranks is at the client: median, least and most", color=INK, loc="left", fontsize=11)
    axes.tick_params(colors=INK, length=0)
    axes.grid(axis="y", color="#cccccc", linewidth=0.7)
    axes.set_axisbelow(True)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.legend(ncols=len(bench.peers), loc="upper center", bbox_to_anchor=(0.5, -0.13), frameon=False, labelcolor=INK, fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Software": None})  # the same values are the same file


def _draw_bars(axes: Any, its: Sequence[Bar], title: str, colour: str, width: float) -> None:
    lows, highs = zip(*(bar.whisker for bar in its), strict=True)
    axes.bar(
        [bar.at for bar in its],
        [bar.summary.median for bar in its],
        width,
        yerr=[lows, highs],
        color=colour,
        label=title,
        error_kw={"ecolor": INK, "elinewidth": 1, "capsize": 2},
    )
    for bar in its:
        axes.annotate(
            bar.label,
            (bar.at, bar.summary.most),
            xytext=(0, 4),
            textcoords="offset points",
            rotation=90,
            ha="center",
            va="bottom",
            fontsize=7.5,
            color=INK,
        )
