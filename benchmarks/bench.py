"""What a measurement is: rows of a table, and a function that fills them for one of those who are compared, in one fresh kernel."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from benchmarks.figures import Value
from benchmarks.peers import PEERS

# What one measurement gives for each row: several values when it launches several times. A row may be left out.
Facts = Mapping[str, Sequence[Value]]
OURS = "ours"  # the name of ours in each comparison


class Compared(Protocol):
    """One of those who are compared in a measurement."""

    @property
    def name(self) -> str: ...
    @property
    def title(self) -> str: ...


@dataclass(frozen=True)
class Row:
    """A row of a table. A row without a unit has words."""

    key: str
    text: str
    unit: str = "s"


@dataclass(frozen=True)
class Bench:
    """A measurement. `measure(peer, scratch)` is called once a round for each of `peers`, alone on the machine; ours is the first of them."""

    name: str
    title: str
    about: str
    rows: tuple[Row, ...]
    measure: Callable[[Any, Path], Facts]
    peers: tuple[Compared, ...] = PEERS
    needs: tuple[str, ...] = ()  # packages of the extra `benchmark` that it, or its picture, cannot do without


def words(value: object) -> str:
    """Return a fact as a word."""
    return "yes" if value else "no"
