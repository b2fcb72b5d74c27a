"""How the agents of a run meet: one agent, or several that a coordinator brings together, with a fresh store for the ranks every round."""

from __future__ import annotations

import datetime as dt
import ipaddress
import signal
import socket
import time
from collections.abc import Callable

import torch.distributed as dist
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.rendezvous import RendezvousHandler, RendezvousInfo
from torch.distributed.elastic.rendezvous.api import RendezvousStoreInfo

from ice_notebook.agent.meeting import Meeting
from ice_notebook.errors.nodes import NodeError
from ice_notebook.host.listening import listen
from ice_notebook.options.rendezvous import LOOPBACK
from ice_notebook.wire import node_messages as m

STORE_WAIT_S = 30.0  # it listens before anybody hears of it: who does not reach it by then never will
LOOK_S = 2.0  # one try of it: the round may be over before


def make_store(address: str, port: int, *, is_anywhere: bool = False) -> tuple[dist.TCPStore, int]:
    """Return the server of a store, which ends with the last reference to it, and its port; port 0 lets the system choose.

    It listens on a socket of ours, because a plain `TCPStore(port=0)` listens on every interface of the machine. Its `host` is where this machine
    reaches it.

    Raises:
        OSError: the port is taken, or the address is not one of this machine; see `listen`.
    """
    sock = listen(address, port, is_anywhere=is_anywhere)
    found, port = sock.getsockname()[:2]
    if ipaddress.ip_address(found).is_unspecified:  # it listens on all addresses: the one that was given may not lead here
        address = LOOPBACK if sock.family is socket.AF_INET else "::1"
    server = dist.TCPStore(
        address, port, is_master=True, wait_for_workers=False, master_listen_fd=sock.detach()
    )  # the store closes the descriptor
    return server, port


class EarlyStore:
    """A store that is made before there is a run, where most runs want one: on loopback, with any port."""

    def __init__(self) -> None:
        self._made: tuple[dist.TCPStore, int] | None = make_store(LOOPBACK, 0)

    def give(self, address: str, port: int) -> tuple[dist.TCPStore, int] | None:
        """Hand it over to a run that wants one at this place, unless somebody has put anything into it meanwhile; else it ends here."""
        made, self._made = self._made, None
        return made if made is not None and (address, port) == (LOOPBACK, 0) and made[0].num_keys() == 0 else None


class FreshStoreRendezvous(RendezvousHandler):
    """One node, and a new TCPStore every round.

    torch's own handlers keep their store over restarts, and since 2.6 without a prefix for the attempt: the ranks of the next attempt
    find the addresses of dead ones in it (8 of 14 restarts failed or stalled for a minute with gloo).
    """

    def __init__(self, run_id: str, address: str, port: int, early: EarlyStore | None = None) -> None:
        """The first round has the early store, if that is at the right place."""
        self._run_id = run_id
        self._address = address
        self._port = port
        self._early = None if early is None else early.give(address, port)
        self._store: dist.TCPStore | None = None

    def next_rendezvous(self) -> RendezvousInfo:
        """Make the round's store and return it with our place: node 0 of 1."""
        place = RendezvousStoreInfo(self._address, self._make_store())
        # torch's agents tell each other of their ranks in the store that they are given, and a single one itself: through the round's own
        # that takes 4 to 9 ms. This way, too, the server is ours alone to close, while torch keeps what it was given.
        return RendezvousInfo(dist.HashStore(), 0, 1, place)

    def _make_store(self, *, is_anywhere: bool = False) -> int:
        """Make the round's store, and return its port."""
        self._store = None  # the old one must be closed first when the user has named the port
        made, self._early = self._early, None
        self._store, port = made or make_store(self._address, self._port, is_anywhere=is_anywhere)
        return port

    def get_backend(self) -> str:
        """Return the name of this rendezvous in torch's events."""
        return "ice_notebook"

    @property
    def use_agent_store(self) -> bool:
        """Return True: ranks are clients of the agent's store, also of a group that they make by `env://`."""
        return True

    def is_closed(self) -> bool:
        """Return False: nobody else could close it."""
        return False

    def set_closed(self) -> None:
        """Do nothing: nobody else is to be told."""

    def num_nodes_waiting(self) -> int:
        """Return 0: no other node can join."""
        return 0

    def get_run_id(self) -> str:
        """Return what ranks see as TORCHELASTIC_RUN_ID."""
        return self._run_id

    def leave_together(self) -> None:
        """Wait until all nodes are done, as far as this is not known already."""

    def leave(self) -> None:
        """Say that this node will not take part any more, as far as anybody must be told."""

    def shutdown(self) -> bool:
        """Close the store."""
        self._store = None
        return True


class NodesRendezvous(FreshStoreRendezvous):
    """Several nodes: the coordinator says when a round begins and who is in it; the first node makes the round's store."""

    def __init__(self, run_id: str, address: str, port: int, meeting: Meeting, is_stopped: Callable[[], bool]) -> None:
        super().__init__(run_id, address, port)
        self._meeting = meeting
        self._is_stopped = is_stopped
        self.round = m.Round(number=-1, group_rank=0, group_world_size=0, restarts=0, address=address)
        self.is_assigning = False  # torch's agents tell each other of their ranks, in the store
        meeting.on_over = self._release

    def next_rendezvous(self) -> RendezvousInfo:
        """Wait until the coordinator begins a round, and meet the other agents in it.

        Raises:
            SignalException: the run is being stopped.
            RunOverError: there will be no further round.
            NodeError: the round's store cannot be reached.
        """
        while True:
            self._store = None
            self.is_assigning = True
            found = self._meeting.next_round(self.round.number, self._is_stopped)
            if found is None:
                raise SignalException("the run is being stopped", signal.SIGTERM)
            self.round = found
            address, port = found.address, found.port
            if found.group_rank == 0:
                port = self._make_store()
                self._meeting.tell(m.StoreMade(number=found.number, port=port))
            client = self._reach_store(address, port)
            if client is not None:
                store = dist.PrefixStore("ice_notebook/agent", client)
                return RendezvousInfo(store, found.group_rank, found.group_world_size, RendezvousStoreInfo(address, port))

    def num_nodes_waiting(self) -> int:
        """Return whether another round is to begin: torch then ends its workers and comes to `next_rendezvous`."""
        return int(self._meeting.is_over(self.round.number))

    def _release(self, number: int) -> None:
        """A round is over. Agents that still wait in its store for a lost one are woken by the end of that store."""
        if self.is_assigning and number == self.round.number:
            self._store = None

    def _reach_store(self, address: str, port: int) -> dist.TCPStore | None:
        """Return a client of the round's store, None when the round is over meanwhile."""
        deadline = time.monotonic() + STORE_WAIT_S
        while not self._meeting.is_over(self.round.number):
            try:
                client = dist.TCPStore(address, port, is_master=False, timeout=dt.timedelta(seconds=LOOK_S))
            except dist.DistError as error:
                if time.monotonic() > deadline:
                    raise NodeError.store(f"{address}:{port}", STORE_WAIT_S) from error
                continue
            client.set_timeout(dt.timedelta(seconds=STORE_WAIT_S))
            return client
        return None
