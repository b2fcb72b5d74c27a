"""What the machines of a run tell each other, once the token is proved, and what an agent and the coordinator do.

Messages are structures in frames. Those of `ToCoordinator` and `ToNode` travel as frames of the kind MESSAGE, also between a node's agent
and the process that has joined, which passes them on.
"""

from __future__ import annotations

import sys
from typing import Any

from ice_notebook._version import __version__
from ice_notebook.errors.nodes import NodeError
from ice_notebook.wire import exact_json
from ice_notebook.wire import protocol as p

MESSAGE = "node"  # the kind of the frames that hold a message of these


# ---- joining -----------------------------------------------------------------------------------------------------------------------------


class Hello(p.Struct, frozen=True, kw_only=True, tag="hello"):
    """Who wants to join."""

    ours: str  # version of ice_notebook
    torch: str
    python: str  # 3.11: functions travel as byte code, which changes with it
    host: str


class Refused(p.Struct, frozen=True, kw_only=True, tag="refused"):
    """It may not join."""

    why: str


class Welcome(p.Struct, frozen=True, kw_only=True, tag="welcome"):
    """It may: what is to be done. The texts of the cells and the payload follow as files."""

    plan: p.Plan  # with paths of the other machine


class Equipped(p.Struct, frozen=True, kw_only=True, tag="equipped"):
    """What a node brings along; from here on it counts."""

    n_ranks: int
    devices: str


# ---- what a node tells the coordinator ---------------------------------------------------------------------------------------------------


class Ready(p.Struct, frozen=True, kw_only=True, tag="ready"):
    """Its agent could begin a round."""


class StoreMade(p.Struct, frozen=True, kw_only=True, tag="store_made"):
    """The first node has made the store of a round."""

    number: int
    port: int


class RoundFailed(p.Struct, frozen=True, kw_only=True, tag="round_failed"):
    """A rank of it failed: the one that did so first on that node."""

    number: int
    rank: int
    headline: str
    is_communication: bool


class Done(p.Struct, frozen=True, kw_only=True, tag="done"):
    """All its ranks of a round have returned, and what they returned is on its way before this."""

    number: int


class Leaving(p.Struct, frozen=True, kw_only=True, tag="leaving"):
    """It will not take part any more."""

    why: str


# ---- what a node is told -----------------------------------------------------------------------------------------------------------------


class Round(p.Struct, frozen=True, kw_only=True, tag="round"):
    """A round begins: one start of the worker group on all nodes. Its number is that of the attempt."""

    number: int
    group_rank: int
    group_world_size: int
    restarts: int
    address: str  # of the ranks' store
    port: int = 0


class Over(p.Struct, frozen=True, kw_only=True, tag="over"):
    """A round is over before its end: another begins, or none."""

    number: int
    restarting: bool
    why: str = ""


class Finish(p.Struct, frozen=True, kw_only=True, tag="finish"):
    """All nodes are done with a round."""

    number: int


_decoder: exact_json.Decoder[Any] = exact_json.Decoder(
    Hello | Refused | Welcome | Equipped | Ready | StoreMade | RoundFailed | Done | Leaving | Round | Over | Finish
)


def decode(body: bytes) -> Any:
    """Return the message of one frame.

    Raises:
        msgspec.DecodeError: it is none of these.
    """
    return _decoder.decode(body)


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
