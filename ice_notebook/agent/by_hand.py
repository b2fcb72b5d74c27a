"""How agents meet that were each started by hand, as torchrun's are: with a number each, or by torch's c10d rendezvous. Runs in the agent.

They know an address and a port, and no token: nothing is unpickled of what they tell each other. A torchrun cannot take part, because every round has
a store of its own here: it is known by the keys that it writes, and by those that it does not.
"""

from __future__ import annotations

import abc
import contextlib
import datetime as dt
import errno
import math
import os
import secrets
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.rendezvous import (
    RendezvousClosedError,
    RendezvousConnectionError,
    RendezvousHandler,
    RendezvousInfo,
    RendezvousParameters,
    RendezvousStateError,
    RendezvousTimeoutError,
)
from torch.distributed.elastic.rendezvous.api import RendezvousStoreInfo
from torch.distributed.elastic.rendezvous.dynamic_rendezvous import create_handler

from ice_notebook.agent.json_rendezvous import JsonBackend, Node, State
from ice_notebook.agent.reaching import Reaching
from ice_notebook.agent.rendezvous import STORE_WAIT_S, FreshStoreRendezvous, make_store
from ice_notebook.errors import join
from ice_notebook.errors.nodes import NodeError
from ice_notebook.wire import protocol as p

LOOK_S = 0.2  # how long one look at a store may take: the run can be stopped between two
LEAVE_WAIT_S = 300.0  # torchrun's: ranks of other nodes may still need the store
FOREIGN_WAIT_S = 1.0  # a store of ours has its first key a moment after it is made
ANSWER_WAIT_S = 30.0  # torch's rendezvous lets its nodes go within two seconds of each other
BEAT_S = 1.0
_ROUND, _HERE, _AGAIN, _DONE, _BEAT = (f"ice_notebook/{word}" for word in ("round", "here", "again", "done", "beat"))
_THEIRS = "torchelastic/role_info"  # torch's agents write it, with their number, where they have met; ours do so elsewhere
_STATE_OF_TORCHRUN = "torch.rendezvous"
_OWN_SETTINGS = {"is_host", "read_timeout", "store_type"}  # of the rendezvous: of its store, which is made here


@dataclass(frozen=True)
class Agent:
    """What a rendezvous needs of the agent that it is in."""

    is_stopped: Callable[[], bool]
    record: Callable[[Any], None]  # an event
    end_round: Callable[[str], None]  # say why a round ends although no rank has failed


