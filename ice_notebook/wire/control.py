"""What kernel, agent, ranks and the processes that fork them say to each other: each kind of message, and who may say it to whom.

A message to one rank goes from the kernel by way of its agent (`ForRank`), and from there, when the rank is another node's, by way of that
node's; one that a rank has for the kernel comes back the same way (`ForKernel`, then `OfRank`). Who passes it on does not read it, so that a new
kind of such a message is known at its two ends alone.
"""

from __future__ import annotations

import signal
from typing import Any

from ice_notebook.wire import node_messages as m
from ice_notebook.wire import protocol as p
from ice_notebook.wire.messages import Bulk, Message

# ---- what a kernel tells an agent --------------------------------------------------------------------------------------------------------


class Prepare(Message, frozen=True, kw_only=True):
    """The first word to an agent, or to a fork server: get ready."""

    preparation: p.Preparation


class TakeRun(Message, frozen=True, kw_only=True):
    """Do this run, whenever you are ready."""

    plan: p.Plan


class Offer(Message, frozen=True, kw_only=True):
    """An agent that stands by may be the one to do this run. It touches nothing of it before it is `Settled`."""

    plan: p.Plan


class Settled(Message, frozen=True, kw_only=True):
    """It is the one: it does the run that was offered."""


class SetPace(Message, frozen=True, kw_only=True):
    """So many ranks may get ready at the same time; None: all."""

    at_a_time: int | None


class AddSpares(Message, frozen=True, kw_only=True):
    """Get more ranks ready, for a restart."""

    count: int


class Resize(Message, frozen=True, kw_only=True):
    """The ranks' terminals have another size."""

    columns: int
    rows: int


class Preload(Message, frozen=True, kw_only=True):
    """Import these modules while you stand by. Said to agents, fork servers and ranks."""

    modules: tuple[str, ...]


class PassSignal(Message, frozen=True, kw_only=True):
    """Pass a signal on to the ranks that have a handler of their own for it."""

    number: int


class Stop(Message, frozen=True, kw_only=True):
    """End the run: ranks hear of it by a signal first. Urgent: kill."""

    reason: p.StopReason
    is_urgent: bool = False
    signal: int = signal.SIGINT


class ForRank(Bulk, frozen=True, kw_only=True):
    """A message, packed, for one rank of the run, wherever it is."""

    rank: int


# ---- what an agent tells its kernel ------------------------------------------------------------------------------------------------------


class Ready(Message, frozen=True, kw_only=True):
    """A rank, or all ranks of an agent, are up and wait."""

    readiness: p.Readiness


class Taken(Message, frozen=True, kw_only=True):
    """An agent that was offered a run is alive and takes it."""


class Spoiled(Bulk, frozen=True, kw_only=True):
    """Ranks die while they stand by; the bytes are what the last one has printed."""


class Stopping(Message, frozen=True, kw_only=True):
    """A stop was heard."""


class Happened(Message, frozen=True, kw_only=True):
    """Something happened in the run."""

    event: p.AnyEvent


class Output(Bulk, frozen=True, kw_only=True):
    """What a rank has printed."""

    attempt: int
    rank: int
    missed: int = 0  # bytes before these that were left out; the log file has them
    is_kept: bool = True  # in the log file, which then says which stream's it is
    is_stderr: bool = False


class Progress(Message, frozen=True, kw_only=True):
    """How far the loops of a rank are: name, done, total, and what else a bar has."""

    attempt: int = -1  # a rank leaves these two to its agent, which knows its place
    rank: int = -1
    bars: list[Any]


class Imported(Message, frozen=True, kw_only=True):
    """What the user's code has imported in a rank: later launches may preload it."""

    modules: list[str]


class OfRank(Bulk, frozen=True, kw_only=True):
    """A message, packed, that a rank has for whoever controls the run."""

    attempt: int
    rank: int


# ---- what an agent tells a rank ----------------------------------------------------------------------------------------------------------


class Place(Message, frozen=True, kw_only=True):
    """A rank that is up learns who it is, and what to do."""

    go: p.Go


class Begin(Message, frozen=True, kw_only=True):
    """All ranks have accepted their places: the user's code may begin."""


