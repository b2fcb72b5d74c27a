"""What was measured as a page: tables, and the machine they were measured on."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import psutil

from benchmarks.aims import AIMS, Summaries
from benchmarks.bench import OURS, Bench, Row
from benchmarks.figures import Beyond, Summary, Value, format_ratio, format_summary, format_words, summarise

# By bench, row and peer, from all rounds.
Measured = Mapping[tuple[str, str, str], Sequence[Value]]

_HEAD = """\
# What does a launch cost?

<!-- Written by `python -m benchmarks`. -->

The same work through the same real kernel, ice_notebook beside other launchers in one run: torch's own elastic launcher called in the
kernel with `start_method="spawn"`, and accelerate's `notebook_launcher`, which forks the kernel. A client of the kernel counts what it
receives, one launch at a time, each launcher in a fresh kernel of its own, in an order that rotates from round to round; a first launch of
each, not counted, has filled the file caches. What a page shows is measured in JupyterLab in Chromium, each way in a server, a kernel and a
browser of its own. Cells read median [least-most]; `ratio` is ice_notebook's median over the other's.
`python -m benchmarks --rounds 3` measures for about 90 minutes and writes this page; it wants a machine that does nothing else.
`--only NAME ... --update` measures some of it and writes their sections anew.
"""
_MACHINE_TITLE = "## On what was this measured?"
_AIMS_TITLE = "## Does it keep its bounds?"
_AIMS_HEAD = f"{_AIMS_TITLE}\n\n| what | measured | bound | kept |\n|---|---|---|---|\n"
_PACKAGES = ("torch", "ipykernel", "ipython", "ipywidgets", "anywidget", "accelerate", "ice-notebook")


def format_page(benches: Sequence[Bench], measured: Measured, rounds: int) -> str:
    """Return the whole page, in Markdown."""
    parts = [_HEAD, f"{_MACHINE_TITLE}\n\n{format_machine(rounds)}"]
    parts += [f"## {bench.title}\n\n{bench.about}\n\n{format_table(bench, measured)}" for bench in benches]
    aims = format_aims(summaries_of(measured))
    if aims:
        parts.append(_AIMS_HEAD + aims)
    return "\n".join(parts)


def update_page(page: str, every: Sequence[Bench], benches: Sequence[Bench], measured: Measured, rounds: int) -> str:
    """Return a page with the sections and bounds of some benches written anew, everything else as it was; `every` has the order.

    Raises:
        ValueError: the page was measured on another machine, with other versions or another number of rounds.
    """
    old, new = _sections(page), _sections(format_page(benches, measured, rounds))
    if old.get(_MACHINE_TITLE) != new[_MACHINE_TITLE]:
        raise ValueError(f"The page was measured on something else, so all of it must be:\n{old.get(_MACHINE_TITLE, '')}")
    lines = [line for sections in (old, new) for line in sections.get(_AIMS_TITLE, "").splitlines()]
    newest = {aim: line for aim in AIMS for line in lines if line.startswith(f"| {aim.text} |")}
    merged = {**old, **new, _AIMS_TITLE: _AIMS_HEAD + "\n".join(newest[aim] for aim in AIMS if aim in newest)}
    titles = ["", _MACHINE_TITLE, *(f"## {bench.title}" for bench in every), _AIMS_TITLE]
    return "\n\n".join(merged[title] for title in titles if title in merged) + "\n"


def _sections(page: str) -> dict[str, str]:
    """Return a page's sections by their title; what is before the first has none."""
    parts = [part.rstrip("\n") for part in re.split("(?m)^(?=## )", page)]
    return {"": parts[0], **{part.split("\n", 1)[0]: part for part in parts[1:]}}


def format_table(bench: Bench, measured: Measured) -> str:
    """Return a bench's rows: ours first, then each peer with the ratio to it."""
    ours, *others = bench.peers
    heads = ["", ours.title, *(head for peer in others for head in (peer.title, "ratio"))]
    lines = [_line(heads), _line(["---"] * len(heads))]
    for row in bench.rows:
        values = {peer.name: measured.get((bench.name, row.key, peer.name), ()) for peer in bench.peers}
        if not any(values.values()):
            continue
        cells = [f"{row.text}{', ' + row.unit if row.unit not in {'', 'count', 'per s'} else ''}", _cell(row, values[OURS])]
        for peer in others:
            cells += [_cell(row, values[peer.name]), _ratio(row, values[OURS], values[peer.name])]
        lines.append(_line(cells))
    return "\n".join(lines) + "\n"


def format_aims(summaries: Summaries) -> str:
    """Return a line for each bound that was measured."""
    lines = []
    for aim in AIMS:
        checked = aim.check(summaries)
        if checked is not None:
            measured, wanted, is_kept = checked
            lines.append(_line([aim.text, measured, wanted, "yes" if is_kept else "**no**"]))
    return "\n".join(lines) + "\n" if lines else ""


def summaries_of(measured: Measured) -> dict[tuple[str, str, str], Summary]:
    """Return the summaries of everything that is a number."""
    found = {key: _numbers(values) for key, values in measured.items()}
    return {key: summarise(numbers) for key, numbers in found.items() if numbers}


def format_machine(rounds: int) -> str:
    """Return the machine and the versions, without any name of the machine."""
    memory = psutil.virtual_memory().total / 2**30
    versions = ", ".join(f"{name} {version}" for name, version in _versions())
    system = f"{platform.system()} {platform.release().split('-')[0]}"
    lines = [
        f"{_processor()}, {len(os.sched_getaffinity(0))} cores, {memory:.0f} GiB of memory, no GPU used.",
        f"{system}, Python {platform.python_version()}.",
        f"{versions}.",
        f"{rounds} round{'' if rounds == 1 else 's'}.",
    ]
    return " ".join(lines) + "\n"


def _versions() -> Iterator[tuple[str, str]]:
    for name in _PACKAGES:
        try:
            yield name, importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:  # used from its source folder
            continue


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _cell(row: Row, values: Sequence[Value]) -> str:
    if not values:
        return "-"
    numbers = _numbers(values)
    return format_summary(summarise(numbers), row.unit) if numbers else format_words([str(value) for value in values])


def _ratio(row: Row, ours: Sequence[Value], theirs: Sequence[Value]) -> str:
    our_numbers, their_numbers = _numbers(ours), _numbers(theirs)
    if not row.unit or not our_numbers or not their_numbers:
        return ""
    return format_ratio(summarise(our_numbers), summarise(their_numbers))


def _numbers(values: Sequence[Value]) -> list[float]:
    return [value for value in values if isinstance(value, (float, int, Beyond))]


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
