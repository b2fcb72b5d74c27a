"""What a measurement is: rows of a table, and a function that fills them for one launcher in one fresh kernel."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.figures import Value
from benchmarks.peers import Peer

# What one measurement gives for each row: several values when it launches several times. A row may be left out.
Facts = Mapping[str, Sequence[Value]]


@dataclass(frozen=True)
class Row:
    """A row of a table. A row without a unit has words."""

    key: str
    text: str
    unit: str = "s"


@dataclass(frozen=True)
class Bench:
    """A measurement. `measure(peer, scratch)` is called once a round for each peer, alone on the machine."""

    name: str
    title: str
    about: str
    rows: tuple[Row, ...]
    measure: Callable[[Peer, Path], Facts]
    takes: Callable[[Peer], bool] = lambda _: True


def words(value: object) -> str:
    """Return a fact as a word."""
    return "yes" if value else "no"