class _ByHand(FreshStoreRendezvous):
    """What both kinds have in common: what is said while nodes are awaited, and how nodes leave a round together, by keys in its store."""

    def __init__(self, plan: p.Plan, group: p.GroupPlan, agent: Agent, address: str, port: int) -> None:
        super().__init__(plan.rdzv_id, address, port)
        self._group = group
        self._agent = agent
        self._where = f"[{group.address}]:{group.port}" if ":" in group.address else f"{group.address}:{group.port}"
        self._told: p.NodesGathering | None = None
        self._client: dist.TCPStore | None = None  # of the round's store
        self._rank = 0  # of this node in the round
        self._n_nodes = 0
        self._has_left = False
        self._is_end_told = False

    # ---- while nodes are awaited

    def _check(self, deadline: float, why: str = "") -> None:
        """See that it is of use to wait on."""
        if self._agent.is_stopped():
            raise SignalException("the run is being stopped", signal.SIGTERM)
        if time.monotonic() >= deadline:
            raise self._not_met(why)

    def _not_met(self, why: str = "") -> NodeError:
        told = self._told
        timeout_s = self._group.join_timeout
        if why:
            return NodeError.not_reached(self._where, why, timeout_s)
        here = told.here if told is not None else ()
        return NodeError.not_met(self._where, here, self._group.least, timeout_s)

    def _tell(self, here: Iterable[str], why: str = "") -> None:
        """Say who is here, or why the meeting place is not reached, when that has changed."""
        news = p.NodesGathering(
            at=0.0, where=self._where, here=tuple(here), least=self._group.least, most=self._group.most, problem=why
        )
        if news != self._told:
            self._told = news
            self._agent.record(p.replace(news, at=time.time()))

    def _reach(self, host: str, port: int, deadline: float, prepare: Callable[[], str | None] = lambda: None) -> dist.TCPStore:
        reaching = Reaching(host, port, prepare)
        while (client := reaching.look(LOOK_S)) is None:
            self._check(deadline, reaching.why or "nothing answers there")
            if reaching.why:
                self._tell((), reaching.why)
        client.set_timeout(dt.timedelta(seconds=STORE_WAIT_S))
        return client

    # ---- while a round goes on

    def num_nodes_waiting(self) -> int:
        """Return whether another round is to begin: a node asks for it, or one was lost."""
        waiting, lost = self._count_waiting(), self._lost()
        if (waiting or lost) and not self._is_end_told:
            self._is_end_told = True
            losses = f"{join(lost, 'and')} {'was' if len(lost) == 1 else 'were'} lost"
            self._agent.end_round(losses if lost else "another node begins anew, or joins")
        return waiting + len(lost)

    @abc.abstractmethod
    def _count_waiting(self) -> int:
        """Return how many nodes wait for another round."""

    @abc.abstractmethod
    def _lost(self) -> list[str]:
        """Return the nodes of this round that have given no sign of life for a while, and had not said that they were done."""

    def _done(self) -> set[int]:
        """Return the nodes of the round that are done."""
        client = self._client
        return {node for node in range(self._n_nodes) if client is not None and client.check([f"{_DONE}/{node}"])}

    def leave_together(self) -> None:
        """Say that this node is done, and wait until all are, or are lost."""
        deadline = time.monotonic() + LEAVE_WAIT_S
        self.leave()
        with contextlib.suppress(dist.DistError):  # the store is gone with its node: there is nothing to wait for
            while self._client is not None and len(self._done()) < self._n_nodes and not self._lost():
                if self._agent.is_stopped() or time.monotonic() >= deadline:
                    return
                time.sleep(LOOK_S / 4)

    def leave(self) -> None:
        """Say that this node will not take part any more, so that none that is done waits for it."""
        if self._client is not None and not self._has_left:
            self._has_left = True
            with contextlib.suppress(dist.DistError):
                self._client.set(f"{_DONE}/{self._rank}", b"")

    def _begin_round(self, client: dist.TCPStore, rank: int, n_nodes: int) -> None:
        self._client, self._rank, self._n_nodes = client, rank, n_nodes
        self._has_left = self._is_end_told = False

    @property
    def _loss_s(self) -> float:
        """Return after how many seconds without a sign of life a node is lost: torch's settings and defaults."""
        configs = self._group.configs
        return float(configs.get("keep_alive_interval", 5)) * float(configs.get("keep_alive_max_attempt", 3))


