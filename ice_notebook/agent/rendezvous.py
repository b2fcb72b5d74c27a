"""How the agents of a run meet: here one agent, with a fresh store for the ranks every round. Runs in the agent."""

from __future__ import annotations

import socket

import torch.distributed as dist
from torch.distributed.elastic.rendezvous import RendezvousHandler, RendezvousInfo
from torch.distributed.elastic.rendezvous.api import RendezvousStoreInfo


class FreshStoreRendezvous(RendezvousHandler):
    """One node, and a new TCPStore every round.

    torch's own handlers keep their store over restarts, and since 2.6 without a prefix for the attempt: the ranks of the next attempt
    find the addresses of dead ones in it (8 of 14 restarts failed or stalled for a minute with gloo).

    The store listens on a socket of ours, because a plain `TCPStore(port=0)` listens on every interface of the machine.
    """

    def __init__(self, run_id: str, address: str, port: int) -> None:
        self._run_id = run_id
        self._address = address
        self._port = port
        self._store: dist.TCPStore | None = None

    def next_rendezvous(self) -> RendezvousInfo:
        """Make the round's store and return it with our place: node 0 of 1."""
        self._store = None  # the old one must be closed first when the user has named the port
        sock = listen(self._address, self._port)
        port = sock.getsockname()[1]
        self._store = dist.TCPStore(
            self._address, port, is_master=True, wait_for_workers=False, master_listen_fd=sock.detach()
        )  # the store closes the descriptor
        # torch keeps what it is given until long after the next round has begun: a client, so that the server is ours alone to close.
        client = dist.TCPStore(self._address, port, is_master=False)
        prefix = dist.PrefixStore("ice_notebook/agent", client)
        return RendezvousInfo(prefix, 0, 1, RendezvousStoreInfo(self._address, port))

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

    def shutdown(self) -> bool:
        """Close the store."""
        self._store = None
        return True


def listen(address: str, port: int) -> socket.socket:
    """Return a listening socket on one address; port 0 lets the system choose.

    Raises:
        OSError: the port is taken, or the address is not one of this machine.
    """
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((address.strip("[]"), port))
        sock.listen(2048)
    except OSError:
        sock.close()
        raise
    return sock
