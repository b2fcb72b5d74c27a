"""The options of the join command: what this machine brings to a run that another one has started."""
# ruff: noqa: RUF009 - `option` makes a dataclass field, which is what ruff wants there

from __future__ import annotations

from dataclasses import dataclass

from ice_notebook.devices import grammar as d
from ice_notebook.options.grammars import Seconds
from ice_notebook.options.launch_options import RANKS, TABLE
from ice_notebook.options.table import Surface, Table, option

CONNECT_S = 60.0  # a run may be about to begin: either machine may be the first
HEAD = """\
ice_notebook join HOST:PORT [--option VALUE ...]

Take part in a run that a notebook on another machine has started with nnodes. The run shows this command. `python -m ice_notebook join` is the same.

The run's token is read from ICE_NOTEBOOK_TOKEN, or else from the standard input.

Exit status: 0 when the run succeeded, 1 when it did not, 2 when this machine cannot join, 130 after Ctrl-C, which leaves the run; a second one
kills the ranks here."""


@dataclass(frozen=True)
class JoinOptions:
    """What was asked of a node."""

    devices: d.Devices | None = option(
        None,
        "Which devices of this machine the ranks use.",
        grammar=TABLE.options["devices"].grammar,
        group=RANKS,
        shown="as many as the first machine uses, of the same kind",
        example="cuda:0,1",
        surfaces=frozenset({Surface.CLI}),
    )
    nproc_per_node: int | str | None = option(
        None,
        "Number of ranks on this machine: a number, or `gpu`, `cpu` or `auto` to count what it has.",
        grammar=TABLE.options["nproc_per_node"].grammar,
        group=RANKS,
        shown="as many as `devices` says",
        example="2",
        surfaces=frozenset({Surface.CLI}),
    )
    connect_timeout: float = option(
        CONNECT_S,
        "How long to try to reach the run.",
        grammar=Seconds(or_zero=True),
        group="Meeting",
        example="5",
        surfaces=frozenset({Surface.CLI}),
    )


JOIN_TABLE = Table(JoinOptions, later={})
