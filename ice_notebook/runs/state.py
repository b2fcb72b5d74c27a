"""Where a run stands: `RunState.apply(event)` is the only place where a run changes, and it is pure.

A live panel, a finished run reopened next week and a test that replays a history are `reduce(RunState.apply, events, RunState())`.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import reduce
from types import MappingProxyType
from typing import Any

from ice_notebook.host.identities import Identity
from ice_notebook.wire import protocol as p

REFUSED_KEPT = 5


class Phase(str, enum.Enum):
    """Where a run stands. Source: `WorkerState` in torch.distributed.elastic.agent.server.api, with RESTARTING and STOPPING added."""

    STARTING = "starting"
    RUNNING = "running"
    RESTARTING = "restarting"
    STOPPING = "stopping"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    STOPPED = "stopped"

    @property
    def is_final(self) -> bool:
        """Return whether nothing will change any more."""
        return self in {Phase.SUCCEEDED, Phase.FAILED, Phase.STOPPED}


class RankPhase(str, enum.Enum):
    """Where one rank of one attempt stands."""

    STARTING = "starting"
    RUNNING = "running"
    RETURNED = "returned"
    FAILED = "failed"
    STOPPED = "stopped"  # ended by us: the run was stopped, or another rank had failed

    @property
    def is_final(self) -> bool:
        """Return whether the rank's part is over."""
        return self in {RankPhase.RETURNED, RankPhase.FAILED, RankPhase.STOPPED}


@dataclass(frozen=True)
class RankState:
    """One rank of one attempt."""

    rank: int
    local_rank: int
    device: str
    pid: int
    node: int = 0
    phase: RankPhase = RankPhase.STARTING
    value: p.Value | None = None
    lost: str = ""  # why its value could not be written
    failure: p.Failure | None = None
    exit_code: int | None = None
    note: str = ""
    lost_output_bytes: int = 0  # that its log files had no room for
    lost_output_why: str = ""


@dataclass(frozen=True)
class NodeState:
    """One machine of a run of several."""

    node: int
    name: str
    n_ranks: int
    devices: str
    left: str = ""  # why it does not take part any more


@dataclass(frozen=True)
class Attempt:
    """One start of the worker group, counted from 0 and never reused."""

    number: int
    restart_count: int
    world_size: int
    began_at: float
    ranks: Mapping[int, RankState] = field(default_factory=dict)
    start: str = ""
    has_others: bool = False  # ranks of which nothing is told here
    root: int | None = None  # the rank that failed first
    failed_at: float | None = None
    ended_by: str = ""  # the change of nodes that it ended with, when no rank is to blame

    def with_rank(self, rank: int, **changes: Any) -> Attempt:
        """Return the attempt with one rank changed; an unknown rank changes nothing."""
        if rank not in self.ranks:
            return self
        ranks = {**self.ranks, rank: replace(self.ranks[rank], **changes)}
        return replace(self, ranks=MappingProxyType(ranks))