class Unwind(Message, frozen=True, kw_only=True):
    """The interrupt that follows is the agent's: the run is being stopped."""


# ---- what a rank tells its agent ---------------------------------------------------------------------------------------------------------


class Tied(Message, frozen=True, kw_only=True):
    """It dies with the agent, whatever it does."""


class Accepted(Message, frozen=True, kw_only=True):
    """It has its place: from here on its end is the run's affair."""


class Loaded(Message, frozen=True, kw_only=True):
    """It has read the payload."""


class Returned(Message, frozen=True, kw_only=True):
    """Its function has returned, or its script has given a value, which is written."""

    value: p.Value


class Lost(Message, frozen=True, kw_only=True):
    """There is a value, and it could not be written."""

    reason: str  # one sentence that names rank and object


class Failed(Message, frozen=True, kw_only=True):
    """The user's code raised."""

    failure: p.Failure


class Unwound(Message, frozen=True, kw_only=True):
    """The user's code has ended by the agent's interrupt."""


class HasHandler(Message, frozen=True, kw_only=True):
    """A handler of the user's own answers the interrupt: it is given its time."""


class ForKernel(Bulk, frozen=True, kw_only=True):
    """A message, packed, for whoever controls the run."""


class NotUnderstood(Message, frozen=True, kw_only=True):
    """A message came of a kind that a rank does not know."""

    what: str


# ---- fork servers ------------------------------------------------------------------------------------------------------------------------


class ForkAgent(Message, frozen=True, kw_only=True):
    """Fork an agent, which gets the two descriptors that follow: its socket, and a file for what it says."""

    preparation: p.Preparation
    ticket: int


class ForkSuccessor(Message, frozen=True, kw_only=True):
    """Fork a fork server that is to import more, with two descriptors as an agent."""

    preparation: p.Preparation
    ticket: int


class Quit(Message, frozen=True, kw_only=True):
    """End, when all that was asked for is done."""


class ServerReady(Message, frozen=True, kw_only=True):
    """A fork server is up, or has imported more."""

    readiness: p.Readiness
    refusal: str = ""  # why what it starts is not forked


class Forked(Message, frozen=True, kw_only=True):
    """What was asked for with a ticket is there; its pidfd follows."""

    ticket: int


class Exited(Message, frozen=True, kw_only=True):
    """What was forked for a ticket has ended."""

    ticket: int
    code: int


class ForkRank(Message, frozen=True, kw_only=True):
    """An agent asks its rank server for a rank, whose descriptors follow."""

    settings: dict[str, Any]
    marker: str


class RankForked(Message, frozen=True, kw_only=True):
    """It is there."""

    pid: int


class RankNotForked(Message, frozen=True, kw_only=True):
    """It could not be forked."""

    error: str


# ---- who says what to whom ---------------------------------------------------------------------------------------------------------------

ToAgent = (  # by the kernel, or by the process with which a node takes part
    Prepare
    | TakeRun
    | Offer
    | Settled
    | SetPace
    | AddSpares
    | Resize
    | Preload
    | PassSignal
    | Stop
    | ForRank
    | m.Round
    | m.Over
    | m.Finish
)
FromAgent = (
    Ready
    | Taken
    | Spoiled
    | Stopping
    | Happened
    | Output
    | Progress
    | Imported
    | OfRank
    | m.NodeReady
    | m.StoreMade
    | m.RoundFailed
    | m.Done
)
ToRank = Preload | Place | Begin | Unwind
FromRank = (
    Tied
    | Ready
    | Accepted
    | Progress
    | Imported
    | Loaded
    | Returned
    | Lost
    | Failed
    | Unwound
    | HasHandler
    | ForKernel
    | NotUnderstood
)
ToServer = Prepare | Preload | ForkAgent | ForkSuccessor | Quit
FromServer = ServerReady | Forked | Exited
ToRankServer = ForkRank
FromRankServer = RankForked | RankNotForked
FromNode = (  # a node tells the first one, once it has joined
    Happened | Output | Progress | OfRank | m.Piece | m.Leaving | m.NodeReady | m.StoreMade | m.RoundFailed | m.Done
)
ToNode = Stop | ForRank | m.Round | m.Over | m.Finish
