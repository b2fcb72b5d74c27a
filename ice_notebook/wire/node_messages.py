"""What the machines of a run tell each other, once the token is proved, and what an agent and the coordinator do.

What an agent tells the coordinator, and the other way round, goes by way of the process that has joined, which passes it on.
"""

from __future__ import annotations

import sys

from ice_notebook._version import __version__
from ice_notebook.errors.nodes import NodeError
from ice_notebook.wire import protocol as p
from ice_notebook.wire.messages import Bulk, Message

# ---- joining -----------------------------------------------------------------------------------------------------------------------------


class Hello(Message, frozen=True, kw_only=True):
    """Who wants to join."""

    ours: str  # version of ice_notebook
    torch: str
    python: str  # 3.11: functions travel as byte code, which changes with it
    host: str


class Refused(Message, frozen=True, kw_only=True):
    """It may not join."""

    why: str


class Welcome(Message, frozen=True, kw_only=True):
    """It may: what is to be done. The texts of the cells and the payload follow as files."""

    plan: p.Plan  # with paths of the other machine


class Equipped(Message, frozen=True, kw_only=True):
    """What a node brings along; from here on it counts."""

    n_ranks: int
    devices: str


# ---- what a node tells the coordinator ---------------------------------------------------------------------------------------------------


class NodeReady(Message, frozen=True, kw_only=True):
    """Its agent could begin a round."""


class StoreMade(Message, frozen=True, kw_only=True):
    """The first node has made the store of a round."""

    number: int
    port: int


class RoundFailed(Message, frozen=True, kw_only=True):
    """A rank of it failed: the one that did so first on that node."""

    number: int
    rank: int
    headline: str
    is_communication: bool


class Done(Message, frozen=True, kw_only=True):
    """All its ranks of a round have returned, and what they returned is on its way before this."""

    number: int


class Leaving(Message, frozen=True, kw_only=True):
    """It will not take part any more."""

    why: str


# ---- what a node is told -----------------------------------------------------------------------------------------------------------------


class Round(Message, frozen=True, kw_only=True):
    """A round begins: one start of the worker group on all nodes. Its number is that of the attempt."""

    number: int
    group_rank: int
    group_world_size: int
    restarts: int
    address: str  # of the ranks' store
    port: int = 0


class Over(Message, frozen=True, kw_only=True):
    """A round is over before its end: another begins, or none."""

    number: int
    restarting: bool
    why: str = ""


class Finish(Message, frozen=True, kw_only=True):
    """All nodes are done with a round."""

    number: int


class Piece(Bulk, frozen=True, kw_only=True):
    """A piece of a file."""

    what: str  # sources | payload | value | exception
    attempt: int = -1  # of the rank that has left a value or an exception
    rank: int = -1
    size_bytes: int  # of the whole file
    is_last: bool


ToJoin = Welcome | Refused | Piece  # what a machine that wants to join is told
FromJoin = Hello | Equipped


# ---- who goes together -------------------------------------------------------------------------------------------------------------------


def hello() -> Hello:
    """Return what this machine says of itself, without importing torch."""
    import importlib.metadata  # noqa: PLC0415 - runs of one machine need none of it
    import platform  # noqa: PLC0415

    try:
        torch = importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        torch = "none"
    ours = __version__
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    return Hello(ours=ours, torch=torch.partition("+")[0], python=python, host=platform.node() or "a node")


def check_versions(theirs: Hello, ours: Hello) -> None:
    """Refuse a machine on which functions, messages or collectives would not mean the same.

    Raises:
        NodeError: a version differs.
    """
    for what, found, wanted in (
        ("ice_notebook", theirs.ours, ours.ours),
        ("Python", theirs.python, ours.python),
        ("torch", theirs.torch, ours.torch),
    ):
        if found != wanted:
            raise NodeError.versions(what, found, wanted)