@dataclass(frozen=True)
class RunState:
    """A run between two events."""

    phase: Phase = Phase.STARTING
    attempts: tuple[Attempt, ...] = ()
    began_at: float | None = None
    ended_at: float | None = None
    agent: Identity | None = None
    start_note: str = ""  # why ranks were not forked although that was asked for
    stop_reason: p.StopReason | None = None
    end_reason: str = ""
    meeting: tuple[str, int] | None = None  # address and port where other machines can join
    nodes: Mapping[int, NodeState] = field(default_factory=dict)  # by their number, in the order in which they came
    gathering: p.NodesGathering | None = None  # nodes that look for each other
    refused: tuple[str, ...] = ()  # who could not join, and why, the newest last
    rev: int = 0  # counts applied events

    @property
    def agent_pid(self) -> int | None:
        """Return the process number of the agent, None before it has begun."""
        return None if self.agent is None else self.agent.pid

    @property
    def attempt(self) -> Attempt | None:
        """Return the newest attempt."""
        return self.attempts[-1] if self.attempts else None

    @property
    def ranks(self) -> Mapping[int, RankState]:
        """Return the ranks of the newest attempt by global rank."""
        return self.attempts[-1].ranks if self.attempts else {}

    @property
    def present_nodes(self) -> tuple[NodeState, ...]:
        """Return the machines that take part now, this one first; empty for a run of one machine."""
        return tuple(node for node in self.nodes.values() if not node.left)

    @property
    def restarts(self) -> int:
        """Return how often the worker group was started again after a failure."""
        return self.attempts[-1].restart_count if self.attempts else 0

    @property
    def failures(self) -> Mapping[int, p.Failure]:
        """Return how the ranks of the newest attempt failed, the root cause first, then by rank."""
        attempt = self.attempt
        if attempt is None:
            return {}
        failed = [r for r in sorted(attempt.ranks) if attempt.ranks[r].failure is not None]
        failed.sort(key=lambda rank: rank != attempt.root)
        return {rank: failure for rank in failed if (failure := attempt.ranks[rank].failure) is not None}

    def apply(self, event: Any) -> RunState:
        """Return the state after an event. Events of old attempts change their own attempt only; after the end nothing changes."""
        if self.phase.is_final:
            return self
        return replace(_APPLY[type(event)](self, event), rev=self.rev + 1)

    def _with_attempt(self, number: int, change: Callable[[Attempt], Attempt]) -> RunState:
        attempts = tuple(change(a) if a.number == number else a for a in self.attempts)
        return replace(self, attempts=attempts)

    def _with_rank(self, event: Any, **changes: Any) -> RunState:
        return self._with_attempt(event.attempt, lambda attempt: attempt.with_rank(event.rank, **changes))


def replay(events: Iterable[Any]) -> RunState:
    """Return the state that a history leads to."""
    return reduce(RunState.apply, events, RunState())


def _run_begun(state: RunState, event: p.RunBegun) -> RunState:
    return replace(state, began_at=event.at, agent=event.agent, start_note=event.note)


def _attempt_begun(state: RunState, event: p.AttemptBegun) -> RunState:
    ranks = {r.rank: RankState(rank=r.rank, local_rank=r.local_rank, device=r.device, pid=r.pid, node=r.node) for r in event.ranks}
    known = state.attempt
    if known is not None and known.number == event.attempt:  # another node of the same round
        return state._with_attempt(event.attempt, lambda a: replace(a, ranks=MappingProxyType({**a.ranks, **ranks})))
    attempt = Attempt(
        number=event.attempt,
        restart_count=event.restart_count,
        world_size=event.world_size,
        began_at=event.at,
        ranks=MappingProxyType(ranks),
        start=event.start,
        has_others=event.has_others,
    )
    phase = state.phase if state.phase is Phase.STOPPING else Phase.STARTING
    return replace(state, phase=phase, attempts=(*state.attempts, attempt), gathering=None)


def _rank_running(state: RunState, event: p.RankRunning) -> RunState:
    def running(attempt: Attempt) -> Attempt:
        rank = attempt.ranks.get(event.rank)
        return attempt if rank is None or rank.phase.is_final else attempt.with_rank(event.rank, phase=RankPhase.RUNNING)

    state = state._with_attempt(event.attempt, running)
    attempt = state.attempt
    is_complete = attempt is not None and (attempt.has_others or len(attempt.ranks) >= attempt.world_size)
    if (
        state.phase is Phase.STARTING
        and attempt
        and is_complete
        and all(r.phase is not RankPhase.STARTING for r in attempt.ranks.values())
    ):
        return replace(state, phase=Phase.RUNNING)
    return state


def _rank_replaced(state: RunState, event: p.RankReplaced) -> RunState:
    return state._with_rank(event, pid=event.pid)


def _rank_returned(state: RunState, event: p.RankReturned) -> RunState:
    return state._with_rank(event, phase=RankPhase.RETURNED, value=event.value)


def _rank_succeeded(state: RunState, event: p.RankSucceeded) -> RunState:
    return state._with_rank(event, phase=RankPhase.RETURNED)


def _value_lost(state: RunState, event: p.ValueLost) -> RunState:
    return state._with_rank(event, phase=RankPhase.RETURNED, lost=event.reason)


def _rank_failed(state: RunState, event: p.RankFailed) -> RunState:
    return state._with_rank(event, phase=RankPhase.FAILED, failure=event.failure)


