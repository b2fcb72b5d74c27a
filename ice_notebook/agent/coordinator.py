"""Which nodes a run has, when a round of them begins, and when it is over. Pure: the agent that has started the run feeds and obeys it.

A round is one start of the worker group on all its nodes; torch's agents count the same as an attempt. Node 0 is the run's own machine,
where the ranks' store is: without it there is no run.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ice_notebook.wire.node_messages import RoundFailed

WINDOW_S = 0.5  # ranks of other nodes may say what happened to them, and who was first
# A broken connection has its cause elsewhere, and the word of a lost node may be on its way.
COMMUNICATION_WINDOW_S = 2.0


@dataclass
class Member:
    """One machine of the run."""

    id: int
    name: str
    is_ready: bool = False  # its agent could begin a round


@dataclass(frozen=True)
class Begin:
    """A round is to begin on these nodes, in this order."""

    number: int
    members: tuple[int, ...]
    restarts: int


@dataclass(frozen=True)
class End:
    """The round is over before its end, because a rank failed (`root`) or the nodes have changed."""

    number: int
    restarting: bool
    why: str
    root: int | None = None


@dataclass(frozen=True)
class Finished:
    """All nodes are done."""

    number: int


Order = Begin | End | Finished


@dataclass
class _Round:
    number: int
    members: tuple[int, ...]
    done: set[int] = field(default_factory=set)
    failures: dict[int, RoundFailed] = field(default_factory=dict)  # by node, in the order of their arrival
    settles_at: float | None = None


class Coordinator:
    """See the module. Every method returns what is to be done now; `deadline` says when `tick` is due. Times are of a monotonic clock."""

    def __init__(self, *, least: int, most: int, max_restarts: int, last_call_s: float, join_timeout_s: float, now: float) -> None:
        self._least = least
        self._most = most
        self._max_restarts = max_restarts
        self._last_call_s = last_call_s
        self._join_timeout_s = join_timeout_s
        self._gathering_until = now + join_timeout_s
        self._last_call_until: float | None = None
        self._round: _Round | None = None
        self._next_number = 0
        self._next_id = 0
        self.restarts = 0
        self.nodes: dict[int, Member] = {}
        self.is_over = False

    # ---- what happens

    @property
    def is_full(self) -> bool:
        """Return whether no further node may join."""
        return len(self.nodes) >= self._most

    @property
    def deadline(self) -> float | None:
        """Return when `tick` is to be called, at the latest."""
        if self.is_over:
            return None
        if self._round is not None:
            return self._round.settles_at
        moments = [self._gathering_until]
        if self._last_call_until is not None:
            moments.append(self._last_call_until)
        return min(moments)

    def join(self, name: str) -> int:
        """Take a node in, and return its number."""
        node = Member(self._next_id, name)
        self._next_id += 1
        self.nodes[node.id] = node
        return node.id

    def ready(self, node: int, now: float) -> list[Order]:
        """A node's agent could begin a round."""
        if self.is_over or node not in self.nodes:
            return []
        self.nodes[node].is_ready = True
        # A round in which some are done already goes on to its end: what they returned must not be taken back.
        if self._round is not None and node not in self._round.members and not self._round.done and not self._round.failures:
            return self._end(now, f"{self.title(node)} joined")
        return self._begin_if_possible(now)

    def done(self, node: int, number: int) -> list[Order]:
        """A node's ranks have returned."""
        found = self._running(number)
        if found is None:
            return []
        found.done.add(node)
        return self._finish_if_possible(found)

    def failed(self, node: int, failure: RoundFailed, now: float) -> list[Order]:
        """A rank of a node has failed."""
        found = self._running(failure.number)
        if found is None:
            return []
        found.failures.setdefault(node, failure)
        window_s = COMMUNICATION_WINDOW_S if all(f.is_communication for f in found.failures.values()) else WINDOW_S
        found.settles_at = min(found.settles_at or now + window_s, now + window_s)
        return self._settle(found, now) if self._have_all_spoken(found) and window_s == WINDOW_S else []

    def lose(self, node: int, why: str, now: float) -> list[Order]:
        """A node is gone: `why` says how, as in `node 1 (host) was lost`."""
        if node not in self.nodes or self.is_over:
            return []
        title = self.title(node)
        del self.nodes[node]
        found = self._round
        if found is None:
            if self._next_number and len(self.nodes) < self._least:
                return self._give_up(f"{title} {why}, and {self._too_few()}")
            return self._begin_if_possible(now)
        if node not in found.members:
            return []
        if node in found.done:
            return self._finish_if_possible(found)
        if any(not failure.is_communication for failure in found.failures.values()):
            return self._settle(found, now)
        if len(self.nodes) < self._least:
            return self._give_up(f"{title} {why}, and {self._too_few()}")
        return self._end(now, f"{title} {why}")

    def tick(self, now: float) -> list[Order]:
        """Time has passed."""
        if self.is_over:
            return []
        if self._round is not None:
            due = self._round.settles_at is not None and now >= self._round.settles_at
            return self._settle(self._round, now) if due else []
        if self._last_call_until is not None and now >= self._last_call_until:
            return self._begin_if_possible(now)
        if now >= self._gathering_until:
            ready = sum(node.is_ready for node in self.nodes.values())
            joined = (
                "no other node has joined"
                if len(self.nodes) == 1
                else f"{len(self.nodes)} nodes have joined, {ready} of them ready"
            )
            return self._give_up(f"{joined} within {self._join_timeout_s:g} s, and the run needs {self._least}")
        return []

    def title(self, node: int) -> str:
        """Return how a node is called: `node 1 (host)`."""
        return f"node {node} ({self.nodes[node].name})"

    # ---- steps

    def _running(self, number: int) -> _Round | None:
        found = self._round
        return found if found is not None and found.number == number and not self.is_over else None

    def _begin_if_possible(self, now: float) -> list[Order]:
        if self._round is not None or self.is_over or 0 not in self.nodes:
            return []
        if len(self.nodes) < self._least or not all(node.is_ready for node in self.nodes.values()):
            self._last_call_until = None
            return []
        # Nodes that took part before are all there is to wait for.
        if len(self.nodes) < self._most and not self._next_number:
            if self._last_call_until is None:
                self._last_call_until = now + self._last_call_s
            if now < self._last_call_until:
                return []
        self._last_call_until = None
        members = tuple(sorted(self.nodes))
        for node in self.nodes.values():
            node.is_ready = False
        self._round = _Round(self._next_number, members)
        self._next_number += 1
        return [Begin(self._round.number, members, self.restarts)]

    def _have_all_spoken(self, found: _Round) -> bool:
        return all(node in found.failures or node in found.done or node not in self.nodes for node in found.members)

    def _finish_if_possible(self, found: _Round) -> list[Order]:
        if found.failures or not all(node in found.done for node in found.members):
            return []
        self.is_over = True
        return [Finished(found.number)]

    def _settle(self, found: _Round, now: float) -> list[Order]:
        """Say which rank failed first, and whether the group is started again."""
        failure = min(found.failures.values(), key=lambda each: each.is_communication)  # of equals the first that came
        is_restarting = self.restarts < self._max_restarts and len(self.nodes) >= self._least
        self.restarts += is_restarting
        return self._end(now, f"rank {failure.rank}: {failure.headline}", root=failure.rank, restarting=is_restarting)

    def _end(self, now: float, why: str, *, root: int | None = None, restarting: bool = True) -> list[Order]:
        assert self._round is not None
        number = self._round.number
        self._round = None
        self.is_over = not restarting
        self._gathering_until = now + self._join_timeout_s
        return [End(number, restarting, why, root)]

    def _give_up(self, why: str) -> list[Order]:
        number = self._round.number if self._round is not None else self._next_number - 1
        self._round = None
        self.is_over = True
        return [End(number, restarting=False, why=why)]

    def _too_few(self) -> str:
        n = len(self.nodes)
        return f"{n} {'node is' if n == 1 else 'nodes are'} left of the {self._least} that the run needs"