class StaticRendezvous(_ByHand):
    """Nodes with a number each. Node 0 has the store, on the one port that all know, and makes it anew for every round.

    A node that comes back with failed ranks says so in the store that it leaves, and the others come as well: with torch's own they would
    notice only by their ranks.
    """

    def __init__(self, plan: p.Plan, group: p.GroupPlan, agent: Agent) -> None:
        super().__init__(plan, group, agent, group.address, group.port)
        self._rank = group.node_rank
        self._last = b""  # the round that this node has left
        self._beats: Beats | None = None

    def next_rendezvous(self) -> RendezvousInfo:
        """Meet the other nodes at a new store.

        Raises:
            NodeError: they do not come in time, or one is a torchrun.
            SignalException: the run is being stopped.
        """
        deadline = time.monotonic() + self._group.join_timeout
        self._say_again()
        client = self._open(deadline) if self._rank == 0 else self._reach_round(deadline)
        self._begin_round(client, self._rank, self._group.most)
        client.set(f"{_HERE}/{self._rank}", b"")
        self._wait_for_all(client, deadline)
        host = self._store.host if self._store is not None else self._address
        self._beats = Beats(host, self._group.port, self._rank, self._n_nodes)
        store = dist.PrefixStore("ice_notebook/agent", client)
        return RendezvousInfo(store, self._rank, self._n_nodes, RendezvousStoreInfo(self._address, self._group.port))

    def _wait_for_all(self, client: dist.TCPStore, deadline: float) -> None:
        nodes = range(self._group.most)
        while True:
            here = [node for node in nodes if client.check([f"{_HERE}/{node}"])]
            if len(here) == len(nodes):
                return
            self._tell(f"node {node}" for node in here)
            self._check(deadline)
            if any(client.check([f"{self._run_id}/{_THEIRS}/{node}"]) for node in nodes):
                raise NodeError.torchrun_came(self._where)
            time.sleep(LOOK_S / 4)

    def _count_waiting(self) -> int:
        assert self._client is not None
        try:
            return int(self._client.add(_AGAIN, 0))
        except dist.DistError:
            return 0  # node 0 is gone, or begins anew: its beats stay away, or the ranks notice

    def _lost(self) -> list[str]:
        return [] if self._beats is None else [f"node {node}" for node in self._beats.silent(self._loss_s)]

    def _say_again(self) -> None:
        if self._beats is not None:
            self._beats.end()
            self._beats = None
        if self._client is None:
            return
        with contextlib.suppress(dist.DistError):  # node 0 has begun anew already
            self._client.add(_AGAIN, 1)
        self._client = None

    def _open(self, deadline: float) -> dist.TCPStore:
        def make_store() -> str | None:
            if self._store is None:
                with contextlib.suppress(socket.gaierror):  # the name may be known in a moment
                    self._make_store(is_anywhere=True)  # it is said to be this machine's: a router may translate it
            return self._store.host if self._store is not None else None

        self._store = None
        client = self._reach(self._address, self._group.port, deadline, make_store)
        client.set(_ROUND, secrets.token_hex(8))
        return client

    def _reach_round(self, deadline: float) -> dist.TCPStore:
        """Return a client of the round that follows the one left."""
        is_first, foreign_since = not self._last, float("inf")
        while True:
            client = self._reach(self._address, self._group.port, deadline)
            with contextlib.suppress(dist.DistError):  # node 0 closes its old store just now
                client.set_timeout(dt.timedelta(seconds=LOOK_S))
                # Later, ranks of the round before may be the first to write into a new store.
                is_foreign = is_first and not client.check([_ROUND]) and client.num_keys() > 0
                foreign_since = min(foreign_since, time.monotonic()) if is_foreign else float("inf")
                if time.monotonic() > foreign_since + FOREIGN_WAIT_S:
                    raise NodeError.torchrun_listens(self._where)
                number = client.get(_ROUND)
                if number != self._last:
                    self._last = number
                    client.set_timeout(dt.timedelta(seconds=STORE_WAIT_S))
                    return client
            self._check(deadline)
            time.sleep(LOOK_S / 4)


class Beats(threading.Thread):
    """Signs of life of the nodes of one round, in its store: ranks that use no collective would notice nothing."""

    def __init__(self, host: str, port: int, rank: int, n_nodes: int) -> None:
        super().__init__(name="ice-beats", daemon=True)
        self._reaching = Reaching(host, port)  # a client of its own: another thread's may wait in the store
        self._rank = rank
        self._is_over = threading.Event()
        now = time.monotonic()
        self._seen = {node: (b"", now) for node in range(n_nodes) if node != rank}
        self.start()

    def end(self) -> None:
        """Give no more signs of life: the round is over."""
        self._is_over.set()

    def silent(self, for_s: float) -> list[int]:
        """Return the nodes that have given no sign of life for so long, and had not said that they were done."""
        now = time.monotonic()
        return [node for node, (_, at) in sorted(self._seen.items()) if now - at > for_s]

    def run(self) -> None:
        client, count = None, 0
        while not self._is_over.wait(BEAT_S):
            client = client or self._reaching.look(BEAT_S)
            if client is None:
                continue
            count += 1
            try:
                client.set(f"{_BEAT}/{self._rank}", str(count))
                self._look(client)
            except dist.DistError:
                client = None  # node 0 is gone, or begins anew

    def _look(self, client: dist.TCPStore) -> None:
        for node, (beat, _) in list(self._seen.items()):
            if client.check([f"{_DONE}/{node}"]):
                del self._seen[node]
            elif client.check([f"{_BEAT}/{node}"]) and (found := client.get(f"{_BEAT}/{node}")) != beat:
                self._seen[node] = found, time.monotonic()