def _rank_exited(state: RunState, event: p.RankExited) -> RunState:
    def exited(attempt: Attempt) -> Attempt:
        rank = attempt.ranks.get(event.rank)
        if rank is None:
            return attempt
        phase = rank.phase if rank.phase.is_final else RankPhase.STOPPED
        return attempt.with_rank(event.rank, phase=phase, exit_code=event.exit_code, note=event.note)

    return state._with_attempt(event.attempt, exited)


def _output_lost(state: RunState, event: p.OutputLost) -> RunState:
    return state._with_rank(event, lost_output_bytes=event.size_bytes, lost_output_why=event.reason)


def _attempt_failed(state: RunState, event: p.AttemptFailed) -> RunState:
    state = state._with_attempt(event.attempt, lambda attempt: replace(attempt, root=event.root, failed_at=event.at))
    is_newest = state.attempt is not None and state.attempt.number == event.attempt
    if event.restarting and is_newest and state.phase is not Phase.STOPPING:
        return replace(state, phase=Phase.RESTARTING)
    return state


def _nodes_gathering(state: RunState, event: p.NodesGathering) -> RunState:
    return replace(state, gathering=event)


def _nodes_awaited(state: RunState, event: p.NodesAwaited) -> RunState:
    return replace(state, meeting=(event.address, event.port))


def _node_joined(state: RunState, event: p.NodeJoined) -> RunState:
    node = NodeState(node=event.node, name=event.name, n_ranks=event.n_ranks, devices=event.devices)
    return replace(state, nodes=MappingProxyType({**state.nodes, event.node: node}))


def _node_left(state: RunState, event: p.NodeLeft) -> RunState:
    if event.node not in state.nodes:
        return state
    left = replace(state.nodes[event.node], left=event.reason)
    return replace(state, nodes=MappingProxyType({**state.nodes, event.node: left}))


def _node_refused(state: RunState, event: p.NodeRefused) -> RunState:
    return replace(state, refused=(*state.refused, f"{event.address}: {event.reason}")[-REFUSED_KEPT:])


def _round_ended(state: RunState, event: p.RoundEnded) -> RunState:
    def ended(attempt: Attempt) -> Attempt:
        return replace(attempt, ended_by=event.reason, failed_at=event.at)

    state = state._with_attempt(event.attempt, ended)
    is_newest = state.attempt is not None and state.attempt.number == event.attempt
    if event.restarting and is_newest and state.phase is not Phase.STOPPING:
        return replace(state, phase=Phase.RESTARTING)
    return state


def _stop_asked(state: RunState, event: p.StopAsked) -> RunState:
    return replace(state, phase=Phase.STOPPING, stop_reason=state.stop_reason or event.reason)


def _run_ended(state: RunState, event: p.RunEnded) -> RunState:
    def closed(attempt: Attempt) -> Attempt:
        for rank in attempt.ranks.values():
            if not rank.phase.is_final:
                attempt = attempt.with_rank(rank.rank, phase=RankPhase.STOPPED)
        return attempt

    if state.attempt is not None:
        state = state._with_attempt(state.attempt.number, closed)
    return replace(state, phase=Phase(event.outcome.value), ended_at=event.at, end_reason=event.reason)


_APPLY: dict[Any, Callable[[RunState, Any], RunState]] = {
    p.RunBegun: _run_begun,
    p.AttemptBegun: _attempt_begun,
    p.RankRunning: _rank_running,
    p.RankReplaced: _rank_replaced,
    p.RankReturned: _rank_returned,
    p.RankSucceeded: _rank_succeeded,
    p.ValueLost: _value_lost,
    p.RankFailed: _rank_failed,
    p.RankExited: _rank_exited,
    p.OutputLost: _output_lost,
    p.AttemptFailed: _attempt_failed,
    p.NodesAwaited: _nodes_awaited,
    p.NodesGathering: _nodes_gathering,
    p.NodeJoined: _node_joined,
    p.NodeLeft: _node_left,
    p.NodeRefused: _node_refused,
    p.RoundEnded: _round_ended,
    p.StopAsked: _stop_asked,
    p.RunEnded: _run_ended,
}