class DynamicRendezvous(_ByHand):
    """torch's c10d rendezvous says who is in a round; the first of them makes the round's store, and publishes where it is."""

    def __init__(self, plan: p.Plan, group: p.GroupPlan, agent: Agent) -> None:
        super().__init__(plan, group, agent, "", plan.master_port)
        self._server: dist.TCPStore | None = None  # of the rendezvous, in the node that was first at the endpoint
        self._meeting: dist.TCPStore | None = None
        self._backend: JsonBackend | None = None
        self._inner: RendezvousHandler | None = None
        self._deadline = math.inf  # of the round that is gathered
        self._members: dict[Node, int] = {}  # the round's
        # Else torch makes a store for the ranks itself, one for all rounds, which listens on every address.
        os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"

    def next_rendezvous(self) -> RendezvousInfo:
        """Meet the other nodes, as torch does, and have a store that no earlier round has used.

        Raises:
            NodeError: they do not come in time, a node is a torchrun, or what lies at the endpoint cannot be read.
            SignalException: the run is being stopped.
        """
        self._store = self._client = None
        self._members = {}
        self._deadline = time.monotonic() + self._group.join_timeout
        try:
            info = self._open().next_rendezvous()
        except RendezvousTimeoutError as error:
            raise self._not_met() from error
        except RendezvousStateError as error:
            raise NodeError.unreadable_state(self._where) from error
        except RendezvousClosedError as error:
            raise NodeError.meeting_closed(self._where) from error
        except (RendezvousConnectionError, dist.DistError) as error:
            raise NodeError.meeting_lost(self._where) from error
        finally:
            self._deadline = math.inf
        return self._enter(info)

    def _enter(self, info: RendezvousInfo) -> RendezvousInfo:
        """Have the ranks' store, in the first node of the round, or reach it."""
        place, deadline = info.bootstrap_store_info, time.monotonic() + ANSWER_WAIT_S
        assert place is not None
        assert self._backend is not None
        assert self._backend.state is not None
        if info.rank == 0:
            self._address = place.master_addr
            info.store.set(_ROUND, str(self._make_store()))
        port = self._read_port(info.store, deadline)
        self._begin_round(self._reach(place.master_addr, port, deadline), info.rank, info.world_size)
        self._members = dict(self._backend.state.participants)
        store = dist.PrefixStore("ice_notebook/agent", self._client)
        return RendezvousInfo(store, info.rank, info.world_size, RendezvousStoreInfo(place.master_addr, port))

    def _read_port(self, store: dist.Store, deadline: float) -> int:
        """Return the port that the first node of a round has published."""
        while not store.check([_ROUND]):
            if self._agent.is_stopped():
                raise SignalException("the run is being stopped", signal.SIGTERM)
            if time.monotonic() >= deadline:
                raise NodeError.silent(self._where, ANSWER_WAIT_S)
            time.sleep(LOOK_S / 4)
        try:
            return int(store.get(_ROUND))
        except ValueError as error:
            raise NodeError.unreadable_state(self._where) from error

    # ---- the meeting place

    def _open(self) -> RendezvousHandler:
        """Return torch's rendezvous, at a store that this node makes if it is the first at the endpoint."""
        if self._inner is not None:
            return self._inner
        group = self._group
        meeting = self._meeting = self._reach(group.address, group.port, self._deadline, self._serve)
        meeting.set_timeout(dt.timedelta(seconds=min(STORE_WAIT_S, max(1.0, group.join_timeout))))
        self._backend = JsonBackend(meeting, self._run_id, self._on_look)
        parameters = RendezvousParameters(
            backend="c10d",
            endpoint=self._where,
            run_id=self._run_id,
            min_nodes=group.least,
            max_nodes=group.most,
            local_addr=group.local_address or _own_address(group.address, group.port),
            **{
                "join_timeout": str(math.ceil(group.join_timeout)),
                **{name: value for name, value in group.configs.items() if name not in _OWN_SETTINGS},
            },
        )
        self._inner = create_handler(meeting, self._backend, parameters)
        return self._inner

    def _serve(self) -> str | None:
        """Have the store of the rendezvous, unless another node has it, or the address is another machine's. Return where it is reached from here."""
        is_host = self._group.configs.get("is_host", "").lower()
        if self._server is not None:
            return str(self._server.host)
        if is_host in {"0", "false", "f", "no", "n"}:
            return None
        try:
            self._server, _ = make_store(self._group.address, self._group.port, is_anywhere=is_host != "")
        except OSError as error:
            if error.errno not in {errno.EADDRINUSE, errno.EADDRNOTAVAIL} and not isinstance(error, socket.gaierror):
                raise NodeError.port(self._group.address, self._group.port, error) from error
            return None
        return str(self._server.host)

    def _on_look(self, state: State | None) -> None:
        """Between two looks at the state: say who is there, and see that it is of use to wait on. torch's thread for signs of life looks, too."""
        if self._deadline == math.inf or threading.current_thread() is not threading.main_thread():
            return
        assert self._meeting is not None
        if state is not None and state.participants and not state.complete:
            self._tell(sorted(node.address for node, _ in state.participants))
        self._check(self._deadline)
        if self._meeting.check([f"{_STATE_OF_TORCHRUN}.{self._run_id}"]):
            raise NodeError.torchrun_came(self._where)

    # ---- while a round goes on

    def _count_waiting(self) -> int:
        assert self._inner is not None
        try:
            return int(self._inner.num_nodes_waiting())
        except RendezvousConnectionError as error:
            raise NodeError.meeting_lost(self._where) from error
        except RendezvousStateError as error:
            raise NodeError.unreadable_state(self._where) from error

    def _lost(self) -> list[str]:
        if self._backend is None or not self._members:
            return []
        silent = self._backend.silent_for(self._members)
        lost = [node for node, for_s in silent.items() if for_s > self._loss_s and self._members[node] != self._rank]
        if not lost:
            return []
        done: set[int] = set()
        with contextlib.suppress(dist.DistError):  # the store's own node is the one that is lost
            done = self._done()
        return [f"node {self._members[node]} ({node.address})" for node in lost if self._members[node] not in done]

    def is_closed(self) -> bool:
        """Return whether a node has ended the rendezvous for all."""
        return self._inner is not None and bool(self._inner.is_closed())

    def set_closed(self) -> None:
        """End the rendezvous for all nodes."""
        if self._inner is not None:
            self._inner.set_closed()

    def shutdown(self) -> bool:
        """Close the store, and leave the rendezvous."""
        self._store = None
        return self._inner is None or bool(self._inner.shutdown())


def rendezvous_by_hand(plan: p.Plan, group: p.GroupPlan, agent: Agent) -> FreshStoreRendezvous:
    """Return how an agent that was started by hand meets the others."""
    return (StaticRendezvous if group.backend == "static" else DynamicRendezvous)(plan, group, agent)


def _own_address(host: str, port: int) -> str | None:
    """Return the address at which the machine of the endpoint would see this one. A host name of one's own often means the loopback."""
    try:
        family, kind, *_, place = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as sock:
            sock.connect(place)  # sends nothing
            return str(sock.getsockname()[0])
    except OSError:
        return None  # torch takes the host name, and says what is wrong with the endpoint
